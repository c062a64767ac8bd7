"""The app, driven by keys and the mouse: what is on the screen."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from statsfs.eyes.samples import Sample
from statsfs.top.feed import Feed
from statsfs.top.rows import Cell
from tests.support.top_place import MadePlace, node
from tests.top.driving import Driven, driving

pytestmark = pytest.mark.slow


def line_with(screen: str, text: str) -> str:
    """The first line that has a text; of the right pane only, if it is there."""
    lines = [line for line in screen.splitlines() if text in line]
    return (
        lines[0].rpartition("▏")[2] if lines and text in lines[0].rpartition("▏")[2] else lines[0]
    )


def run(monkeypatch: Any, test: Any, **arguments: Any) -> None:
    """Run a test in an app."""

    async def drive() -> None:
        async with driving(monkeypatch, **arguments) as driven:
            await test(driven)

    asyncio.run(drive())


def test_the_first_screen_has_the_tree_and_the_numbers(monkeypatch: Any) -> None:
    """Totals and rates on the left; value, rate, bars, unit and description on the right."""

    async def test(driven: Driven) -> None:
        screen = driven.screen
        assert "statsfs top  /run/stats" in screen.splitlines()[0]
        assert screen.splitlines()[1].split()[:3] == ["source", "exits", "rate"]
        kvm = line_with(screen, "▾ kvm")
        assert "/s" in kvm
        assert "VM exits" in kvm or "VM exits" in screen
        assert "ms/s" in line_with(screen, "halt_wait_ns")
        assert "GiB" in line_with(screen, "resident")
        assert "p50" in line_with(screen, "halt_wait_hist")
        assert "kvm/exits = " in screen

    run(monkeypatch, test)


def test_keys_move_fold_and_select(monkeypatch: Any) -> None:
    """As in htop and less; the numbers follow the cursor of the tree, its totals the table's."""

    async def test(driven: Driven) -> None:
        assert "kvm/3287789-11/exits =" in await driven.press("down")
        assert "vcpu0" in driven.screen
        folded = await driven.press("minus")
        assert "▸ 3287789-11" in folded
        assert "kvm/3287789-11/vcpu0" not in folded
        assert "▾ 3287789-11" in await driven.press("space")
        assert "▸ 3287789-11" in await driven.press("enter")
        assert "▾ 3287789-11" in await driven.press("right")
        assert "kvm/exits =" in await driven.press("left", "left")
        assert "kvm/3287882-14/vcpu3/exits =" in await driven.press("end")
        assert "kvm/3287882-14/exits =" in await driven.press("left")
        assert "stats" in await driven.press("home")
        await driven.press("down", "tab", "j", "j")
        assert driven.screen.splitlines()[1].split()[1] == "halt_exits"
        assert "kvm/rmap_max =" in await driven.press("G")
        assert "kvm/exits =" in await driven.press("g")
        assert "kvm/rmap_max =" in await driven.press("pagedown")
        assert "kvm/exits =" in await driven.press("pageup")
        await driven.press("tab")
        assert "▸" not in await driven.press("asterisk")
        assert "vcpu" not in await driven.press("asterisk")

    run(monkeypatch, test)


def test_what_is_typed_filters_the_pane_with_the_focus(monkeypatch: Any) -> None:
    """At each key; Enter keeps it and Escape takes it away. Half an expression is a text."""

    async def test(driven: Driven) -> None:
        screen = await driven.press("tab", "f4", "h", "a", "l", "t", "underscore", "w")
        assert "filter: halt_w" in screen
        assert "io_exits" not in screen
        assert "halt_wait_ns" in screen
        screen = await driven.press("left_square_bracket")
        assert "halt_wait_ns" not in screen.split("\n", 2)[2]
        await driven.press("backspace", "enter")
        assert "io_exits" not in await driven.press("down")
        assert "io_exits" in await driven.press("escape")
        await driven.press("tab", "slash")
        screen = await driven.press(*"vcpu3")
        assert "vcpu0" not in screen
        assert screen.count("vcpu3") >= 4
        assert "source /vcpu3/" in screen
        assert "vcpu0" in await driven.press("escape")

    run(monkeypatch, test)


def test_a_filter_that_re_does_not_take_is_a_text(monkeypatch: Any) -> None:
    """An OverflowError once ended the app."""

    async def test(driven: Driven) -> None:
        await driven.press("tab", "f4")
        keys = ["a", "left_curly_bracket", *"99999999999", "right_curly_bracket"]
        assert r"filter: a\{99999999999\}" in await driven.press(*keys)

    run(monkeypatch, test)


def test_both_panes_are_sorted(monkeypatch: Any) -> None:
    """By the next column, the one before, or the column that is clicked."""

    async def test(driven: Driven) -> None:
        screen = await driven.press("f6")
        assert "source by value" in screen
        vms = [line.split()[1] for line in screen.splitlines() if "▾ 3287" in line]
        totals = [int(line.split()[2].replace(",", "")) for line in screen.splitlines()
                  if "▾ 3287" in line]  # fmt: skip
        assert totals == sorted(totals, reverse=True)
        turned = await driven.press("I")
        assert [line.split()[1] for line in turned.splitlines() if "▾ 3287" in line] == vms[::-1]
        assert "source by rate" in await driven.press("f6")
        assert "source by" not in await driven.press("f6", "I")
        screen = await driven.press("tab", "less_than_sign")
        assert "rate▼" in screen
        assert "rate▲" in await driven.press("I")
        assert "value▲" in await driven.press("less_than_sign")
        await driven.pilot.click("#table", offset=(2, 0))
        assert "name▼" in await driven.press()
        await driven.pilot.click("#table", offset=(2, 0))
        assert "name▲" in await driven.press()
        await driven.pilot.click("#table", offset=(60, 0))  # the bars: nothing to sort by
        assert "name▲" in await driven.press()
        await driven.pilot.click("#tree", offset=(2, 0))
        assert "source by value" in await driven.press()

    run(monkeypatch, test)


def test_the_mouse_selects_and_folds(monkeypatch: Any) -> None:
    """A click on a row, on its mark, and a double click; below the rows it does nothing."""

    async def test(driven: Driven) -> None:
        await driven.pilot.click("#tree", offset=(12, 3))
        assert "kvm/3287789-11/exits =" in await driven.press()
        await driven.pilot.click("#tree", offset=(4, 3))
        assert "▸ 3287789-11" in await driven.press()
        await driven.pilot.click("#tree", offset=(12, 3), times=2)
        assert "▾ 3287789-11" in await driven.press()
        await driven.pilot.click("#table", offset=(5, 3))
        assert "kvm/3287789-11/halt_exits =" in await driven.press()
        await driven.pilot.click("#table", offset=(5, 20))
        assert "kvm/3287789-11/halt_exits =" in await driven.press()

    run(monkeypatch, test)


def test_a_source_that_goes_is_followed_until_it_comes_back(monkeypatch: Any) -> None:
    """Its row stays, its last numbers too, and the line at the top says so."""

    async def test(driven: Driven) -> None:
        screen = await driven.press("down", "down")
        assert "kvm/3287789-11/vcpu0/exits =" in screen
        driven.place.gone.add("3287789-11")
        await driven.tick()
        screen = driven.screen
        assert "waiting: kvm/3287789-11/vcpu0 has gone" in screen
        assert "gone" in line_with(screen, "vcpu0")
        assert "kvm/3287789-11/vcpu0/exits =" in screen
        driven.place.gone.clear()
        await driven.tick()
        assert "waiting" not in driven.screen
        rate = line_with(driven.screen, "io_exits")
        assert "/s" not in rate  # of its first sample there is none
        await driven.tick()
        assert "/s" in line_with(driven.screen, "io_exits")

    run(monkeypatch, test)


def test_a_place_that_goes_is_waited_for(monkeypatch: Any) -> None:
    """The error stands at the top, until it comes back."""

    async def test(driven: Driven) -> None:
        driven.place.error = "/run/stats: not a directory of a statsfs"
        await driven.tick()
        assert "waiting: /run/stats: not a directory of a statsfs" in driven.screen
        assert "▾ kvm" in driven.screen
        driven.place.error = ""
        await driven.tick()
        assert "waiting" not in driven.screen

    run(monkeypatch, test)


def test_a_place_that_hangs_is_told_of(monkeypatch: Any) -> None:
    """A stopped server gives no error: the screen stood still, and nothing said why."""

    async def test(driven: Driven) -> None:
        monkeypatch.setattr(Feed, "waited", 1.0)
        driven.app._notice_silence()
        assert "waiting" not in await driven.press()
        monkeypatch.setattr(Feed, "waited", 7.0)
        driven.app._notice_silence()
        assert "waiting: no answer for 7 s" in await driven.press()
        monkeypatch.setattr(Feed, "waited", 0.0)
        await driven.tick()
        assert "waiting" not in driven.screen

    run(monkeypatch, test)


def test_the_cursor_begins_where_there_are_numbers(monkeypatch: Any) -> None:
    """With several top-level sources it is in the first, but for the daemon's own."""

    class Daemon(MadePlace):
        def read_sample(self) -> Sample:
            sample = super().read_sample()
            below = {name: node({"n": 1}) for name in ("statsfs", "web10", "web9", "kvm2")}
            below["kvm2"] = node({}, vm=node({"exits": 1}))
            return Sample(sample.time, sample.moment, node({}, **below))

    async def test(driven: Driven) -> None:
        assert driven.app._source == ("kvm2", "vm")
        assert "kvm2/vm/exits" in driven.screen

    run(monkeypatch, test, place=Daemon())


def test_a_low_terminal_has_numbers_too(monkeypatch: Any) -> None:
    """The lines below the table took all of its rows."""

    async def test(driven: Driven) -> None:
        for height in (24, 12, 10, 8, 6):
            await driven.pilot.resize_terminal(100, height)
            assert "exits " in (await driven.press()).splitlines()[2].partition("▏")[2]
        for width, height in ((20, 5), (1, 1), (300, 100)):
            await driven.pilot.resize_terminal(width, height)
            await driven.tick()
        assert "VM exits of every kind" in driven.screen

    run(monkeypatch, test)


def test_a_place_that_does_not_answer_at_first_is_waited_for(monkeypatch: Any) -> None:
    """There is nothing to move, sort, fold or clear until then; and the keys do no harm."""

    async def test(driven: Driven) -> None:
        assert "waiting: no such server" in driven.screen
        await driven.press("asterisk", "down", "f6", "f6", "r", "f9", "tab", "down", "I", "c")
        assert "waiting: no such server" in await driven.press("escape")
        driven.place.error = ""
        await driven.tick()
        assert "kvm/exits =" in driven.screen

    place = MadePlace()
    place.error = "no such server"
    run(monkeypatch, test, place=place)


def test_the_end_of_a_recording_stays_on_the_screen(monkeypatch: Any) -> None:
    """It says that it is the end."""

    async def test(driven: Driven) -> None:
        monkeypatch.setattr(driven.place, "read_sample", lambda: None)
        await driven.tick()
        assert "END OF THE RECORDING" in driven.screen
        assert "kvm/exits =" in driven.screen

    run(monkeypatch, test)


def test_a_source_without_the_value_of_the_totals_has_none(monkeypatch: Any) -> None:
    """At first it is the value `exits`, or else the first that there is."""

    async def test(driven: Driven) -> None:
        await driven.press("tab")
        assert driven.app._tree.total_of == "requests"
        assert line_with(driven.screen, "▾ stats").partition("▏")[0].split()[-1] == "7"

    place = MadePlace()
    numbers = node({"requests": 7}, a=node({}))
    monkeypatch.setattr(place, "read_sample", lambda: Sample(1.0, 1.0, numbers))
    monkeypatch.setattr(place, "read_schema", lambda path=(): MadePlace.read_schema(place))
    run(monkeypatch, test, place=place)


def test_names_do_nothing_to_a_terminal(monkeypatch: Any) -> None:
    """Neither as markup nor as control characters, wherever they are shown."""

    async def test(driven: Driven) -> None:
        assert "[red]x [31m" in driven.screen
        assert "\x1b" not in driven.screen
        await driven.press("f9")
        assert driven.told == ["[red]x [31m/n cannot be cleared"]

    place = MadePlace()
    name = "[red]x\x1b[31m"
    below = {name: node({"n": 7})}
    monkeypatch.setattr(place, "read_sample", lambda: Sample(1.0, 1.0, node({}, **below)))
    run(monkeypatch, test, place=place)


def test_a_held_screen_does_not_move(monkeypatch: Any) -> None:
    """It goes on with the same key."""

    async def test(driven: Driven) -> None:
        assert "HELD" in await driven.press("Z")
        before = driven.screen
        await driven.tick(3)
        assert driven.screen == before
        assert "HELD" not in await driven.press("Z")
        await driven.tick()
        assert driven.screen != before

    run(monkeypatch, test)


def test_a_reset_begins_anew(monkeypatch: Any) -> None:
    """Rates need a sample more, and a column has what moved since."""

    async def test(driven: Driven) -> None:
        screen = await driven.press("r")
        assert "since reset" in screen
        assert "/s" not in line_with(screen, "io_exits")
        await driven.tick()
        assert "/s" in line_with(driven.screen, "io_exits")
        assert "+" in line_with(driven.screen, "io_exits")

    run(monkeypatch, test)


def test_writing_0_asks_first(monkeypatch: Any) -> None:
    """Only y is yes; what cannot be cleared is told, and what the server refuses."""

    async def test(driven: Driven) -> None:
        assert "Write 0 to kvm/exits and all that is counted below?" in await driven.press("f9")
        for key in ("n", "escape", "enter"):
            await driven.press(key, "0")
        await driven.press("q")
        await driven.tick()
        assert driven.place.cleared == []
        await driven.press("f9", "y")
        await driven.tick()
        assert driven.place.cleared == [(("kvm",), "exits")]
        await driven.press("tab", "j", "j", "j", "f9", "y")
        await driven.tick()
        assert "Permission denied" in driven.told[-1]
        await driven.press("G", "k", "f9")
        assert driven.told[-1] == "kvm/guest_mode cannot be cleared"

    run(monkeypatch, test)


def test_a_place_that_is_read_only_says_so(monkeypatch: Any) -> None:
    """A server of metrics or a recording is not written to."""

    async def test(driven: Driven) -> None:
        await driven.press("f9")
        assert driven.told == ["/run/stats is read-only"]
        await driven.press("home", "f9")  # without a value there is nothing to ask
        assert driven.place.cleared == []

    run(monkeypatch, test, place=MadePlace(writable=False))


def test_numbers_are_copied_as_text(monkeypatch: Any) -> None:
    """One line for each value."""

    async def test(driven: Driven) -> None:
        await driven.press("c")
        assert driven.told == ["copied 9 lines"]
        assert driven.app.clipboard.splitlines()[0].split()[0] == "kvm/exits"

    run(monkeypatch, test)


def test_help_has_the_keys(monkeypatch: Any) -> None:
    """Any key or click closes it."""

    async def test(driven: Driven) -> None:
        screen = await driven.press("f1")
        assert "a regular expression" in screen
        assert "[b" not in screen  # of markup
        assert "a regular expression" not in await driven.press("x")
        await driven.press("question_mark")
        await driven.pilot.click(offset=(75, 18))
        assert "a regular expression" not in await driven.press()

    run(monkeypatch, test)


def test_a_narrow_terminal_has_whole_numbers(monkeypatch: Any) -> None:
    """Columns go, and numbers are rounded; none is cut."""

    async def test(driven: Driven) -> None:
        assert "description" not in driven.screen
        assert "…" not in line_with(driven.screen, "halt_wait_ns")
        await driven.press("r")
        await driven.tick()
        assert "since" in driven.screen.splitlines()[1]
        assert line_with(driven.screen, "io_exits").split()[2].startswith("+")
        await driven.pilot.resize_terminal(220, 50)
        await driven.press()
        assert "p99" in line_with(driven.screen, "halt_wait_hist")

    run(monkeypatch, test, size=(84, 24))


def test_ten_thousand_sources_have_a_row_each_and_few_are_made(monkeypatch: Any) -> None:
    """Only rows on the screen are made at a tick."""

    async def test(driven: Driven) -> None:
        made: list[int] = []
        make = driven.app._tree.make_row

        def note(index: int, width: int) -> Sequence[Cell]:
            made.append(index)
            return make(index, width)

        monkeypatch.setattr(driven.app._tree, "make_row", note)
        await driven.press("asterisk")
        await driven.press("end")
        assert driven.app._tree.cursor == 10_001
        assert "▾ stats" in await driven.press("home")
        made.clear()
        await driven.tick()
        assert 0 < len(made) <= 3 * 36

    run(monkeypatch, test, place=MadePlace(vms=2000, vcpus=4))

"""Which values may be cleared, and what a clear does to those that a refresh brings."""

import ctypes
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from statsfs.exceptions import ReadOnlyValueError
from statsfs.model.external import Numbers
from statsfs.model.fields import log_hist, peak, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree import clearing
from statsfs.tree.clearing import find_mode
from statsfs.tree.index import make_index
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

VALUES = (
    Value("n", Type.U32, Aggregate.SUM),
    Value("h", Type.U64, Aggregate.SUM, kind=Kind.LOG_HIST, size=3),
    Value("most", aggregate=Aggregate.MAX, kind=Kind.PEAK),
)
PLACED = (
    Value("n", Type.U32, Aggregate.SUM, offset=0),
    Value("h", Type.U64, Aggregate.SUM, offset=8, kind=Kind.LOG_HIST, size=3),
    Value("most", aggregate=Aggregate.MAX, offset=32, kind=Kind.PEAK),
)


class Counted(Stats):
    """What a program counts."""

    n = u64(Aggregate.SUM)
    h = log_hist(3)
    most = peak()


class Computed:
    """A base whose numbers are properties."""

    def __init__(self) -> None:
        self.numbers: dict[str, Any] = {"n": 0, "h": [0, 0, 0], "most": 0}

    def __getattr__(self, name: str) -> Any:
        return self.numbers[name]


Setter = Callable[[int, list[int], int], None]
Made = tuple[Any, Any, Setter]


def make_mapping() -> Made:
    """A dictionary."""
    base: dict[str, Any] = {"n": 0, "h": [0, 0, 0], "most": 0}
    return VALUES, base, lambda n, h, most: base.update(n=n, h=h, most=most)


def make_object() -> Made:
    """A plain object."""
    base = SimpleNamespace(n=0, h=[0, 0, 0], most=0)
    return VALUES, base, lambda n, h, most: vars(base).update(n=n, h=h, most=most)


def make_computed() -> Made:
    """An object that runs code when it is read."""
    base = Computed()
    return VALUES, base, lambda n, h, most: base.numbers.update(n=n, h=h, most=most)


def make_stats() -> Made:
    """Stats."""
    base = Counted()

    def set_all(n: int, h: list[int], most: int) -> None:
        base.n, base.most = n, most
        base.h.buckets[:] = h

    return Counted, base, set_all


def make_shared() -> Made:
    """Stats over a buffer."""
    base = Counted.from_buffer(bytearray(100))

    def set_all(n: int, h: list[int], most: int) -> None:
        base.n, base.most = n, most
        base.h.buckets[:] = h

    return Counted, base, set_all


def make_buffer() -> Made:
    """A buffer with offsets."""
    base = bytearray(40)

    def set_all(n: int, h: list[int], most: int) -> None:
        base[0:4] = bytes(ctypes.c_uint32(n))
        base[8:40] = b"".join(bytes(ctypes.c_uint64(one)) for one in (*h, most))

    return PLACED, base, set_all


BASES = [make_mapping, make_object, make_computed, make_stats, make_shared, make_buffer]


@pytest.mark.parametrize("hidden", [False, True], ids=["shown", "hidden"])
@pytest.mark.parametrize("below", [False, True], ids=["itself", "below"])
@pytest.mark.parametrize("make", BASES)
def test_a_clear_subtracts(make: Callable[[], Made], below: bool, hidden: bool) -> None:
    """Whatever the base is, of the source that is asked or of one below it, in all ways to read."""
    values, base, set_all = make()
    numbers: tuple[int, list[int], int] = (5, [1, 2, 3], 9)
    top, asked = Source("top"), Source("vm", refresh=lambda: set_all(*numbers), baseline=True)
    source = Source("vcpu") if below else asked
    source.add_values(values, base, hidden=hidden)
    top.add_subordinate(asked)
    if below:
        asked.add_subordinate(source)

    def check(n: int, h: list[int], most: int) -> None:
        for one in (source, asked, top):
            found = one.get_value("n"), one.get_value("h"), one.get_value("most")
            assert found == (n, h, most)
        shown = top.snapshot().to_dict()["values"]
        assert (shown["n"], shown["h"], shown["most"]) == (n, h, most)

    check(5, [1, 2, 3], 9)
    source.clear_value("n")
    source.clear_value("h")
    check(0, [0, 0, 0], 9)
    numbers = (12, [1, 3, 5], 10)
    check(7, [0, 1, 2], 10)
    top.clear_value("n")
    numbers = (13, [2, 3, 5], 10)
    check(1, [1, 1, 2], 10)
    numbers = (3, [0, 1, 0], 1)  # below the baselines: counting began anew
    check(3, [0, 1, 0], 1)
    numbers = (14, [0, 1, 0], 1)
    check(14, [0, 1, 0], 1)
    with pytest.raises(ReadOnlyValueError, match="most"):
        source.clear_value("most")


def test_what_is_brought_is_read_only(registry: Registry) -> None:
    """A clear of it would be overwritten; so would one of a total of nothing else."""
    top, asked, below = Source("top"), Source("vm", refresh=lambda: None), Source("vcpu")
    registry.register(top)
    top.add_subordinate(asked)
    asked.add_subordinate(below)
    base = {"n": 5, "h": [1, 2, 3], "most": 9}
    asked.add_values(VALUES, base)
    below.add_values(VALUES, base.copy(), hidden=True)
    for source, why in ((asked, "vm: 'n'"), (below, "a refresh"), (top, "brought by a refresh")):
        with pytest.raises(ReadOnlyValueError, match=why):
            source.clear_value("n")
    assert registry["top/n"] == 10
    directory = directory_of(asked)
    assert {find_mode(directory, file) for file in directory.files.values()} == {0o444}


def test_a_total_of_others_too(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """What can be cleared is; for what a refresh brings there is a line in the log."""
    top, asked, counted = Source("top"), Source("vm", refresh=lambda: None), Source("app")
    registry.register(top)
    for source in (asked, counted):
        source.add_values(VALUES, {"n": 5, "h": [1, 2, 3], "most": 9})
        top.add_subordinate(source)
    with caplog.at_level(logging.WARNING):
        top.clear_value("n")
    assert (top.get_value("n"), counted.get_value("n")) == (5, 0)
    assert "clearing 'n': 1 bases refused, first that of top/vm" in caplog.text


def test_the_nearest_refresh_decides() -> None:
    """Values below one with a baseline can be cleared, whatever is above; so can their total."""
    above = Source("host", refresh=lambda: None)
    below = Source("vm", refresh=lambda: None, baseline=True)
    above.add_subordinate(below)
    below.add_values(VALUES[:1], {"n": 5})
    directory = directory_of(above)
    assert find_mode(directory, directory.files["n"]) == 0o644
    above.clear_value("n")
    assert above.get_value("n") == 0


def test_bases_with_baselines_of_their_own() -> None:
    """They are cleared as ever, whether the refresh has a baseline or not."""
    numbers = Numbers({"n": VALUES[0]})
    top, source = Source("top"), Source("vm", refresh=lambda: numbers.take((5,)))
    source.add_values(VALUES[:1], numbers)
    top.add_subordinate(source)
    assert find_mode(directory_of(source), directory_of(source).files["n"]) == 0o644
    source.clear_value("n")
    assert (source.get_value("n"), numbers.baselines) == (0, {"n": 5})

    class Own(dict[str, int]):
        def clear_value(self, name: str) -> None:
            cleared.append(name)

    cleared: list[str] = []
    other = Source("other", refresh=lambda: None)
    other.add_values(VALUES[:1], Own(n=3))
    other.clear_value("n")
    assert cleared == ["n"]


def test_totals_that_are_only_declared() -> None:
    """They have the mode that they are declared with: the kernel keeps it until sources come."""
    source = Source("vms", refresh=lambda: None)
    source.add_values(VALUES[:1], None)
    directory = directory_of(source)
    assert find_mode(directory, directory.files["n"]) == 0o644
    source.clear_value("n")


def test_a_baseline_stays_with_the_base() -> None:
    """Where a source is moved away from what is asked its numbers go on, and so do clears."""
    asked, other = Source("vm", refresh=lambda: None, baseline=True), Source("other")
    source, base = Source("vcpu"), {"n": 5, "h": [1, 2, 3], "most": 9}
    source.add_values(VALUES, base)
    asked.add_subordinate(source)
    source.clear_value("n")
    asked.remove_subordinate(source)
    other.add_subordinate(source)
    base.update(n=7)
    assert (source.get_value("n"), other.get_value("n")) == (2, 2)
    source.clear_value("n")
    source.clear_value("most")
    assert (other.get_value("n"), other.get_value("most"), base["most"]) == (0, 0, 0)
    source.revoke()
    assert source.get_value("n") == 0


def test_what_leaves_is_retained_less_its_baseline() -> None:
    """A total that retains has what it had when a source left."""
    host = Source("host", retain=True, refresh=lambda: None, baseline=True)
    source, base = Source("vm"), {"n": 5, "h": [1, 2, 3], "most": 9}
    source.add_values(VALUES, base)
    host.add_subordinate(source)
    host.clear_value("n")
    base["n"] = 9
    host.remove_subordinate(source)
    assert host.get_value("n") == 4
    host.add_subordinate(source)
    assert host.get_value("n") == 4
    host.clear_value("n")
    assert host.get_value("n") == 0


def test_a_broken_base_is_as_broken_as_without(caplog: pytest.LogCaptureFixture) -> None:
    """Its file says so, and totals leave it out, until it holds a number again."""
    base: dict[str, Any] = {"n": 5}
    host = Source("host", refresh=lambda: None, baseline=True)
    for name, one in (("a", base), ("b", {"n": 3})):
        source = Source(name)
        source.add_values(VALUES[:1], one)
        host.add_subordinate(source)
    host.clear_value("n")
    base["n"] = "five"
    with pytest.raises(TypeError, match="holds no integer"):
        host.subordinates[0].get_value("n")
    assert host.get_value("n") == 0
    assert host.snapshot().to_dict()["values"] == {"n": 0}
    with pytest.raises(ReadOnlyValueError):
        host.subordinates[0].clear_value("n")
    base["n"] = 6
    assert host.get_value("n") == 1


def test_a_baseline_without_a_refresh() -> None:
    """It is refused, by name."""
    with pytest.raises(ValueError, match="baseline=True is for a source with a refresh"):
        Source("app", baseline=True)


def test_a_file_that_was_open_before_the_first_clear() -> None:
    """It shows what the others do, and clears it."""
    base = {"n": 5}
    source = Source("vm", refresh=lambda: None, baseline=True)
    source.add_values(VALUES[:1], base)
    directory = directory_of(source)
    file = directory.files["n"]
    entry = directory.entry_of(file)
    assert entry is not None
    parts = [(make_index(entry), 0)]
    source.clear_value("n")
    base["n"] = 8
    assert directory.read(file, entry) == 3
    clearing._keep_baselines(parts, VALUES[0])  # as a clear does that came at the same moment
    assert source.get_value("n") == 3
    directory.clear(file, entry)
    assert (directory.read(file, entry), source.get_value("n"), base["n"]) == (0, 0, 8)

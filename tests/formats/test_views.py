"""Views: which there are, what one takes to render, and what a large one keeps from happening."""

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from statsfs.filesystem.known import Numbered
from statsfs.formats import binary, openmetrics, prometheus, schema
from statsfs.formats import json as json_format
from statsfs.formats.views import BINARY, VIEWS, Rendering
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree import lock
from statsfs.tree.lock import suspend_collection
from statsfs.tree.pauses import make_pause, pausing
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.forking import run_forking
from tests.support.strategies import property_base

NAMES = [".stats.bin", ".stats.json", ".stats.prom", ".stats.openmetrics", ".schema.json"]


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """Whatever a test does, garbage is collected after it as before."""
    yield
    assert gc.isenabled()


def make_tree(count: int = 4) -> Source:
    """A source with some below it, of two values each."""
    top = Source("top", label="top")
    for number in range(count):
        source = Source("s%d", number, label="s")
        values = [Value("n", aggregate=Aggregate.SUM), Value("secret", mode=0o600)]
        source.add_values(values, {"n": number, "secret": 42})
        top.add_subordinate(source)
    return top


def run(name: str, top: Registry | Source, mask: int = 0o444) -> Rendering:
    """Render a view."""
    rendering = Rendering(VIEWS[name], top, mask)
    rendering.run()
    return rendering


def test_which_views_there_are() -> None:
    """By their names, which no value may have; their numbers are below those of any file."""
    assert list(VIEWS) == NAMES
    assert VIEWS[".stats.bin"] is BINARY
    numbers = [view.number for view in VIEWS.values()]
    assert len(set(numbers)) == len(numbers)
    assert all(2 <= number <= 7 for number in numbers)
    views: list[Numbered] = list(VIEWS.values())
    assert [view.name for view in views] == NAMES


def test_each_view_is_its_format() -> None:
    """What the formats make of a snapshot, and nothing else."""
    top = make_tree()
    snapshot = top.snapshot()
    for name, format in (
        (".stats.json", json_format),
        (".stats.prom", prometheus),
        (".stats.openmetrics", openmetrics),
        (".schema.json", schema),
    ):
        render: Any = format.render
        assert run(name, top).text == render(snapshot, mask=0o444)
    assert binary.decode(run(".stats.bin", top.subordinates[1]).text).id == "top/s1"


def test_the_binary_view_is_of_one_directory() -> None:
    """Own values and totals, by the path from the top; without what the reader may not read."""
    top = make_tree()
    (cpu, *_) = top.subordinates
    for source, mask, expected in (
        (top, 0o444, {"n": 6}),
        (cpu, 0o444, {"n": 0, "secret": 42}),
        (cpu, 0o004, {"n": 0}),
    ):
        assert read_binary(run(".stats.bin", source, mask).text) == expected


def read_binary(text: bytes) -> dict[str, binary.Number]:
    """The names and numbers of an object of the binary format."""
    found = binary.decode(text)
    names = [one.name for one in found.descriptors]
    return dict(zip(names, found.numbers, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_masks(name: str) -> None:
    """No view but the schema names what its reader may not read."""
    source = make_tree(1).subordinates[0]
    assert b"secret" in run(name, source).text
    assert (b"secret" in run(name, source, 0o004).text) == (name == ".schema.json")


def test_the_moment() -> None:
    """That of the sample, in nanoseconds; 0 before."""
    top = make_tree()
    rendering = Rendering(VIEWS[".stats.json"], top, 0o444)
    assert (rendering.moment, rendering.text) == (0, b"")
    before = time.time_ns()
    rendering.run()
    assert before <= rendering.moment <= time.time_ns()


def test_what_is_quick(registry: Registry) -> None:
    """A few hundred numbers, and nothing that runs foreign code."""
    few, many = make_tree(100), make_tree(1000)
    assert Rendering(VIEWS[".stats.json"], few, 0o444).quick
    assert not Rendering(VIEWS[".stats.json"], many, 0o444).quick
    assert Rendering(VIEWS[".stats.json"], registry, 0o444).quick
    few.add_values([Value("slow")], property_base({"slow": 1}, False))
    assert not Rendering(VIEWS[".stats.json"], few, 0o444).quick
    registry.register(few)
    assert not Rendering(VIEWS[".stats.json"], registry, 0o444).quick


def test_what_is_large(registry: Registry) -> None:
    """A hundred thousand numbers; or so many arrays that they are not counted."""
    top = make_tree(1000)
    assert not Rendering(VIEWS[".stats.json"], top, 0o444).large
    values = [Value(f"v{n}", kind=Kind.LOG_HIST, size=64) for n in range(1600)]
    top.add_values(values, {value.name: [0] * 64 for value in values})
    assert Rendering(VIEWS[".stats.json"], top, 0o444).large
    registry.register(top)
    assert Rendering(VIEWS[".stats.json"], registry, 0o444).large
    many = Source("many")
    for number in range(2001):
        many.add_values([Value(f"v{number}")], {f"v{number}": 1})
    rendering = Rendering(VIEWS[".stats.json"], many, 0o444)
    assert rendering.large
    rendering.run()
    assert rendering.text.count(b": 1") == 2001
    # Foreign code takes time, and may take for ever.
    slow = Source("slow")
    slow.add_values([Value("slow")], property_base({"slow": 1}, False))
    assert not Rendering(VIEWS[".stats.json"], slow, 0o444).large


@pytest.fixture(scope="module")
def large() -> Source:
    """A tree whose views take some 50 ms, `.stats.bin` 8 ms."""
    return make_tree(20_000)


@pytest.mark.parametrize("name", NAMES)
def test_others_have_their_turn(name: str, large: Source) -> None:
    """While a large view is rendered, another thread runs again and again.

    One call in C that makes all of it would let it run once. How often is a matter of chance on a
    machine that does other things too: of many renderings, one has to show it.
    """
    turns, done, expected = 0, threading.Event(), 2 if name == BINARY.name else 5

    def work() -> None:
        nonlocal turns
        while not done.wait(0.0005):
            turns += 1

    def count_turns() -> int:
        before = turns
        rendering = Rendering(VIEWS[name], large, 0o444)
        rendering.run()
        assert rendering.text
        return turns - before

    other = threading.Thread(target=work)
    other.start()
    try:
        assert any(count_turns() >= expected for _ in range(50))
    finally:
        done.set()
        other.join()


# Garbage collection


@pytest.mark.parametrize("name", NAMES)
def test_no_garbage_is_collected_while_a_large_view_is_rendered(name: str) -> None:
    """It would stop all threads, again and again, for what goes by itself."""
    seen: list[bool] = []
    for count, expected in ((5, {True}), (600, {False})):
        seen.clear()
        with pausing(lambda: seen.append(gc.isenabled())):
            Rendering(VIEWS[name], make_tree(count), 0o444).run()
        assert set(seen) == expected
        assert gc.isenabled()


def test_garbage_is_collected_while_foreign_code_runs() -> None:
    """A property may wait for anything, and for long."""
    top, seen = make_tree(600), []
    top.add_values([Value("slow")], property_base({"slow": 1}, False))
    with pausing(lambda: seen.append(gc.isenabled())):
        Rendering(VIEWS[".stats.json"], top, 0o444).run()
    assert set(seen) == {True}


def test_collection_stays_off_if_it_was() -> None:
    """A program that collects by itself is left alone."""
    gc.disable()
    try:
        run(".stats.json", make_tree(600))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_collection_goes_on_after_an_error() -> None:
    """Whatever is raised, by the snapshot or by a pause."""
    top = make_tree(600)

    def fail() -> None:
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"), pausing(fail):
        Rendering(VIEWS[".stats.json"], top, 0o444).run()
    assert gc.isenabled()


def test_several_that_suspend_collection() -> None:
    """The first one's end is the end; sampling and changing meanwhile switch nothing on."""
    with suspend_collection():
        assert not gc.isenabled()
        with suspend_collection():
            pass
        assert not gc.isenabled()
        make_tree().snapshot()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_a_child_does() -> None:
    """It collects, if that was only suspended; once more is no harm."""
    with suspend_collection():
        lock._resume_in_child()
        assert gc.isenabled()
        lock._resume_in_child()
    gc.disable()
    try:
        lock._resume_in_child()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_child_forked_meanwhile_collects() -> None:
    """The thread that would have switched it on again is not there."""
    program = """
import gc, os, threading
from statsfs.tree import lock
from statsfs.tree.lock import suspend_collection

def fork():
    child = os.fork()
    if not child:
        os._exit(0 if gc.isenabled() else 3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert fork() == 0
with suspend_collection():
    assert fork() == 0
    assert not gc.isenabled()
assert gc.isenabled()
gc.disable()
assert fork() == 3
with suspend_collection():
    assert fork() == 3
"""
    assert run_forking(program, measured=True) == (0, "")


# Pauses


def test_a_pause_comes_only_after_a_while() -> None:
    """Called again and again it hardly ever sleeps; after its turn it does."""
    slept: list[float] = []
    pause = make_pause(10.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        for _ in range(100):
            pause()
        assert slept == []
        pause = make_pause(0.0)
        pause()
        pause()
        assert len(slept) == 2
        # Really: `sleep(0)` takes the interpreter back before a waiting thread is awake.
        assert min(slept) > 0

"""What is retained: sums and peaks of what left, in files and views, cleared and restored."""

import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from statsfs.exceptions import ReleasedError, SegmentError
from statsfs.formats import binary, openmetrics, prometheus
from statsfs.formats import json as json_view
from statsfs.formats.views import VIEWS
from statsfs.model.arrays import intern_array
from statsfs.model.fields import log_hist, s64, u8, u64
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.monitoring.exposition import RegistryCollector
from statsfs.tree.index import Part
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry
from statsfs.tree.retention import forget_row
from statsfs.tree.snapshot_directories import make_directory
from statsfs.tree.source import Source, directory_of
from tests.support.bare import bare_log_hist
from tests.support.exported import parse_openmetrics, parse_text
from tests.support.strategies import (
    BUFFER_FLAVOURS,
    FLAVOURS,
    STATS_FLAVOURS,
    Indexed,
    Recipe,
    make_base,
    property_base,
)

ALL = Aggregate(sum(kind.value for kind in Aggregate))


class Work(Stats):
    """What a worker of these tests counts."""

    jobs = u64(ALL, description="Jobs done")
    deepest = s64(Aggregate.MAX | Aggregate.SUM, kind=Kind.PEAK)
    open = u64(Aggregate.SUM | Aggregate.MAX, kind=Kind.INSTANT)
    sizes = bare_log_hist(3, Aggregate.SUM)
    own = u64(Aggregate.NONE)


VALUES = values_of(Work)


def make_work(jobs: int = 0, deepest: int = 0, open: int = 0, size: int = 0) -> Work:
    """A base that has counted something."""
    work = Work()
    work.jobs, work.deepest, work.open = jobs, deepest, open
    work.sizes.observe(size)
    return work


def add(parent: Source, name: str, work: object = None, **options: Any) -> Source:
    """Put a source below another, with a base if one is given; the tree has the only reference."""
    source = Source(name, **options)
    if work is not None:
        source.add_values(Work, work)
    parent.add_subordinate(source)
    source.put()
    return source


def read(source: Source) -> dict[str, Any]:
    """All files of a source, by single reads and as its snapshot has them, which must agree."""
    files: dict[str, Any] = {name: source.get_value(name) for name in source.names()}
    assert source.snapshot().to_dict()["values"] == files
    assert {f.name: n for f, n in make_directory(source.snapshot()).files()} == files
    return files


@pytest.fixture
def app() -> Source:
    """A source that retains, and another above it."""
    host = Source("host", label="host")
    return add(host, "app", retain=True, label="app")


def parent_of(source: Source) -> Source:
    """The source above another."""
    assert isinstance(source.parent, Source)
    return source.parent


# What is kept


def test_sums_and_peaks_of_what_left_are_kept(app: Source) -> None:
    """SUM of cumulative values and histograms, MAX of peaks; all else is of the living alone."""
    add(app, "a", make_work(5, 9, 3, size=0))
    add(app, "b", make_work(7, -4, 1, size=2))
    before = read(app)
    app.remove_subordinate(app.subordinates[0])
    assert read(app) == before | {
        "jobs.min": 7, "jobs.max": 7, "jobs.avg": 7, "jobs.count_nonzero": 1,
        "deepest": -4, "open": 1, "open.max": 1,
    }  # fmt: skip
    assert before["jobs"] == 12
    assert before["deepest.max"] == 9
    assert before["sizes"] == [1, 0, 1]
    assert read(parent_of(app)) == read(app)


def test_files_stay_when_nobody_is_left(app: Source) -> None:
    """They show what is retained, and 0 for what is of the living."""
    add(app, "a", make_work(5, -9, 3, size=1))
    names = app.names()
    app.remove_subordinate(app.subordinates[0])
    assert app.names() == parent_of(app).names() == names
    assert read(app) == dict.fromkeys(names, 0) | {
        "jobs": 5, "deepest.max": -9, "sizes": [0, 1, 0],
    }  # fmt: skip


def test_what_does_not_retain_keeps_nothing() -> None:
    """Without `retain` totals are those of the living, and files go with them."""
    top = Source("top")
    add(top, "a", make_work(5))
    top.remove_subordinate(top.subordinates[0])
    assert top.names() == []
    assert top.retained == {}


def test_the_nearest_source_above_keeps_it(app: Source) -> None:
    """Those between lose it; those above the one that retains do not notice, nor count twice."""
    host = parent_of(app)
    outer = Source("outer", retain=True)
    outer.add_subordinate(host)
    pool = add(app, "pool")
    add(pool, "a", make_work(5))
    add(pool, "b", make_work(7))
    pool.remove_subordinate(pool.subordinates[0])
    assert [one.get_value("jobs") for one in (pool, app, host, outer)] == [7, 12, 12, 12]
    app.remove_subordinate(pool)
    assert [one.get_value("jobs") for one in (app, host, outer)] == [12, 12, 12]
    assert (host.retained, outer.retained) == ({}, {})


def test_what_is_retained_is_kept_again_when_its_source_leaves(app: Source) -> None:
    """Sums of sums, peaks of peaks: what the source has kept, and what is alive below it."""
    pool = add(app, "pool", retain=True)
    add(pool, "a", make_work(5, 1, size=0))
    add(pool, "b", make_work(7, 3, size=1))
    pool.remove_subordinate(pool.subordinates[0])
    add(app, "c", make_work(100, 2, size=2))
    app.remove_subordinate(app.subordinates[1])
    before = read(app)
    app.remove_subordinate(pool)
    after = read(app)
    assert [after[name] for name in ("jobs", "deepest.max", "sizes")] == [112, 3, [1, 1, 1]]
    assert before["jobs"] == 112


def test_what_is_retained_goes_with_its_source() -> None:
    """From a parent that does not retain it leaves whole; added elsewhere, its totals come too."""
    first, second, app = Source("first"), Source("second"), Source("app", retain=True)
    first.add_subordinate(app)
    add(app, "a", make_work(5))
    app.remove_subordinate(app.subordinates[0])
    first.remove_subordinate(app)
    assert first.names() == []
    assert app.get_value("jobs") == 5
    second.add_subordinate(app)
    assert second.get_value("jobs") == 5


def test_hidden_sources_and_values_are_kept(app: Source) -> None:
    """What nobody saw counted, and still does."""
    hidden = Value("unseen", aggregate=Aggregate.SUM, hidden=True)
    source = add(app, "a", make_work(5), hidden=True)
    source.add_values([hidden], {"unseen": 3})
    source.add_values(Work, make_work(7), hidden=True)
    app.remove_subordinate(source)
    assert app.get_value("jobs") == 12
    assert app.retained[(hidden,)] == (3,)


def test_an_array_of_which_nothing_is_kept_goes(app: Source) -> None:
    """No sums of cumulative values, no peaks: no files either."""
    now = Value("now", aggregate=Aggregate.SUM, kind=Kind.INSTANT)
    source = add(app, "a")
    source.add_values([now, Value("own")], {"now": 1, "own": 2})
    source.add_values([Value("later", aggregate=Aggregate.SUM)], None)
    app.remove_subordinate(source)
    assert app.names() == []
    assert app.retained == {}


def test_a_revoked_source_leaves_its_numbers_above(app: Source) -> None:
    """Its own files and those between read 0; what it retains itself stays with it."""
    pool = add(app, "pool", make_work(5), retain=True)
    add(pool, "a", make_work(7))
    pool.remove_subordinate(pool.subordinates[0])
    pool.revoke()
    assert pool.get_value("jobs") == 7
    assert app.get_value("jobs") == 12
    app.revoke()
    assert app.get_value("jobs") == 12


SUMMED = (Type.U8, Type.S16, Type.BOOL, Type.U64, Type.S64)


@pytest.mark.parametrize("type", SUMMED, ids=str)
def test_numbers_are_converted_and_sums_wrap(app: Source, type: Type) -> None:
    """Each number is converted to its type, the sum is modulo 2^64."""
    values = [Value("n", type, Aggregate.SUM)]
    numbers = (-1, 300, (1 << 64) - 1, 1 << 63, -(1 << 63))
    for place, number in enumerate(numbers):
        add(app, f"s{place}").add_values(values, {"n": number})
    before = app.get_value("n")
    for source in app.subordinates:
        app.remove_subordinate(source)
        assert read(app)["n"] == before


RECIPE = Recipe(
    (
        (("name", "a"), ("type", Type.U64), ("aggregate", Aggregate.SUM)),
        (("name", "b"), ("type", Type.S16), ("aggregate", Aggregate.MAX), ("kind", Kind.PEAK)),
        (
            ("name", "c"), ("type", Type.U64), ("aggregate", Aggregate.SUM),
            ("kind", Kind.LOG_HIST), ("size", 2),
        ),
    )
)  # fmt: skip
PLACED = Recipe(
    tuple((*one, ("offset", at)) for one, at in zip(RECIPE.fields, (8, 4, 16), strict=True))
)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("flavour", [*FLAVOURS, *STATS_FLAVOURS, *BUFFER_FLAVOURS])
def test_every_kind_of_base_is_kept(app: Source, flavour: str, count: int) -> None:
    """One alone, and two together, that leave as a subtree."""
    recipe = PLACED if flavour in BUFFER_FLAVOURS else RECIPE
    pool = add(app, "pool")
    for number in range(count):
        made = make_base(recipe, flavour, [3 + number, -5, [1, number]], hidden=False)
        add(pool, f"s{number}").add_values(made.values, made.base)
    before = read(app)
    assert before["b"] == -5
    app.remove_subordinate(pool)
    assert read(app) == before
    assert app.retained == {recipe.values(): (before["a"], -5, before["c"])}


# What comes back


def test_what_comes_back_is_not_counted_twice(app: Source) -> None:
    """Once it is there again, what is retained of it is not; it may have gone on counting."""
    pool, work = add(app, "pool"), make_work(5, 9, size=1)
    source = add(pool, "a", work).get()
    pool.remove_subordinate(source)
    work.jobs += 1
    app.add_subordinate(source)
    after = read(app)
    assert (after["jobs"], after["deepest.max"], after["sizes"]) == (6, 9, [0, 1, 0])
    assert app.retained[VALUES] == (0, 9, 0, [0, 0, 0], 0)
    for _ in range(2):
        app.remove_subordinate(source)
        pool.add_subordinate(source)
        pool.remove_subordinate(source)
        app.add_subordinate(source)
    assert read(app) == after


def test_what_begins_anew_counts_on_top(app: Source) -> None:
    """A base that has less than it had has been reset: what it had stays, value by value."""
    work = make_work(5, 9, size=1)
    source = add(app, "a", work).get()
    app.remove_subordinate(source)
    work.jobs, work.deepest, work.sizes.buckets[:] = 2, 1, [7, 0, 0]
    app.add_subordinate(source)
    after = read(app)
    assert (after["jobs"], after["deepest.max"], after["sizes"]) == (7, 9, [7, 1, 0])


def test_what_was_cleared_meanwhile_is_not_taken_back(app: Source) -> None:
    """Of what was cleared nothing is retained, so nothing is to be forgotten."""
    source = add(app, "a", make_work(5, size=1)).get()
    app.remove_subordinate(source)
    app.clear_value("jobs")
    app.restore(Work, (50, 0, 0, [0, 0, 0], 0))
    app.add_subordinate(source)
    after = read(app)
    assert (after["jobs"], after["sizes"]) == (55, [0, 1, 0])


def test_what_comes_back_to_a_pool_of_its_own_is_taken_back_above(app: Source) -> None:
    """Where sources retain at several levels, the one that has it gives it up."""
    source = add(app, "a", make_work(5)).get()
    pool = add(app, "pool", retain=True)
    app.remove_subordinate(source)
    pool.add_subordinate(source)
    assert [one.get_value("jobs") for one in (pool, app, parent_of(app))] == [5, 5, 5]
    pool.remove_subordinate(source)
    assert [one.get_value("jobs") for one in (pool, app, parent_of(app))] == [5, 5, 5]


def test_a_source_that_retains_comes_back_with_all_it_has(app: Source) -> None:
    """What it retains itself was folded above when it left, and is not any more."""
    pool = add(app, "pool", retain=True).get()
    add(pool, "a", make_work(5))
    pool.remove_subordinate(pool.subordinates[0])
    for _ in range(2):
        app.remove_subordinate(pool)
        assert app.get_value("jobs") == 5
        app.add_subordinate(pool)
        assert app.get_value("jobs") == 5


# What moves, and what gets its base back


@pytest.fixture
def pools(app: Source) -> tuple[Source, Source]:
    """Two directories that retain, below one that does."""
    a, b = Source("a", retain=True), Source("b", retain=True)
    app.add_subordinate(a)
    app.add_subordinate(b)
    return a, b


@pytest.mark.parametrize("above", [True, False])
def test_what_moves_to_a_sibling_counts_once_above(
    app: Source, pools: tuple[Source, Source], above: bool
) -> None:
    """Neither directory's total falls, and that above is what was counted."""
    a, b = pools
    work = make_work(10, deepest=7, size=2)
    worker = add(a, "worker", work).get()
    parents = (a, b, a, b)
    for number, (old, new) in enumerate(pairwise(parents)):
        kept = read(old)
        old.remove_subordinate(worker)
        assert read(app)["jobs"] == 10 + number
        new.add_subordinate(worker)
        work.jobs += 1
        assert old.get_value("jobs") == kept["jobs"]
        assert new.get_value("jobs") == 11 + number
        found = read(app)
        assert (found["jobs"], found["deepest.max"]) == (11 + number, 7)
        assert found["sizes"] == work.sizes.buckets
    if above:
        b.remove_subordinate(worker)
        worker.put()
    assert app.get_value("jobs") == 13
    assert {name: one.get_value("jobs") for name, one in (("a", a), ("b", b))} == {"a": 12, "b": 13}


def test_what_moved_and_is_cleared_is_cleared_everywhere(
    app: Source, pools: tuple[Source, Source]
) -> None:
    """From above everything; from the old directory what it kept, which counts nowhere else."""
    a, b = pools
    worker = add(a, "worker", make_work(10)).get()
    a.remove_subordinate(worker)
    b.add_subordinate(worker)
    a.clear_value("jobs")
    assert [one.get_value("jobs") for one in (a, b, app)] == [0, 10, 10]
    b.remove_subordinate(worker)
    a.add_subordinate(worker)
    assert [one.get_value("jobs") for one in (a, b, app)] == [10, 10, 10]
    app.clear_value("jobs")
    assert [one.get_value("jobs") for one in (a, b, app)] == [0, 0, 0]


def test_a_directory_that_leaves_takes_only_its_own_with_it(
    app: Source, pools: tuple[Source, Source]
) -> None:
    """What moved out of it is counted where it is; it comes back as it was."""
    a, b = pools
    worker = add(a, "worker", make_work(10)).get()
    add(a, "other", make_work(1))
    a.remove_subordinate(worker)
    b.add_subordinate(worker)
    for _ in range(2):
        app.remove_subordinate(a.get())
        assert (app.get_value("jobs"), a.get_value("jobs")) == (11, 11)
        app.add_subordinate(a)
        assert (app.get_value("jobs"), a.get_value("jobs")) == (11, 11)
        assert app.snapshot().to_dict()["values"]["jobs"] == 11
    assert a.retained[VALUES][0] == 10


def test_what_moved_between_directories_deep_below_counts_once_in_each() -> None:
    """From the first directory above both places on; a middle one keeps its own total."""
    top, left, right = (Source(name, retain=True) for name in ("top", "left", "right"))
    top.add_subordinate(left)
    top.add_subordinate(right)
    pools = [Source(f"pool{number}", retain=True) for number in range(3)]
    left.add_subordinate(pools[0])
    left.add_subordinate(pools[1])
    right.add_subordinate(pools[2])
    worker = add(pools[0], "worker", make_work(10)).get()
    seen = []
    for old, new in ((0, 2), (2, 1), (1, 0)):
        pools[old].remove_subordinate(worker)
        pools[new].add_subordinate(worker)
        seen.append([one.get_value("jobs") for one in (top, left, right)])
    assert seen == [[10, 10, 10]] * 3
    left.remove_subordinate(pools[0].get())
    left.remove_subordinate(pools[1])
    assert [one.get_value("jobs") for one in (top, left, right)] == [10, 10, 10]


def test_a_base_of_which_nothing_is_kept_is_revoked(app: Source) -> None:
    """Beside one of which something is."""
    source = Source("s")
    app.add_subordinate(source)
    source.add_values([Value("least", aggregate=Aggregate.MIN)], {"least": 5})
    source.add_values([Value("n", aggregate=Aggregate.SUM)], {"n": 5})
    source.revoke()
    assert (app.get_value("least"), app.get_value("n")) == (0, 5)


PAIRS: dict[str, Callable[[int], object]] = {
    "object": lambda number: SimpleNamespace(n=number),
    "property": lambda number: property_base({"n": number}, True),
    "dictionary": lambda number: {"n": number},
    "buffer": lambda number: bytearray(number.to_bytes(8, sys.byteorder)),
}


@pytest.mark.parametrize("flavour", PAIRS)
def test_a_base_that_is_given_again_counts_once_above(app: Source, flavour: str) -> None:
    """After a revoke the source has less; with the same base it has all, and another one is new."""
    values = [Value("n", aggregate=Aggregate.SUM, offset=0 if flavour == "buffer" else None)]
    base, other = PAIRS[flavour](10), PAIRS[flavour](3)
    source = Source("s")
    app.add_subordinate(source)
    source.add_values(values, base)
    for _ in range(2):
        source.revoke()
        assert (source.get_value("n"), app.get_value("n")) == (0, 10)
        source.add_values(values, base)
        assert (source.get_value("n"), app.get_value("n")) == (10, 10)
    source.revoke()
    source.add_values(values, other)
    assert (source.get_value("n"), app.get_value("n")) == (3, 13)


# Clearing


def test_clearing_a_total_clears_what_is_retained(app: Source) -> None:
    """At the source that retains or above it; that value alone."""
    for above in (app, parent_of(app)):
        add(app, "a", make_work(5, 9, size=1))
        app.remove_subordinate(app.subordinates[0])
        assert read(above)["jobs"] == 5
        above.clear_value("jobs.avg")
        assert (above.get_value("jobs"), above.get_value("deepest.max")) == (0, 9)
        above.clear_value("deepest")
        assert above.get_value("deepest.max") == 0
        above.clear_value("sizes")
        assert above.get_value("sizes") == [0, 0, 0]


class Timed(Stats):
    """A histogram and its sum."""

    times = log_hist(3, Aggregate.SUM)


def test_sums_are_kept_with_their_histograms(app: Source) -> None:
    """They are retained, taken back and cleared together, wherever."""
    names = ("times", "times.sum")
    stats, source = Timed(), Source("a")
    source.add_values(Timed, stats)
    stats.times.observe(2)
    stats.times.observe(2)
    for _ in range(2):
        app.add_subordinate(source)
        app.remove_subordinate(source)
        assert tuple(map(app.get_value, names)) == ([0, 0, 2], 4)
        assert app.retained == {values_of(Timed): ([0, 0, 2], 4)}
    stats.times.observe(1)
    app.add_subordinate(source)
    assert tuple(map(app.get_value, names)) == ([0, 1, 2], 5)
    app.remove_subordinate(source)
    # It counts anew: its sum, though larger, is of other observations.
    source.clear_value("times")
    stats.times.observe(100)
    app.add_subordinate(source)
    assert tuple(map(app.get_value, names)) == ([0, 1, 3], 105)
    app.remove_subordinate(source)
    parent_of(app).clear_value("times")
    assert tuple(map(app.get_value, names)) == ([0, 0, 0], 0)
    app.restore(Timed, ([1, 0, 0], 7))
    assert tuple(map(parent_of(app).get_value, names)) == ([1, 0, 0], 7)
    app.clear_value("times")
    assert app.retained == {values_of(Timed): ([0, 0, 0], 0)}


def test_a_cleared_peak_is_that_of_the_living(app: Source) -> None:
    """Nothing retained is not a peak of 0."""
    add(app, "a", make_work(deepest=9))
    app.remove_subordinate(app.subordinates[0])
    app.clear_value("deepest.max")
    for number in range(2):
        add(app, f"pool{number}", retain=True)
        pool = app.subordinates[0]
        pool.remove_subordinate(add(pool, "a", make_work(deepest=9)))
        pool.clear_value("deepest.max")
        app.remove_subordinate(pool)
    add(app, "b", make_work(deepest=-3))
    assert read(app)["deepest.max"] == -3


def test_clearing_below_leaves_it(app: Source) -> None:
    """A total between the sources that left and the one that retains covers the living only."""
    pool = add(app, "pool")
    add(pool, "a", make_work(5))
    add(pool, "b", make_work(7))
    pool.remove_subordinate(pool.subordinates[0])
    pool.clear_value("jobs")
    assert app.get_value("jobs") == 5


def test_what_leaves_while_a_total_is_cleared_is_cleared(app: Source) -> None:
    """Whether it leaves before its base is reached or after, nothing of it is retained."""

    class Leaving:
        jobs = property(lambda self: 0, lambda self, number: leave())

    def leave() -> None:
        for source in (app.subordinates[0], app.subordinates[-1]):
            app.remove_subordinate(source)

    values = [Value("jobs", aggregate=Aggregate.SUM)]
    for name, base in (("a", {"jobs": 5}), ("b", Leaving()), ("c", SimpleNamespace(jobs=7))):
        add(app, name).add_values(values, base)
    app.clear_value("jobs")
    assert len(app.subordinates) == 1
    assert app.get_value("jobs") == 0


def test_who_retains_is_told_of_a_clear() -> None:
    """Once for all that have the same hook, and only where something could be retained."""
    told: list[str] = []

    def tell() -> None:
        told.append("app")

    app = Source("app", retain=True, cleared=tell)
    pool = add(app, "pool", retain=True, cleared=tell)
    for parent in (app, pool):
        parent.remove_subordinate(add(parent, "a", make_work(5)))
    add(app, "quiet", retain=True).remove_subordinate(add(app.subordinates[-1], "a", make_work(1)))
    app.clear_value("jobs")
    assert told == ["app"]
    app.clear_value("deepest")
    assert told == ["app"] * 2
    add(app, "living", make_work(), cleared=lambda: told.append("living"))
    app.clear_value("jobs")
    assert told[2:] == ["living", "app"]
    del told[2:]
    app.add_values([Value("mine")], {"mine": 1})
    app.clear_value("mine")
    assert told == ["app"] * 3


def test_a_clear_is_recorded_before_it_is_made() -> None:
    """In one call for all with the same recorder. If it refuses, nothing is cleared."""
    calls: list[tuple[str, int, set[str]]] = []
    full = False
    sources: list[Source] = []

    def record(parts: Sequence[Part], clear: Callable[[], object]) -> None:
        if full:
            raise SegmentError("no room", "app")
        ((index, place),) = parts
        entries = [entry for members in index.groups.values() for entry in members]
        kept = {record.source.path for record in index.records or ()}
        calls.append((index.array.values[place].name, len(entries), kept))
        assert sources[0].get_value("jobs") == 8
        clear()

    app = Source("app", retain=True, recorder=record)
    sources.append(app)
    app.add_values([Value("mine")], mine := {"mine": 1})
    add(app, "a", make_work(5), recorder=record)
    add(app, "b", make_work(1))
    app.remove_subordinate(add(app, "dead", make_work(2)))
    app.clear_value("mine")
    app.clear_value("jobs")
    assert calls == [("mine", 1, set()), ("jobs", 2, {"app"})]
    assert (mine["mine"], app.get_value("jobs")) == (0, 0)
    app.subordinates[0].add_values([Value("own")], own := {"own": 3})
    full = True
    app.restore(VALUES, (5, 0, 0, [0, 0, 0], 0))
    for source, name in ((app, "jobs"), (app, "mine"), (app.subordinates[0], "own")):
        with pytest.raises(SegmentError):
            source.clear_value(name)
    assert (own["own"], app.get_value("jobs")) == (3, 5)
    app.subordinates[1].clear_value("jobs")


def test_a_value_that_is_not_kept_tells_nobody() -> None:
    """There is nothing of it to be cleared."""
    told: list[str] = []
    app = Source("app", retain=True, cleared=lambda: told.append("app"))
    values = [Value("n", aggregate=Aggregate.SUM), Value("most", aggregate=Aggregate.MAX)]
    source = add(app, "a")
    source.add_values(values, {"n": 1, "most": 2})
    app.remove_subordinate(source)
    app.clear_value("most")
    assert told == []


# Records


def test_what_is_retained_can_be_kept_and_restored(app: Source, registry: Registry) -> None:
    """A row goes out and comes back; files appear, and listeners are told."""
    host = parent_of(app)
    registry.register(host)
    add(app, "a", make_work(5, 9, 3, size=1))
    app.remove_subordinate(app.subordinates[0])
    ((values, row),) = app.retained.items()
    assert (values, row) == (VALUES, (5, 9, 0, [0, 1, 0], 0))
    row[3].append(1)  # the caller's own
    again = add(host, "again", retain=True)
    changes: list[ChangeNotice] = []
    registry.add_listener(changes.append)
    again.restore(list(values), (5, 9, 0, (0, 1, 0), 0))
    assert [set(change.touched) for change in changes] == [{directory_of(again).place}]
    assert again.retained == app.retained
    assert (read(again)["jobs"], read(host)["jobs"]) == (5, 10)
    again.restore(values, (1, 0, 0, [1, 0, 0], 0))
    assert again.retained[VALUES] == (6, 9, 0, [1, 1, 0], 0)


def test_sums_wider_than_their_type_are_restored(app: Source) -> None:
    """A sum of bytes is no byte."""

    class Bytes(Stats):
        n = u8(Aggregate.SUM)
        peak = u8(Aggregate.MAX, kind=Kind.PEAK)
        h = bare_log_hist(2, Aggregate.SUM)

    app.restore(Bytes, (1000, 257, [1 << 65, 7]))
    assert list(app.retained.values()) == [(1000, 1, [0, 7])]
    assert read(app) == {"n": 1000, "peak": 1, "h": [0, 7]}


def test_an_array_of_which_nothing_is_kept_is_not_restored(app: Source) -> None:
    """There is nothing to keep of it, and no file to show."""
    app.restore([Value("own")], [5])
    assert (app.retained, app.names()) == ({}, [])


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ((1, 2), ValueError),
        (("x", 0, 0, [0, 0, 0], 0), TypeError),
        ((0, None, 0, [0, 0, 0], 0), TypeError),
        ((0, 0, 0, [0, 0], 0), ValueError),
        ((0, 0, 0, [0, 0, 1.5], 0), TypeError),
    ],
    ids=["length", "sum", "peak", "buckets", "bucket"],
)
def test_a_row_that_is_none_is_refused(
    app: Source, row: tuple[Any, ...], error: type[Exception]
) -> None:
    """Nothing is changed by it."""
    with pytest.raises(error):
        app.restore(Work, row)
    assert (app.retained, app.names()) == ({}, [])


def test_only_who_retains_can_restore(app: Source) -> None:
    """Others, and what was released, refuse."""
    with pytest.raises(ValueError, match="host does not retain"):
        parent_of(app).restore(Work, (0, 0, 0, [0, 0, 0], 0))
    gone = Source("gone", retain=True)
    gone.put()
    uses: tuple[Callable[[], object], ...] = (
        lambda: gone.retained,
        lambda: gone.restore(Work, (0, 0, 0, [0, 0, 0], 0)),
    )
    for use in uses:
        with pytest.raises(ReleasedError):
            use()


# Views


def test_views_have_it(app: Source) -> None:
    """`.stats.json` and `.stats.bin` show the same totals as the files."""
    host = parent_of(app)
    for number in range(2):
        add(app, f"s{number}", make_work(5, 9 + number, size=1))
    app.remove_subordinate(app.subordinates[0])
    snapshot = host.snapshot()
    shown = json.loads(json_view.render(snapshot))
    assert shown == snapshot.to_dict()
    assert shown["values"]["jobs"] == 10
    assert shown["subordinates"]["app"]["values"]["sizes"] == [0, 2, 0]
    assert read_binary(host) == read_binary(app) == shown["values"]


def read_binary(source: Source) -> dict[str, Any]:
    """The numbers of a source's binary view."""
    data = VIEWS[".stats.bin"].render(source.snapshot(), mask=0o444)
    found = binary.decode(data)
    return {one.name: number for one, number in zip(found.descriptors, found.numbers, strict=True)}


def samples(registry: Registry, metric: str) -> dict[frozenset[tuple[str, str]], Any]:
    """The samples of one metric by their labels, which all three ways of exporting agree on."""
    text = prometheus.render(registry.snapshot())
    found = parse_text(text)
    theirs = parse_openmetrics(openmetrics.render(registry.snapshot()))
    collected = [sample for one in RegistryCollector(registry).collect() for sample in one.samples]
    name = f"{metric}_total" if f"{metric}_total" in str(text) else metric
    here = {labels: number for (_, labels), number in found[metric].samples.items()}
    assert here == {labels: number for (_, labels), number in theirs[metric].samples.items()}
    assert here == {
        frozenset(one.labels.items()): one.value for one in collected if one.name == name
    }
    return here


def labels(**pairs: str) -> frozenset[tuple[str, str]]:
    """The labels of a sample."""
    return frozenset(pairs.items())


def test_a_source_that_retains_is_one_series(app: Source, registry: Registry) -> None:
    """Labelled by its path: the living and what is retained together, and nothing below it."""
    registry.register(parent_of(app))
    add(app, "a", make_work(5, 9, 3), label="worker")
    add(app, "b", make_work(7, 2, 1), label="worker")
    here = labels(app="app")
    before = {name: samples(registry, f"host_{name}") for name in ("jobs", "deepest", "open")}
    assert before == {"jobs": {here: 12}, "deepest": {here: 9}, "open": {here: 4}}
    app.remove_subordinate(app.subordinates[0])
    assert samples(registry, "host_jobs") == {here: 12}
    assert samples(registry, "host_deepest") == {here: 9}
    assert samples(registry, "host_open") == {here: 1}
    app.remove_subordinate(app.subordinates[0])
    assert samples(registry, "host_jobs") == {here: 12}
    # What no file of the directory shows is not exported.
    assert "host_own" not in prometheus.render(registry.snapshot()).decode()


def test_a_source_that_does_not_collapse(registry: Registry) -> None:
    """Those in it are a series each while they live; what is retained is none."""
    app = Source("app", retain=True, collapse=False)
    registry.register(app)
    add(app, "a", make_work(5, 9, 3), label="worker")
    add(app, "b", make_work(7, 2, 1), label="worker")
    app.remove_subordinate(app.subordinates[0])
    living = labels(worker="b")
    assert app.get_value("jobs") == 12
    assert samples(registry, "app_jobs") == {living: 7}
    assert samples(registry, "app_deepest") == {living: 2}
    assert samples(registry, "app_own") == {living: 0}


def test_one_that_only_collapses(registry: Registry) -> None:
    """Without retaining: one series of the living."""
    app = Source("app", collapse=True)
    registry.register(app)
    pool = add(app, "pool", retain=True, label="pool")
    add(pool, "a", make_work(5), label="worker")
    app.add_values(Work, make_work(1))
    assert samples(registry, "app_jobs") == {labels(): 6}


def test_a_histogram_is_one_series_too(app: Source, registry: Registry) -> None:
    """Bucket by bucket, with a count where the format has one."""
    registry.register(parent_of(app))
    for name in "ab":
        add(app, name, make_work(size=1))
    app.remove_subordinate(app.subordinates[0])
    text = prometheus.render(registry.snapshot()).decode()
    assert 'host_sizes_bucket{app="app",le="0.0"} 0\n' in text
    assert 'host_sizes_bucket{app="app",le="+Inf"} 2\n' in text
    assert 'host_sizes_bucket{app="app",le="+Inf"} 2\n# EOF' in (
        openmetrics.render(registry.snapshot()).decode()
    )


def test_what_hidden_sources_retain_is_added_up_above(app: Source, registry: Registry) -> None:
    """It is in the series of the nearest source that is shown; below a hidden top there is none."""
    registry.register(parent_of(app))
    hidden_top = Source("unseen", retain=True, hidden=True)
    registry.register(hidden_top)
    plain = add(parent_of(app), "plain", label="app")
    pools = [add(app, f"pool{number}", retain=True, hidden=True) for number in range(2)]
    threads = add(plain, "threads", retain=True, hidden=True)
    for retaining in (app, hidden_top, threads, *pools):
        retaining.remove_subordinate(add(retaining, "a", make_work(5, 9)))
    here, there = labels(app="app"), labels(app="plain")
    assert samples(registry, "host_jobs") == {here: 15, there: 5}
    assert samples(registry, "host_deepest") == {here: 9, there: 9}
    assert "unseen" not in prometheus.render(registry.snapshot()).decode()


def test_a_hidden_source_that_leaves_is_still_counted(app: Source, registry: Registry) -> None:
    """The exported counter does not fall when it leaves, nor jump."""
    registry.register(parent_of(app))
    add(app, "seen", make_work(1000))
    add(app, "thread", make_work(1000), hidden=True)
    found = [samples(registry, "host_jobs")]
    app.remove_subordinate(app.subordinates[1])
    found.append(samples(registry, "host_jobs"))
    assert found == [{labels(app="app"): 2000}] * 2


def test_a_series_keeps_the_last_numbers_of_a_failed_refresh(registry: Registry) -> None:
    """As the total in the file does: a counter does not fall, and comes back, with each failure."""
    failing = False

    def refresh() -> None:
        if failing:
            raise OSError("gone")

    app = Source("app", retain=True)
    registry.register(app)
    worker = Source("worker", refresh=refresh, blocking=False)
    worker.add_values(Work, make_work(5))
    app.add_subordinate(worker)
    assert samples(registry, "app_jobs") == {labels(): 5}
    failing = True
    assert samples(registry, "app_jobs") == {labels(): 5}
    assert app.get_value("jobs") == 5


def test_a_total_that_retains_leaves_a_broken_base_out(app: Source) -> None:
    """A value that is gone, or no integer any more; integers of other libraries count."""
    value = Value("jobs", aggregate=Aggregate.SUM)
    bases: list[dict[str, Any]] = [{"jobs": number} for number in (1, 2, 4, 8)]
    for number, base in enumerate(bases):
        source = Source("s%d", number)
        source.add_values([value], base)
        app.add_subordinate(source)
    app.remove_subordinate(app.subordinates[0])
    assert app.get_value("jobs") == 15
    bases[1]["jobs"] = Indexed(2)
    assert app.get_value("jobs") == 15
    bases[2]["jobs"] = "many"
    assert app.get_value("jobs") == 11
    del bases[3]["jobs"]
    assert app.get_value("jobs") == 3


def test_a_broken_base_beside_what_is_retained_is_left_out() -> None:
    """The total has what is retained and the other bases."""
    top, bases = Source("top", retain=True), [{"n": 5}, {"n": 3}, {"n": 1}]
    values = [Value("n", aggregate=Aggregate.SUM)]
    children = [Source("s%d", number) for number in range(3)]
    for child, base in zip(children, bases, strict=True):
        child.add_values(values, base)
        top.add_subordinate(child)
    top.remove_subordinate(children[0])
    assert top.get_value("n") == 9
    bases[1]["n"] = 0.5  # type: ignore[assignment]
    assert top.get_value("n") == 6


JOBS, ERRORS = (Value(name, aggregate=Aggregate.SUM) for name in ("jobs", "errors"))


@pytest.mark.parametrize("kept", [False, True])
def test_an_array_is_forgotten(registry: Registry, kept: bool) -> None:
    """With what is retained below; its file goes, or a source above that retains has its sums."""
    host, app = Source("host", retain=kept), Source("app", retain=True)
    group = Source("group", retain=True)
    registry.register(host)
    host.add_subordinate(app)
    app.add_subordinate(group)
    app.restore([JOBS], [5])
    app.restore([ERRORS], [7])
    group.restore([JOBS], [10])
    assert registry.find("host") is host
    assert [one.get_value("jobs") for one in (host, app, group)] == [15, 15, 10]
    notices: list[ChangeNotice] = []
    registry.add_listener(notices.append)
    array = intern_array([JOBS])
    forget_row(app, array)
    assert [one.names() for one in (app, group)] == [["errors"], []]
    assert host.names() == (["jobs", "errors"] if kept else ["errors"])
    assert host.retained == ({(JOBS,): (15,)} if kept else {})
    assert host.snapshot().to_dict()["values"] == {"errors": 7} | ({"jobs": 15} if kept else {})
    places = {directory_of(one).place for one in (host, app, group)}
    assert [{*notice.touched} for notice in notices] == [places]
    # There is nothing left of it.
    forget_row(app, array)
    forget_row(app, intern_array([Value("other")]))
    assert len(notices) == 1
    app.restore([JOBS], [1])
    assert host.get_value("jobs") == (16 if kept else 1)


def test_an_array_that_others_have_is_forgotten(registry: Registry) -> None:
    """The file stays, with what the living count; one that left does not count as retained."""
    app = Source("app", retain=True)
    registry.register(app)
    workers = [Source("w%d", number) for number in range(2)]
    for worker in workers:
        worker.add_values([JOBS], {"jobs": 4})
        app.add_subordinate(worker)
    app.remove_subordinate(workers[0])
    assert app.get_value("jobs") == 8
    forget_row(app, intern_array([JOBS]))
    assert app.get_value("jobs") == 4
    app.add_subordinate(workers[0])
    assert app.get_value("jobs") == 8
    app.remove_subordinate(workers[1])
    assert app.get_value("jobs") == 8

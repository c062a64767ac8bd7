"""ArrayIndex collections: many bases reduced at once, sound ones and broken ones."""

import logging
from functools import partial
from typing import Any

import pytest

from statsfs.model.arrays import Array, File, intern_array
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.index import ArrayIndex, Entry, reduce_parts
from statsfs.tree.lock import TreeChange, apply_change
from statsfs.tree.source import Source
from tests.support.strategies import Indexed, Plain, property_base

KINDS = list(Aggregate)
ALL = Aggregate(sum(kind.value for kind in KINDS))


def make_array(type: Type) -> Array:
    """An array of one value with all kinds of aggregates."""
    return intern_array([Value("n", type, ALL)])


def add(flat: ArrayIndex, array: Array, base: object) -> Entry:
    """Add a base to a collection."""
    reader, bound = (None, None) if base is None else array.binder.bind(base)
    entry = Entry(Source("s"), array, reader, bound, base, False)
    apply_change(lambda change: flat.add(change, entry))
    return entry


def update(mine: ArrayIndex, theirs: ArrayIndex, change: TreeChange) -> None:
    """Add one index to another."""
    mine.update(change, theirs)


def reduce(flat: ArrayIndex, file: File) -> tuple[Any, Entry | None]:
    """One aggregate of an index."""
    return reduce_parts(file, [(flat, file.index)])


def reduce_all(flat: ArrayIndex, array: Array) -> dict[Aggregate, int]:
    """All aggregates of the value."""
    return {file.kind: reduce(flat, file)[0] for file in array.aggregates[0] if file.kind}


def expected(*numbers: int) -> dict[Aggregate, int]:
    """What aggregates of converted numbers are; toward zero where they are negative."""
    return {
        Aggregate.SUM: sum(numbers),
        Aggregate.MIN: min(numbers),
        Aggregate.MAX: max(numbers),
        Aggregate.AVG: int(sum(numbers) / len(numbers)),
        Aggregate.COUNT_ZERO: numbers.count(0),
        Aggregate.COUNT_NONZERO: len(numbers) - numbers.count(0),
    }


def test_all_sorts_of_bases_are_reduced_together() -> None:
    """Plain and dynamic, attributes and items."""
    array = make_array(Type.S64)
    flat = ArrayIndex(array)
    for base in ({"n": 1}, Plain({"n": -2}), property_base({"n": 0}, True), {"n": -7}):
        add(flat, array, base)
    add(flat, array, None)
    assert len(flat) == 5
    assert reduce_all(flat, array) == expected(1, -2, 0, -7)


@pytest.mark.parametrize("type", list(Type))
def test_numbers_out_of_range_are_converted_before_they_are_reduced(type: Type) -> None:
    """Modulo the type, not modulo 64 bits."""
    array = make_array(type)
    flat = ArrayIndex(array)
    for number in (1 << 70, -1, 5, (1 << 65) + 3, 0):
        add(flat, array, {"n": number})
    converted = [type.convert(n) for n in (1 << 70, -1, 5, (1 << 65) + 3, 0)]
    reduced = reduce_all(flat, array)
    reduced.pop(Aggregate.AVG)  # in floating point the expectation would not be exact
    wanted = expected(*converted)
    wanted.pop(Aggregate.AVG)
    wanted[Aggregate.SUM] = (Type.S64 if type.signed else Type.U64).convert(sum(converted))
    assert reduced == wanted


def test_collections_are_added_and_taken_away_whole() -> None:
    """What a subordinate brings goes with it, and nothing else does."""
    array = make_array(Type.U64)
    mine, theirs = ArrayIndex(array), ArrayIndex(array)
    add(mine, array, {"n": 1})
    add(mine, array, None)
    own = mine.copy()
    for base in ({"n": 2}, Plain({"n": 3}), None):
        add(theirs, array, base)
    apply_change(lambda change: mine.update(change, theirs))
    assert len(mine) == 5
    assert reduce(mine, array.aggregates[0][0]) == (6, None)
    apply_change(lambda change: mine.subtract(change, theirs))
    assert len(mine) == 2
    assert reduce(mine, array.aggregates[0][0]) == (1, None)
    apply_change(lambda change: mine.subtract(change, own))
    assert len(mine) == 0
    assert mine.groups == {}
    assert reduce(theirs, array.aggregates[0][0]) == (5, None)


def test_what_an_interrupted_change_leaves_in_an_index_is_nothing() -> None:
    """An empty group: what was read with it can come and go."""
    array = make_array(Type.U64)
    mine, theirs = ArrayIndex(array), ArrayIndex(array)
    theirs.groups[array.binder.bind({"n": 1})[0]] = {}
    apply_change(lambda change: mine.subtract(change, theirs))
    assert (len(mine), reduce(theirs, array.aggregates[0][0])) == (0, (0, None))


def test_declared_entries_may_be_brought_where_there_were_none() -> None:
    """And where there were some."""
    array = make_array(Type.U64)
    for before in (0, 1):
        mine, theirs = ArrayIndex(array), ArrayIndex(array)
        for _ in range(before):
            add(mine, array, None)
        add(theirs, array, None)
        apply_change(partial(update, mine, theirs))
        assert len(mine) == before + 1
        assert reduce_all(mine, array) == dict.fromkeys(KINDS, 0)


class Unordered(int):
    """An integer that cannot be compared."""

    def __lt__(self, other: object) -> bool:
        raise RuntimeError("no")

    __gt__ = __lt__


@pytest.mark.parametrize("broken", [None, "1", 0.5, object(), [1]])
@pytest.mark.parametrize("type", [Type.U64, Type.S32, Type.BOOL])
def test_a_base_that_holds_no_integer_any_more_is_left_out(type: Type, broken: Any) -> None:
    """The others still count, and the one is told."""
    array = make_array(type)
    flat = ArrayIndex(array)
    bases = [Plain({"n": 1}), Plain({"n": 1}), Plain({"n": 0})]
    entries = [add(flat, array, base) for base in bases]
    bases[1].__dict__["n"] = broken
    for file in array.aggregates[0]:
        number, left_out = reduce(flat, file)
        assert left_out is entries[1]
        assert file.kind is not None
        assert number == expected(1, 0)[file.kind]


@pytest.mark.parametrize("type", [Type.U64, Type.S32])
def test_a_base_that_lost_its_value_is_left_out(type: Type) -> None:
    """A deleted attribute and a deleted key are as good as no integer."""
    array = make_array(type)
    flat = ArrayIndex(array)
    add(flat, array, {"n": 4})
    gone, lost = Plain({"n": 1}), {"n": 1}
    entry = add(flat, array, gone)
    del gone.__dict__["n"]
    assert reduce(flat, array.aggregates[0][0]) == (4, entry)
    add(flat, array, lost)
    lost.clear()
    assert reduce(flat, array.aggregates[0][0])[0] == 4


@pytest.mark.parametrize("type", [Type.U64, Type.S8])
def test_integers_of_other_libraries_are_reduced_one_by_one(type: Type) -> None:
    """They are sound, though their sum is nothing that Python's ints know."""
    array = make_array(type)
    flat = ArrayIndex(array)
    for number in (Indexed(3), 4, Unordered(5), True):
        add(flat, array, {"n": number})
    assert reduce_all(flat, array) == expected(3, 4, 5, 1)
    assert reduce(flat, array.aggregates[0][0])[1] is None


def test_clearing_tells_who_refused() -> None:
    """All others are cleared."""
    array = make_array(Type.U64)
    flat = ArrayIndex(array)
    bases = [{"n": 1}, {"n": 2}]
    add(flat, array, bases[0])
    refusing = add(flat, array, property_base({"n": 5}, False))
    add(flat, array, bases[1])
    add(flat, array, None)
    ((entry, error),) = flat.clear(0, {})
    assert entry is refusing
    assert "'n'" in str(error)
    assert bases == [{"n": 0}, {"n": 0}]


def test_reading_one_by_one_is_told_to_debuggers_only(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody's log fills up because a foreign integer is slow."""
    array = make_array(Type.U64)
    flat = ArrayIndex(array)
    add(flat, array, {"n": Indexed(3)})
    with caplog.at_level(logging.DEBUG):
        reduce(flat, array.aggregates[0][0])
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_histograms_are_reduced_bucket_by_bucket() -> None:
    """Of nothing they are empty; a broken one is left out and told."""
    values = [Value("n", Type.U8, Aggregate.SUM, kind=Kind.LOG_HIST, size=2)]
    array = intern_array(values)
    flat = ArrayIndex(array)
    ((total,),) = array.aggregates
    assert reduce(flat, total) == ([0, 0], None)
    held: list[dict[str, Any]] = [{"n": [number, 256]} for number in range(3)]
    entries = [add(flat, array, one) for one in held]
    add(flat, array, property_base({"n": [1, 1]}, True))
    add(flat, array, None)
    assert reduce(flat, total) == ([4, 1], None)
    wrong: list[Any] = [[1], [1, None], 5, (1, 2)]
    for buckets in wrong:
        held[1]["n"] = buckets
        assert reduce(flat, total) == ([3, 1], entries[1])
    del held[1]["n"]
    assert reduce(flat, total) == ([3, 1], entries[1])
    assert [entry for entry, _ in flat.clear(0, {})] == [entries[1]]
    assert reduce(flat, total) == ([0, 0], entries[1])

"""Numbers as blocks of bytes: taken whole, read where they are, and cleared by a baseline."""

import struct

import pytest

from statsfs.exceptions import BaseMismatchError, ReadOnlyValueError
from statsfs.model.packed import PackedNumbers, Place
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.lock import TreeChange, apply_change
from statsfs.tree.source import Source

EXITS = Value("exits", aggregate=Aggregate.SUM)
RUNNING = Value("running", Type.BOOL, Aggregate.SUM, kind=Kind.INSTANT)
WAITS = Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)
DEEPEST = Value("deepest", aggregate=Aggregate.MAX, kind=Kind.PEAK)
# Not in the order of the block, in which nobody knows the first integer.
PLACES = {
    "waits": Place(WAITS, 24),
    "exits": Place(EXITS, 16),
    "running": Place(RUNNING, 8),
    "deepest": Place(DEEPEST, 48),
}
SIZE = 64
NUMBERS = (EXITS, RUNNING, DEEPEST)
ALL = (WAITS, *NUMBERS)


def block(exits: int = 0, running: int = 0, deepest: int = 0, waits: tuple[int, ...] = ()) -> bytes:
    """What a kernel would give."""
    return struct.pack("=8Q", 77, running, exits, *(waits or (0, 0, 0)), deepest, 99)


def make_source(*arrays: tuple[Value, ...]) -> tuple[Source, PackedNumbers]:
    """A source with arrays over one block."""
    source, numbers = Source("vcpu0"), PackedNumbers(PLACES, SIZE)
    for values in arrays:
        source.add_values(values, numbers)
    return source, numbers


def read(source: Source) -> dict[str, object]:
    """What a source shows."""
    return {name: source.get_value(name) for name in sorted(source.names())}


def test_what_was_taken_is_read() -> None:
    """Before anything is taken all is 0; then each value is read at its place, as its type."""
    source, numbers = make_source(NUMBERS, (WAITS,))
    assert read(source) == {"deepest": 0, "exits": 0, "running": 0, "waits": [0, 0, 0]}
    numbers.take(block(5, 256, 9, (1, 2, 3)))
    assert read(source) == {"deepest": 9, "exits": 5, "running": 1, "waits": [1, 2, 3]}
    assert source.snapshot().arrays[NUMBERS].rows == [(5, 1, 9)]
    assert source.snapshot().arrays[(WAITS,)].rows == [([1, 2, 3],)]
    with pytest.raises(ValueError, match="3 bytes, not 64"):
        numbers.take(b"abc")


def test_one_array_may_have_all() -> None:
    """Numbers and histograms of one array are decoded together; totals add many blocks."""
    above = Source("vm")
    for exits in (3, 4):
        source = Source("vcpu%d", exits)
        numbers = PackedNumbers(PLACES, SIZE)
        source.add_values(ALL, numbers)
        above.add_subordinate(source)
        numbers.take(block(exits, 1, exits, (exits, 0, 1)))
    assert read(above) == {"deepest": 4, "exits": 7, "running": 2, "waits": [7, 0, 2]}
    rows = above.snapshot().arrays[ALL].rows
    assert rows == [([3, 0, 1], 3, 1, 3), ([4, 0, 1], 4, 1, 4)]
    assert [group.reader.plain for group in above.snapshot().arrays[ALL]._groups] == [True]


def test_a_value_that_is_not_there_is_refused() -> None:
    """A base must have what an array declares, and as the array declares it."""
    with pytest.raises(BaseMismatchError, match="the block has no value 'others'"):
        make_source((Value("others"),))
    with pytest.raises(BaseMismatchError, match="the block has no value 'exits'"):
        make_source((Value("exits", Type.S32),))


def test_clearing_subtracts_from_then_on() -> None:
    """A cleared value counts from 0 again, whether it is a number or buckets; others go on."""
    source, numbers = make_source(NUMBERS, (WAITS,))
    numbers.take(block(5, 1, 9, (1, 2, 3)))
    source.clear_value("exits")
    source.clear_value("waits")
    assert read(source) == {"deepest": 9, "exits": 0, "running": 1, "waits": [0, 0, 0]}
    numbers.take(block(8, 0, 9, (1, 3, 5)))
    assert read(source) == {"deepest": 9, "exits": 3, "running": 0, "waits": [0, 1, 2]}
    source.clear_value("exits")
    assert source.get_value("exits") == 0
    assert numbers.raw == block(8, 0, 9, (1, 3, 5))


def test_a_number_below_its_baseline_began_anew() -> None:
    """Then it is shown as it is, and so are those that come."""
    source, numbers = make_source(NUMBERS)
    numbers.take(block(5))
    source.clear_value("exits")
    numbers.take(block(2))
    assert source.get_value("exits") == 2
    numbers.take(block(7))
    assert source.get_value("exits") == 7


def test_what_is_not_cumulative_is_not_cleared() -> None:
    """A peak stays what it is: it is kept where it is counted."""
    _, numbers = make_source(NUMBERS)
    with pytest.raises(ValueError, match="the peak is kept where it is counted"):
        numbers.clear_value("deepest")
    source, _ = make_source(NUMBERS)
    with pytest.raises(ReadOnlyValueError):
        source.clear_value("running")


def test_numbers_that_are_taken_in_a_change() -> None:
    """Its steps do what `take` does, when the change is made; baselines stay."""
    source, numbers = make_source(NUMBERS)
    numbers.take(block(5))
    numbers.clear_value("exits")
    assert numbers.cleared == ("exits",)
    steps = numbers.steps(block(8, 1))
    assert read(source) == {"deepest": 0, "exits": 0, "running": 0}

    def make(change: TreeChange) -> None:
        for step in steps:
            change.do(*step)

    apply_change(make)
    assert read(source) == {"deepest": 0, "exits": 3, "running": 1}
    assert numbers.raw == block(8, 1)

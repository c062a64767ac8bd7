"""Numbers that are counted elsewhere: taken, read, and cleared by a baseline."""

import pytest

from statsfs.exceptions import ReadOnlyValueError
from statsfs.model.external import Numbers
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.source import Source

VALUES = (
    Value("exits", aggregate=Aggregate.SUM),
    Value("drift", Type.S64, Aggregate.SUM),
    Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3),
    Value("pages", aggregate=Aggregate.SUM, kind=Kind.INSTANT),
    Value("deepest", aggregate=Aggregate.MAX, kind=Kind.PEAK),
)
BY_NAME = {value.name: value for value in VALUES}


def make_source() -> tuple[Source, Numbers]:
    """A source whose numbers are taken, and those."""
    source, numbers = Source("vm"), Numbers(BY_NAME)
    source.add_values(VALUES, numbers)
    return source, numbers


def read(source: Source) -> list[object]:
    """What a source shows, by value."""
    return [source.get_value(value.name) for value in VALUES]


def test_what_was_taken_is_read() -> None:
    """Before anything is taken all is 0; then the numbers are those of the last time."""
    source, numbers = make_source()
    assert read(source) == [0, 0, [0, 0, 0], 0, 0]
    numbers.take((7, -2, [1, 2, 3], 4, 9))
    assert read(source) == [7, -2, [1, 2, 3], 4, 9]
    numbers.take((8, 2, [2, 2, 3], 3, 9))
    assert read(source) == [8, 2, [2, 2, 3], 3, 9]
    assert numbers.baselines == {}


def test_a_base_is_read_in_one_pass() -> None:
    """It is a plain dictionary to its readers: no code of ours runs in a sample."""
    source, numbers = make_source()
    numbers.take((7, -2, [1, 2, 3], 4, 9))
    assert [group.reader.plain for group in source.snapshot().arrays[VALUES]._groups] == [True]
    assert source.snapshot().arrays[VALUES].rows == [(7, -2, [1, 2, 3], 4, 9)]


def test_clearing_subtracts_from_then_on() -> None:
    """A cleared value counts from 0 again, whether it is a number or buckets, and others go on."""
    source, numbers = make_source()
    numbers.take((7, -2, [1, 2, 3], 4, 9))
    for name in ("exits", "drift", "waits"):
        source.clear_value(name)
    assert read(source) == [0, 0, [0, 0, 0], 4, 9]
    numbers.take((9, -5, [1, 3, 5], 5, 9))
    assert read(source) == [2, -3, [0, 1, 2], 5, 9]
    source.clear_value("exits")
    numbers.take((10, -5, [1, 3, 5], 5, 9))
    assert read(source) == [1, -3, [0, 1, 2], 5, 9]


def test_counting_that_begins_anew_drops_the_baseline() -> None:
    """Less than was cleared cannot be what went on growing since."""
    source, numbers = make_source()
    numbers.take((7, 0, [1, 2, 3], 4, 9))
    source.clear_value("exits")
    source.clear_value("waits")
    numbers.take((3, 0, [2, 1, 3], 4, 9))
    assert read(source)[:3] == [3, 0, [2, 1, 3]]
    assert numbers.baselines == {}


@pytest.mark.parametrize("name", ["deepest"])
def test_a_peak_is_not_cleared(name: str) -> None:
    """From a peak nothing can be subtracted."""
    source, numbers = make_source()
    numbers.take((7, 0, [1, 2, 3], 4, 9))
    with pytest.raises(ReadOnlyValueError, match="the peak is kept"):
        source.clear_value(name)
    assert source.get_value(name) == 9


def test_clearing_a_total_clears_what_it_covers() -> None:
    """Each base has a baseline of its own."""
    host = Source("kvm")
    taken = []
    for number in range(3):
        source, numbers = make_source()
        with Source("vm%d", number) as vm:
            vm.add_subordinate(source)
            host.add_subordinate(vm)
        numbers.take((7 + number, 0, [1, 2, 3], 4, 9))
        taken.append(numbers)
    host.clear_value("exits")
    host.clear_value("waits")
    assert host.get_value("exits") == 0
    for number, numbers in enumerate(taken):
        numbers.take((8 + number, 0, [1, 2, 4], 4, 9))
    assert host.get_value("exits") == 3
    assert host.get_value("waits") == [0, 0, 3]

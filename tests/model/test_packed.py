"""Numbers as blocks of bytes: taken whole, read where they are, and cleared by a baseline."""

import struct
import threading

import pytest

from statsfs.exceptions import BaseMismatchError, ReadOnlyValueError
from statsfs.model.packed import PackedNumbers, Place
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.lock import TreeChange, apply_change
from statsfs.tree.source import Source
from tests.support.deadlines import wait_until
from tests.support.forking import run_forking

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


def test_many_are_taken_at_once() -> None:
    """Each its block; of some the beginning stays, and some blocks are of nothing."""
    (first, one), (second, two) = make_source(NUMBERS), make_source(NUMBERS)
    two.take(block(7, 1, 9))
    second.clear_value("exits")
    blocks = [block(1, 1, 1), block(2, 0, 2), block(10, 0, 9)]
    PackedNumbers.take_all([(one, 0), None, (two, 16)], blocks)
    assert read(first) == {"deepest": 1, "exits": 1, "running": 1}
    assert read(second) == {"deepest": 9, "exits": 3, "running": 1}
    with pytest.raises(ValueError, match="3 bytes, not 64"):
        PackedNumbers.take_all([(one, 0)], [b"abc"])
    with pytest.raises(ValueError, match="shorter"):
        PackedNumbers.take_all([(one, 0)], [])


def test_what_is_kept_stays() -> None:
    """Whatever is taken, and so does its baseline; the next that is taken goes on from it."""
    source, numbers = make_source(NUMBERS, (WAITS,))
    numbers.take(block(5, 1, 9, (1, 2, 3)))
    source.clear_value("waits")
    numbers.keep(["waits", "deepest"])
    numbers.take(block(8))
    PackedNumbers.take_all([(numbers, 16)], [block(9)])
    assert read(source) == {"deepest": 9, "exits": 9, "running": 0, "waits": [0, 0, 0]}
    numbers.keep([])
    numbers.take(block(8, 0, 10, (1, 2, 4)))
    assert read(source) == {"deepest": 10, "exits": 8, "running": 0, "waits": [0, 0, 1]}


def test_a_clear_while_many_are_taken() -> None:
    """A cleared number never shows what it was before, and none falls but by a clear."""
    sources, numbers = zip(*(make_source(NUMBERS) for _ in range(20)), strict=True)
    targets = [(one, 0) for one in numbers]
    ended = threading.Event()

    def take() -> None:
        exits = 10**9
        while not ended.is_set():
            exits += 1
            PackedNumbers.take_all(targets, [block(exits)] * len(targets))

    thread = threading.Thread(target=take)
    thread.start()
    try:
        wait_until(lambda: sources[-1].get_value("exits") > 10**9, "the first numbers")
        for _ in range(100):
            for source in sources:
                source.clear_value("exits")
                first = source.get_value("exits")
                assert first <= source.get_value("exits") < 10**9
    finally:
        ended.set()
        thread.join()


def test_a_child_that_was_forked_while_a_block_was_taken_can_take_some() -> None:
    """The lock of another thread, which the child does not have, is not waited for."""
    program = """
import os, signal, sys, threading
from statsfs.model.packed import PackedNumbers
held = threading.Event()
def hold():
    with PackedNumbers._lock:
        held.set()
        signal.pause()
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if not child:
    signal.alarm(20)
    PackedNumbers({}, 2).take(b"ab")
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0, "the child hangs"
"""
    assert run_forking(program, measured=True) == (0, "")


def test_numbers_of_another_process() -> None:
    """They and the baselines go over by name; what is unknown or of another size is left out."""
    source, numbers = make_source(NUMBERS, (WAITS,))
    numbers.take(block(7, 1, 9, (1, 2, 3)))
    source.clear_value("exits")
    source.clear_value("waits")
    numbers.take(block(10, 1, 9, (1, 2, 8)))
    assert numbers.numbers == {"waits": [1, 2, 8], "exits": 10, "running": 1, "deepest": 9}
    assert numbers.baselines == {"exits": 7, "waits": [1, 2, 3]}
    again, restored = make_source(NUMBERS, (WAITS,))
    restored.restore({**numbers.numbers, "other": 1}, {**numbers.baselines, "other": 1})
    assert (
        read(again) == read(source) == {"deepest": 9, "exits": 3, "running": 1, "waits": [0, 0, 5]}
    )
    restored.restore({"waits": [1], "exits": [1, 2]}, {"waits": 4})
    assert read(again) == read(source)
    restored.take(block(6))
    assert again.get_value("exits") == 6

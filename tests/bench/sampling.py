"""What a snapshot of 8,000 sources of 47 values costs, beside the bare attrgetter over bases."""

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from statsfs.model.stats import Stats, values_of
from statsfs.tree.source import Source
from tests.bench.measuring import Line, compare, show, take_turns, tell
from tests.bench.stats import VcpuStats

SOURCES = 8_000
ROUNDS = 9


def make_tree(base: Callable[[], Any], count: int = SOURCES) -> tuple[Source, list[Any]]:
    """Sources of 47 values below a hundred others below one, and their bases."""
    top, bases = Source("top"), [base() for _ in range(count)]
    groups = [Source("vm%d", number) for number in range(100)]
    for group in groups:
        top.add_subordinate(group)
    for number, one in enumerate(bases):
        source = Source("vcpu%d", number)
        source.add_values(VcpuStats, one)
        groups[number % 100].add_subordinate(source)
        source.put()
    return top, bases


def over_a_buffer() -> Stats:
    """A base over memory of its own."""
    return VcpuStats.from_buffer(bytearray(8 * len(values_of(VcpuStats))))


def measure() -> Iterator[Line]:
    """The pass, and what it takes to have numbers and dictionaries of it."""
    names = [value.name for value in values_of(VcpuStats)]
    top, bases = make_tree(VcpuStats)
    slots, _ = make_tree(over_a_buffer)
    getter = attrgetter(*names)

    def bare() -> Any:
        return list(map(getter, bases))

    def rows() -> Any:
        return [samples.rows for samples in top.snapshot().arrays.values()]

    def rows_of_slots() -> Any:
        return [samples.rows for samples in slots.snapshot().arrays.values()]

    loops = [bare, top.snapshot, rows, slots.snapshot, rows_of_slots]
    baseline, snapshot, decoded, of_slots, decoded_slots = take_turns(loops, ROUNDS)
    again, to_dict = take_turns([bare, lambda: top.snapshot().to_dict()], 3)
    yield tell("list(map(attrgetter(*names), bases))", baseline, "ms")
    yield compare("snapshot()", snapshot, baseline, 2, "ms")
    yield compare("snapshot() and .rows", decoded, baseline, None, "ms")
    yield compare("snapshot(), bases of from_buffer", of_slots, baseline, 2, "ms")
    yield compare("snapshot() and .rows, bases of from_buffer", decoded_slots, baseline, None, "ms")
    yield compare("snapshot().to_dict()", to_dict, again, None, "ms")


def main() -> None:
    """Print what was measured."""
    count = len(values_of(VcpuStats))
    show(f"a snapshot of {SOURCES:,} sources of {count} values", measure())

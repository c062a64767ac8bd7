"""What a total of 8,000 sources costs its reader, beside the bare sum over their bases."""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from statsfs.model.values import Aggregate, Type, Value
from statsfs.tree.source import Source
from tests.bench.measuring import Line, compare, show, take_turns

SOURCES = 8_000
ROUNDS = 15
KINDS = list(Aggregate)
ALL = Aggregate(sum(kind.value for kind in KINDS))


class Base:
    """A producer's object."""

    __slots__ = ("n",)

    def __init__(self, number: int) -> None:
        self.n = number


def make_tree(type: Type, bases: list[Base]) -> Source:
    """A source above one for each base, in a hundred groups."""
    top, values = Source("top"), [Value("n", type, ALL)]
    groups = [Source("group%d", number) for number in range(100)]
    for group in groups:
        top.add_subordinate(group)
    for number, base in enumerate(bases):
        source = Source("s%d", number)
        source.add_values(values, base)
        groups[number % 100].add_subordinate(source)
        source.put()
    return top


def measure_type(type: Type, spread: int) -> Iterator[Line]:
    """All kinds of aggregates of a type, over numbers up to `spread`."""
    bases = [Base(number * 0x9E3779B97F4A7C15 % spread) for number in range(SOURCES)]
    top, getter = make_tree(type, bases), attrgetter("n")

    def bare() -> Any:
        return sum(map(getter, bases))

    names = dict(Value("n", type, ALL).aggregate_names)
    reads = [lambda name=name: top.get_value(name) for name in names.values()]
    baseline, *seconds = take_turns([bare, *reads], ROUNDS)
    out = "" if spread <= type.maximum + 1 else ", out of range"
    for kind, found in zip(names, seconds, strict=True):
        wide = kind is Aggregate.SUM and type in (Type.U64, Type.S64) and not out
        yield compare(f"{type} {kind.label}{out}", found, baseline, 2 if wide else 4, "us")


def measure() -> Iterator[Line]:
    """The type of nearly all counters in all kinds, and the others where they differ."""
    for type in (Type.U64, Type.S64, Type.U32, Type.S32, Type.U8, Type.BOOL):
        yield from measure_type(type, min(1000, type.maximum + 1))
    for type, spread in ((Type.U64, 1 << 65), (Type.U32, 1 << 34), (Type.S8, 1 << 10)):
        yield from measure_type(type, spread)


def main() -> None:
    """Print what was measured."""
    show(
        f"a total of {SOURCES:,} sources (ratios: to sum(map(attrgetter(name), bases)))",
        measure(),
    )

"""What hypothesis draws: values, arrays, bases, trees.

An array is drawn as a recipe and made anew wherever it is used, so that equal arrays are never the
same objects. A base is made together with the model's copy of what it holds.
"""

import ctypes
import mmap
import struct
import types
from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hypothesis import strategies as st

from statsfs.model.fields import (
    boolean,
    hist,
    linear_hist,
    log_hist,
    s8,
    s16,
    s32,
    s64,
    u8,
    u16,
    u32,
    u64,
)
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Type, Value
from tests.support.model import BITS, SIGNED, ModelEntry, Number, is_histogram

FIELD_FUNCTIONS = {
    Type.BOOL: boolean,
    Type.U8: u8, Type.U16: u16, Type.U32: u32, Type.U64: u64,
    Type.S8: s8, Type.S16: s16, Type.S32: s32, Type.S64: s64,
}  # fmt: skip

SUMMED_FUNCTIONS: dict[Kind, tuple[Any, set[str]]] = {
    Kind.LOG_HIST: (log_hist, {"size"}),
    Kind.LINEAR_HIST: (linear_hist, {"size", "bucket_size"}),
    Kind.HIST: (hist, {"bounds"}),
}

# Few names, so that values, the kinds of aggregates and directories meet.
VALUE_NAMES = ("a", "b", "c", "a.min", "b.avg", "vm", "é")
SOURCE_NAMES = ("a", "b", "vm", "x", "y", "a.min")

# No other test has an equal array: which of two arrays was first is counted from here on.
DESCRIPTION = "drawn by hypothesis"

BOUNDARIES = sorted(
    {sign * (1 << bits) + off for bits in (0, 7, 8, 15, 16, 31, 32, 63, 64, 70)
     for sign in (1, -1) for off in (-1, 0, 1)}
)  # fmt: skip

numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from(BOUNDARIES), st.integers(-(1 << 80), 1 << 80)
)
value_types = st.sampled_from(list(Type))
bucket_types = st.sampled_from([type for type in Type if type is not Type.BOOL])
bucket_aggregates = st.sampled_from((Aggregate.SUM, Aggregate.SUM, Aggregate.NONE))
PLAIN_KINDS = (Kind.CUMULATIVE, Kind.CUMULATIVE, Kind.PEAK, Kind.INSTANT)
aggregates = st.lists(st.sampled_from(list(Aggregate)), max_size=6).map(
    lambda kinds: Aggregate(sum(kind.value for kind in set(kinds)))
)


@dataclass(frozen=True)
class Recipe:
    """How to make an array of values, as often as is asked."""

    fields: tuple[tuple[tuple[str, Any], ...], ...]

    def values(self) -> tuple[Value, ...]:
        """Make the array of new `Value`s."""
        return tuple(Value(**dict(one)) for one in self.fields)

    def stats_class(self) -> type[Stats]:
        """Make a new `Stats` class of an array that `suits_stats`."""
        body: dict[str, Any] = {"__doc__": "Drawn by hypothesis."}
        names = [dict(one)["name"] for one in self.fields]
        for one in self.fields:
            arguments = dict(one)
            name, declare = arguments.pop("name"), FIELD_FUNCTIONS[arguments.pop("type")]
            if f"{name}.sum" in names:
                declare, wanted = SUMMED_FUNCTIONS[arguments.pop("kind")]
                for unwanted in {"size", "bucket_size", "bounds"} - wanted:
                    arguments.pop(unwanted, None)
            if not name.endswith(".sum"):
                body[name] = declare(**arguments)
        made = types.new_class("Drawn", (Stats,), exec_body=lambda space: space.update(body))
        assert issubclass(made, Stats)
        return made

    @property
    def has_offsets(self) -> bool:
        return "offset" in dict(self.fields[0])

    @property
    def suits_stats(self) -> bool:
        names = [dict(one)["name"] for one in self.fields]
        return (
            not self.has_offsets
            and len(set(names)) == len(names)
            and all(name.removesuffix(".sum").isidentifier() for name in names)
        )


@st.composite
def _shapes(draw: st.DrawFn) -> dict[str, Any]:
    # What makes a value a histogram, of one in four; else nothing.
    if draw(st.integers(0, 3)):
        return {}
    kind = draw(st.sampled_from((Kind.LOG_HIST, Kind.LINEAR_HIST, Kind.HIST)))
    if kind is Kind.HIST:
        bounds = sorted(draw(st.sets(st.integers(0, 99), min_size=1, max_size=3)))
        return {"kind": kind, "size": len(bounds) + 1, "bounds": tuple(bounds)}
    shape = {"kind": kind, "size": draw(st.integers(1, 4))}
    return shape if kind is Kind.LOG_HIST else {**shape, "bucket_size": draw(st.integers(1, 9))}


def _sum_of(one: dict[str, Any]) -> dict[str, Any]:
    # What declares the sum of a histogram, as `log_hist` would.
    return {
        "name": f"{one['name']}.sum",
        "type": Type.U64,
        "aggregate": one["aggregate"],
        "hidden": one["hidden"],
        "description": f"Sum of {one['name']}: {one['description']}",
        "kind": Kind.CUMULATIVE,
        "mode": 0o444,
    }


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Draw an array of one to four values; some have offsets."""
    placed = draw(st.booleans())
    fields: list[dict[str, Any]] = []
    visible = set()
    shapes: dict[str, dict[str, Any]] = {}
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(VALUE_NAMES))
        hidden = name in visible or draw(st.integers(0, 4)) == 0
        if not hidden:
            visible.add(name)
        # Values of one name share what a base holds: an integer, or a list of some length.
        shape = shapes.setdefault(name, draw(_shapes()))
        kind = shape.get("kind") or draw(st.sampled_from(PLAIN_KINDS))
        histogram = "size" in shape
        one: dict[str, Any] = {
            "name": name,
            "type": draw(bucket_types if histogram else value_types),
            "aggregate": draw(bucket_aggregates if histogram else aggregates),
            "hidden": hidden,
            "description": DESCRIPTION,
            **shape,
            "kind": kind,
        }
        if kind is not Kind.INSTANT and draw(st.integers(0, 3)) == 0:
            one["mode"] = 0o444
        fields.append(one)
        if histogram and one["type"] is Type.U64:
            fields.append(_sum_of(one))
    if placed:
        end = 0
        for index in draw(st.permutations(range(len(fields)))):
            width = 1 if fields[index]["type"] is Type.BOOL else BITS[fields[index]["type"]] // 8
            gap = draw(st.integers(0, 2)) * width
            fields[index]["offset"] = -(-end // width) * width + gap
            end = fields[index]["offset"] + width * fields[index].get("size", 1)
    return Recipe(tuple(tuple(one.items()) for one in fields))


class Buckets(list[Any]):
    """The histogram of a foreign object."""

    sum: Any = 0


def hold_sums(held: Mapping[str, Any]) -> dict[str, Any]:
    """What an object has as attributes: a sum is one of its histogram."""
    attributes = dict(held)
    for name, number in held.items():
        if f"{name}.sum" in held:
            attributes[name] = Buckets(number)
            attributes[name].sum = attributes.pop(f"{name}.sum")
    return attributes


class Plain:
    """An object with whatever attributes it is given."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.__dict__.update(attributes)


class Fallback:
    """An object whose attributes are found by `__getattr__`."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.__dict__["held"] = attributes

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["held"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, number: int) -> None:
        self.__dict__["held"][name] = number


class Indexed:
    """An integer of a foreign library: it has `__index__`, and adds to something else."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


def property_base(attributes: Mapping[str, Any], settable: bool) -> object:
    """Make an object whose attributes are properties."""
    held = dict(attributes)

    def make(name: str) -> property:
        return property(
            lambda self: held[name],
            (lambda self, number: held.__setitem__(name, number)) if settable else None,
        )

    return type("Properties", (), {name: make(name) for name in attributes})()


class Made(NamedTuple):
    """A base, what declares its values, and the model's copy of it."""

    values: Any  # what `add_values` takes: an array, a list, a Stats class
    base: Any
    entry: ModelEntry


FLAVOURS = (
    "attributes", "dict", "ordered dict", "user dict", "properties", "fallback", "indexed",
    "read-only mapping", "read-only properties",
)  # fmt: skip
STATS_FLAVOURS = ("stats", "slots over a buffer", "slots over shared memory")
BUFFER_FLAVOURS = ("bytearray", "mmap", "ctypes", "memoryview")


def copy_numbers(held: dict[str, Number]) -> dict[Any, Number]:
    """A copy that shares no list with what a base holds."""
    return {
        key: list(number) if isinstance(number, list) else number for key, number in held.items()
    }


def make_indexed(number: Number) -> Any:
    """The same number, or buckets, as integers of a foreign library."""
    return list(map(Indexed, number)) if isinstance(number, list) else Indexed(number)


def make_base(recipe: Recipe, flavour: str, drawn: list[Number], hidden: bool) -> Made:
    """Make a base that holds what was drawn, as far as its memory can."""
    values = recipe.values()
    if flavour == "none":
        return Made(list(values), None, ModelEntry(values, None, True, hidden=hidden))
    if flavour in BUFFER_FLAVOURS:
        return _make_buffer(values, flavour, drawn, hidden)
    held = {value.name: number for value, number in zip(values, drawn, strict=True)}
    clearable = not flavour.startswith("read-only")
    if flavour in STATS_FLAVOURS:
        return _make_stats(recipe, flavour, held, hidden)
    makers: dict[str, Callable[[], Any]] = {
        "attributes": lambda: Plain(hold_sums(held)),
        "dict": lambda: dict(held),
        "ordered dict": lambda: OrderedDict(held),
        "user dict": lambda: UserDict(held),
        "properties": lambda: property_base(hold_sums(held), True),
        "fallback": lambda: Fallback(hold_sums(held)),
        "indexed": lambda: {name: make_indexed(number) for name, number in held.items()},
        "read-only mapping": lambda: types.MappingProxyType(held),
        "read-only properties": lambda: property_base(hold_sums(held), False),
    }
    base = makers[flavour]()
    entry = ModelEntry(values, copy_numbers(held), True, clearable, hidden)
    entry.clears_sums = flavour != "read-only mapping"
    return Made(values, base, entry)


def _in_slot(number: int, type: Type) -> int:
    # A slot has 64 bits, signed as its type is.
    number %= 1 << 64
    return number - (1 << 64) if type in SIGNED and number >= 1 << 63 else number


def _make_stats(recipe: Recipe, flavour: str, held: dict[str, Number], hidden: bool) -> Made:
    values = recipe.values()
    cls = recipe.stats_class()
    base = cls()
    if flavour != "stats":
        size = 16 + 8 * sum(value.size for value in values)
        memory = bytearray(size) if flavour == "slots over a buffer" else mmap.mmap(-1, size)
        base = cls.from_buffer(memory, 16)
        for value in values:
            number = held[value.name]
            held[value.name] = (
                [_in_slot(bucket, value.type) for bucket in number]
                if isinstance(number, list)
                else _in_slot(number, value.type)
            )
    for name, number in held.items():
        histogram, dot, _ = name.partition(".")
        if dot:
            getattr(base, histogram).sum = number
        elif isinstance(number, list):
            getattr(base, name)[:] = number
        else:
            setattr(base, name, number)
    return Made(cls, base, ModelEntry(values, copy_numbers(held), True, hidden=hidden))


def _make_buffer(
    values: tuple[Value, ...], flavour: str, drawn: list[Number], hidden: bool
) -> Made:
    size = 64 + max(value.offset or 0 for value in values)
    # Four buckets of 8 bytes are the widest.
    makers: dict[str, Callable[[], Any]] = {
        "bytearray": lambda: bytearray(size),
        "mmap": lambda: mmap.mmap(-1, size),
        "ctypes": lambda: (ctypes.c_uint16 * size)(),
        "memoryview": lambda: memoryview(bytearray(size)),
    }
    base = makers[flavour]()
    held: dict[Any, Number] = {}
    for index, (value, number) in enumerate(zip(values, drawn, strict=True)):
        width = 1 if value.type is Type.BOOL else BITS[value.type] // 8
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
        buckets = number if isinstance(number, list) else [number]
        memory = [bucket % (1 << 8 * width) for bucket in buckets]
        start = value.offset or 0
        memoryview(base).cast("B")[start : start + width * len(memory)] = struct.pack(
            f"={len(memory)}{code}", *memory
        )
        held[index] = memory if isinstance(number, list) else memory[0]
    return Made(values, base, ModelEntry(values, held, False, hidden=hidden))


@st.composite
def bases(draw: st.DrawFn, recipe: Recipe) -> Made:
    """Draw a base for an array, or None."""
    flavours: tuple[str, ...] = BUFFER_FLAVOURS
    if not recipe.has_offsets:
        flavours = FLAVOURS + (STATS_FLAVOURS * 2 if recipe.suits_stats else ())
    flavour = draw(st.sampled_from((*flavours, "none")))
    drawn = [
        draw(st.lists(numbers, min_size=value.size, max_size=value.size))
        if is_histogram(value)
        else draw(numbers)
        for value in recipe.values()
    ]
    return make_base(recipe, flavour, drawn, hidden=draw(st.integers(0, 3)) == 0)

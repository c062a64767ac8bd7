"""Bases: what is taken, what is refused, what is read and cleared."""

import array
import collections
import ctypes
import mmap
import struct
import sys
import types
from collections import UserDict
from multiprocessing.shared_memory import SharedMemory
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest

from statsfs.exceptions import BaseMismatchError, ReadOnlyValueError
from statsfs.model.arrays import intern_array
from statsfs.model.bases import check_offsets
from statsfs.model.fields import s16, u8, u64
from statsfs.model.readers import AttributeReader, BufferReader, MappingReader, Reader, SlotReader
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.source import Source
from tests.support.strategies import Fallback, Indexed, Plain, property_base

PAIR = (Value("a"), Value("b", Type.S8))


def bind(base: object, values: tuple[Value, ...] = PAIR) -> tuple[Reader, Any]:
    """Bind a base as adding it to a source does."""
    return intern_array(values).binder.bind(base)


def rows(base: object, values: tuple[Value, ...] = PAIR) -> list[tuple[Any, ...]]:
    """Sample a base and decode it."""
    reader, bound = bind(base, values)
    return reader.decode([[reader.sample(bound)]])


class PairStats(Stats):
    """The array of these tests, as a class."""

    a = u64()
    b = s16()


class Slotted:
    """A slotted object."""

    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, 2


class Structure(ctypes.Structure):
    """A C structure, read by the names of its fields."""

    _fields_: ClassVar = [("a", ctypes.c_uint64), ("b", ctypes.c_int8)]


class ClassBase:
    """A class whose attributes are the counters."""

    a = 1
    b = 2


class Answering:
    """A descriptor in Python."""

    def __get__(self, instance: object, owner: object) -> int:
        return 2


class AnsweringClass:
    """A class one of whose attributes is answered by Python code."""

    a = 1
    b = Answering()


class Missing(dict[str, int]):
    """A dictionary that makes up what it lacks."""

    def __missing__(self, key: str) -> int:
        return 2


class GetItem(dict[str, int]):
    """A dictionary with a look-up of its own."""

    def __getitem__(self, key: str) -> int:
        return {"a": 1, "b": 2}[key]


class GetAttribute:
    """An object that answers for every attribute."""

    def __getattribute__(self, name: str) -> Any:
        return {"a": 1, "b": 2}.get(name) or object.__getattribute__(self, name)


class PlainDict(dict[str, int]):
    """A dictionary with nothing of its own."""


def module() -> types.ModuleType:
    """A module that counts in its globals."""
    made = types.ModuleType("counting")
    made.a, made.b = 1, 2  # type: ignore[attr-defined]  # that is how modules count
    return made


HELD = {"a": 1, "b": 2}

PLAIN: dict[str, Any] = {
    "object": lambda: Plain(HELD),
    "slotted object": Slotted,
    "namespace": lambda: types.SimpleNamespace(**HELD),
    "C structure": lambda: Structure(1, 2),
    "module": module,
    "class": lambda: ClassBase,
    "dict": lambda: dict(HELD),
    "subclass of dict": lambda: PlainDict(HELD),
    "OrderedDict": lambda: collections.OrderedDict(HELD),
    "Counter": lambda: collections.Counter(HELD),
    "defaultdict": lambda: collections.defaultdict(int, HELD),
}

DYNAMIC: dict[str, Any] = {
    "properties": lambda: property_base(HELD, True),
    "__getattr__": lambda: Fallback(dict(HELD)),
    "__getattribute__": GetAttribute,
    "class with a descriptor": lambda: AnsweringClass,
    "UserDict": lambda: UserDict(HELD),
    "mapping proxy": lambda: MappingProxyType(HELD),
    "__missing__": lambda: Missing(a=1),
    "__getitem__": lambda: GetItem(),
}
ALL: dict[str, Any] = {**PLAIN, **DYNAMIC}


class Held(NamedTuple):
    """An object that cannot be written."""

    a: int
    b: int


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_bases_that_are_read_in_c(make: Any) -> None:
    """Reading these runs no Python code, so they are sampled in the one pass."""
    reader, _ = bind(make())
    assert reader.plain
    assert rows(make()) == [(1, 2)]


@pytest.mark.parametrize("make", DYNAMIC.values(), ids=DYNAMIC)
def test_bases_that_run_python_code(make: Any) -> None:
    """Reading these runs the user's code, which must not happen under the tree's lock."""
    reader, _ = bind(make())
    assert not reader.plain
    assert rows(make()) == [(1, 2)]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_each_sort_of_base_is_read_by_value_by_column_and_as_a_row(make: Any) -> None:
    """All ways to read a base agree."""
    reader, base = bind(make())
    assert [reader.read(base, index) for index in (0, 1)] == [1, 2]
    assert reader.column([base, base], 1) == [2, 2]
    assert reader.total([base, base], 1) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plain(HELD),
        Slotted,
        lambda: dict(HELD),
        lambda: property_base(HELD, True),
        lambda: Structure(1, 2),
        lambda: PairStats.from_buffer(bytearray(16)),
    ],
)
def test_clearing_writes_zero(make: Any) -> None:
    """One value is cleared, the other stays as it is."""
    reader, base = bind(make())
    before = reader.read(base, 1)
    reader.clear(base, 0)
    assert [reader.read(base, index) for index in (0, 1)] == [0, before]


@pytest.mark.parametrize(
    "make",
    [
        lambda: property_base(HELD, False),
        lambda: MappingProxyType(HELD),
        lambda: Held(1, 2),
    ],
)
def test_bases_that_refuse_to_be_cleared(make: Any) -> None:
    """The error is one of a value that cannot be written, and names it."""
    reader, base = bind(make())
    with pytest.raises(ReadOnlyValueError, match="'a'") as caught:
        reader.clear(base, 0)
    assert caught.value.offender == "a"
    assert reader.read(base, 0) == 1


def test_one_value_alone_makes_rows_of_one() -> None:
    """A getter of one name returns no tuple; a row is one all the same."""
    alone = (Value("a"),)
    for base in (Plain({"a": 5}), {"a": 5}, property_base({"a": 5}, True)):
        assert rows(base, alone) == [(5,)]


@pytest.mark.parametrize("names", [("a.b",), ("a.b", "c")])
def test_a_dot_in_a_name_is_no_path(names: tuple[str, ...]) -> None:
    """The attribute of that very name is read and cleared, not one of an attribute."""
    values = tuple(Value(name) for name in names)
    inner = Plain({"b": 7})
    base = Plain(dict.fromkeys(names, 3))
    base.__dict__["a"] = inner
    reader, bound = bind(base, values)
    assert rows(base, values) == [(3,) * len(names)]
    reader.clear(bound, 0)
    assert base.__dict__["a.b"] == 0
    assert inner.__dict__["b"] == 7
    with pytest.raises(BaseMismatchError, match=r"no value 'a\.b'"):
        bind(Plain({"a": 1, "c": 1}), values)


# What is refused


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (Plain({"a": 1}), "the Plain has no value 'b'"),
        ({"a": 1}, "the dict has no value 'b'"),
        (property_base({"b": 1}, True), "the Properties has no value 'a'"),
        (object(), "the object has no value 'a'"),
        (5, "the int has no value 'a'"),
        ({"a": 1, "b": 0.5}, "the dict holds no integer for value 'b'"),
        ({"b": 1, "a": None}, "the dict holds no integer for value 'a'"),
        (SimpleNamespace(a=1, b="2"), "the SimpleNamespace holds no integer for value 'b'"),
        (ClassBase.__dict__["a"], "the int has no value 'a'"),
    ],
)
def test_a_base_that_lacks_a_value_is_refused(base: object, message: str) -> None:
    """The error names the first value that is not there, and keeps the base."""
    with pytest.raises(BaseMismatchError) as caught:
        bind(base)
    assert str(caught.value) == message
    assert caught.value.offender is base


def test_a_property_that_fails_is_a_base_that_lacks_a_value() -> None:
    """Whatever a property raises when the base is added, the refusal is the same."""

    class Failing:
        a = 1

        @property
        def b(self) -> int:
            raise ZeroDivisionError

    with pytest.raises(BaseMismatchError, match="holds no integer for value 'b'") as caught:
        bind(Failing())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_property_that_fails_once_is_asked_again() -> None:
    """A base that holds all its values when each of them is asked for is taken."""

    class Reluctant:
        asked = 0

        @property
        def a(self) -> int:
            type(self).asked += 1
            if type(self).asked == 1:
                raise OSError
            return 1

    values = (Value("a"),)
    reader, base = bind(Reluctant(), values)
    assert reader.read(base, 0) == 1


@pytest.mark.parametrize(
    "base",
    [
        bytearray(64),
        b"x" * 64,
        memoryview(bytearray(64)),
        mmap.mmap(-1, 64),
        (ctypes.c_uint64 * 8)(),
        array.array("Q", range(8)),
    ],
)
def test_a_raw_buffer_is_refused_where_values_have_no_offsets(base: object) -> None:
    """Nobody meant the attributes of a bytearray."""
    with pytest.raises(BaseMismatchError, match="raw buffer: the values need offsets") as caught:
        bind(base)
    assert caught.value.offender is base
    assert "'a'" in str(caught.value)


def test_a_buffer_that_is_closed_is_a_raw_buffer_too() -> None:
    """A closed mapping or a released view is recognised for what it was."""
    closed = mmap.mmap(-1, 64)
    closed.close()
    released = memoryview(bytearray(64))
    released.release()
    for base in (closed, released):
        with pytest.raises(BaseMismatchError, match="raw buffer"):
            bind(base)


def test_integers_of_other_libraries_are_integers() -> None:
    """What has `__index__` counts, as in every place where Python wants an integer."""
    source = Source("s")
    source.add_values(PAIR, {"a": Indexed(7), "b": Indexed(300)})
    assert source.get_value("a") == 7
    assert source.get_value("b") == 44


# Buffers

PLACED = (
    Value("flag", Type.BOOL, offset=24),
    Value("wide", Type.U64, offset=0),
    Value("small", Type.S8, offset=9),
    Value("half", Type.U16, offset=10),
    Value("word", Type.S32, offset=12),
)


def filled() -> bytearray:
    """Memory in which each of `PLACED` has a number of its own."""
    memory = bytearray(32)
    view = memoryview(memory)
    view[0:8].cast("Q")[0] = 1 << 63
    view[9:10].cast("b")[0] = -2
    view[10:12].cast("H")[0] = 65535
    view[12:16].cast("i")[0] = -5
    view[24] = 4
    return memory


NUMBERS = [4, 1 << 63, -2, 65535, -5]  # of a bool the byte; converting it is not the base's


def in_mmap() -> mmap.mmap:
    made = mmap.mmap(-1, 32)
    made[:] = bytes(filled())
    return made


def in_ctypes() -> Any:
    return (ctypes.c_uint16 * 16).from_buffer(filled())


BUFFERS: dict[str, Any] = {
    "bytearray": filled,
    "mmap": in_mmap,
    "ctypes": in_ctypes,
    "memoryview": lambda: memoryview(filled()),
    "array": lambda: array.array("I", bytes(filled())),
}


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
def test_buffers_are_read_at_their_offsets(make: Any) -> None:
    """Each value is as wide as its type, in native order, whatever the buffer's own format."""
    reader, base = bind(make(), PLACED)
    assert reader.plain
    assert [reader.read(base, index) for index in range(5)] == NUMBERS
    assert reader.column([base, base], 2) == [-2, -2]
    assert rows(make(), PLACED) == [tuple(NUMBERS)]


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
def test_clearing_in_a_buffer_writes_just_the_value(make: Any) -> None:
    """The bytes beside a value that is cleared stay as they are."""
    memory = make()
    reader, base = bind(memory, PLACED)
    for index in range(5):
        reader.clear(base, index)
        now = [reader.read(base, other) for other in range(5)]
        assert now == [0] * (index + 1) + NUMBERS[index + 1 :]
    assert bytes(memoryview(memory).cast("B")) == bytes(32)


def test_writes_into_a_buffer_are_seen() -> None:
    """The base is the producer's memory and no copy of it."""
    memory = filled()
    reader, base = bind(memory, PLACED)
    memory[10:12] = (513).to_bytes(2, sys.byteorder)
    assert reader.read(base, 3) == 513


def test_shared_memory_is_a_buffer() -> None:
    """`SharedMemory` is taken as the buffer that it has."""
    memory = SharedMemory(create=True, size=64)
    try:
        source = Source("s")
        source.add_values((Value("n", offset=8),), memory)
        assert memory.buf is not None
        memory.buf[8] = 5
        assert source.get_value("n") == 5
        source.put()
    finally:
        memory.close()
        memory.unlink()


def test_shared_memory_that_is_closed_is_refused() -> None:
    """Its buffer is gone."""
    memory = SharedMemory(create=True, size=64)
    memory.close()
    memory.unlink()
    with pytest.raises(BaseMismatchError, match="'n' has an offset and wants a writable buffer"):
        bind(memory, (Value("n", offset=8),))


def test_the_rows_of_a_buffer_are_in_the_order_of_the_array() -> None:
    """Also where swapping neighbours would put the offsets in order."""
    values = tuple(Value("abcd"[n], Type.U8, offset=o) for n, o in enumerate((1, 0, 3, 2)))
    assert rows(bytearray([10, 11, 12, 13]), values) == [(11, 10, 13, 12)]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (bytearray(24), "the buffer has 24 bytes, too small for 'flag', which ends at 25"),
        (bytearray(), "the buffer has 0 bytes, too small for 'flag', which ends at 25"),
        (b"x" * 64, "the buffer for 'flag' is read-only"),
        (memoryview(bytearray(64)).toreadonly(), "the buffer for 'flag' is read-only"),
        (memoryview(bytearray(64))[::2], "the buffer for 'flag' is not contiguous"),
        ({"flag": 1}, "'flag' has an offset and wants a writable buffer, not dict"),
        (Plain({"flag": 1}), "'flag' has an offset and wants a writable buffer, not Plain"),
        ("text", "'flag' has an offset and wants a writable buffer, not str"),
        (5, "'flag' has an offset and wants a writable buffer, not int"),
    ],
)
def test_buffers_that_are_refused(base: object, message: str) -> None:
    """The error says what is wrong with the buffer, and for which value."""
    with pytest.raises(BaseMismatchError) as caught:
        bind(base, PLACED)
    assert str(caught.value) == message
    assert caught.value.offender is base


def test_a_buffer_that_just_suffices_is_taken() -> None:
    """The last value may end where the buffer ends."""
    reader, base = bind(bytearray(25), PLACED)
    assert reader.read(base, 0) == 0


def test_a_bound_buffer_cannot_shrink() -> None:
    """A bytearray that is a base keeps its size; nobody reads past its end."""
    memory = bytearray(32)
    reader, base = bind(memory, PLACED)
    with pytest.raises(BufferError):
        memory.clear()
    assert reader.read(base, 1) == 0


BUCKETS = Value("n", Type.U16, offset=0, kind=Kind.LOG_HIST, size=3)


def test_a_histogram_takes_as_many_integers_as_it_has_buckets() -> None:
    """What follows begins behind the last; a buffer must have them all."""
    values = (Value("after", Type.U8, offset=6), BUCKETS)
    memory = bytearray(struct.pack("=3HB", 1, 2, 65535, 9))
    reader, base = bind(memory, values)
    assert [reader.read(base, index) for index in (0, 1)] == [9, [1, 2, 65535]]
    assert reader.column([base, base], 1) == [[1, 2, 65535]] * 2
    assert rows(memory, values) == [(9, [1, 2, 65535])]
    reader.clear(base, 1)
    assert memory == struct.pack("=3HB", 0, 0, 0, 9)
    with pytest.raises(BaseMismatchError, match="5 bytes, too small for 'n', which ends at 6"):
        bind(bytearray(5), (BUCKETS,))


@pytest.mark.parametrize("make", [dict, Plain, lambda held: property_base(held, True), UserDict])
def test_what_is_read_of_a_histogram(make: Any) -> None:
    """By column and as rows the lists are copies; a base in C has them all in one pass."""
    values = (Value("a"), Value("n", kind=Kind.LOG_HIST, size=2))
    buckets = [1, 2]
    reader, base = bind(make({"a": 5, "n": buckets}), values)
    assert reader.read(base, 1) == [1, 2]
    column, sampled = reader.column([base], 1), rows(base, values)
    parts = [list(map(sample, over)) for sample, over in reader.parts([base])]
    buckets[0] = 99
    assert column == [[1, 2]]
    assert sampled == reader.decode(parts) == [(5, [1, 2])]


@pytest.mark.parametrize("make", [dict, Plain])
def test_a_histogram_that_is_none_any_more_cannot_be_cleared(make: Any) -> None:
    """What refuses to be emptied is a base that refuses."""
    values = (Value("n", kind=Kind.LOG_HIST, size=2),)
    held = make({"n": [1, 2]})
    reader, base = bind(held, values)
    (held if isinstance(held, dict) else vars(held))["n"] = (1, 2)
    with pytest.raises(ReadOnlyValueError, match="'n' cannot be cleared") as caught:
        reader.clear(base, 0)
    assert caught.value.offender == "n"


# Offsets


def test_arrays_with_and_without_offsets() -> None:
    """All of an array have offsets, or none has."""
    assert check_offsets(PLACED)
    assert not check_offsets(PAIR)
    assert not check_offsets([])


@pytest.mark.parametrize(
    ("values", "message", "offender"),
    [
        (
            [Value("a", offset=0), Value("b")],
            "value 'b' has no offset, but others of its array have",
            "b",
        ),
        (
            [Value("a", Type.U32, offset=2)],
            "value 'a' (u32) is not aligned at offset 2",
            Value("a", Type.U32, offset=2),
        ),
        (
            [Value("a", offset=8), Value("b", offset=8)],
            "value 'b' at offset 8 overlaps 'a'",
            Value("b", offset=8),
        ),
        (
            [Value("b", Type.U8, offset=3), Value("a", Type.U32, offset=0)],
            "value 'b' at offset 3 overlaps 'a'",
            Value("b", Type.U8, offset=3),
        ),
        (
            [Value("b", Type.U8, offset=5), BUCKETS],
            "value 'b' at offset 5 overlaps 'n'",
            Value("b", Type.U8, offset=5),
        ),
        (
            [Value("n", Type.U16, offset=1, kind=Kind.LOG_HIST, size=3)],
            "value 'n' (u16) is not aligned at offset 1",
            Value("n", Type.U16, offset=1, kind=Kind.LOG_HIST, size=3),
        ),
    ],
)
def test_offsets_that_cannot_be_meant(values: list[Value], message: str, offender: object) -> None:
    """Mixed, misaligned and overlapping offsets are refused, by value."""
    with pytest.raises(BaseMismatchError) as caught:
        check_offsets(values)
    assert str(caught.value) == message
    assert caught.value.offender == offender


@pytest.mark.parametrize("type", list(Type))
def test_each_type_is_aligned_to_its_width(type: Type) -> None:
    """Every multiple of the width will do, and nothing between."""
    for offset in range(4 * type.width):
        values = [Value("n", type, offset=offset)]
        if offset % type.width:
            with pytest.raises(BaseMismatchError, match="not aligned"):
                check_offsets(values)
        else:
            assert check_offsets(values)


# Slots over a buffer


def test_slots_over_a_buffer_are_sampled_as_bytes() -> None:
    """What `from_buffer` returns is read by attribute, and sampled as the buffer it is."""
    slots = PairStats.from_buffer(bytearray(16))
    slots.a, slots.b = (1 << 64) - 1, -3
    reader, base = bind(slots, PairStats._stats_values)
    assert isinstance(reader, SlotReader)
    assert isinstance(reader.sample(base), bytes)
    assert reader.decode([[reader.sample(base)]]) == [((1 << 64) - 1, -3)]
    assert reader.read(base, 1) == -3


def test_slots_of_another_array_are_read_by_attribute() -> None:
    """Where the array is another than that of the class, the names are what counts."""
    slots = PairStats.from_buffer(bytearray(16))
    slots.b = 4
    values = (Value("b", Type.U8),)
    reader, _ = bind(slots, values)
    assert type(reader) is AttributeReader
    assert reader.plain
    assert rows(slots, values) == [(4,)]


def test_readers_are_shared_by_all_bases_of_one_sort() -> None:
    """Bases of one array and one sort are sampled together, however many classes they have."""
    kept = intern_array(PAIR)  # or it might be collected, with its readers, in between
    assert bind({"a": 1, "b": 2})[0] is bind(PlainDict(HELD))[0]
    assert bind(Plain(HELD))[0] is bind(Slotted())[0]
    assert bind(Plain(HELD))[0] is not bind(property_base(HELD, True))[0]
    assert isinstance(bind({"a": 1, "b": 2})[0], MappingReader)
    assert isinstance(bind(bytearray(32), PLACED)[0], BufferReader)
    assert intern_array(PAIR) is kept


def test_a_reader_of_no_sort_reads_nothing() -> None:
    """The root of the readers is abstract."""
    reader = Reader(PAIR)
    operations: list[Any] = [
        lambda: reader.read({}, 0),
        lambda: reader.column([], 0),
        lambda: reader.total([], 0),
        lambda: reader.decode([[]]),
        lambda: reader._clear({}, 0),
    ]
    for operation in operations:
        with pytest.raises(NotImplementedError):
            operation()


def test_equal_arrays_belong_together_whatever_their_bases_are() -> None:
    """One aggregate covers objects, dictionaries, slots and their sum is one number."""

    class Counters(Stats):
        n = u8(Aggregate.SUM)

    top = Source("top")
    slots = Counters.from_buffer(bytearray(8))
    slots.n = 1000
    stats = Counters()
    stats.n = 2
    for number, base in enumerate((slots, stats, {"n": 3}, Plain({"n": 4}), UserDict(n=5))):
        source = Source("s%d", number)
        source.add_values([Value("n", Type.U8, Aggregate.SUM)], base)
        top.add_subordinate(source)
    assert top.get_value("n") == 1000 % 256 + 2 + 3 + 4 + 5

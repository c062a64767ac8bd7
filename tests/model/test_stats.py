"""`Stats`: the array and the object in one class."""

import copy
import mmap
import pickle
import struct
from collections.abc import Callable
from typing import Any

import pytest

from statsfs.exceptions import DuplicateNameError, InvalidNameError
from statsfs.model.fields import (
    boolean,
    counter,
    gauge,
    hist,
    linear_hist,
    log_hist,
    peak,
    s8,
    s16,
    s32,
    s64,
    u8,
    u16,
    u32,
    u64,
)
from statsfs.model.histograms import Histogram
from statsfs.model.stats import Stats, make_buffer_class, values_of
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.source import Source


class EveryType(Stats):
    """One value of each type."""

    flag = boolean()
    a = u8()
    b = u16()
    c = u32()
    d = u64()
    e = s8()
    f = s16()
    g = s32()
    h = s64()


class VcpuStats(Stats):
    """The example of docs/api.md."""

    exits = u64(Aggregate.SUM, description="VM exits of every kind")
    halt_wait_ns = u64(Aggregate.SUM, unit=Unit.SECONDS, exponent=-9)
    guest_mode = boolean(Aggregate.SUM, kind=Kind.INSTANT)


class Derived(VcpuStats):
    """The same and one more."""

    halts = u32(Aggregate.MAX)


def test_fields_become_values_in_order() -> None:
    """The array is the one that the same `Value`s would make."""
    assert values_of(VcpuStats) == (
        Value("exits", aggregate=Aggregate.SUM, description="VM exits of every kind"),
        Value("halt_wait_ns", aggregate=Aggregate.SUM, unit=Unit.SECONDS, exponent=-9),
        Value("guest_mode", Type.BOOL, Aggregate.SUM, kind=Kind.INSTANT),
    )


def test_each_field_function_is_of_its_type() -> None:
    """The functions are named as the types are, `boolean` excepted."""
    assert [value.type for value in values_of(EveryType)] == list(Type)
    functions: list[Any] = [boolean, u8, u16, u32, u64, s8, s16, s32, s64]
    names = ["boolean", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64"]
    assert [function.__name__ for function in functions] == names
    assert all(function.__doc__ for function in functions)


def test_a_field_takes_all_that_a_value_takes() -> None:
    """Every argument of `Value` that a field can have reaches it."""

    class Full(Stats):
        n = s8(
            Aggregate.MIN, 0o600, kind=Kind.PEAK, unit=Unit.BYTES, base=2, exponent=10,
            description="d", hidden=True, show=hex,
        )  # fmt: skip

    assert values_of(Full) == (
        Value(
            "n", Type.S8, Aggregate.MIN, 0o600, kind=Kind.PEAK, unit=Unit.BYTES, base=2,
            exponent=10, description="d", hidden=True, show=hex,
        ),
    )  # fmt: skip


class Latencies(Stats):
    """A histogram of each kind, and two of other types, which have no sums."""

    waits = log_hist(32, Aggregate.SUM, unit=Unit.SECONDS, exponent=-9, description="waits")
    sizes = linear_hist(10, 4096, Aggregate.NONE, unit=Unit.BYTES)
    times = hist([100, 300], Aggregate.SUM, mode=0o640, hidden=True, base=2, exponent=3)
    small = u8(Aggregate.SUM, kind=Kind.LOG_HIST, size=4)
    deltas = s16(Aggregate.NONE, kind=Kind.LINEAR_HIST, size=2, bucket_size=7)


def test_fields_of_histograms() -> None:
    """Three functions declare u64 buckets and a sum; each other one takes a kind and a size."""
    assert values_of(Latencies) == (
        Value(
            "waits", Type.U64, Aggregate.SUM, kind=Kind.LOG_HIST, size=32, unit=Unit.SECONDS,
            exponent=-9, description="waits",
        ),
        Value(
            "waits.sum", Type.U64, Aggregate.SUM, 0o444, unit=Unit.SECONDS, exponent=-9,
            description="Sum of waits: waits",
        ),
        Value("sizes", kind=Kind.LINEAR_HIST, size=10, bucket_size=4096, unit=Unit.BYTES),
        Value("sizes.sum", mode=0o444, unit=Unit.BYTES, description="Sum of sizes"),
        Value(
            "times", Type.U64, Aggregate.SUM, 0o640, kind=Kind.HIST, bounds=(100, 300), hidden=True,
            base=2, exponent=3,
        ),
        Value(
            "times.sum", Type.U64, Aggregate.SUM, 0o440, hidden=True, base=2, exponent=3,
            description="Sum of times",
        ),
        Value("small", Type.U8, Aggregate.SUM, kind=Kind.LOG_HIST, size=4),
        Value("deltas", Type.S16, kind=Kind.LINEAR_HIST, size=2, bucket_size=7),
    )  # fmt: skip
    with pytest.raises(ValueError, match="size is 0"):

        class Wrong(Stats):
            n = log_hist(0)

    with pytest.raises(ValueError, match="bucket_size 0"):

        class AlsoWrong(Stats):
            n = linear_hist(2, 0)

    with pytest.raises(ValueError, match="bounds do not grow"):

        class WronglyBounded(Stats):
            n = hist(bounds=[3, 2])

    with pytest.raises(InvalidNameError, match="has 256 bytes"):
        # There is no room for the name of the sum.
        type("Long", (Stats,), {"n" * 252: log_hist(2)})


def test_histograms_start_empty_and_belong_to_one_object() -> None:
    """Each instance has lists of its own, in slots; a subclass has those of its base."""

    class More(Latencies):
        n = u64()

    one, other = More(), More()
    one.waits.observe(5)
    one.n += 1
    assert (sum(one.waits), sum(other.waits), other.n) == (1, 0, 0)
    names = ("waits", "sizes", "times", "small", "deltas")
    assert [len(getattr(other, name)) for name in names] == [32, 10, 3, 4, 2]
    assert not hasattr(one, "__dict__")
    assert repr(Latencies()).endswith("small=[0, 0, 0, 0], deltas=[0, 0])")


def test_a_buffer_has_one_slot_a_bucket() -> None:
    """In order, 64 bits each, whatever the type; the binary format has its data so."""
    assert 32 + 1 + 10 + 1 + 3 + 1 + 4 + 2 == 54
    memory = bytearray(8 * 54)
    stats: Any = Latencies.from_buffer(memory)
    stats.waits.observe(5)
    stats.sizes.observe(4096)
    stats.small[3] = -1
    stats.deltas[1] -= 3
    stats.times.observe(301)
    stored = struct.unpack("=52Q2q", memory)
    expected = [0] * 54
    expected[3], expected[32] = 1, 5
    expected[34], expected[43] = 1, 4096
    expected[46], expected[47] = 1, 301
    expected[51], expected[53] = (1 << 64) - 1, -3
    assert list(stored) == expected
    assert Latencies.from_buffer(memory).waits[3] == 1
    with pytest.raises(ValueError, match="432"):
        Latencies.from_buffer(bytearray(8 * 54 - 1))
    with pytest.raises(AttributeError):
        stats.waits.observed = 1


def test_buckets_over_a_buffer_are_converted_when_they_are_read() -> None:
    """Each slot has 64 bits, a value those of its type."""
    source = Source("s")
    stats: Any = Latencies.from_buffer(bytearray(8 * 54))
    source.add_values(Latencies, stats)
    stats.small[:] = [255, 256, 257, 1 << 63]
    stats.deltas[:] = [40000, -1]
    assert source.get_value("small") == [255, 0, 1, 0]
    assert source.get_value("deltas") == [40000 - 65536, -1]
    ((waits, _, sizes, *_, small, deltas),) = source.snapshot().arrays[values_of(Latencies)].rows
    assert (waits, sizes) == ([0] * 32, [0] * 10)
    assert (small, deltas) == ([255, 0, 1, 0], [40000 - 65536, -1])


def test_an_instance_starts_at_zero_and_holds_plain_integers() -> None:
    """Counting is Python's own increment of a slot, in which any integer fits."""
    stats = VcpuStats()
    assert (stats.exits, stats.halt_wait_ns, stats.guest_mode) == (0, 0, 0)
    stats.exits += 1 << 70
    assert stats.exits == 1 << 70
    assert type(stats.exits) is int
    assert not hasattr(stats, "__dict__")
    assert VcpuStats().exits == 0


@pytest.mark.parametrize("make", [VcpuStats, lambda: VcpuStats.from_buffer(bytearray(24))])
def test_unknown_names_raise(make: Any) -> None:
    """A misspelt counter is an error and no new attribute, over a buffer too."""
    stats = make()
    with pytest.raises(AttributeError):
        stats.exit += 1
    with pytest.raises(AttributeError):
        stats.exit = 1


class Everything(Stats):
    """A value of each form."""

    jobs: int = counter("Jobs")
    busy: int = gauge()
    deepest: int = peak(unit=Unit.BYTES)
    waits: Histogram = log_hist(4)
    state: int = u8(kind=Kind.INSTANT, show=str)
    up: int = boolean(kind=Kind.INSTANT)


def test_the_aggregate_is_that_of_the_kind() -> None:
    """Unless it is given; states have none, for their sum would be no state."""
    aggregates = {value.name: value.aggregate for value in values_of(Everything)}
    assert aggregates == {
        "jobs": Aggregate.SUM,
        "busy": Aggregate.SUM,
        "deepest": Aggregate.MAX,
        "waits": Aggregate.SUM,
        "waits.sum": Aggregate.SUM,
        "state": Aggregate.NONE,
        "up": Aggregate.SUM,
    }

    class Others(Stats):
        a = counter(aggregate=Aggregate.NONE)
        b = linear_hist(2, 5)
        c = hist([3], Aggregate.NONE)
        d = s8(kind=Kind.PEAK)

    assert [value.aggregate.label for value in values_of(Others)] == [
        "none", "sum", "sum", "none", "none", "max",
    ]  # fmt: skip


def test_counters_gauges_and_peaks() -> None:
    """Are the usual fields."""
    jobs, busy, deepest, *_ = values_of(Everything)
    assert jobs == Value("jobs", aggregate=Aggregate.SUM, description="Jobs")
    assert busy == Value("busy", Type.S64, Aggregate.SUM, kind=Kind.INSTANT)
    assert deepest == Value("deepest", Type.U64, Aggregate.MAX, kind=Kind.PEAK, unit=Unit.BYTES)


def over_a_buffer(cls: type[Everything]) -> Everything:
    """An object over memory of its own."""
    return cls.from_buffer(bytearray(100))


@pytest.mark.parametrize("make", [lambda cls: cls(), over_a_buffer])
def test_what_it_holds_as_a_dictionary(make: Callable[[type[Everything]], Everything]) -> None:
    """And reset; over a buffer as well."""
    stats = make(Everything)
    fresh = stats.asdict()
    assert fresh == {
        "jobs": 0, "busy": 0, "deepest": 0, "waits": [0] * 4, "waits.sum": 0, "state": 0, "up": 0,
    }  # fmt: skip
    stats.jobs += 2
    stats.busy -= 1
    stats.waits.observe(3)
    assert stats.asdict() == {**fresh, "jobs": 2, "busy": -1, "waits": [0, 0, 1, 0], "waits.sum": 3}
    assert stats != Everything()
    waits = stats.waits
    stats.reset()
    assert stats.asdict() == fresh
    assert stats == Everything()
    assert Everything() == stats
    assert stats.waits is waits
    assert stats.waits.sum == 0


def test_equal_are_equal_numbers_of_equal_values() -> None:
    """Whatever class declares them; and what is equal may change, so it has no hash."""

    class Same(Stats):
        jobs = counter("Jobs")

    class Different(Stats):
        jobs = counter("Work")

    assert Same() == Same()
    assert Same() != Different()
    assert Same() != {"jobs": 0}
    assert Same.from_buffer(bytearray(8)) == Same.from_buffer(bytearray(8))
    assert Same.from_buffer(bytearray(8)) != 0
    for one in (Same(), Same.from_buffer(bytearray(8))):
        with pytest.raises(TypeError, match="unhashable"):
            hash(one)


@pytest.mark.parametrize("make", [lambda cls: cls(), over_a_buffer])
def test_additions_for_a_block(make: Callable[[type[Everything]], Everything]) -> None:
    """Gauges come back, counters go on, also if the block raises; several blocks may overlap."""
    stats = make(Everything)
    stats.busy = 5
    with stats.adding(busy=1, jobs=2), stats.adding(busy=True):
        assert (stats.busy, stats.jobs) == (7, 0)
        stats.busy += 10
        stats.jobs += 1
    assert (stats.busy, stats.jobs, type(stats.busy)) == (15, 3, int)
    with pytest.raises(ZeroDivisionError), stats.adding(busy=1, jobs=2):
        raise ZeroDivisionError
    assert (stats.busy, stats.jobs) == (15, 5)
    first, second = stats.adding(busy=1), stats.adding(busy=1)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert stats.busy == 16
    second.__exit__(None, None, None)
    assert stats.busy == 15


@pytest.mark.parametrize("make", [lambda cls: cls(), over_a_buffer])
@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"jbs": 1}, r"adding\(jbs=…\): no counter or gauge has that name"),
        ({"deepest": 1}, "no counter or gauge"),
        ({"waits": 1}, "no counter or gauge"),
        ({"waits.sum": 1}, "no counter or gauge"),
        ({"jobs": 1, "busy": "5"}, r"adding\(busy='5'\): .*integer"),
        ({"jobs": 0.5}, "integer"),
    ],
)
def test_additions_that_are_refused(
    make: Callable[[type[Everything]], Everything], numbers: dict[str, Any], words: str
) -> None:
    """In one line, before the block, with nothing of the error within; nothing is counted."""
    stats = make(Everything)
    with pytest.raises(TypeError, match=words) as raised:
        stats.adding(**numbers)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert stats == Everything()


def test_numbers_by_name() -> None:
    """In any order; buckets as any sequence of as many integers."""
    waits: Any = (1, 2, 3, 4)
    stats = Everything(busy=-3, jobs=True, waits=waits)
    assert (stats.jobs, stats.busy, list(stats.waits)) == (1, -3, [1, 2, 3, 4])
    assert type(stats.jobs) is int
    other = copy.copy(stats)
    other.waits[0] += 1
    assert stats.waits[0] == 1
    assert other != stats


@pytest.mark.parametrize(
    ("numbers", "error", "words"),
    [
        (
            {"nonsense": 1},
            TypeError,
            r"Everything\(nonsense=…\): no such value; it has jobs, busy,",
        ),
        ({"waits.sum": 1}, TypeError, "no such value"),
        ({"jobs": "5"}, TypeError, r"Everything\(jobs='5'\): .*integer"),
        ({"jobs": 0.5}, TypeError, "integer"),
        ({"waits": 5}, TypeError, "not iterable"),
        ({"waits": [1]}, ValueError, "1 bucket, not 4"),
        ({"waits": [1, 2, 3, None]}, TypeError, "integer"),
    ],
)
def test_numbers_that_are_refused(
    numbers: dict[str, Any], error: type[Exception], words: str
) -> None:
    """In one line that names the value; with nothing of the error within."""
    with pytest.raises(error, match=words) as raised:
        Everything(**numbers)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_arguments_are_refused() -> None:
    """Numbers are given by name; a class without values takes none."""
    with pytest.raises(TypeError, match=r"takes numbers by name, as in VcpuStats\(exits=1\)"):
        VcpuStats(5)  # type: ignore[call-arg]  # that is the question

    class Empty(Stats):
        pass

    with pytest.raises(TypeError, match="it has none"):
        Empty(a=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Empty\(\)"):
        Empty(5)  # type: ignore[call-arg]


@pytest.mark.parametrize("number", [0, 0.5, False])
def test_a_number_declares_nothing(number: float) -> None:
    """It would be no value of the class, and nothing would count it."""
    with pytest.raises(TypeError, match=f"X.n = {number!r} declares no value: write n = u64"):
        type("X", (Stats,), {"n": number})
    assert type("X", (Stats,), {"SIZE": number, "_n": number})().asdict() == {}


def test_a_class_may_have_an_initialiser_and_methods() -> None:
    """The slots are 0 before `__init__` runs; what else a class defines works as ever."""

    class Counters(Stats):
        __slots__ = ("owner",)
        n = u64()

        def __init__(self, owner: str) -> None:
            self.owner = owner
            self.n += 5  # type: ignore[misc]  # mypy knows the written slots only

        def bump(self) -> None:
            self.n += 1  # type: ignore[misc]

    counters = Counters("me")
    counters.bump()
    assert (counters.owner, counters.n) == ("me", 6)


def test_subclasses_have_the_values_of_their_bases_first() -> None:
    """An instance of a subclass has the slots of both."""
    assert values_of(Derived) == (*values_of(VcpuStats), Value("halts", Type.U32, Aggregate.MAX))
    stats = Derived()
    stats.exits += 1
    assert (stats.exits, stats.halts) == (1, 0)


def test_a_subclass_cannot_declare_a_value_again() -> None:
    """Not as a value, nor as anything else: the array of its base would lack it."""
    with pytest.raises(DuplicateNameError, match="Again declares 'exits'") as caught:

        class Again(VcpuStats):
            exits = u32()

    assert caught.value.offender == "exits"
    with pytest.raises(DuplicateNameError, match="Other declares 'exits'"):

        class Other(VcpuStats):
            exits = 5


def test_a_value_cannot_have_the_name_of_what_stats_is() -> None:
    """A field named as a method would take it away."""
    with pytest.raises(DuplicateNameError, match="'from_buffer'"):

        class Method(Stats):
            from_buffer = u64()  # type: ignore[assignment]  # that is the question


def test_bad_fields_are_refused_when_the_class_is_made() -> None:
    """The checks of `Value` are those of a field."""
    with pytest.raises(ValueError, match="INSTANT"):

        class Wrong(Stats):
            n = u64(kind=Kind.INSTANT, mode=0o644)


def test_values_of_wants_a_stats_class() -> None:
    """An instance or another class is told from it."""
    wrong: list[Any] = [VcpuStats(), object, "VcpuStats", None]
    for thing in wrong:
        with pytest.raises(TypeError, match="not a Stats class"):
            values_of(thing)


def test_repr_shows_what_is_held() -> None:
    """A debugger's look at the counters."""
    stats = VcpuStats()
    stats.exits = 3
    assert repr(stats) == "VcpuStats(exits=3, halt_wait_ns=0, guest_mode=0)"


def test_stats_are_copied_with_their_numbers() -> None:
    """Copies and pickles are of the numbers, as of any slotted object."""
    stats = VcpuStats()
    stats.exits = 3
    copies = [copy.copy(stats), copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))]
    stats.exits = 4
    assert [made.exits for made in copies] == [3, 3, 3]


# Over a buffer


def test_a_buffer_has_one_64_bit_slot_a_value() -> None:
    """In order, native, whatever the type: the data block of the binary format."""
    memory = bytearray(9 * 8)
    stats = EveryType.from_buffer(memory)
    for number, value in enumerate(values_of(EveryType)):
        setattr(stats, value.name, -number if value.type.signed else number)
    assert struct.unpack("=5Q4q", memory) == (0, 1, 2, 3, 4, -5, -6, -7, -8)


def test_slots_wrap_as_c_does() -> None:
    """Past either end of 64 bits, with the sign of the value's type."""
    stats = EveryType.from_buffer(bytearray(9 * 8))
    stats.a = 1 << 64
    stats.d = -1
    stats.e = 1 << 63
    stats.h = (1 << 63) - 1
    stats.h += 1
    assert (stats.a, stats.d, stats.e) == (0, (1 << 64) - 1, -(1 << 63))
    assert stats.h == -(1 << 63)


def test_a_slot_is_converted_to_its_type_when_it_is_read_as_a_value() -> None:
    """A u8 may count past 255 in its slot; its file shows what C would."""
    source = Source("s")
    stats = EveryType.from_buffer(bytearray(9 * 8))
    stats.a, stats.e, stats.flag = 257, 200, 2
    source.add_values(EveryType, stats)
    assert (source.get_value("a"), source.get_value("e"), source.get_value("flag")) == (1, -56, 1)
    assert source.snapshot().arrays[values_of(EveryType)].rows == [(1, 1, 0, 0, 0, -56, 0, 0, 0)]


def test_slots_over_a_buffer_are_at_an_offset_and_keep_what_they_hold() -> None:
    """A second look at the same memory sees the same numbers."""
    memory = mmap.mmap(-1, 4096)
    memory[128:136] = struct.pack("=Q", 41)
    stats = VcpuStats.from_buffer(memory, 128)
    stats.exits += 1
    assert VcpuStats.from_buffer(memory, offset=128).exits == 42
    assert struct.unpack_from("=Q", memory, 128) == (42,)


@pytest.mark.parametrize(
    ("buffer", "offset", "error"),
    [
        (bytearray(23), 0, ValueError),
        (bytearray(24), 8, ValueError),
        (bytearray(24), -8, ValueError),
        (bytes(24), 0, TypeError),
        ("text", 0, TypeError),
        (None, 0, TypeError),
    ],
)
def test_buffers_that_cannot_hold_the_slots(
    buffer: Any, offset: int, error: type[Exception]
) -> None:
    """Too small, read-only or no buffer at all."""
    with pytest.raises(error):
        VcpuStats.from_buffer(buffer, offset)


def test_a_name_that_no_structure_has_is_refused_over_a_buffer_only() -> None:
    """`stats_values` is a fine name for a slot, but not over a buffer."""

    class Odd(Stats):
        stats_values = u64()

    assert Odd().stats_values == 0
    with pytest.raises(InvalidNameError, match=r"Odd\.stats_values") as caught:
        Odd.from_buffer(bytearray(8))
    assert caught.value.offender == "stats_values"


def test_a_value_takes_a_methods_place_over_a_buffer() -> None:
    """Values without a class may be called `reset`, as TCP's resets are."""
    values = [Value("reset"), Value("asdict"), Value("adding")]
    made = make_buffer_class(values).from_buffer(bytearray(24))
    made.reset += 1  # type: ignore[assignment, operator]  # it is an integer here
    assert made.reset == 1  # type: ignore[comparison-overlap]


def test_one_class_makes_one_class_over_buffers() -> None:
    """All objects over buffers of one `Stats` class are of one type, and named as it is."""
    one, other = (VcpuStats.from_buffer(bytearray(24)) for _ in range(2))
    assert type(one) is type(other)
    assert type(one).__name__ == "VcpuStats"
    assert type(Derived.from_buffer(bytearray(32))) is not type(one)


def test_an_array_of_no_values_is_refused_by_a_source() -> None:
    """A `Stats` class may be empty, as a root of others; a source wants values."""

    class Empty(Stats):
        pass

    assert values_of(Empty) == ()
    with pytest.raises(ValueError, match="at least one value"):
        Source("s").add_values(Empty, Empty())


def test_a_class_over_buffers_needs_no_stats_class() -> None:
    """Values make one as well, with an attribute for each; a `Stats` class has its own."""
    made = make_buffer_class([Value("a"), Value("b", Type.S8)], "Made")
    slots: Any = made.from_buffer(bytearray(16))
    slots.b -= 1
    assert (made.__name__, slots.a, slots.b) == ("Made", 0, -1)
    with pytest.raises(AttributeError):
        slots.c = 1
    known: Any = VcpuStats.from_buffer(bytearray(24))
    assert make_buffer_class(VcpuStats) is type(known)
    for name in ("_fields_", "_anonymous_", "__init__"):
        with pytest.raises(InvalidNameError, match=f"Stats.{name}: no value over a buffer"):
            make_buffer_class([Value(name)])

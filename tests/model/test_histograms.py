"""Histograms: what an observation does, and lists of buckets that are read, added and cleared."""

import copy
import pickle
import sys
from collections import UserDict
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.exceptions import BaseMismatchError
from statsfs.model.fields import hist, linear_hist, log_hist, s8, u64
from statsfs.model.histograms import (
    Histogram,
    LinearHistogram,
    LogHistogram,
    add_buckets,
    convert_buckets,
    convert_histograms,
    make_histogram,
)
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.source import Source, directory_of
from tests.support.bare import bare_linear_hist, bare_log_hist
from tests.support.model import convert
from tests.support.strategies import Fallback, Indexed, Plain, bucket_types, numbers, property_base
from tests.support.trees import add_below


class Times(Stats):
    """Two histograms with a number between them."""

    waits = bare_log_hist(4, Aggregate.SUM)
    exits = u64(Aggregate.SUM)
    sizes = bare_linear_hist(3, 100, Aggregate.SUM)


def log_value(size: int, type: Type = Type.U64) -> Value:
    return Value("n", type, Aggregate.SUM, kind=Kind.LOG_HIST, size=size)


# Observing


def bucket_of(value: Value, observed: int) -> int:
    """Where an observation belongs, by the starts that the value tells."""
    return max(number for number, start in enumerate(value.starts) if start <= observed)


class Waits(Stats):
    """Times in several units, and what is no time."""

    nanoseconds = log_hist(65, unit=Unit.SECONDS, exponent=-9)
    picoseconds = linear_hist(3, 10**9, unit=Unit.SECONDS, exponent=-12)
    milliseconds = hist([1, 10, 100], unit=Unit.SECONDS, exponent=-3)
    binary = log_hist(65, unit=Unit.SECONDS, base=2, exponent=-10)
    sizes = log_hist(4, unit=Unit.BYTES)
    odd = log_hist(4, unit=Unit.SECONDS, exponent=-300)


def make_waits() -> list[Waits]:
    size = 8 * sum(value.size for value in values_of(Waits))
    return [Waits(), copy.copy(Waits()), Waits.from_buffer(bytearray(size))]


@pytest.mark.parametrize("waits", make_waits())
def test_how_long_a_block_takes(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is observed in the unit of the histogram, and also if the block raises."""
    clock = iter([5, 5 + 2_500_000] * 5)
    monkeypatch.setattr("statsfs.model.histograms.perf_counter_ns", lambda: next(clock))
    for histogram in (waits.nanoseconds, waits.picoseconds, waits.milliseconds, waits.binary):
        with histogram.time():
            assert sum(histogram) == 0
        assert sum(histogram) == 1
    sums = [waits.nanoseconds.sum, waits.picoseconds.sum, waits.milliseconds.sum, waits.binary.sum]
    assert sums == [2_500_000, 2_500_000_000, 2, 2]  # 2 of 1/1024 s, as of 1/1000 s
    assert list(waits.picoseconds) == [0, 0, 1]
    with pytest.raises(ZeroDivisionError), waits.nanoseconds.time():
        raise ZeroDivisionError
    assert waits.nanoseconds.sum == 2 * 2_500_000
    assert next(clock, None) is None


@pytest.mark.parametrize("waits", make_waits())
def test_only_times_are_timed(waits: Waits) -> None:
    """Bytes are not, nor is a unit that no clock has."""
    for histogram in (waits.sizes, waits.odd):
        with pytest.raises(TypeError, match=r"time\(\) needs a histogram with unit=Unit.SECONDS"):
            histogram.time()


@given(st.integers(1, 65), st.integers(0, 1 << 80))
def test_a_log_histogram_counts_where_its_bounds_say(size: int, observed: int) -> None:
    """Buckets begin at 0, 1, 2, 4, 8 …; as KVM's do; the last takes what is beyond."""
    value = log_value(size)
    buckets = make_histogram(value)
    buckets.observe(observed)
    expected = [0] * size
    expected[bucket_of(value, observed)] = 1
    assert list(buckets) == expected


@given(st.integers(1, 20), st.integers(1, 1000), st.integers(0, 20_000))
def test_a_linear_histogram_counts_where_its_bounds_say(
    size: int, width: int, observed: int
) -> None:
    """Buckets are equally wide; the last takes what is beyond."""
    value = Value("n", kind=Kind.LINEAR_HIST, size=size, bucket_size=width)
    buckets = make_histogram(value)
    buckets.observe(observed)
    expected = [0] * size
    expected[bucket_of(value, observed)] = 1
    assert list(buckets) == expected


@pytest.mark.parametrize(
    ("observed", "bucket"),
    [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (15, 4), (16, 4), (1 << 63, 4)],
)
def test_the_buckets_of_kvm(observed: int, bucket: int) -> None:
    """An observation of n bits goes into bucket n, as `fls64` has it in the kernel."""
    histogram = LogHistogram(5)
    histogram.observe(observed)
    assert histogram.buckets.index(1) == bucket


@pytest.mark.parametrize("make", [Times, lambda: Times.from_buffer(bytearray(64))])
def test_observing_in_an_object_of_values(make: Any) -> None:
    """A `Stats` object and one over shared memory have the same histograms."""
    stats = make()
    for observed in (0, 1, 3, 3, 1000):
        stats.waits.observe(observed)
    for observed in (0, 99, 100, 250, 1000):
        stats.sizes.observe(observed)
    stats.waits[0] += 10
    assert list(stats.waits) == [11, 1, 2, 1]
    assert list(stats.sizes) == [2, 1, 2]
    assert stats.exits == 0
    for wrong in (0.5, "1", None):
        with pytest.raises((AttributeError, TypeError)):
            stats.waits.observe(wrong)
        with pytest.raises(TypeError):
            stats.sizes.observe(wrong)
    assert list(stats.waits) == [11, 1, 2, 1]


def test_a_histogram_is_like_a_list_of_its_own() -> None:
    """Each object has its buckets, which are plain integers; they are read and written in place."""
    one, other = Times(), Times()
    one.waits.observe(1)
    assert ([*one.waits], [*other.waits]) == ([0, 1, 0, 0], [0, 0, 0, 0])
    assert (len(one.waits), one.waits[1], one.waits[:2]) == (4, 1, [0, 1])
    assert [*one.waits] == one.waits.buckets
    assert repr(one.waits) == "[0, 1, 0, 0]"
    assert one.waits != other.waits
    other.waits.buckets[1] += 1
    assert one.waits == other.waits
    assert isinstance(one.waits, LogHistogram)
    assert isinstance(one.sizes, LinearHistogram)
    assert one.sizes.bucket_size == 100
    with pytest.raises(AttributeError):
        one.waits.observed = 1  # type: ignore[attr-defined]  # that is the question
    with pytest.raises(NotImplementedError):
        Histogram().observe(1)


def test_histograms_are_copied_with_their_buckets() -> None:
    """A deep copy and a pickle have lists of their own, which count as before."""
    stats = Times()
    stats.waits.observe(2)
    stats.sizes.observe(150)
    for made in (copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        made.waits.observe(2)
        made.sizes.observe(150)
        assert ([*made.waits], [*made.sizes]) == ([0, 0, 2, 0], [0, 2, 0])
    assert ([*stats.waits], [*stats.sizes]) == ([0, 0, 1, 0], [0, 1, 0])


# Converting and adding


@given(st.lists(numbers, min_size=1, max_size=5), bucket_types)
def test_buckets_are_converted_as_integers_are(held: list[int], type: Type) -> None:
    """One by one or many at once, each bucket wraps as C does."""
    value = log_value(len(held), type)
    expected = [convert(number, type) for number in held]
    assert convert_buckets(held, value) == expected
    assert convert_buckets(list(map(Indexed, held)), value) == expected
    assert convert_histograms([held, held], value) == [expected, expected]
    assert convert_histograms([], value) == []


@pytest.mark.parametrize(
    ("held", "error"),
    [
        (5, TypeError),
        (None, TypeError),
        ((1, 2), TypeError),
        ({0: 1, 1: 2}, TypeError),
        ("ab", TypeError),
        ([1], ValueError),
        ([1, 2, 3], ValueError),
        ([], ValueError),
        ([1, None], TypeError),
        ([1, 0.5], TypeError),
        ([1, "2"], TypeError),
    ],
)
def test_what_is_no_list_of_buckets(held: Any, error: type[Exception]) -> None:
    """A list of another length, something else than a list, a bucket that is no integer."""
    with pytest.raises(error):
        convert_buckets(held, log_value(2))
    if isinstance(held, list):
        assert convert_histograms([[1, 2], held], log_value(2)) is None


class Pretending:
    """No integer, but something that adds up to one."""

    def __radd__(self, other: int) -> int:
        return other + 5


def test_what_only_adds_up_to_an_integer_is_no_bucket() -> None:
    """It is found when the column is converted, and left to be looked at one by one."""
    assert convert_histograms([[1, Pretending()]], log_value(2)) is None
    with pytest.raises(TypeError):
        convert_buckets([1, Pretending()], log_value(2))


def test_adding_is_by_buckets() -> None:
    """Modulo 2^64, signed types as S64, of nothing zeros."""
    assert add_buckets([], log_value(3)) == [0, 0, 0]
    assert add_buckets([[1, 2], [10, 20], [100, 200]], log_value(2)) == [111, 222]
    top = (1 << 64) - 1
    assert add_buckets([[top, 5], [2, top]], log_value(2)) == [1, 4]
    most = (1 << 63) - 1
    assert add_buckets([[most, -5], [1, 3]], log_value(2, Type.S64)) == [-most - 1, -2]


# In a tree

NAMES = ("waits", "exits", "sizes")


def held() -> dict[str, Any]:
    return {"waits": [1, 2, 3, 4], "exits": 5, "sizes": [6, 7, 8]}


def slots() -> Any:
    stats = Times.from_buffer(bytearray(64))
    stats.waits[:], stats.exits, stats.sizes[:] = [1, 2, 3, 4], 5, [6, 7, 8]
    return stats


def stats_object() -> Times:
    stats = Times()
    stats.waits[:], stats.exits, stats.sizes[:] = [1, 2, 3, 4], 5, [6, 7, 8]
    return stats


BASES: dict[str, Any] = {
    "Stats": stats_object,
    "slots": slots,
    "object": lambda: Plain(held()),
    "dict": held,
    "UserDict": lambda: UserDict(held()),
    "mapping proxy": lambda: MappingProxyType(held()),
    "properties": lambda: property_base(held(), True),
    "fallback": lambda: Fallback(held()),
}


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_every_sort_of_base_holds_histograms(make: Any) -> None:
    """They are read, added up, sampled and cleared as numbers are."""
    top, base = Source("top"), make()
    first, _ = (add_below(top, f"s{n}", Times, one) for n, one in enumerate((base, held())))
    assert [first.get_value(name) for name in NAMES] == [[1, 2, 3, 4], 5, [6, 7, 8]]
    assert [top.get_value(name) for name in NAMES] == [[2, 4, 6, 8], 10, [12, 14, 16]]
    samples = top.snapshot().arrays[values_of(Times)]
    assert samples.rows == [([1, 2, 3, 4], 5, [6, 7, 8])] * 2
    assert type(samples.rows[0][0]) is list
    first.clear_value("waits")
    assert first.get_value("waits") == [0, 0, 0, 0]
    assert first.get_value("sizes") == [6, 7, 8]
    top.clear_value("sizes")
    assert top.get_value("sizes") == first.get_value("sizes") == [0, 0, 0]
    assert top.snapshot().to_dict()["values"]["waits"] == [1, 2, 3, 4]


def test_clearing_leaves_the_list_where_it_is() -> None:
    """The producer may have the list at hand, and counts on in it."""
    source, stats = Source("s"), Times()
    source.add_values(Times, stats)
    waits, other = stats.waits, {"waits": [1, 1, 1, 1], "exits": 1, "sizes": [1, 1, 1]}
    source.add_values(Times, other, hidden=True)
    in_dict = other["waits"]
    waits.observe(1)
    for name in ("waits", "sizes"):
        source.clear_value(name)
    assert stats.waits is waits
    waits.observe(1)
    assert source.get_value("waits") == [0, 1, 0, 0]
    top = Source("top")
    top.add_subordinate(source)
    top.clear_value("waits")
    assert in_dict == [0, 0, 0, 0]
    assert other["waits"] is in_dict


def test_a_snapshot_has_buckets_of_its_moment() -> None:
    """What is observed later is not in it, nor does changing it change what is counted."""
    source, stats = Source("s"), Times()
    source.add_values(Times, stats)
    stats.waits.observe(1)
    snapshot = source.snapshot()
    stats.waits.observe(1)
    rows = snapshot.arrays[values_of(Times)].rows
    assert rows == [([0, 1, 0, 0], 0, [0, 0, 0])]
    rows[0][0][0] = 99
    source.get_value("waits")[0] = 99
    assert stats.waits == [0, 2, 0, 0]


def test_a_histogram_alone_in_its_array() -> None:
    """A row of one list is one all the same, of all sorts of bases."""
    values = (Value("n", Type.U8, Aggregate.SUM, kind=Kind.LOG_HIST, size=2),)

    class Alone(Stats):
        n = bare_log_hist(2, Aggregate.SUM)

    for array, base in (
        (values, {"n": [257, 2]}),
        (values, Plain({"n": [1, 2]})),
        (values, property_base({"n": [1, 2]}, True)),
        (Alone, Alone()),
        (Alone, Alone.from_buffer(bytearray(16))),
        ((Value("n", Type.U8, kind=Kind.LOG_HIST, size=2, offset=1),), bytearray([0, 1, 2])),
    ):
        source = Source("s")
        source.add_values(array, base)
        (samples,) = source.snapshot().arrays.values()
        assert samples.rows == [(source.get_value("n"),)]
        assert samples.rows in ([([1, 2],)], [([0, 0],)])


def find_cause(error: BaseException) -> BaseException:
    """The first of the errors that led to one another."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


WRONG: list[tuple[Any, str]] = [
    ([1, 2, 3], "3 buckets, not 4"),
    ([1, 2, 3, 4, 5], "5 buckets, not 4"),
    (7, "a int is no list"),
    ((1, 2, 3, 4), "a tuple is no list"),
    (None, "a NoneType is no list"),
    ([1, 2, 3, None], "'NoneType'"),
    ([1, 2, 3, 0.5], "'float'"),
]


@pytest.mark.parametrize(("wrong", "why"), WRONG)
def test_buckets_that_are_wrong_when_the_base_is_added(wrong: Any, why: str) -> None:
    """The base is refused, with the value's name; the reason is the cause."""
    content = {**held(), "waits": wrong}
    for base in (content, Plain(content), property_base(content, True)):
        source = Source("s")
        with pytest.raises(BaseMismatchError) as caught:
            source.add_values(Times, base)
        expected = f"s: the {type(base).__name__} holds no list of 4 integers for value 'waits'"
        assert str(caught.value) == expected
        assert why in str(find_cause(caught.value))
        assert source.names() == []
    with pytest.raises(BaseMismatchError, match="has no value 'sizes'"):
        Source("s").add_values(Times, {"waits": [0] * 4, "exits": 1})
    with pytest.raises(BaseMismatchError, match="holds no integer for value 'exits'"):
        Source("s").add_values(Times, {**held(), "exits": [1]})


@pytest.mark.parametrize(("wrong", "why"), WRONG)
@pytest.mark.parametrize("dynamic", [False, True])
def test_buckets_that_are_wrong_later(
    wrong: Any, why: str, dynamic: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """That file alone is an error; aggregates and snapshots are of the others, and say so once."""
    top = Source("top")
    contents = [held() for _ in range(3)]
    for number, content in enumerate(contents):
        source = Source("s%d", number)
        source.add_values(Times, UserDict(content) if dynamic else content)
        top.add_subordinate(source)
    if dynamic:
        # A UserDict has a dictionary of its own.
        (entry,) = directory_of(top.subordinates[1]).entries.values()
        entry.base.data["waits"] = wrong
    else:
        contents[1]["waits"] = wrong
    broken = top.subordinates[1]
    for _ in range(2):
        with pytest.raises(BaseMismatchError) as caught:
            broken.get_value("waits")
        assert "top/s1: 'waits' holds no list of 4 integers" in str(caught.value)
        assert why in str(caught.value)
        assert broken.get_value("sizes") == [6, 7, 8]
        assert top.get_value("waits") == [2, 4, 6, 8]
        assert top.get_value("sizes") == [18, 21, 24]
        samples = top.snapshot().arrays[values_of(Times)]
        assert samples.rows == [([1, 2, 3, 4], 5, [6, 7, 8])] * 2
        assert [source.name for source in samples.sources] == ["s0", "s2"]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert "'waits' holds no list of 4 integers" in warnings[0]
    assert warnings[1].startswith("top/s1: left out of snapshots")


def test_integers_of_other_libraries_are_buckets_too() -> None:
    """What has `__index__` counts; a total of them is right, if slower."""
    top = Source("top")
    values = (Value("n", Type.S8, Aggregate.SUM, kind=Kind.LOG_HIST, size=2),)
    for number, buckets in enumerate(([Indexed(200), 1], [True, Indexed(-1)], [5, 5])):
        source = Source("s%d", number)
        source.add_values(values, {"n": buckets})
        top.add_subordinate(source)
    assert top.subordinates[0].get_value("n") == [-56, 1]
    assert top.get_value("n") == [-50, 5]
    assert top.snapshot().arrays[values].rows == [([-56, 1],), ([1, -1],), ([5, 5],)]
    assert {
        type(n) for ((buckets,),) in [top.snapshot().arrays[values].rows[:1]] for n in buckets
    } == {int}


@pytest.mark.parametrize("type", [type for type in Type if type is not Type.BOOL])
def test_buckets_of_every_type(type: Type) -> None:
    """They wrap in the list of a producer, lie side by side in a buffer, and add up as 64 bits."""
    free = (Value("n", type, Aggregate.SUM, kind=Kind.LINEAR_HIST, size=3, bucket_size=9),)
    placed = (
        Value("end", Type.U8, offset=3 * type.width + type.width),
        Value(
            "n", type, Aggregate.SUM, offset=type.width, kind=Kind.LINEAR_HIST, size=3,
            bucket_size=9,
        ),
    )  # fmt: skip
    top = Source("top")
    for number in range(2):
        source = Source("s%d", number)
        source.add_values(free, {"n": [type.maximum, type.maximum + 2, -1]})
        top.add_subordinate(source)
    expected = [type.maximum, type.minimum + 1, -1 if type.signed else type.maximum]
    assert source.get_value("n") == expected
    wide = Type.S64 if type.signed else Type.U64
    assert top.get_value("n") == [wide.convert(2 * bucket) for bucket in expected]
    memory = bytearray(5 * type.width)
    for number, bucket in enumerate(expected):
        start = type.width * (number + 1)
        memory[start : start + type.width] = (bucket % (1 << 8 * type.width)).to_bytes(
            type.width, sys.byteorder
        )
    memory[4 * type.width] = 77
    source = Source("buffer")
    source.add_values(placed, memory)
    assert (source.get_value("n"), source.get_value("end")) == (expected, 77)
    assert source.snapshot().arrays[placed].rows == [(77, expected)]
    source.clear_value("n")
    assert source.get_value("n") == [0, 0, 0]
    assert memory == bytes(4 * type.width) + bytes([77]) + bytes(type.width - 1)


def test_hidden_histograms_count_above() -> None:
    """Hidden values and hidden sources have no file, but their buckets are in the totals."""

    class Hidden(Stats):
        waits = bare_log_hist(2, Aggregate.SUM, hidden=True)
        seen = s8(Aggregate.SUM)

    top = Source("top")
    for number in range(2):
        source, stats = Source("s%d", number, hidden=number == 1), Hidden()
        source.add_values(Hidden, stats)
        stats.waits.observe(number)
        top.add_subordinate(source)
    assert top.subordinates[0].names() == ["seen"]
    assert top.subordinates[0].get_value("waits") == [1, 0]
    assert top.names() == ["waits", "seen"]
    assert top.get_value("waits") == [1, 1]
    assert top.snapshot().to_dict()["values"] == {"waits": [1, 1], "seen": 0}


def test_without_a_base_all_buckets_are_empty() -> None:
    """Declared, revoked and gone histograms read as zeros, here and above."""
    top, source, stats = Source("top"), Source("s"), Times()
    top.add_values(Times, None)
    assert top.get_value("waits") == [0, 0, 0, 0]
    assert top.snapshot().to_dict()["values"]["waits"] == [0, 0, 0, 0]
    source.add_values(Times, stats)
    top.add_subordinate(source)
    stats.waits.observe(1)
    file = directory_of(source).files["waits"]
    entry = directory_of(source).entry_of(file)
    assert top.get_value("waits") == [0, 1, 0, 0]
    source.revoke()
    assert source.get_value("waits") == top.get_value("waits") == [0, 0, 0, 0]
    assert directory_of(source).read(file, entry) == [0, 0, 0, 0]
    assert directory_of(source).read(file, None) == [0, 0, 0, 0]
    assert top.snapshot().to_dict()["subordinates"]["s"]["values"]["sizes"] == [0, 0, 0]
    source.add_values(Times, stats)
    assert top.get_value("waits") == [0, 1, 0, 0]
    total = directory_of(top).files["waits"]
    top.remove_subordinate(source)
    assert source.get_value("waits") == [0, 1, 0, 0]
    assert directory_of(top).read(total, None) == [0, 0, 0, 0]
    source.put()
    stale = Source("never")
    assert directory_of(stale).read(total, None) == [0, 0, 0, 0]


def test_without_an_aggregate_a_histogram_stays_where_it_is() -> None:
    """NONE shows it in its own directory alone."""

    class Own(Stats):
        waits = bare_log_hist(2)

    top, source = Source("top"), Source("s")
    source.add_values(Own, Own())
    top.add_subordinate(source)
    assert (source.names(), top.names()) == (["waits"], [])

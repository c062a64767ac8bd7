"""The sums of histograms: what an observation adds, how they are read and cleared."""

import copy
import gc
import mmap
import operator
import pickle
import struct
from collections import UserDict
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.exceptions import BaseMismatchError, InvalidNameError, ReadOnlyValueError
from statsfs.model.arrays import intern_array
from statsfs.model.bases import Binder
from statsfs.model.fields import hist, linear_hist, log_hist, u64
from statsfs.model.histograms import Histogram, LogHistogram, find_sums, make_sum
from statsfs.model.stats import Stats, make_buffer_class, values_of
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.source import Source
from tests.support.bare import bare_log_hist
from tests.support.strategies import Fallback, Indexed, Plain, property_base
from tests.support.trees import add_below


class Times(Stats):
    """A histogram of each kind, with a number between them."""

    waits = log_hist(4, Aggregate.SUM, unit=Unit.SECONDS, exponent=-9)
    exits = u64(Aggregate.SUM)
    sizes = linear_hist(3, 100, Aggregate.SUM)
    times = hist(bounds=[100, 300], aggregate=Aggregate.SUM)


HISTOGRAMS = ("waits", "sizes", "times")
SLOTS = 4 + 1 + 1 + 3 + 1 + 3 + 1
MAKERS: dict[str, Any] = {
    "object": Times,
    "buffer": lambda: Times.from_buffer(bytearray(8 * SLOTS)),
}


@pytest.fixture(params=list(MAKERS.values()), ids=list(MAKERS))
def stats(request: pytest.FixtureRequest) -> Times:
    """An object of values, and one over shared memory."""
    made: Times = request.param()
    return made


# Observing


@given(
    st.sampled_from(HISTOGRAMS),
    st.sampled_from(list(MAKERS.values())),
    st.lists(st.integers(-5, 1200), max_size=20),
)
def test_the_sum_is_of_what_was_observed(name: str, make: Any, observed: list[int]) -> None:
    """Each observation is in one bucket; what is below 0 is in the first one."""
    histogram = getattr(make(), name)
    for number in observed:
        histogram.observe(number)
    starts = next(value.starts for value in values_of(Times) if value.name == name)
    ends = [*starts[1:], 10**6]
    expected = [0] * len(starts)
    for number in observed:
        expected[next(index for index, end in enumerate(ends) if number < end)] += 1
    assert list(histogram.buckets) == list(histogram) == expected
    total = sum(observed)
    assert histogram.sum in (total, total % (1 << 64))


def test_bounds_are_inclusive(stats: Times) -> None:
    """What is as large as a bound is in its bucket, as with the `le` of Prometheus."""
    for number in (0, 100, 101, 300, 301, 1 << 60):
        stats.times.observe(number)
    assert list(stats.times.buckets) == [2, 2, 2]
    assert stats.times.sum == 802 + (1 << 60)


@pytest.mark.parametrize("name", HISTOGRAMS)
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [(0.25, "float"), (-0.25, "float"), (1e9, "float"), ("1", "str"), (None, "NoneType")],
)
def test_what_is_not_an_integer_is_refused(stats: Times, name: str, wrong: Any, kind: str) -> None:
    """The error is one line, and nothing was counted."""
    histogram = getattr(stats, name)
    with pytest.raises(TypeError) as caught:
        histogram.observe(wrong)
    assert str(caught.value) == f"observe takes an integer, in the histogram's unit, not a {kind}"
    assert (sum(histogram), histogram.sum) == (0, 0)


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_integers_of_other_libraries_are_observed(stats: Times, name: str) -> None:
    """What has `__index__`, and booleans; each counts once."""
    histogram = getattr(stats, name)
    for number in (True, Indexed(1), Indexed(1 << 40), Indexed(-1)):
        histogram.observe(number)
    assert (sum(histogram), histogram.sum) == (4, 1 + (1 << 40))


def test_histograms_in_shared_memory_are_as_others() -> None:
    """The same methods, over the same memory for all objects there; also without a sum."""

    class More(Times):
        bare = bare_log_hist(2)

    memory = bytearray(8 * (SLOTS + 2))
    one, other = More.from_buffer(memory), More.from_buffer(memory)
    for name in (*HISTOGRAMS, "bare"):
        histogram, seen = getattr(one, name), getattr(other, name)
        assert isinstance(histogram, Histogram)
        assert getattr(one, name) is histogram
        histogram.observe(150)
        histogram.buckets[0] += 10
        histogram[-1] += 100
        assert list(seen) == list(seen.buckets) == list(histogram)
        assert (len(seen), sum(seen), seen[0], seen == histogram) == (len(histogram), 111, 10, True)
        assert repr(seen) == repr(seen.buckets) == repr(list(histogram))
        assert seen.buckets == list(histogram) == histogram.buckets == seen
        assert (seen.buckets != [*histogram], seen.buckets == [1]) == (False, False)
        histogram[:] = [0] * len(histogram)
        assert (sum(seen), seen != [0] * len(histogram)) == (0, False)
    assert (other.waits.sum, other.sizes.sum, other.times.sum) == (150, 150, 150)
    other.waits.sum -= 50
    assert one.waits.sum == 100
    one.waits.observe(-101)
    assert one.waits.sum == (1 << 64) - 1


def test_a_buffer_is_let_go_with_its_last_object() -> None:
    """No garbage has to be collected before shared memory can be closed."""
    gc.disable()
    try:
        memory = mmap.mmap(-1, 4096)
        stats = Times.from_buffer(memory)
        waits = stats.waits
        del stats
        waits.observe(5)
        with pytest.raises(BufferError):
            memory.close()
        del waits
        memory.close()
    finally:
        gc.enable()


def test_names_over_a_buffer() -> None:
    """A histogram may have any name of a file but that of its own place."""
    values = [Value("a.b", kind=Kind.LOG_HIST, size=2), Value("a.b.sum", mode=0o444)]
    slots: Any = make_buffer_class(values).from_buffer(bytearray(24))
    histogram = getattr(slots, "a.b")
    histogram.observe(7)
    assert ([*histogram], histogram.sum) == ([0, 1], 7)
    source = Source("s")
    source.add_values(values, slots)
    assert (source.get_value("a.b"), source.get_value("a.b.sum")) == ([0, 1], 7)
    with pytest.raises(InvalidNameError, match="_histogram0"):
        make_buffer_class([*values, Value("_histogram0")])


# Copies


def test_copies_share_no_histogram() -> None:
    """What a copy observes is its own; a shallow one is as good as a deep one."""
    stats = Times()
    stats.waits.observe(2)
    stats.times.observe(150)
    stats.exits = 7
    copies = [copy.copy(stats), copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))]
    for made in copies:
        made.waits.observe(2)
        made.times.observe(150)
        assert ([*made.waits], made.waits.sum) == ([0, 0, 2, 0], 4)
        assert ([*made.times], made.times.sum, made.exits) == ([0, 2, 0], 300, 7)
    assert ([*stats.waits], stats.waits.sum) == ([0, 0, 1, 0], 2)
    assert ([*stats.times], stats.times.sum) == ([0, 1, 0], 150)
    alone = copy.copy(stats.waits)
    alone.observe(1)
    assert (sum(alone), sum(stats.waits)) == (2, 1)


def test_copies_have_what_else_there_is() -> None:
    """Attributes that are not values are those of the original."""

    class Owned(Times):
        __slots__ = ("__dict__", "owner")

    stats: Any = Owned()
    stats.owner, stats.more = ["me"], ["more"]
    made = copy.copy(stats)
    assert (made.owner is stats.owner, made.more is stats.more) == (True, True)
    assert made.waits is not stats.waits

    class Empty(Stats):
        pass

    assert repr(copy.copy(Empty())) == "Empty()"


# Which values are sums

LATENCY = Value("n", Type.U32, Aggregate.SUM, kind=Kind.LOG_HIST, size=2, unit=Unit.BYTES, base=2)
SUM = make_sum(LATENCY)


def test_the_value_of_a_sum() -> None:
    """It has the unit and the readers of the histogram; nobody clears it alone."""
    assert Value("n.sum", Type.U64, Aggregate.SUM, 0o444, unit=Unit.BYTES, base=2) == replace(
        SUM, description=""
    )
    secret = make_sum(replace(LATENCY, mode=0o640, aggregate=Aggregate.NONE, hidden=True))
    assert (secret.mode, secret.aggregate, secret.hidden) == (0o440, Aggregate.NONE, True)


@pytest.mark.parametrize(
    "other",
    [
        SUM,
        replace(SUM, description="whatever", mode=0o644),
        replace(SUM, type=Type.U8),
    ],
)
def test_a_program_may_declare_a_sum_itself(other: Value) -> None:
    """A description, a write bit and the width make no difference."""
    assert find_sums([LATENCY, other]) == {0: 1}
    assert find_sums([Value("a"), LATENCY, other, Value("b")]) == {1: 2}
    assert intern_array([Value("a"), LATENCY, other]).sums == {1: 2}


@pytest.mark.parametrize(
    "values",
    [
        [LATENCY],
        [SUM, LATENCY],
        [LATENCY, Value("between"), SUM],
        [LATENCY, replace(SUM, name="n.total")],
        [LATENCY, replace(SUM, type=Type.S64)],
        [LATENCY, replace(SUM, type=Type.BOOL)],
        [LATENCY, replace(SUM, kind=Kind.INSTANT)],
        [LATENCY, replace(SUM, kind=Kind.LOG_HIST)],
        [LATENCY, replace(SUM, unit=Unit.NONE)],
        [LATENCY, replace(SUM, base=10)],
        [LATENCY, replace(SUM, exponent=1)],
        [LATENCY, replace(SUM, aggregate=Aggregate.NONE)],
        [LATENCY, replace(SUM, hidden=True)],
        [LATENCY, replace(SUM, mode=0o440)],
        [replace(LATENCY, kind=Kind.PEAK, size=1), SUM],
    ],
)
def test_what_is_not_a_sum(values: list[Value]) -> None:
    """Anything that differs from its histogram, or is not behind it, is a value of its own."""
    assert find_sums(values) == {}


def test_a_name_without_room_for_a_sum() -> None:
    """A histogram without one may have a name as long as any."""
    assert find_sums([replace(LATENCY, name="n" * 255), SUM]) == {}


# In a tree

NAMES = ("waits", "waits.sum", "exits", "sizes", "sizes.sum", "times", "times.sum")
NUMBERS: tuple[Any, ...] = ([1, 2, 3, 4], 50, 5, [6, 7, 8], 60, [9, 10, 11], 70)
TWICE = ([2, 4, 6, 8], 100, 10, [12, 14, 16], 120, [18, 20, 22], 140)


class Buckets(list[int]):
    """A program's own histogram."""

    sum = 0


def held() -> dict[str, Any]:
    return {
        name: list(number) if isinstance(number, list) else number
        for name, number in zip(NAMES, NUMBERS, strict=True)
    }


def fill(stats: Any) -> Any:
    for name, number in held().items():
        histogram, dot, _ = name.partition(".")
        if dot:
            getattr(stats, histogram).sum = number
        elif isinstance(number, list):
            getattr(stats, name)[:] = number
        else:
            setattr(stats, name, number)
    return stats


def attributes() -> dict[str, Any]:
    return {"exits": 0, **{name: Buckets([0] * len(held()[name])) for name in HISTOGRAMS}}


BASES: dict[str, Any] = {
    "Stats": lambda: fill(Times()),
    "slots": lambda: fill(Times.from_buffer(bytearray(8 * SLOTS))),
    "object": lambda: fill(Plain(attributes())),
    "properties": lambda: fill(property_base(attributes(), True)),
    "fallback": lambda: fill(Fallback(attributes())),
    "dict": held,
    "UserDict": lambda: UserDict(held()),
}


@pytest.mark.parametrize("make", BASES.values(), ids=BASES)
def test_every_sort_of_base_holds_sums(make: Any) -> None:
    """They are read, added up and sampled as numbers are, and cleared with their histograms."""
    top, base = Source("top"), make()
    first, _ = (add_below(top, f"s{n}", Times, one) for n, one in enumerate((base, held())))
    assert tuple(map(first.get_value, NAMES)) == NUMBERS
    assert tuple(map(top.get_value, NAMES)) == TWICE
    assert first.names() == top.names() == list(NAMES)
    assert top.snapshot().arrays[values_of(Times)].rows == [NUMBERS, NUMBERS]
    assert tuple(top.snapshot().to_dict()["values"].values()) == TWICE
    for source in (first, top):
        for name in HISTOGRAMS:
            with pytest.raises(ReadOnlyValueError):
                source.clear_value(f"{name}.sum")
    first.clear_value("waits")
    assert (first.get_value("waits"), first.get_value("waits.sum")) == ([0] * 4, 0)
    assert (top.get_value("waits"), top.get_value("waits.sum")) == ([1, 2, 3, 4], 50)
    assert (first.get_value("sizes"), first.get_value("sizes.sum")) == ([6, 7, 8], 60)
    top.clear_value("times")
    for source in (first, top):
        assert (source.get_value("times"), source.get_value("times.sum")) == ([0] * 3, 0)
    assert first.get_value("exits") == 5


def test_a_sum_at_an_offset() -> None:
    """In a buffer it is wherever its offset is, and cleared with its histogram."""
    values = (
        replace(LATENCY, offset=8),
        replace(SUM, offset=0),
    )
    memory = bytearray(struct.pack("=QII", 5, 1, 2))
    source = Source("s")
    source.add_values(values, memory)
    assert (source.get_value("n"), source.get_value("n.sum")) == ([1, 2], 5)
    source.clear_value("n")
    assert memory == bytes(16)


def test_sums_are_read_by_c_alone() -> None:
    """A snapshot of `Stats` objects runs no Python code, and so is of one moment."""
    binder = Binder(values_of(Times))
    reader, _ = binder.bind(Times())
    assert reader.plain
    ((row, _), *copies) = reader.parts([Times()])
    assert type(row) is operator.attrgetter
    assert row(fill(Times())) == NUMBERS
    assert [call for call, _ in copies] == [list.copy] * 3
    reader, _ = binder.bind(fill(Plain(attributes())))
    assert not reader.plain


def test_a_histogram_of_another_class_is_asked_by_python() -> None:
    """Its `sum` may be a property, which runs code."""

    class Odd(LogHistogram):
        __slots__ = ()

        @property
        def sum(self) -> int:
            return 77

        @sum.setter
        def sum(self, number: int) -> None:
            pass

    source = Source("s")
    odd = Plain({"n": Odd(2)})
    source.add_values([LATENCY, SUM], odd)
    assert source.get_value("n.sum") == 77
    assert source.snapshot().arrays[LATENCY, SUM].rows == [([0, 0], 77)]
    ((reader, _),) = [(Binder((LATENCY, SUM)).bind(odd))]
    assert not reader.plain


def test_names_with_dots_are_attributes_of_their_own() -> None:
    """All but sums; where there are such names, nothing is read by C alone."""
    values = (replace(LATENCY, name="a.n"), replace(SUM, name="a.n.sum"), Value("b.c"))
    histogram = LogHistogram(2)
    base = Plain({"a.n": histogram, "b.c": 3})
    source = Source("s")
    source.add_values(values, base)
    histogram.observe(5)
    assert [source.get_value(value.name) for value in values] == [[0, 1], 5, 3]
    assert source.snapshot().arrays[values].rows == [([0, 1], 5, 3)]
    assert not Binder(values).bind(base)[0].plain
    source.clear_value("a.n")
    assert (source.get_value("a.n"), histogram.sum) == ([0, 0], 0)


def test_bases_that_lack_a_sum() -> None:
    """They are refused when they are added, by the name of the sum."""
    for base in ({"n": [1, 2]}, Plain({"n": [1, 2]}), Plain({"n": [1, 2], "n.sum": 3})):
        with pytest.raises(BaseMismatchError, match=r"has no value 'n\.sum'"):
            Source("s").add_values([LATENCY, SUM], base)


def test_clearing_empties_the_object_that_the_producer_has() -> None:
    """Also where its sum is no value."""
    source, stats = Source("s"), Plain({"n": LogHistogram(2)})
    source.add_values([LATENCY], stats)
    histogram: LogHistogram = stats.n  # type: ignore[attr-defined]  # it has what it is given
    histogram.observe(5)
    source.clear_value("n")
    assert ([*histogram], histogram.sum) == ([0, 0], 0)


def test_hidden_histograms_have_hidden_sums() -> None:
    """They count in the totals above."""

    class Hidden(Stats):
        waits = log_hist(2, Aggregate.SUM, hidden=True)

    top, source, stats = Source("top"), Source("s"), Hidden()
    source.add_values(Hidden, stats)
    top.add_subordinate(source)
    stats.waits.observe(3)
    assert source.names() == []
    assert (top.names(), top.get_value("waits.sum")) == (["waits", "waits.sum"], 3)
    assert source.get_value("waits.sum") == 3


def test_a_base_whose_slot_is_empty_is_refused() -> None:
    """A sum is looked for in its histogram, and there is none."""

    class Empty:
        __slots__ = ("waits",)

    with pytest.raises(BaseMismatchError, match="has no value 'waits'"):
        Source("empty").add_values(values_of(Times)[:2], Empty())

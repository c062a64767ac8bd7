"""Which buckets of a histogram are exported: all, or of many those that are needed."""

import re
from itertools import accumulate, groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.formats import prometheus
from statsfs.formats.metric_names import EDGES_MAX, make_edges
from statsfs.model.histograms import make_sum
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

WIDEST = 65_535


def wide(size: int, **options: Any) -> Value:
    """A histogram whose bucket number n has the integers n and no other."""
    return Value("h", kind=Kind.LINEAR_HIST, size=size, bucket_size=1, **options)


def grow(size: int, held: dict[int, int]) -> list[int]:
    """Buckets of which some hold something."""
    buckets = [0] * size
    for index, count in held.items():
        buckets[index] = count
    return buckets


def show(parent: Registry | Source, name: str, value: Value, buckets: list[int]) -> Source:
    """Add a source that has a histogram."""
    made = Source("%s", name)
    made.add_values([value], {value.name: buckets})
    (parent.register if isinstance(parent, Registry) else parent.add_subordinate)(made)
    made.put()
    return made


def read(shown: Registry) -> dict[str, dict[float, int]]:
    """The counts of each series, by their labels but for `le`, and by that."""
    text = prometheus.render(shown.snapshot()).decode()
    found = re.findall(r'^top_h\w*_bucket{(.*?),?le="(.*)"} (\d+)$', text, re.MULTILINE)
    return {
        labels: {float(end): int(count) for _, end, count in some}
        for labels, some in groupby(found, lambda one: one[0])
    }


COUNTS = st.dictionaries(st.integers(0, 2_999), st.integers(1, 1 << 40), max_size=400)


@given(st.integers(1, 3_000), st.lists(COUNTS, min_size=1, max_size=3))
def test_what_is_exported_is_right_and_alike(size: int, several: list[dict[int, int]]) -> None:
    """Counts are exact at each `le`, all series have the same, few enough, and none is missing."""
    registry, value = Registry(), wide(size)
    top = Source("top")
    registry.register(top)
    rows = [grow(size, {index: n for index, n in one.items() if index < size}) for one in several]
    for number, buckets in enumerate(rows):
        show(top, f"s{number}", value, buckets)
    found = list(read(registry).values())
    assert len(found) == len(rows)
    ends = [end for end in found[0] if end != float("inf")]
    assert ends == sorted(ends)
    for buckets, counts in zip(rows, found, strict=True):
        until = list(accumulate(buckets))
        assert counts == {end: until[int(end)] for end in ends} | {float("inf"): until[-1]}
    held = {index for buckets in rows for index, count in enumerate(buckets) if count}
    if size <= EDGES_MAX + 1:
        assert ends == list(range(size - 1))
        return
    assert len(ends) <= EDGES_MAX
    needed = {end for index in held for end in (index - 1, index) if 0 <= end < size - 1}
    if len(needed) <= EDGES_MAX:
        assert ends == sorted(needed)
        return
    # As fine as it can be: with half the width there would be too many.
    width = next(w for w in (1 << n for n in range(16)) if _count(held, w, size) <= EDGES_MAX)
    assert len(ends) == _count(held, width, size)
    assert all((end + 1) % width == 0 for end in ends)


def _count(held: set[int], width: int, size: int) -> int:
    # The edges of a grid at which a wider bucket begins or ends that holds something.
    shown = {
        end
        for index in held
        for end in (index // width * width - 1, index // width * width + width - 1)
    }
    return sum(0 <= end < size - 1 for end in shown)


def test_the_widest_takes_few_lines(registry: Registry) -> None:
    """Sixty histograms of the most buckets, nearly all empty, were 1 GB of text."""
    top, value = Source("top"), wide(WIDEST)
    registry.register(top)
    for number in range(6):
        show(top, f"s{number}", value, grow(WIDEST, {number * 7_000: 1, WIDEST - 1: 2}))
    found = read(registry)
    ends = [0.0, *(end for n in range(1, 6) for end in (7000.0 * n - 1, 7000.0 * n)), 65533.0]
    assert [list(counts) for counts in found.values()] == [[*ends, float("inf")]] * 6
    assert found['source="s1"'] == {end: int(end >= 7000) for end in ends} | {float("inf"): 3}
    show(top, "full", value, [1] * WIDEST)
    counts = read(registry)['source="full"']
    assert list(counts)[:2] == [511.0, 1023.0]
    assert len(counts) == 128
    assert counts[float("inf")] == WIDEST


def test_a_grid_is_as_fine_as_it_can_be(registry: Registry) -> None:
    """A hundred buckets far from each other need twice as many edges, so neighbours are merged."""
    show(registry, "top", wide(1_000), [int(index % 10 == 5) for index in range(1_000)])
    (counts,) = read(registry).values()
    # Neighbours are merged by eights.
    assert list(counts) == [*range(7, 999, 8), float("inf")]
    assert [counts[end] for end in (7, 15, 991)] == [1, 2, 99]


def test_an_empty_one(registry: Registry) -> None:
    """It is exported, with nothing in it."""
    show(registry, "top", wide(1_000), [0] * 1_000)
    assert read(registry) == {"": {float("inf"): 0}}


@pytest.mark.parametrize("edges", [EDGES_MAX, EDGES_MAX + 1])
def test_bounds_of_its_own(registry: Registry, edges: int) -> None:
    """So many are always exported, whatever they hold; one more, and only what is needed."""
    bounds = [10 * number for number in range(edges)]
    value = Value("h", kind=Kind.HIST, bounds=bounds, unit=Unit.SECONDS, exponent=-1)
    show(registry, "top", value, grow(edges + 1, {5: 1}))
    (counts,) = read(registry).values()
    assert len(counts) == (edges + 1 if edges == EDGES_MAX else 3)
    assert counts[4.0] == 0
    assert counts[5.0] == 1


def test_series_of_several_arrays_share_the_edges(registry: Registry) -> None:
    """What one array's series need, those of another have too, unless their buckets differ."""
    top = Source("top")
    registry.register(top)
    show(top, "a", wide(200), grow(200, {10: 1}))
    show(top, "b", wide(200, description="newer"), grow(200, {100: 1}))
    show(top, "c", wide(300), grow(300, {20: 1}))
    found = {labels: sorted(counts)[:-1] for labels, counts in read(registry).items()}
    assert found == {
        'source="a"': [9.0, 10.0, 99.0, 100.0],
        'source="b"': [9.0, 10.0, 99.0, 100.0],
        'source="c"': [19.0, 20.0],
    }


def test_hidden_and_signed_ones(registry: Registry) -> None:
    """What is added up needs edges; what is negative is left out, with its sum."""
    value = wide(200, type=Type.S32, aggregate=Aggregate.SUM)
    top = Source("top")
    registry.register(top)
    for number, count in enumerate((1, 2, -1)):
        made = Source("s%d", number)
        made.add_values([value, make_sum(value)], {"h": grow(200, {number: count}), "h.sum": 3})
        if number == 0:
            made.add_values([value], {"h": grow(200, {50: 4})}, hidden=True)
        top.add_subordinate(made)
    assert read(registry) == {
        'source="s0"': {0.0: 1, 1.0: 1, 2.0: 1, 49.0: 1, 50.0: 5, float("inf"): 5},
        'source="s1"': {0.0: 0, 1.0: 2, 2.0: 2, 49.0: 2, 50.0: 2, float("inf"): 2},
    }


def test_choosing_asks_nothing_of_few() -> None:
    """Histograms with few edges share theirs."""
    value = wide(EDGES_MAX + 1)
    assert make_edges(value, ()) is make_edges(value, [3])
    assert len(make_edges(value, ()).texts) == EDGES_MAX + 1

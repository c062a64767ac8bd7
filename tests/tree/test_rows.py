"""Totals: what many rows add up to, against one reduction for each file."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statsfs.model.arrays import Array, intern_array
from statsfs.model.columns import reduce_column
from statsfs.model.histograms import add_buckets
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.pauses import pausing
from statsfs.tree.rows import Addends, Row, Totals, find_plans

ALL = Aggregate(sum(kind.value for kind in Aggregate))
MIXED = intern_array(
    [
        Value("a", Type.S64, ALL),
        Value("n", Type.U8, Aggregate.SUM, kind=Kind.LOG_HIST, size=3),
        Value("b", Type.BOOL, Aggregate.SUM | Aggregate.COUNT_ZERO),
        Value("m", Type.S16, Aggregate.SUM, kind=Kind.LINEAR_HIST, size=1, bucket_size=5),
        Value("c", Type.U64, Aggregate.MIN),
    ]
)
ARRAYS = (
    MIXED,
    intern_array([Value("only", Type.U64, Aggregate.SUM)]),
    intern_array([Value("only", Type.U64, Aggregate.MIN | Aggregate.MAX)]),
    intern_array([Value("only", Type.U64, Aggregate.COUNT_NONZERO)]),
    intern_array([Value("own", Type.U64), Value("counted", Type.U64, Aggregate.AVG)]),
    intern_array([Value("h", Type.S64, Aggregate.SUM, kind=Kind.LOG_HIST, size=2)]),
    intern_array(
        [Value("h", Type.U64, kind=Kind.LOG_HIST, size=2), Value("n", Type.S8, Aggregate.SUM)]
    ),
)


def make_row(array: Array, seed: int) -> tuple[Any, ...]:
    """A row of converted numbers that differs from seed to seed."""
    return tuple(
        [value.type.convert(seed * (bucket + 3) - 100) for bucket in range(value.size)]
        if value.histogram
        else value.type.convert(seed * seed * 7919 - 50 if seed % 5 else 0)
        for value in array.values
    )


def check(array: Array, totals: Totals, rows: list[tuple[Any, ...]]) -> None:
    """Compare each file's number with that of one reduction of the column."""
    for files in array.aggregates:
        for file in files:
            assert file.kind is not None
            column = [row[file.index] for row in rows]
            expected: Any
            if file.value.histogram:
                expected = add_buckets(column, file.value)
            else:
                expected = reduce_column(column, file.value.type, file.kind)
            found = totals.value(file, file.index)
            assert found == expected
            assert type(found) is (list if file.value.histogram else int)


def add_up(array: Array, rows: Sequence[Row], parts: Sequence[Totals] = ()) -> Totals:
    """The totals of some rows and of what was added up before."""
    addends = Addends()
    addends.rows += rows
    addends.parts += parts
    return addends.add_up(find_plans([array])[array])


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 512, 513, 1500])
@pytest.mark.parametrize("array", ARRAYS, ids=range(len(ARRAYS)))
def test_totals_of_many_rows(array: Array, count: int) -> None:
    """However many, they are what a reduction of each column is."""
    rows = [make_row(array, seed) for seed in range(count)]
    check(array, add_up(array, rows), rows)


def test_totals_of_very_many_parts() -> None:
    """More parts than are merged at once are merged again."""
    rows = [make_row(MIXED, seed) for seed in range(600)]
    parts = [add_up(MIXED, [row]) for row in rows]
    check(MIXED, add_up(MIXED, (), parts), rows)
    check(MIXED, add_up(MIXED, rows, parts), rows * 2)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ARRAYS), st.lists(st.integers(0, 4), max_size=6), st.integers(0, 4))
def test_totals_of_totals(array: Array, sizes: list[int], own: int) -> None:
    """A directory's are those of its own rows and its subdirectories', empty ones too."""
    rows, parts = [], []
    for number, size in enumerate(sizes):
        some = [make_row(array, 10 * number + seed) for seed in range(size)]
        parts.append(add_up(array, some))
        rows += some
    mine = [make_row(array, 1000 + seed) for seed in range(own)]
    check(array, add_up(array, mine, parts), rows + mine)


def test_others_get_their_turn() -> None:
    """Every few hundred rows there is a pause."""
    calls: list[None] = []
    rows = [make_row(MIXED, seed) for seed in range(1000)]
    with pausing(lambda: calls.append(None)):
        add_up(MIXED, rows)
    assert len(calls) >= 4

"""Histograms of very many buckets: what is done with them is done in pieces, and copied once."""

import operator
from functools import partial
from itertools import starmap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.formats import json, openmetrics, prometheus
from statsfs.model import histograms
from statsfs.model.external import Numbers
from statsfs.model.histograms import add_buckets
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree import pauses
from statsfs.tree.pauses import pausing
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.model import convert

SIZE = 40_000
WIDE = Value("wide", aggregate=Aggregate.SUM, kind=Kind.LINEAR_HIST, size=SIZE, bucket_size=1)


def make_tree(sources: int, **options: Any) -> tuple[Registry, list[Numbers]]:
    """A registry with a source over sources that each have a wide histogram."""
    registry, top, made = Registry(), Source("top"), []
    registry.register(top)
    for number in range(sources):
        numbers = Numbers({WIDE.name: WIDE})
        numbers.take([[0] * number + [number + 1] * (SIZE - number)])
        source = Source("s%d", number, **options)
        source.add_values([WIDE], numbers)
        top.add_subordinate(source)
        source.put()
        made.append(numbers)
    return registry, made


def count_pauses(function: Any, *arguments: Any) -> int:
    """How often a function lets other threads run."""
    calls: list[None] = []
    with pausing(lambda: calls.append(None)):
        function(*arguments)
    return len(calls)


def test_pauses_between_two() -> None:
    """One is decoded, counted and written at a time; a text of one in pieces."""
    registry, _ = make_tree(6)
    assert count_pauses(registry.snapshot().decoded) >= 6
    for module in (prometheus, openmetrics):
        assert count_pauses(module.render, registry.snapshot()) > 6 * 3
    pieces = SIZE // json._LONG
    assert count_pauses(json.render, registry.snapshot()) > 6 * pieces


def test_pauses_between_refreshes() -> None:
    """Each may read a wide histogram; one alone is over before another thread could run."""
    for sources, expected in ((6, True), (1, False)):
        pausing_now: list[bool] = []
        note = partial(_note, pausing_now)
        registry, _ = make_tree(sources, refresh=note, blocking=False)
        assert count_pauses(registry.snapshot) >= sources
        pausing_now.clear()
        registry.snapshot()
        assert pausing_now == [expected] * sources


def _note(found: list[bool]) -> None:
    found.append(pauses._calling.rest is not None)


def test_lists_that_are_replaced_are_not_copied_in_a_pass() -> None:
    """That would be done under the tree's lock. What a program gets is its own, though."""
    registry, (numbers, *_) = make_tree(2)
    samples = registry.snapshot().arrays[WIDE,]
    _, decoded = samples.decode()
    assert decoded[0][0] is numbers["wide"]
    source = samples.sources[0]
    samples.rows[0][0][0] = 77
    source.get_value("wide")[0] = 77
    assert numbers["wide"][0] == source.get_value("wide")[0] == 1
    # One that is taken meanwhile is another list.
    numbers.take([[5] * SIZE])
    assert decoded[0][0][0] == 1
    assert registry.sources[0].get_value("wide")[0] == 5
    source.clear_value("wide")
    assert decoded[0][0][0] == 1
    assert source.get_value("wide") == [0] * SIZE


TYPES = [type for type in Type if type is not Type.BOOL]


@given(st.sampled_from(TYPES), st.integers(0, 5), st.integers(1, 9), st.integers(1, 9), st.data())
def test_adding_in_pieces(
    type: Type, histograms_: int, size: int, most: int, data: st.DataObject
) -> None:
    """Sums wrap as a 64-bit accumulator does, wherever a piece ends."""
    value = Value("h", type, kind=Kind.LINEAR_HIST, size=size, bucket_size=1)
    counts = st.one_of(st.integers(0, 3), st.integers(type.minimum, type.maximum))
    row = st.lists(counts, min_size=size, max_size=size)
    column = data.draw(st.lists(row, min_size=histograms_, max_size=histograms_))
    wide = Type.S64 if type.signed else Type.U64
    expected = [convert(sum(row[index] for row in column), wide) for index in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histograms, "_ADDED", most)
        added = add_buckets(column, value)
    assert added == expected
    assert not any(starmap(operator.is_, ((added, row) for row in column)))

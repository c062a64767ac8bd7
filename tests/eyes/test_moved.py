"""What moved between samples, in one run and in several."""

from typing import Any

import pytest

from statsfs.eyes.descriptions import Description, Schema
from statsfs.eyes.moved import Moved, find_totals, list_moved, measure, repeat
from statsfs.eyes.samples import Sample

NAMES = {
    "exits": Description("exits", aggregate=("sum", "max")),
    "exits.max": Description("exits.max", aggregate=("sum", "max")),
    "level": Description("level", kind="instant"),
    "lat": Description("lat", kind="log_hist", size=2),
}


def node(values: dict[str, Any], **below: Any) -> dict[str, Any]:
    return {"values": values, "subordinates": below}


def sample(moment: float, root: Any) -> Sample:
    return Sample(moment, moment, root)


SCHEMA = Schema({"values": {}, "labels": {}, "subordinates": {
    "app": {"values": NAMES, "labels": {}, "subordinates": {
        "w": {"values": NAMES, "labels": {}, "subordinates": {}}}}}})  # fmt: skip


def moved(before: Any, after: Any) -> dict[tuple[str, ...], Moved]:
    found = list_moved(sample(1, before), sample(3, after), SCHEMA)
    return {(*one.source, one.what.name): one for one in found}


def test_counters_levels_and_histograms_that_moved() -> None:
    """What did not move is not there; `exits.max` is a level, which may fall."""
    before = node({}, app=node({"exits": 5, "exits.max": 9, "level": 7, "lat": [1, 2]}))
    after = node({}, app=node({"exits": 8, "exits.max": 4, "level": 7, "lat": [1, 4]}))
    found = moved(before, after)
    assert {key: one.difference for key, one in found.items()} == {
        ("app", "exits"): 3,
        ("app", "exits.max"): -5,
        ("app", "lat"): [0, 2],
    }
    assert found["app", "lat"].count == 2
    assert [one.counter for one in found.values()] == [True, False, True]


def test_a_cleared_counter_is_not_known() -> None:
    """Its difference is None, and it is there."""
    found = moved(node({}, app=node({"exits": 5})), node({}, app=node({"exits": 3})))
    assert found["app", "exits"].difference is None
    assert found["app", "exits"].count is None


def test_a_source_that_came_counts_from_0() -> None:
    """Also its histograms; what it has not counted yet did not move."""
    found = moved(node({}), node({}, app=node({"exits": 5, "level": 0, "lat": [0, 1]})))
    assert {key: one.difference for key, one in found.items()} == {
        ("app", "exits"): 5,
        ("app", "lat"): [0, 1],
    }


def test_what_the_schema_lacks_is_a_level() -> None:
    """Nothing is known of it but its number."""
    found = moved(node({}, x=node({"n": 5})), node({}, x=node({"n": 3})))
    assert (found["x", "n"].difference, found["x", "n"].counter) == (-2, False)


def test_totals_are_the_outermost_sources_with_numbers() -> None:
    """What is below them is in them."""
    root = node({}, app=node({"exits": 1}, w=node({"exits": 1})), other=node({}, x=node({"n": 1})))
    assert find_totals(sample(0, root)) == {("app",), ("other", "x")}
    found = list_moved(sample(0, node({})), sample(1, root), SCHEMA, sources={("app",)})
    assert [one.source for one in found] == [("app",)]


def test_runs_have_a_mean_a_deviation_and_a_rate() -> None:
    """A run in which it did not move counts as 0; one in which it was cleared does not count."""

    def one(before: int, after: int) -> Moved:
        return Moved(("app",), NAMES["exits"], True, before, after)

    (row,) = repeat([(1.0, [one(0, 2)]), (1.0, []), (5.0, [one(9, 1)]), (2.0, [one(0, 4)])])
    assert (row.counts, row.mean, row.deviation, row.rate) == ([2, 0, 4], 2.0, 2.0, 1.5)
    (cleared,) = repeat([(1.0, [one(9, 1)])])
    assert (cleared.counts, cleared.rate) == ([], None)
    level = Moved(("app",), NAMES["level"], False, 1, 2)
    assert repeat([(1.0, [level])])[0].rate is None
    assert measure([5]) == (5, 0)
    with pytest.raises(ValueError, match="mean"):
        measure([])

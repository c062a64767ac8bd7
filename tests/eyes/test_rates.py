"""Differences of two samples: clears, restarts, sources that come and go."""

import pytest

from statsfs.eyes.rates import Rates, subtract
from statsfs.eyes.samples import Number, Sample


def sample(moment: float, **sources: dict[str, Number]) -> Sample:
    """A sample of sources below the root."""
    below = {name: {"values": values, "subordinates": {}} for name, values in sources.items()}
    return Sample(moment + 1e9, moment, {"values": {}, "subordinates": below})


@pytest.mark.parametrize(
    ("before", "after", "grown"),
    [
        (3, 7, 4),
        (7, 7, 0),
        (7, 3, None),
        (None, 3, None),
        (3, None, None),
        ([1, 2], [1, 5], [0, 3]),
        ([1, 2], [0, 5], None),
        ([1, 2], [1, 2, 3], None),
        ([], [], []),
        ([1], 1, None),
        (1, [1], None),
    ],
)
def test_what_fell_or_changed_its_shape_has_no_difference(
    before: Number | None, after: Number | None, grown: Number | None
) -> None:
    """There is no negative difference, and none of what is not known at both moments."""
    assert subtract(before, after) == grown


def test_a_source_that_came_has_a_rate_from_its_second_sample_on() -> None:
    """What it counted before it was seen is not counted in an interval."""
    rates = Rates()
    assert (rates.elapsed, rates.rate(("a",), "n"), rates.difference(("a",), "n")) == (
        0,
        None,
        None,
    )
    rates.add(sample(10, a={"n": 5, "h": [1, 1]}))
    assert (rates.elapsed, rates.rate(("a",), "n"), rates.difference(("a",), "n")) == (
        0,
        None,
        None,
    )
    rates.add(sample(12, a={"n": 9, "h": [2, 4]}, b={"n": 1000}))
    assert (rates.elapsed, rates.rate(("a",), "n"), rates.rate(("b",), "n")) == (2, 2.0, None)
    assert rates.rate(("a",), "h") == 2.0
    assert (rates.difference(("a",), "n"), rates.difference(("a",), "h")) == (4, [1, 3])
    assert rates.difference(("b",), "n") is None
    rates.add(sample(13, a={"n": 2}, b={"n": 1001}))
    assert (rates.rate(("a",), "n"), rates.rate(("b",), "n")) == (None, 1.0)
    rates.add(sample(13, b={"n": 1001}))
    assert (rates.rate(("a",), "n"), rates.rate(("b",), "n")) == (None, None)

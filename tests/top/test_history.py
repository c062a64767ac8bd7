"""Two minutes of numbers, and their bars."""

from statsfs.eyes.samples import Number, Sample
from statsfs.top.history import SOURCES_MAX, History, draw_bars, draw_buckets
from tests.support.top_place import node


def sample(moment: float, **values: Number) -> Sample:
    """A sample of one source."""
    return Sample(moment, moment, node({}, a=node(values)))


def test_rates_and_levels_are_put_into_parts_of_two_minutes() -> None:
    """A part without samples has none; what was cleared has no rate; older ones are forgotten."""
    history = History()
    for moment, number in ((0, 0), (10, 100), (20, 300), (30, 50), (60, 80)):
        history.add(sample(moment, n=number, h=[number, number]), [("a",)])
    assert history.rates(("a",), "n", 70, 12) == [
        None, None, None, None, None, 10.0, 20.0, None, 1.0, 1.0, 1.0, None
    ]  # fmt: skip
    assert history.rates(("a",), "n", 70, 2) == [10.0, 5.75]
    assert history.levels(("a",), "h", 70, 12) == [
        None, None, None, None, 0, 200, 600, 100, 100, 100, 160, None
    ]  # fmt: skip
    history.add(sample(60, n=80), [("new",)])
    history.interrupt()
    history.add(sample(100, n=120), [])
    assert history.rates(("a",), "n", 100, 12)[6:] == [1.0] * 2 + [None] * 4
    assert history.levels(("a",), "n", 100, 12)[6:] == [50, 80, None, None, None, 120]
    history.add(sample(135, n=130), [])
    assert history.levels(("a",), "n", 135, 4) == [50, 80, 120, 130]
    assert history.levels(("a",), "n", 150.5, 1) == [130]  # the oldest are no more in it
    history.add(sample(135, n=999), [])  # the same moment
    assert history.levels(("a",), "n", 135, 1) == [130]
    assert history.levels(("a",), "none", 135, 1) == [None]
    assert history.rates(("b",), "n", 135, 1) == [None]
    history.reset()
    assert history.levels(("a",), "n", 135, 1) == [None]


def test_a_source_that_goes_keeps_its_past_until_it_is_too_old() -> None:
    """It may come back."""
    history = History()
    history.add(sample(0, n=5), [("a",), ("gone",)])
    history.add(Sample(60, 60, node({})), [("a",)])
    assert history.levels(("a",), "n", 60, 2) == [5, None]
    history.add(sample(62, n=9), [])
    assert history.rates(("a",), "n", 62, 2) == [None, None]
    history.add(Sample(190, 190, node({})), [("a",)])
    assert history.levels(("a",), "n", 60, 2) == [None, None]


def test_an_outage_takes_no_memory() -> None:
    """Each tick without a sample once left a point, which none took away."""
    history = History()
    history.add(sample(0, n=5), [("a",)])
    for _ in range(9):
        history.interrupt()
    assert [*history._points[("a",)]] == [(0, {"n": 5}), (0, {})]


def test_few_sources_are_kept() -> None:
    """Those that were shown last."""
    history = History()
    many = {f"s{index}": node({"n": index}) for index in range(SOURCES_MAX + 1)}
    for index in range(SOURCES_MAX + 1):
        history.add(Sample(index / 10, index / 10, node({}, **many)), [(f"s{index}",)])
    assert history.levels(("s0",), "n", 20, 1) == [None]
    assert history.levels(("s1",), "n", 20, 1) == [1]


def test_bars_grow_from_zero_to_the_largest() -> None:
    """Blanks are what is not known; levels may be below 0."""
    assert draw_bars([0, 1, None, 6]) == "▁▂ ▇"
    assert draw_bars([0, 0]) == "▁▁"
    assert draw_bars([-6, 0]) == "▁▇"
    assert draw_bars([None]) == " "
    assert draw_bars([]) == ""


def test_buckets_are_bars_from_the_first_to_the_last_that_holds_something() -> None:
    """Neighbours share one if there are too many."""
    assert draw_buckets([0, 0, 6, 0, 3, 0], 9) == "▇▁▄"
    assert draw_buckets([1, 1, 1, 1], 2) == "▇▇"
    assert draw_buckets([0, 0], 5) == ""

"""Numbers as people read them."""

import math

import pytest

from statsfs.eyes.descriptions import Description
from statsfs.eyes.numbers import (
    clean_text,
    find_edges,
    find_percentile,
    format_number,
    format_percentiles,
    format_rate,
)

PLAIN = Description("n")
NANOSECONDS = Description("t", unit="seconds", exponent=-9)
BYTES = Description("b", unit="bytes")
KIB = Description("k", unit="bytes", base=2, exponent=10)
LOG = Description("h", kind="log_hist", unit="seconds", exponent=-9, size=4)


@pytest.mark.parametrize(
    ("number", "what", "text"),
    [
        (0, PLAIN, "0"),
        (1234567, PLAIN, "1,234,567"),
        (-5, PLAIN, "-5"),
        (2**64 - 1, PLAIN, "18,446,744,073,709,551,615"),
        (0, NANOSECONDS, "0 s"),
        (1, NANOSECONDS, "1 ns"),
        (999, NANOSECONDS, "999 ns"),
        (1000, NANOSECONDS, "1 µs"),
        (1_234_000, NANOSECONDS, "1.23 ms"),
        (999_999, NANOSECONDS, "1 ms"),
        (99_960_000_000, NANOSECONDS, "100 s"),
        (120_000_000_000, NANOSECONDS, "2 min"),
        (7_200_000_000_000, NANOSECONDS, "2 h"),
        (10**15, NANOSECONDS, "11.6 d"),
        (-1500, NANOSECONDS, "-1.5 µs"),
        (5, Description("t", unit="seconds", exponent=-12), "0.005 ns"),
        (1023, BYTES, "1,023 B"),
        (1024, BYTES, "1 KiB"),
        (2**20 - 1, BYTES, "1 MiB"),
        (3650722202, BYTES, "3.4 GiB"),
        (2**64, BYTES, "16 EiB"),
        (2**74, BYTES, "16,384 EiB"),
        (3, KIB, "3 KiB"),
        (-2048, BYTES, "-2 KiB"),
        (1234, Description("c", exponent=-2), "12.3"),
        (5, Description("c", exponent=6), "5 M"),
        (1, Description("c", exponent=400), "inf"),
        (2.5, PLAIN, "2.5"),
        (12, Description("c", unit="cycles"), "12"),
    ],
)
def test_a_number_is_shown_in_its_unit(number: float, what: Description, text: str) -> None:
    """Scaled numbers have three digits; what has no unit is shown whole."""
    assert format_number(number, what) == text


@pytest.mark.parametrize(
    ("rate", "what", "text"),
    [
        (0.0, PLAIN, "0/s"),
        (4014.2, PLAIN, "4,014/s"),
        (1_250_000.0, PLAIN, "1.25 M/s"),
        (2.5e9, PLAIN, "2.5 G/s"),
        (3e12, PLAIN, "3 T/s"),
        (0.25, PLAIN, "0.25/s"),
        (0.004, PLAIN, "0.004/s"),
        (0.001, PLAIN, "0.001/s"),
        (250e6, NANOSECONDS, "250 ms/s"),
        (2048.0, BYTES, "2 KiB/s"),
        (7.0, LOG, "7/s"),
    ],
)
def test_a_rate_is_shown_by_the_second(rate: float, what: Description, text: str) -> None:
    """Seconds and bytes keep their unit; of a histogram it is how much is observed."""
    assert format_rate(rate, what) == text


def test_the_edges_are_where_the_buckets_begin() -> None:
    """Of each kind of histogram; the last bucket has no end."""
    assert find_edges(4, LOG) == [0, 1, 2, 4, math.inf]
    linear = Description("h", kind="linear_hist", bucket_size=10)
    assert find_edges(3, linear) == [0, 10, 20, math.inf]
    assert find_edges(3, Description("h", kind="hist", bounds=(5, 50))) == [0, 5, 50, math.inf]
    assert find_edges(1, LOG) == [0, math.inf]


def test_percentiles_lie_where_prometheus_has_them() -> None:
    """On a straight line through a bucket; in the last it is where that begins."""
    linear = Description("h", kind="linear_hist", bucket_size=10)
    assert find_percentile([0, 0, 0], 50, linear) is None
    assert find_percentile([], 50, linear) is None
    assert find_percentile([0, 10, 0], 50, linear) == (15.0, 20)
    assert find_percentile([5, 5, 0], 90, linear) == (18.0, 20)
    assert find_percentile([1, 0, 9], 90, linear) == (20, math.inf)
    assert find_percentile([0, 4, 0], 0, linear) == (10.0, 20)


def test_percentiles_are_shown_in_the_unit() -> None:
    """The three usual ones; nothing of an empty histogram."""
    linear = Description("h", kind="linear_hist", bucket_size=10, unit="seconds", exponent=-3)
    assert format_percentiles([10, 0, 0], linear) == "p50 5 ms  p90 9 ms  p99 9.9 ms"
    assert format_percentiles([9, 0, 1], linear) == "p50 5.56 ms  p90 10 ms  p99 ≥ 20 ms"
    assert format_percentiles([0, 0], linear) == ""


def test_what_is_not_printable_is_a_blank() -> None:
    """A description cannot move the cursor of whoever looks."""
    assert clean_text("a\x1b[2Jb\nc\x9bd") == "a [2Jb c d"
    assert clean_text("µs – schön") == "µs – schön"

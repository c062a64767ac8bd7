"""Numbers as people read them: `1.2 ms`, `3.4 GiB`, `4,014/s`; percentiles; texts for a terminal.

Threading: pure.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from statsfs.eyes.descriptions import Description

__all__ = [
    "PERCENTILES",
    "clean_text",
    "find_edges",
    "find_percentile",
    "format_number",
    "format_percentiles",
    "format_rate",
]

PERCENTILES: Final = (50, 90, 99)

_TIMES: Final = ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))
_LONG: Final = ((60.0, "min"), (3600.0, "h"), (86400.0, "d"))
_BYTES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_LARGE: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def clean_text(text: str) -> str:
    """Return a text that does nothing to a terminal: unprintable characters are blanks.

    Descriptions are anyone's, and so are the names that a server sends.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " for letter in text)


def format_number(number: float, what: Description) -> str:
    """Return a number of a file in its unit, with three digits where it is scaled.

    A number without a unit to scale is shown whole.
    """
    if what.unit == "seconds":
        return _format_seconds(_scale(number, what))
    if what.unit == "bytes":
        return _format_bytes(_scale(number, what))
    if what.exponent:
        return _shorten(_scale(number, what))
    return f"{number:,}" if isinstance(number, int) else _shorten(number)


def format_rate(rate: float, what: Description) -> str:
    """Return how much a number grows in a second; of a histogram, how much is observed."""
    if what.histogram:
        return f"{_shorten(rate)}/s"
    if what.unit in ("seconds", "bytes"):
        return f"{format_number(rate, what)}/s"
    return f"{_shorten(_scale(rate, what))}/s"


def format_percentiles(buckets: Sequence[int], what: Description) -> str:
    """Return `p50 1.2 ms  p90 …  p99 …` of a histogram; nothing of an empty one."""
    found = [(percent, find_percentile(buckets, percent, what)) for percent in PERCENTILES]
    return "  ".join(
        f"p{percent} {'≥ ' if math.isinf(end) else ''}{format_number(number, what)}"
        for percent, (number, end) in ((percent, pair) for percent, pair in found if pair)
    )


def find_edges(size: int, what: Description) -> list[float]:
    """Return where the buckets of a histogram begin, and where the last one ends: infinity."""
    if what.bounds:
        begins: list[float] = [0, *what.bounds]
    elif what.kind == "log_hist":
        begins = [0, *(2.0**power for power in range(size - 1))]
    else:
        begins = [index * what.bucket_size for index in range(size)]
    return [*begins[:size], math.inf]


def find_percentile(
    buckets: Sequence[int], percent: float, what: Description
) -> tuple[float, float] | None:
    """Return which number so many percent of the observations are below; None if there are none.

    It is taken to be where a straight line through its bucket has it, as Prometheus does.

    Returns:
        the number, and where its bucket ends. In the last bucket, which has no end, it is where
        the bucket begins.
    """
    sums = list(accumulate(buckets))
    if not sums or sums[-1] <= 0:
        return None
    wanted = sums[-1] * percent / 100
    index = next(index for index, below in enumerate(sums) if below >= wanted and buckets[index])
    edges = find_edges(len(buckets), what)
    begin, end = edges[index], edges[index + 1]
    if math.isinf(end):
        return begin, end
    share = (wanted - (sums[index] - buckets[index])) / buckets[index]
    return begin + (end - begin) * share, end


def _scale(number: float, what: Description) -> float:
    try:
        return float(number * float(what.base) ** what.exponent)
    except OverflowError:
        return math.copysign(math.inf, number)


def _digits(number: float) -> str:
    # Three digits: 1.23, 12.3, 123; zeros after the point are left out.
    size = abs(number)
    if size >= 99.95 or number == 0:
        return f"{number:,.0f}"
    text = (
        f"{number:.1f}" if size >= 9.995 else f"{number:.2f}" if size >= 0.01 else f"{number:.1g}"
    )
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _shorten(number: float) -> str:
    for factor, prefix in _LARGE:
        if factor <= abs(number) < math.inf:
            return f"{_digits(number / factor)} {prefix}"
    return _digits(number)


def _format_seconds(seconds: float) -> str:
    size = abs(seconds)
    if size == 0:
        return "0 s"
    units = _LONG if size >= 120 else _TIMES
    factor, unit = units[0]
    for larger, name in units:
        if size >= larger * 0.9995:
            factor, unit = larger, name
    return f"{_digits(seconds / factor)} {unit}"


def _format_bytes(number: float) -> str:
    power = 0
    while abs(number) >= 1023.5 and power < len(_BYTES) - 1:
        number, power = number / 1024, power + 1
    return f"{_digits(number)} {_BYTES[power]}"

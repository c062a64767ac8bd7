"""What metrics and labels are called in Prometheus and OpenMetrics, and in which unit they are.

Owns the way from a `Value` to a metric and the scale of its numbers, and from the label of a source
to one that the formats allow.

A histogram has `_bucket`, `_sum` and `_count`. One without a sum, as the kernel's, has its buckets
alone, as a metric `x_bucket` of unknown type, whose samples are those that a histogram `x` would
have: PromQL's `histogram_quantile` looks at nothing else. Of a histogram that lacks them,
node_exporter and other programs in Go invent `_sum 0` and `_count 0`; OpenMetrics forbids `_count`
without `_sum`, which nobody counted.

Threading: pure functions.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, compress
from typing import Final, Literal

from statsfs.model.values import Kind, Type, Unit, Value

__all__ = [
    "EDGES_MAX",
    "Edges",
    "Metric",
    "Scale",
    "make_edges",
    "make_label",
    "make_metric",
    "make_name",
    "make_prefix",
]

EDGES_MAX: Final = 128  # of a histogram, besides +Inf; of one that has more, so many at most

_FOREIGN: Final = re.compile(r"[^a-zA-Z0-9_]")
# What the Go parsers take for the end of the input, or show as they are to a terminal.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f]")

# How producers write a unit and a prefix at the end of a name, by base and exponent.
_SAID: Final = {
    (Unit.SECONDS, 10, -9): ("ns", "nsec", "nsecs", "nanosecond", "nanoseconds"),
    (Unit.SECONDS, 10, -6): ("us", "usec", "usecs", "microsecond", "microseconds"),
    (Unit.SECONDS, 10, -3): ("ms", "msec", "msecs", "millisecond", "milliseconds"),
    (Unit.SECONDS, 10, 0): ("s", "sec", "secs", "second", "seconds"),
    (Unit.BYTES, 10, 0): ("byte", "bytes"),
    (Unit.BYTES, 10, 3): ("kb", "kilobyte", "kilobytes"),
    (Unit.BYTES, 10, 6): ("mb", "megabyte", "megabytes"),
    (Unit.BYTES, 10, 9): ("gb", "gigabyte", "gigabytes"),
    (Unit.BYTES, 2, 10): ("kb", "kib", "kilobyte", "kilobytes", "kibibyte", "kibibytes"),
    (Unit.BYTES, 2, 20): ("mb", "mib", "megabyte", "megabytes", "mebibyte", "mebibytes"),
    (Unit.BYTES, 2, 30): ("gb", "gib", "gigabyte", "gigabytes", "gibibyte", "gibibytes"),
}
# A 64-bit integer times less than that is a float yet.
_HUGE: Final = 1 << 900
_SUFFIXES: Final = {
    "counter": ("", "_total", "_created"),
    "gauge": ("",),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "unknown": ("",),
}
_MetricType = Literal["counter", "gauge", "histogram", "unknown"]
_SAMPLES: Final = {"counter": "_total", "histogram": "_bucket"}


def make_name(text: str) -> str:
    """Return a text with nothing but letters, digits and "_" of ASCII, and no digit in front."""
    name = _FOREIGN.sub("_", text)
    return f"_{name}" if name[:1].isdigit() else name


def make_prefix(prefix: str | None, top: str) -> str:
    """Return the start of the names of all metrics below a top-level source.

    Args:
        prefix: the registry's, or None.
        top: the source's name. One that begins with the prefix does not get it twice.
    """
    has = prefix is None or f"{make_name(top)}_".startswith(f"{prefix}_")
    return make_name(top if has else f"{prefix}_{top}")


@lru_cache(maxsize=1024)
def make_label(text: str) -> str:
    """Return the name of a label: as `make_name`, and none that the formats keep to themselves."""
    name = make_name(text)
    if name.startswith("__"):
        name = f"_{name.lstrip('_')}"
    return "exported_le" if name == "le" else name


@dataclass(frozen=True, slots=True)
class Metric:
    """What a family of samples is.

    Attributes:
        name: the family's name: that of OpenMetrics, without the `_total` of a counter.
        unit: `seconds`, `bytes` or nothing.
        help: one line for people, or nothing.
    """

    name: str
    type: _MetricType
    unit: str
    help: str

    @property
    def names(self) -> list[str]:
        """All that no other family may be called, nor its samples."""
        return [self.name + suffix for suffix in _SUFFIXES[self.type]]

    @property
    def sample(self) -> str:
        """What the samples are called; of a histogram the buckets."""
        return f"{self.name}{_SAMPLES.get(self.type, '')}"

    def without_sums(self) -> "Metric":
        """Return the metric that a histogram is which has no sums."""
        # OpenMetrics wants the unit at the end of the name.
        return replace(self, name=self.sample, type="unknown", unit="")


@dataclass(frozen=True, slots=True)
class Scale:
    """From a value's unit to the base unit: times `factor`, divided by `divisor`; one of them is 1.

    A quotient is the nearest float; what no float can hold is infinite, as the parsers refuse it.
    """

    factor: int
    divisor: int

    @property
    def exact(self) -> bool:
        """Whether integers stay integers."""
        return self.divisor == 1 and self.factor < _HUGE

    def apply(self, number: int) -> int | float:
        """Scale one number."""
        if self.exact:
            return number * self.factor
        try:
            return number * self.factor / self.divisor
        except OverflowError:
            return float("inf") if number > 0 else float("-inf")

    def apply_all(self, numbers: Sequence[int]) -> Sequence[int | float]:
        """Scale many 64-bit numbers."""
        if not self.exact:
            # Python divides integers exactly, and rounds once.
            divisor = self.divisor
            return [n / divisor for n in numbers] if divisor > 1 else list(map(self.apply, numbers))
        factor = self.factor
        return numbers if factor == 1 else [n * factor for n in numbers]


def make_metric(top: str, value: Value) -> tuple[Metric, Scale]:
    """Return the metric of a value, and the scale of its numbers.

    Args:
        top: what `make_prefix` returns for its top-level source.
        value: the value.
    """
    type: _MetricType = "gauge"
    if value.histogram:
        type = "histogram"
    elif value.kind is Kind.CUMULATIVE and value.type is not Type.BOOL:
        type = "counter"
    name, unit = _name(top, value.name, type, value.unit, value.base, value.exponent)
    help = _CONTROL.sub(" ", value.description).encode(errors="replace").decode().strip()
    return Metric(name, type, unit, help), _make_scale(value.base, value.exponent)


@lru_cache(maxsize=64)
def _make_scale(base: int, exponent: int) -> Scale:
    power = base ** abs(exponent)
    return Scale(power, 1) if exponent >= 0 else Scale(1, power)


# By what is small: values have descriptions and bounds, which a cache would keep.
@lru_cache(maxsize=4096)
def _name(
    top: str, local: str, type: _MetricType, counted: Unit, base: int, exponent: int
) -> tuple[str, str]:
    # The name of a metric, and its unit.
    name = f"{top}_{_FOREIGN.sub('_', local)}"
    if type == "counter":
        name = name.removesuffix("_total")
    unit = str(counted) if counted in (Unit.SECONDS, Unit.BYTES) else ""
    if unit:
        # What is said at the end of the top-level source's name is said of something else.
        said = name != top and _says_unit(name.rpartition("_")[2], counted, base, exponent)
        name = f"{name.rpartition('_')[0] if said else name}_{unit}"
    return name, unit


def _says_unit(end: str, counted: Unit, base: int, exponent: int) -> bool:
    # The base unit itself may be said already, whatever the exponent is: never twice.
    said = _SAID.get((counted, base if exponent else 10, exponent), ())
    return end.lower() in said or end == str(counted)


@dataclass(frozen=True, slots=True)
class Edges:
    """The buckets of a histogram that are exported, as the label `le` has them.

    Attributes:
        texts: the largest number of each, scaled; "+Inf" is the last.
        keep: for each bucket whether one of these ends with it.
    """

    texts: tuple[str, ...]
    keep: bytes

    def count(self, buckets: Sequence[int]) -> list[int]:
        """Return how much is in each of these buckets and in those before it."""
        return list(compress(accumulate(buckets), self.keep))


def make_edges(value: Value, held: Iterable[int]) -> Edges:
    """Return the buckets of a histogram that are exported.

    One with more than `EDGES_MAX` edges has those of buckets that hold something, and the edges
    where these begin. If that is too many, neighbours are one bucket, 2, 4, 8 or more of them,
    counted from the first bucket: so two such choices never have edges that cross.

    Args:
        value: the histogram.
        held: which buckets hold something, in any series; for one with few edges it is not asked.
    """
    if value.size <= EDGES_MAX + 1:
        return _make_all_edges(value)
    return _make_edges(value, _choose_ends({*held}, value.size - 1))


def _choose_ends(held: set[int], last: int) -> list[int]:
    # The last one has no upper end, and is always shown.
    width = 1
    while True:
        # Each has an end of its own.
        if len(held) <= EDGES_MAX + 1:
            ends = {end for one in held for end in (one * width - 1, (one + 1) * width - 1)}
            shown = [end for end in ends if 0 <= end < last]
            if len(shown) <= EDGES_MAX:
                return sorted(shown)
        held = {one >> 1 for one in held}
        width *= 2


@lru_cache(maxsize=256)
def _make_all_edges(value: Value) -> Edges:
    return _make_edges(value, range(value.size - 1))


def _make_edges(value: Value, ends: Iterable[int]) -> Edges:
    # With the buckets that end there, and the last one.
    _, scale = make_metric("", value)
    starts: Sequence[int] = (
        value.starts
        if value.kind is not Kind.LINEAR_HIST
        else range(0, value.size * value.bucket_size, value.bucket_size)
    )
    texts = {end: _show_edge(scale.apply(starts[end + 1] - 1)) for end in ends}
    texts[value.size - 1] = "+Inf"
    # Where two are the same float, the later has the label.
    shown = {text: end for end, text in texts.items()}
    keep = bytearray(value.size)
    for end in shown.values():
        keep[end] = True
    return Edges(tuple(shown), bytes(keep))


def _show_edge(number: int | float) -> str:
    # As Go prints floats, and with ".0" where nothing else says that it is one: that is what the
    # OpenMetrics specification calls canonical. Only Python's exponents begin later.
    text = repr(float(number))
    digits, point, rest = text.partition(".")
    if text == "inf":
        return "+Inf"
    if not point or "e" in rest or len(digits) <= 6:
        return text
    fraction = f"{digits[1:]}{rest}".rstrip("0")
    return f"{digits[0]}{'.' if fraction else ''}{fraction}e+{len(digits) - 1:02d}"

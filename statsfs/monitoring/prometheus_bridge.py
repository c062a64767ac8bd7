"""What a program counts with prometheus_client, as files.

Owns `show_prometheus`: which files the metrics of a registry become, and the integers in them. The
other way, from sources to prometheus_client, is `RegistryCollector`.

Each series is a hidden source in the directory of its labels. So it comes and goes as a whole, and
the file is a total: that of the directory, as in all directories above.

Threading: the registry is collected in the thread of a refresh, one at a time; prometheus_client's
own locks keep its numbers whole. Its increments cost nothing more.
"""

import logging
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from statsfs.exceptions import StatsfsError
from statsfs.formats.metric_names import make_label
from statsfs.model.external import Numbers
from statsfs.model.histograms import make_sum
from statsfs.model.names import safe_name
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.families import add_below
from statsfs.tree.late_refresh import set_refresh
from statsfs.tree.refresh import refresh_all
from statsfs.tree.source import Source, check_source

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

__all__ = ["is_collecting", "show_prometheus"]

log = logging.getLogger(__name__)

_SECONDS: Final = -9  # the exponent of what counts seconds
_FRACTIONS: Final = -6  # and of anything else of which one number had a fraction
_UNITS: Final = {"seconds": Unit.SECONDS, "bytes": Unit.BYTES}  # by the last word of a name
_HISTOGRAMS: Final = (Kind.HIST, Kind.LINEAR_HIST)

_Labels = tuple[tuple[str, str], ...]


class _Collecting(threading.local):
    active = False  # whether this thread collects a registry to show it


_collecting: Final = _Collecting()


def is_collecting() -> bool:
    """Tell whether this thread collects for a bridge, which must not get its own files."""
    return _collecting.active


def show_prometheus(registry: "CollectorRegistry", source: Source, *, max_age: float = 0) -> None:
    """Show what a program counts with prometheus_client in the files of a source.

    The registry is collected when somebody reads, once for all files: label sets come and go with
    it. A metric's file is in the source. Each of its labels is a level of directories, named by the
    labels' values as `safe_name` writes them, with totals in all directories above. Clearing the
    file of a counter subtracts what it was; the counter itself goes on.

    A file has integers. Where a metric's name ends in `_seconds` they are nanoseconds. Others are
    whole, until a number has a fraction; from then on that metric's are millionths. The file's
    attribute `user.statsfs.exponent` says so. A summary is a histogram of one bucket; infos and
    states are 1 and 0. What 64 bits cannot hold, NaN for example, has no file. Nor have quantiles
    and the buckets of a histogram of gauges, whose totals would mean nothing.

    >>> import prometheus_client
    >>> requests = prometheus_client.Counter("requests", "Requests answered", ["method"])
    >>> requests.labels("GET").inc()
    >>> web = Source("web")
    >>> show_prometheus(prometheus_client.REGISTRY, web)
    >>> web.find("GET").get_value("requests"), web.get_value("requests")
    (1, 1)

    Args:
        registry: a `CollectorRegistry`, or anything else with a `collect`.
        source: a source without a refresh, for these files alone.
        max_age: for how many seconds a collection serves further reads.

    Raises:
        TypeError: an argument is something else.
        ValueError: `max_age` is negative, or not finite.
        TreeError: the source has a refresh.
        ReleasedError: the source was released.
    """
    if not callable(getattr(registry, "collect", None)):
        raise TypeError(f"registry is not a CollectorRegistry: {registry!r}")
    check_source(source)
    set_refresh(source, _Bridge(registry, source).refresh, max_age)
    # What there is now can be listed at once. If the registry fails now, the files say so.
    refresh_all([source])


# What was collected


class _Series(NamedTuple):
    # One number, or the counts in the buckets of a histogram.
    labels: _Labels
    name: str
    kind: Kind
    numbers: tuple[float, ...]
    bounds: tuple[float, ...] = ()
    sum: float | None = None

    @property
    def fractional(self) -> bool:
        # What is not finite has no remainder either.
        scaled = (*self.bounds, self.sum or 0) if self.kind in _HISTOGRAMS else self.numbers
        return any(number % 1 and math.isfinite(number) for number in scaled)


def _list_series(metric: "Metric") -> Iterator[_Series]:
    buckets: defaultdict[_Labels, dict[float, float]] = defaultdict(dict)
    sums: dict[_Labels, float] = {}
    for sample in metric.samples:
        labels = tuple(sample.labels.items())
        match metric.type, sample.name.removeprefix(metric.name):
            case "counter" | "histogram" | "summary", "_created":
                pass  # when the counting began
            case "counter", "_total":
                yield _Series(labels, metric.name, Kind.CUMULATIVE, (sample.value,))
            case "histogram", "_bucket" if "le" in sample.labels:
                others = tuple(pair for pair in labels if pair[0] != "le")
                buckets[others][float(sample.labels["le"])] = sample.value
            case "histogram" | "summary", "_count":
                buckets[labels][math.inf] = sample.value
            case "histogram" | "summary", "_sum":
                sums[labels] = sample.value
            case ("summary", "") | ("gaugehistogram", "_bucket"):
                pass  # quantiles and the like: their totals would mean nothing
            case _:
                yield _Series(labels, sample.name, Kind.INSTANT, (sample.value,))
    for labels, counts in buckets.items():
        counts.setdefault(math.inf, math.nan)
        *bounds, _ = ends = sorted(counts)
        below = [0.0, *(counts[end] for end in ends)]
        numbers = tuple(after - before for before, after in pairwise(below))
        kind = Kind.HIST if bounds else Kind.LINEAR_HIST
        yield _Series(labels, metric.name, kind, numbers, tuple(bounds), sums.get(labels))


# What is shown


class _Shape(NamedTuple):
    # It determines the array of a series.
    name: str
    kind: Kind
    exponent: int
    bounds: tuple[int, ...]
    summed: bool
    documentation: str

    def values(self) -> tuple[Value, ...]:
        value = Value(
            safe_name(self.name),
            _find_type(self.kind),
            Aggregate.SUM,
            kind=self.kind,
            unit=_UNITS.get(self.name.rpartition("_")[2], Unit.NONE),
            exponent=self.exponent,
            description=" ".join(self.documentation.split()),
            bounds=self.bounds,
            bucket_size=int(self.kind is Kind.LINEAR_HIST),
        )
        return (value, make_sum(value)) if self.summed else (value,)


def _find_type(kind: Kind) -> Type:
    return Type.S64 if kind is Kind.INSTANT else Type.U64


def _scale(number: float, exponent: int, type: Type = Type.U64) -> int:
    # Exactly, however large it is; ValueError or OverflowError if it is not finite, or the type
    # does not hold it.
    whole, power = int(number), 10**-exponent
    scaled: int = whole * power + round((number - whole) * power)
    if not type.minimum <= scaled <= type.maximum:
        raise OverflowError(f"{number:g} does not fit into {type}, with exponent {exponent}")
    return scaled


_Key = tuple[_Labels, _Shape]


class _Bridge:
    # The files of one registry.

    def __init__(self, registry: "CollectorRegistry", source: Source) -> None:
        self._registry = registry
        self._fractional: set[str] = set()
        self._complained: set[str] = set()
        self._numbers = count(1)
        self._levels: dict[_Labels, Source] = {(): source}
        self._arrays: dict[_Shape, tuple[Value, ...]] = {}
        self._shown: dict[_Key, tuple[Source, Numbers]] = {}

    def refresh(self) -> None:
        _collecting.active = True
        try:
            metrics = list(self._registry.collect())
        finally:
            _collecting.active = False
        self._show(metrics)

    def _show(self, metrics: "list[Metric]") -> None:
        series = [(one, metric.documentation) for metric in metrics for one in _list_series(metric)]
        self._fractional.update(one.name for one, _ in series if one.fractional)
        wanted: dict[_Key, list[Any]] = {}
        for one, documentation in series:
            try:
                shape, row = self._convert(one, documentation)
                if shape not in self._arrays:
                    self._arrays[shape] = shape.values()
            except (ValueError, OverflowError) as error:
                self._complain(one.name, error)
            else:
                wanted[one.labels, shape] = row
        # First what goes: in another shape a metric does not belong together with what it was.
        self._remove(wanted)
        for key, row in wanted.items():
            known = self._shown.get(key)
            if known is not None:
                known[1].take(row)
                continue
            try:
                self._add(key, row)
            except StatsfsError as error:
                self._complain(key[1].name, error)

    def _convert(self, one: _Series, documentation: str) -> tuple[_Shape, list[Any]]:
        name, kind = one.name, one.kind
        exponent = _FRACTIONS if name in self._fractional else 0
        if name.endswith("_seconds"):
            exponent = _SECONDS
        if kind not in _HISTOGRAMS:
            row: list[Any] = [_scale(one.numbers[0], exponent, _find_type(kind))]
            return _Shape(name, kind, exponent, (), False, documentation), row
        bounds = tuple([_scale(bound, exponent) for bound in one.bounds])
        row = [[_scale(number, 0) for number in one.numbers]]
        # Python's own has none where a bound is below 0.
        if summed := one.sum is not None and 0 <= one.sum < math.inf:
            row.append(_scale(one.sum or 0, exponent))
        return _Shape(name, kind, exponent, bounds, summed, documentation), row

    def _complain(self, name: str, error: Exception) -> None:
        if name not in self._complained:
            self._complained.add(name)
            log.warning("%s: left out of %s: %s", name, self._levels[()].path, error)

    def _remove(self, wanted: Mapping[_Key, object]) -> None:
        gone = self._shown.keys() - wanted.keys()
        if not gone:
            return
        kept = {labels[:level] for labels, _ in wanted for level in range(len(labels) + 1)} | {()}
        for labels in [labels for labels in self._levels if labels not in kept]:
            source = self._levels.pop(labels)
            if labels[:-1] in kept:
                self._levels[labels[:-1]].remove_subordinate(source)
        for key in gone:
            source, _ = self._shown.pop(key)
            if key[0] in kept:
                self._levels[key[0]].remove_subordinate(source)
        used = {shape for _, shape in wanted}
        self._arrays = {shape: array for shape, array in self._arrays.items() if shape in used}

    def _add(self, key: _Key, row: list[Any]) -> None:
        labels, shape = key
        values = self._arrays[shape]
        numbers = Numbers({value.name: value for value in values})
        numbers.take(row)
        # No safe name begins like that.
        series = Source(f"%={next(self._numbers)}", hidden=True)
        series.add_values(values, numbers)
        add_below(self._levels, labels, series, self._make_level)
        self._shown[key] = series, numbers

    def _make_level(self, labels: _Labels) -> Source:
        label, text = labels[-1]
        name = safe_name(text)
        above = self._levels.get(labels[:-1])
        if above is not None and above.find(name) is not None:
            name = safe_name(f"{label}={text}")  # another label has such a value
        return Source(name, label=make_label(label), label_value=text)

"""Metric families: what a snapshot's numbers are called, and grouped as for Prometheus.

Only what a producer counted is exported: the totals of the directories are sums that a query makes.
A family is of one top-level source. Where two arrays of it want one metric name, the older has it.

A text has a limited number of lines and bytes for each user. The oldest metrics come first. Series
are counted, not digits of their numbers, so that no metric comes and goes. A metric of our own says
how many metrics of a source are left out: for their size, or because another user has the name.

Threading: pure, but for pauses and the log.
"""

import logging
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import TYPE_CHECKING, Any, Final

from statsfs.formats.metric_conflicts import OWN, assign_names
from statsfs.formats.metric_names import (
    EDGES_MAX,
    Edges,
    Metric,
    Scale,
    make_edges,
    make_metric,
    make_prefix,
)
from statsfs.formats.metric_samples import Batch, Home, Place, find_exported, list_samples
from statsfs.formats.user_bounds import BYTES_MAX, LINES_MAX, find_bounded_user, find_user
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree.access import Mask
from statsfs.tree.pauses import pause
from statsfs.tree.snapshot import Snapshot
from statsfs.tree.source import directory_of

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = ["Family", "Part", "complain", "make_families", "name_metrics"]

log = logging.getLogger(__name__)

_COMPLAINTS: Final = 1000  # of one user: names that never end must not fill memory and the log

_HEAD: Final = 3  # lines before the samples of a metric
_REST: Final = 24  # bytes of a line that are not its name and labels
_LE: Final = 20  # bytes of the label `le`

# What a text says of itself. No source has a metric of that name.
_LEFT_OUT: Final = Value(
    "left_out_metrics",
    kind=Kind.INSTANT,
    description="Metrics of a source that are missing here, and for which reason",
)
_OURS: Final = make_metric(OWN, _LEFT_OUT)[0]

_complaints: Final[dict[int | None, set[tuple[str, str]]]] = {}  # by user


def complain(top: "Source", name: str, what: str) -> None:
    """Log a conflict of a metric once in the life of the process, not at each scrape.

    Args:
        top: the top-level source, whose owner may cause so many lines.
        name: the metric's.
        what: the conflict.
    """
    known = _complaints.setdefault(find_user(top), set())
    if (name, what) not in known and len(known) < _COMPLAINTS:
        known.add((name, what))
        directory_of(top).warn(log, "metric %s: %s", name, what)


# Homes, with their numbers or the counts of their buckets, and their sums.
_Taken = tuple[list[Home], Iterable[Any], Sequence[int | float | None]]


class Part:
    """The samples that one array gives to a family; they can be taken once, by the family.

    Attributes:
        value: the value that is shown.
        scale: from its unit to the family's.
        summed: whether some of the homes of a histogram have a sum.
        edges: the buckets that are exported, of a histogram whose family is taken.
    """

    __slots__ = (
        "_batch", "_metric", "_place", "_signed", "_top", "edges", "scale", "summed", "value",
    )  # fmt: skip

    def __init__(
        self,
        metric: Metric,
        top: "Source",
        batch: Batch,
        place: Place,
        value: Value,
        scale: Scale,
    ) -> None:
        self._metric = metric
        self._top = top
        self._batch = batch
        self._place = place
        self._signed = value.type.signed and metric.type != "gauge"
        self.value = value
        self.scale = scale
        self.summed = value.histogram and any(chunk.has_sums(place) for chunk in batch.chunks)
        self.edges: Edges | None = None

    @property
    def layout(self) -> object:
        """What histograms have in common that have the same edges."""
        value = self.value
        return value.kind, value.size, value.bucket_size, value.bounds, self.scale

    def add_held(self, held: set[int]) -> None:
        """Add which buckets hold something."""
        for chunk in self._batch.chunks:
            for buckets in chunk.columns[self._place.value]:
                held.update(compress(range(self.value.size), buckets))
                pause()

    def weigh(self, name: str) -> tuple[int, int]:
        """Return how many lines and bytes it may have, under a metric's name."""
        lines, size = 1, len(name) + _REST
        if self.value.histogram:
            lines = min(self.value.size - 1, EDGES_MAX) + 1 + 2 * self.summed
            size += _LE
        total = lines * len(self._batch.texts)
        return total, total * size + lines * self._batch.label_bytes

    def take(self) -> Iterator[_Taken]:
        """Return and forget a few hundred homes at a time, with the number or buckets of each.

        The third is the sum of each histogram, or None. Numbers and sums are scaled, and buckets
        counted up to each of the edges. They are forgotten one by one because 300,000 at once would
        take long.
        """
        for chunk in self._batch.chunks:
            homes, sums = chunk.homes, chunk.sums(self._place)
            column = chunk.columns[self._place.value]
            chunk.forget(self._place)
            if self._signed and not all(keep := self._find_counts(column)):
                complain(self._top, self._metric.name, "negative counts are left out")
                homes, column, sums = (list(compress(some, keep)) for some in (homes, column, sums))
            if not homes:
                continue
            if self.edges is not None:
                apply, count = self.scale.apply, self.edges.count
                totals = [None if one is None else apply(one) for one in sums]
                yield homes, map(count, column), totals
            else:
                yield homes, self.scale.apply_all(column), sums

    def _find_counts(self, column: Sequence[Any]) -> list[bool]:
        # Which are what a counter or a histogram may have.
        if self.value.histogram:
            return [min(buckets) >= 0 for buckets in column]
        return [number >= 0 for number in column]


@dataclass(slots=True, eq=False)
class Family:
    """All samples of one metric.

    Attributes:
        metric: its name, type, unit and help.
        top: the top-level source of all samples.
        parts: the samples of each array, the oldest array's first.
        texts: the labels of all samples.
    """

    metric: Metric
    top: "Source"
    parts: list[Part] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)

    def weigh(self) -> tuple[int, int]:
        """Return how many lines and bytes it may have, whatever the numbers are."""
        name, help = self.metric.sample, self.metric.help.encode()
        lines, sizes = map(sum, zip(*(part.weigh(name) for part in self.parts), strict=True))
        return lines + _HEAD, sizes + _HEAD * (len(name) + _REST) + len(help)

    def add_texts(self, texts: set[str]) -> None:
        """Add the labels of one more part; those of the first, nearly always all, are shared."""
        if len(self.parts) > 1:
            self.texts.update(texts)
        else:
            self.texts = self.texts | texts if self.parts else texts

    def take(self) -> Iterator[tuple[Part, _Taken]]:
        """Return and forget the samples, a few hundred at a time, with the part that has them."""
        if self.parts[0].value.histogram:
            self._choose_edges()
        for part in self.parts:
            for taken in part.take():
                yield part, taken

    def _choose_edges(self) -> None:
        # All series of a metric have the same: else `sum by (le)` would be wrong.
        alike: dict[object, list[Part]] = {}
        for part in self.parts:
            alike.setdefault(part.layout, []).append(part)
        for parts in alike.values():
            value, held = parts[0].value, set[int]()
            if value.size > EDGES_MAX + 1:
                for part in parts:
                    part.add_held(held)
            edges = make_edges(value, held)
            for part in parts:
                part.edges = edges


class _Families:
    # The families so far, and the number of metrics that are left out.

    def __init__(self, snapshot: Snapshot) -> None:
        self.by_name: dict[str, Family] = {}
        self.declared: list[Metric] = []
        shown = [top for top in snapshot.lineage[:1] or snapshot.tops if not top.hidden]
        self.prefixes = {top: make_prefix(snapshot.prefix, top.name) for top in shown}
        # The top-level source that has each name; None for a name of our own.
        self._assigned: dict[str, Source | None] = {}
        if not snapshot.lineage:
            self._assigned |= assign_names(self.prefixes, snapshot.tops)
        self._assigned |= dict.fromkeys(_OURS.names)
        self._claimed: set[str] = set()
        self._used: dict[int, tuple[int, int]] = {}  # by user, lines and bytes
        self._left_out: Counter[tuple[Source, str]] = Counter()

    def add(self, top: "Source", value: Value, batch: Batch, place: Place) -> None:
        metric, scale = make_metric(self.prefixes[top], value)
        family = self.by_name.get(metric.name)
        if (other := self._find_other(top, metric)) is not top:
            self._lose(top, metric, other)
            return
        if family is None:
            if not self._claimed.isdisjoint(metric.names):
                text = "left out: its name is that of another metric's samples"
                complain(top, metric.name, text)
                return
            self._claimed.update(metric.names)
            family = self.by_name[metric.name] = Family(metric, top)
        elif family.metric.type != metric.type:
            text = f"left out: a {family.metric.type} of that name is there already"
            complain(top, metric.name, text)
            return
        batch, place = batch.without(family.texts, place)
        if batch.doubled:
            text = "left out: samples whose labels others have already"
            complain(top, metric.name, text)
        family.add_texts(batch.texts)
        family.parts.append(Part(metric, top, batch, place, value, scale))

    def declare(self, top: "Source", value: Value, summed: bool) -> None:
        # A metric without samples, if nothing else has its name.
        metric, _ = make_metric(self.prefixes[top], value)
        if value.histogram and not summed:
            metric = metric.without_sums()
        if self._find_other(top, metric) is top and self._claimed.isdisjoint(metric.names):
            self._claimed.update(metric.names)
            self.declared.append(metric)

    def finish(self) -> list[Family]:
        for family in self.by_name.values():
            histogram = family.metric.type == "histogram"
            if histogram and not any(part.summed for part in family.parts):
                family.metric = family.metric.without_sums()
        families = [family for family in self.by_name.values() if self._fits(family)]
        return [*families, *self._tell()]

    def _find_other(self, top: "Source", metric: Metric) -> "Source | None":
        # Another one that has the metric, None for us; else the same.
        owners = (self._assigned.get(name, top) for name in metric.names)
        return next((other for other in owners if other is not top), top)

    def _lose(self, top: "Source", metric: Metric, other: "Source | None") -> None:
        whose = "statsfs itself" if other is None else repr(other.name)
        complain(top, metric.name, f"left out: it is one of {whose}")
        # Among sources of one user it is the user's own matter, for the log.
        user = find_user(top)
        if user is not None and (other is None or find_user(other) != user):
            self._left_out[top, "name"] += 1

    def _fits(self, family: Family) -> bool:
        # Whether the user may have it too.
        top, user = family.top, find_bounded_user(family.top)
        if user is None:
            return True
        lines, size = map(operator.add, family.weigh(), self._used.get(user, (0, 0)))
        if lines <= LINES_MAX and size <= BYTES_MAX:
            self._used[user] = lines, size
            return True
        text = f"some are left out: user {user} may have {LINES_MAX} lines and {BYTES_MAX} bytes"
        complain(top, f"{self.prefixes[top]}_*", text)
        self._left_out[top, "size"] += 1
        return False

    def _tell(self) -> Iterator[Family]:
        # What is left out, as a metric.
        rows = []
        for (top, reason), count in self._left_out.items():
            labels = {"reason": reason, "source": top.name, "user": str(find_user(top))}
            rows.append((Home(top, top, labels), (count,)))
        if rows:
            part = Part(_OURS, top, Batch(rows, 1), Place(0, None), _LEFT_OUT, Scale(1, 1))
            yield Family(_OURS, top, [part])


def make_families(snapshot: Snapshot, *, mask: Mask = 0o444) -> list[Family]:
    """Return the metric families of a snapshot, those of the oldest arrays first.

    What cannot be exported beside others is left out, and logged once.

    Args:
        snapshot: of a source or of a registry.
        mask: only values whose mode has one of these bits; or for whom.
    """
    return _gather(snapshot, mask).finish()


def _gather(snapshot: Snapshot, mask: Mask) -> _Families:
    families = _Families(snapshot)
    for top, value, batch, place in list_samples(snapshot, mask):
        families.add(top, value, batch, place)
    return families


def name_metrics(snapshot: Snapshot, *, mask: int) -> list[Metric]:
    """Return the metrics of all values, also of those that nobody counts yet.

    Args:
        snapshot: of a registry. Sources that do not answer just now have names too.
        mask: only values whose mode has one of these bits.
    """
    families = _gather(replace(snapshot, unavailable=frozenset()), mask)
    for top in families.prefixes:
        for array in snapshot.tops[top]:
            for index, value in find_exported(array):
                if value.aggregate is not Aggregate.NONE and value.mode & mask:
                    families.declare(top, value, index in array.sums)
    return [*(family.metric for family in families.finish()), *families.declared]

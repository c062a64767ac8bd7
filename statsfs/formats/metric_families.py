"""Metric families: what a snapshot's numbers are called, and grouped as for Prometheus.

Only what a producer counted is exported: the totals of the directories are sums that a query makes.
Where two arrays want one metric name, the older has it.

Threading: pure, but for pauses and the log.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Final

from statsfs.formats.metric_names import Metric, Scale, make_metric
from statsfs.formats.metric_samples import Batch, Home, Place, list_samples
from statsfs.model.values import Value
from statsfs.tree.access import Mask
from statsfs.tree.snapshot import Snapshot

__all__ = ["Family", "Part", "complain", "make_families"]

log = logging.getLogger(__name__)

_COMPLAINTS: Final = 1000  # a program whose names never end must not fill its memory with them

_complaints: Final[set[tuple[str, str]]] = set()


def complain(name: str, what: str) -> None:
    """Log a conflict of a metric once in the life of the process, not at each scrape."""
    if (name, what) not in _complaints and len(_complaints) < _COMPLAINTS:
        _complaints.add((name, what))
        log.warning("metric %s: %s", name, what)


class Part:
    """The samples that one array gives to a family; they can be taken once.

    Attributes:
        value: the value that is shown.
        scale: from its unit to the family's.
        summed: whether some of the homes of a histogram have a sum.
    """

    __slots__ = ("_batch", "_metric", "_place", "_signed", "scale", "summed", "value")

    def __init__(
        self, metric: Metric, batch: Batch, place: Place, value: Value, scale: Scale
    ) -> None:
        self._metric = metric
        self._batch = batch
        self._place = place
        self._signed = value.type.signed and metric.type != "gauge"
        self.value = value
        self.scale = scale
        self.summed = value.histogram and any(chunk.has_sums(place) for chunk in batch.chunks)

    def take(self) -> Iterator[tuple[list[Home], Sequence[Any], Sequence[int | float | None]]]:
        """Return and forget a few hundred homes at a time, with the number or buckets of each.

        The third is the sum of each histogram, or None. Numbers and sums are scaled. They are
        forgotten one by one because 300,000 at once would take long.
        """
        for chunk in self._batch.chunks:
            homes, sums = chunk.homes, chunk.sums(self._place)
            column = chunk.columns[self._place.value]
            chunk.forget(self._place)
            if self._signed and not all(keep := self._find_counts(column)):
                complain(self._metric.name, "negative counts are left out")
                homes, column, sums = (list(compress(some, keep)) for some in (homes, column, sums))
            if not homes:
                continue
            if self.value.histogram:
                apply = self.scale.apply
                yield homes, column, [None if one is None else apply(one) for one in sums]
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
        metric: what they are.
        parts: whose they are, the oldest array's first.
    """

    metric: Metric
    parts: list[Part] = field(default_factory=list)


class _Families:
    # Those that there are until now, and what their names and samples are called.

    def __init__(self) -> None:
        self.by_name: dict[str, Family] = {}
        self._claimed: set[str] = set()
        self._batches: dict[str, list[Batch]] = {}
        self._rests: dict[tuple[Batch, ...], Batch] = {}

    def add(self, top: str, value: Value, batch: Batch, place: Place) -> None:
        metric, scale = make_metric(top, value)
        family = self.by_name.get(metric.name)
        if family is None:
            if not self._claimed.isdisjoint(metric.names):
                complain(metric.name, "left out: its name is that of another metric's samples")
                return
            self._claimed.update(metric.names)
            family = self.by_name[metric.name] = Family(metric)
        elif family.metric.type != metric.type:
            complain(metric.name, f"left out: a {family.metric.type} of that name is there already")
            return
        taken = self._batches.setdefault(metric.name, [])
        rest = self._without(batch, taken)
        if rest.doubled:
            complain(metric.name, "left out: samples whose labels others have already")
        taken.append(rest)
        family.parts.append(Part(metric, rest, place, value, scale))

    def finish(self) -> list[Family]:
        for family in self.by_name.values():
            histogram = family.metric.type == "histogram"
            if histogram and not any(part.summed for part in family.parts):
                family.metric = family.metric.without_sums()
        return list(self.by_name.values())

    def _without(self, batch: Batch, taken: list[Batch]) -> Batch:
        # The same batches meet in each value of their arrays.
        if not taken:
            return batch
        key = (batch, *taken)
        rest = self._rests.get(key)
        if rest is None:
            rest = self._rests[key] = batch.without(taken)
        return rest


def make_families(snapshot: Snapshot, *, mask: Mask = 0o444) -> list[Family]:
    """Return the metric families of a snapshot, those of the oldest arrays first.

    What cannot be exported beside others is left out, and logged once.

    Args:
        snapshot: of a source or of a registry.
        mask: only values whose mode has one of these bits; or for whom.
    """
    families = _Families()
    for top, value, batch, place in list_samples(snapshot, mask):
        families.add(top, value, batch, place)
    return families.finish()

"""Metric families: what a snapshot's numbers are called, labelled and grouped as for Prometheus.

Only what a producer counted is exported: the totals of the directories are sums that a query makes.
A series is of the nearest visible source, which gives the labels; hidden sources and bases are
added up there. A source that collapses is one series, with what it retains, and nothing in its
subtree has one: so a counter never falls when a source leaves. Where two arrays want one metric
name, the older has it.

Numbers come by columns, a few hundred sources each; what depends on a source or an array only is
worked out once for all of its values.

Threading: pure, but for pauses and the log.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from statsfs.formats.info_metrics import list_info
from statsfs.formats.metric_names import Metric, Scale, make_label, make_metric, make_name
from statsfs.model.arrays import Array
from statsfs.model.columns import wrap_sum
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.access import Mask, Masks, find_masks
from statsfs.tree.pauses import pause
from statsfs.tree.retained import add_kept
from statsfs.tree.rows import RetainedRow, Row, add_numbers, add_retained, add_rows
from statsfs.tree.snapshot import Snapshot

if TYPE_CHECKING:
    from statsfs.tree.registry import Registry
    from statsfs.tree.source import Source

__all__ = ["Family", "Home", "Part", "complain", "make_families"]

log = logging.getLogger(__name__)

_CHUNK: Final = 250  # sources, and so lines of a metric, between two pauses
_WIDE: Final = 12_000  # numbers that are turned or added between two pauses
_COMPLAINTS: Final = 1000  # a program whose names never end must not fill its memory with them

_complaints: Final[set[tuple[str, str]]] = set()


def complain(name: str, what: str) -> None:
    """Log a conflict of a metric once in the life of the process, not at each scrape."""
    if (name, what) not in _complaints and len(_complaints) < _COMPLAINTS:
        _complaints.add((name, what))
        log.warning("metric %s: %s", name, what)


class Home:
    """The visible source that gives the labels to what it, and hidden ones below it, counted.

    Attributes:
        source: the source.
        top: the name of the top-level source, as metrics have it.
        labels: the labels, by name.
    """

    __slots__ = ("_text", "labels", "source", "top")

    def __init__(self, source: "Source", top: str, labels: dict[str, str]) -> None:
        self.source = source
        self.top = top
        self.labels = labels
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The labels as both formats write them, without braces; equal labels have equal texts."""
        if self._text is None:
            pairs = (f'{name}="{_escape(text)}"' for name, text in sorted(self.labels.items()))
            self._text = ",".join(pairs)
        return self._text

    def below(self, source: "Source") -> "Home":
        """The home of a visible source right below."""
        label = "source" if source.label is None else make_label(source.label)
        above = self.labels.get(label)
        value = source.name if source.label is None else source.label_value
        name = value if above is None else f"{above}/{value}"
        return Home(source, self.top, {**self.labels, label: name})


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _find_homes(snapshot: Snapshot) -> "dict[Source | Registry, Home | None]":
    # Of each source; None for those below a hidden top-level source.
    homes: dict[Source | Registry, Home | None] = {}
    above: Source | None = None
    for source in snapshot.lineage:
        home = None if above is None else homes[above]
        homes[source] = _find_home(home, above, source, above is None)
        above = source
    for parent, subordinates in snapshot.subordinates:
        home, topmost = homes.get(parent), parent is snapshot.root and not snapshot.lineage
        for start in range(0, len(subordinates), _CHUNK):
            for source in subordinates[start : start + _CHUNK]:
                homes[source] = _find_home(home, parent, source, topmost)
            pause()
    # A series without numbers is missing, which a query can tell from one that stands still. But
    # sums keep the last numbers, as totals do, or a counter would fall.
    silent = snapshot.find_silent()
    for one in silent:
        home = homes.get(one)
        if home is not None and home.source in silent:
            homes[one] = None
    return homes


def _find_home(
    above: Home | None, parent: "Source | Registry | None", source: "Source", topmost: bool
) -> Home | None:
    if topmost:
        return None if source.hidden else Home(source, make_name(source.name), {})
    # Nothing below a hidden source is visible, and nothing below one that collapses has a series.
    if source.hidden or above is None or above.source is not parent or above.source.collapse:
        return above
    return above.below(source)


class _Chunk:
    # The samples of a few hundred sources: for each value of the array, a column.
    __slots__ = ("columns", "homes")

    def __init__(self, homes: list[Home], columns: list[Sequence[Any]]) -> None:
        self.homes = homes
        self.columns = columns

    def sums(self, place: "_Place") -> Sequence[int | None]:
        return [None] * len(self.homes) if place.sum is None else self.columns[place.sum]

    def has_sums(self, place: "_Place") -> bool:
        return any(total is not None for total in self.sums(place))

    def forget(self, place: "_Place") -> None:
        self.columns[place.value] = ()
        if place.sum is not None:
            self.columns[place.sum] = ()


class _Batch:
    # The samples of one array below one top-level source; no two have the same labels.

    def __init__(self, rows: Iterable[tuple[Home, Row]], width: int) -> None:
        self.doubled = False
        self.chunks: list[_Chunk] = []
        self.texts: set[str] = set()
        self._most = max(1, min(_CHUNK, _WIDE // width))
        homes: list[Home] = []
        found: list[Row] = []
        for home, row in rows:
            if home.text in self.texts:
                self.doubled = True
                continue
            self.texts.add(home.text)
            homes.append(home)
            found.append(row)
            if len(homes) == self._most:
                self._add(homes, found)
                homes, found = [], []
        if homes:
            self._add(homes, found)

    def _add(self, homes: list[Home], rows: list[Row]) -> None:
        pause()
        self.chunks.append(_Chunk(homes, list(zip(*rows, strict=True))))
        pause()

    def without(self, taken: list["_Batch"]) -> "_Batch":
        """The samples whose labels none of these have; itself if that is all of them."""
        kept = []
        for chunk in self.chunks:
            kept.append([not any(home.text in one.texts for one in taken) for home in chunk.homes])
            pause()
        if all(map(all, kept)):
            return self
        rest = _Batch((), 1)
        rest.doubled = True
        for chunk, keep in zip(self.chunks, kept, strict=True):
            homes = list(compress(chunk.homes, keep))
            if homes:
                columns: list[Sequence[Any]] = [[*compress(some, keep)] for some in chunk.columns]
                rest.chunks.append(_Chunk(homes, columns))
                rest.texts.update(home.text for home in homes)
            pause()
        return rest


class _Found:
    # What was counted in one array below one top-level source.
    __slots__ = ("hidden", "retained", "shown")

    def __init__(self) -> None:
        self.shown: dict[Home, Row] = {}
        self.hidden: dict[Home, list[Row]] = {}
        self.retained: dict[Home, list[RetainedRow]] = {}

    def batches(self, array: Array) -> tuple[_Batch, _Batch]:
        # What the sources themselves show; and that together with what their series sum up.
        width = len(array.values)
        shown = _Batch(self.shown.items(), width)
        summed = self.hidden or self.retained
        return shown, _Batch(self._add_up(array), width) if summed else shown

    def _add_up(self, array: Array) -> Iterator[tuple[Home, Row]]:
        for home in dict.fromkeys((*self.shown, *self.hidden, *self.retained)):
            rows = self.hidden.get(home, [])
            if home in self.shown:
                rows = [self.shown[home], *rows]
            row = add_rows(array, rows) if len(rows) > 1 else rows[0] if rows else None
            if home in self.retained:
                row = add_kept(array, row, add_retained(array, self.retained[home]))
            assert row is not None
            yield home, row


# By top-level source, and by which permission bits count there.
_Tops = dict[tuple[str, int], _Found]


def _gather(
    homes: "dict[Source | Registry, Home | None]", snapshot: Snapshot, masks: Masks
) -> list[tuple[Array, _Tops]]:
    # By array, the oldest first.
    gathered: defaultdict[Array, _Tops] = defaultdict(lambda: defaultdict(_Found))
    for samples in snapshot.arrays.values():
        entries, rows = samples.entries, samples.rows
        for start in range(0, len(entries), _CHUNK):
            part = slice(start, start + _CHUNK)
            found = gathered[entries[0].array]
            for entry, row in zip(entries[part], rows[part], strict=True):
                # A signal handler's snapshot may have entries of a source that is just leaving.
                home = homes.get(entry.source)
                if home is None:
                    continue
                here = found[home.top, masks.of(home.source)]
                if home.source is entry.source and not entry.hidden:
                    here.shown[home] = row
                else:
                    here.hidden.setdefault(home, []).append(row)
            pause()
    for record, held in snapshot.retained:
        home = homes.get(record.source)
        # Where each worker is a series, its numbers end with it, as elsewhere in Prometheus.
        if home is not None and (record.source.collapse or home.source.collapse):
            here = gathered[record.array][home.top, masks.of(home.source)]
            here.retained.setdefault(home, []).append(held)
    return sorted(gathered.items(), key=lambda pair: pair[0].serial)


class Part:
    """The samples that one array gives to a family; they can be taken once.

    Attributes:
        value: the value that is shown.
        scale: from its unit to the family's.
        summed: whether some of the homes of a histogram have a sum.
    """

    __slots__ = ("_batch", "_metric", "_place", "_signed", "scale", "summed", "value")

    def __init__(
        self, metric: Metric, batch: _Batch, place: "_Place", value: Value, scale: Scale
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
        self._batches: dict[str, list[_Batch]] = {}
        self._rests: dict[tuple[_Batch, ...], _Batch] = {}

    def add(self, top: str, value: Value, batch: _Batch, place: "_Place") -> None:
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

    def _without(self, batch: _Batch, taken: list[_Batch]) -> _Batch:
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
    snapshot.decoded()
    homes = _find_homes(snapshot)
    families = _Families()
    masks = find_masks(mask, snapshot)
    for (top, _, value, _), members in _list_values(_gather(homes, snapshot, masks)).items():
        (batch, place), *others = members
        if others:
            batch, place = _merge(value, members)
        if batch.chunks:
            families.add(top, value, batch, place)
        pause()
    for top, value, rows in list_info(dict.fromkeys(filter(None, homes.values()))):
        families.add(top, value, _Batch(rows, 1), _Place(0, None))
    return families.finish()


class _Place(NamedTuple):
    # Where the numbers of a value are in the rows of a batch, and where the sums of a histogram.
    value: int
    sum: int | None


# A top-level source and the bits that count there, the oldest value of those that belong together,
# and the array where one value stands alone.
_ValueKey = tuple[str, int, Value, Array | None]


def _list_values(
    gathered: list[tuple[Array, _Tops]],
) -> dict[_ValueKey, list[tuple[_Batch, _Place]]]:
    # What is exported, in the order of arrays and values: each time the batches that have the
    # samples, and the place of the value in each; several where values belong together. A sum is
    # exported with its histogram.
    listed: dict[_ValueKey, list[tuple[_Batch, _Place]]] = {}
    oldest: dict[tuple[str, object], Value] = {}
    for array, found in gathered:
        batches = [(*key, one.batches(array)) for key, one in found.items()]
        sums = array.sums.values()
        for index, value in enumerate(array.values):
            if index in sums or (value.hidden and value.aggregate is Aggregate.NONE):
                continue  # no file shows it
            # Other numbers mean nothing when they are added up: their own source shows them.
            peak = value.kind is Kind.PEAK and value.aggregate is not Aggregate.NONE
            added = Aggregate.SUM in value.aggregate or peak
            for top, bits, (shown, everything) in batches:
                if value.mode & bits:  # else no file shows it to the reader of the view
                    first = oldest.setdefault((top, value.identity), value) if added else value
                    key = (top, bits, first, None if added else array)
                    place = _Place(index, array.sums.get(index))
                    listed.setdefault(key, []).append((everything if added else shown, place))
    return listed


def _merge(value: Value, members: list[tuple[_Batch, _Place]]) -> tuple[_Batch, _Place]:
    # The samples of values that belong together, with one number for each home.
    found: dict[Home, list[tuple[Any, int | None]]] = {}
    for batch, place in members:
        for chunk in batch.chunks:
            columns = (chunk.homes, chunk.columns[place.value], chunk.sums(place))
            for home, number, total in zip(*columns, strict=True):
                found.setdefault(home, []).append((number, total))
        pause()
    rows = ((home, _add_pairs(value, pairs)) for home, pairs in found.items())
    return _Batch(rows, 1), _Place(0, 1)


def _add_pairs(value: Value, pairs: list[tuple[Any, int | None]]) -> Row:
    # Where a histogram that counted something has no sum, all have none: theirs would not be that
    # of all that is in the buckets.
    sums = [total for number, total in pairs if total is not None]
    lacking = not sums or any(total is None and any(number) for number, total in pairs)
    total = None if lacking else wrap_sum(sum(sums), Type.U64)
    return add_numbers(value, [number for number, _ in pairs]), total

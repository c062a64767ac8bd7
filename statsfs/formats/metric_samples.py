"""Metric samples: what a snapshot's numbers are labelled, and grouped by value.

A series is of the nearest visible source, which gives the labels; hidden sources and bases are
added up there. A source that collapses is one series, with what it retains, and nothing in its
subtree has one: so a counter never falls when a source leaves.

Numbers come by columns, a few hundred sources each; what depends on a source or an array only is
worked out once for all of its values.

Threading: pure, but for pauses.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from statsfs.formats.info_metrics import list_info
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

__all__ = ["Batch", "Home", "Place", "find_exported", "list_samples"]

_CHUNK: Final = 250  # sources, and so lines of a metric, between two pauses
_WIDE: Final = 12_000  # numbers that are turned or added between two pauses


class Home:
    """The visible source that gives the labels to what it, and hidden ones below it, counted.

    Attributes:
        source: the source.
        top: the top-level source.
        labels: the labels, by name.
    """

    __slots__ = ("_text", "labels", "source", "top")

    def __init__(self, source: "Source", top: "Source", labels: dict[str, str]) -> None:
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
        label = "source" if source.label is None else source.label
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
        return None if source.hidden else Home(source, source, {})
    # Nothing below a hidden source is visible, and nothing below one that collapses has a series.
    if source.hidden or above is None or above.source is not parent or above.source.collapse:
        return above
    return above.below(source)


class Place(NamedTuple):
    """Where a value's numbers are in the rows of a batch, and where the sums of a histogram."""

    value: int
    sum: int | None


class _Chunk:
    # The samples of a few hundred sources: for each value of the array, a column.
    __slots__ = ("columns", "homes")

    def __init__(self, homes: list[Home], columns: list[Sequence[Any]]) -> None:
        self.homes = homes
        self.columns = columns

    def sums(self, place: Place) -> Sequence[int | None]:
        return [None] * len(self.homes) if place.sum is None else self.columns[place.sum]

    def has_sums(self, place: Place) -> bool:
        return any(total is not None for total in self.sums(place))

    def forget(self, place: Place) -> None:
        self.columns[place.value] = ()
        if place.sum is not None:
            self.columns[place.sum] = ()


class Batch:
    """The samples of one array below one top-level source; no two have the same labels.

    Attributes:
        chunks: they, a few hundred sources each.
        doubled: whether some were left out, as others have the same labels.
        texts: the labels of all.
    """

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

    @cached_property
    def label_bytes(self) -> int:
        """How many bytes all labels have."""
        return sum(map(len, map(str.encode, self.texts)))

    def without(self, taken: Set[str], place: Place) -> tuple["Batch", Place]:
        """Return the numbers of one value whose labels are not taken; itself for all of them."""
        if self.texts.isdisjoint(taken):
            return self, place
        rest = Batch((), 1)
        rest.doubled = True
        for chunk in self.chunks:
            keep = [home.text not in taken for home in chunk.homes]
            homes = list(compress(chunk.homes, keep))
            if homes:
                numbers = list(compress(chunk.columns[place.value], keep))
                sums = list(compress(chunk.sums(place), keep))
                rest.chunks.append(_Chunk(homes, [numbers, sums]))
                rest.texts.update(home.text for home in homes)
            pause()
        return rest, Place(0, 1)


class _Found:
    # What was counted in one array below one top-level source.
    __slots__ = ("hidden", "retained", "shown")

    def __init__(self) -> None:
        self.shown: dict[Home, Row] = {}
        self.hidden: dict[Home, list[Row]] = {}
        self.retained: dict[Home, list[RetainedRow]] = {}

    def batches(self, array: Array) -> tuple[Batch, Batch]:
        # What the sources themselves show; and that together with what their series sum up.
        width = len(array.values)
        shown = Batch(self.shown.items(), width)
        summed = self.hidden or self.retained
        return shown, Batch(self._add_up(array), width) if summed else shown

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
_Tops = dict[tuple["Source", int], _Found]


def _gather(
    homes: "dict[Source | Registry, Home | None]", snapshot: Snapshot, masks: Masks
) -> list[tuple[Array, _Tops]]:
    # By array, the oldest first.
    gathered: defaultdict[Array, _Tops] = defaultdict(lambda: defaultdict(_Found))
    for samples in snapshot.arrays.values():
        entries, rows = samples.decode()
        for start in range(0, len(entries), _CHUNK):
            part = slice(start, start + _CHUNK)
            found = gathered[entries[0].array]
            for entry, row in zip(entries[part], rows[part], strict=True):
                # A signal handler's snapshot may have entries of a source that is just leaving.
                home = homes.get(entry.source)
                if home is None:
                    continue
                here = found[home.top, masks.of(home.source)]
                if home.source is not entry.source or entry.hidden:
                    here.hidden.setdefault(home, []).append(row)
                elif not entry.silent:
                    here.shown[home] = row
            pause()
    for record, held in snapshot.retained:
        home = homes.get(record.source)
        # Where each worker is a series, its numbers end with it, as elsewhere in Prometheus.
        if home is not None and (record.source.collapse or home.source.collapse):
            here = gathered[record.array][home.top, masks.of(home.source)]
            here.retained.setdefault(home, []).append(held)
    return sorted(gathered.items(), key=lambda pair: pair[0].serial)


def list_samples(snapshot: Snapshot, mask: Mask) -> Iterator[tuple["Source", Value, Batch, Place]]:
    """Return what is exported, in the order of arrays and values, the oldest first.

    Each time a top-level source, a value of it, and where its samples are; of values that belong
    together, the oldest.

    Args:
        snapshot: of a source or of a registry.
        mask: only values whose mode has one of these bits; or for whom.
    """
    snapshot.decoded()
    homes, masks = _find_homes(snapshot), find_masks(mask, snapshot)
    listed = _list_values(_gather(homes, snapshot, masks))
    for (top, _, value, _), members in listed.items():
        (batch, place), *others = members
        if others:
            batch, place = _merge(value, members)
        if batch.chunks:
            yield top, value, batch, place
        pause()
    for top, value, rows in list_info(dict.fromkeys(filter(None, homes.values()))):
        yield top, value, Batch(rows, 1), Place(0, None)


def find_exported(array: Array) -> list[tuple[int, Value]]:
    """Return the values of an array of which a file may show numbers, each with its index.

    The sum of a histogram is exported with it.
    """
    sums = array.sums.values()
    return [
        (index, value)
        for index, value in enumerate(array.values)
        if index not in sums and not (value.hidden and value.aggregate is Aggregate.NONE)
    ]


# A top-level source and the bits that count there, the oldest value of those that belong together,
# and the array where one value stands alone.
_ValueKey = tuple["Source", int, Value, Array | None]


def _list_values(
    gathered: list[tuple[Array, _Tops]],
) -> dict[_ValueKey, list[tuple[Batch, Place]]]:
    # What is exported, in the order of arrays and values: each time the batches that have the
    # samples, and the place of the value in each; several where values belong together.
    listed: dict[_ValueKey, list[tuple[Batch, Place]]] = {}
    oldest: dict[tuple[Source, object], Value] = {}
    for array, found in gathered:
        batches = [(*key, one.batches(array)) for key, one in found.items()]
        for index, value in find_exported(array):
            # Other numbers mean nothing when they are added up: their own source shows them.
            peak = value.kind is Kind.PEAK and value.aggregate is not Aggregate.NONE
            added = Aggregate.SUM in value.aggregate or peak
            for top, bits, (shown, everything) in batches:
                if value.mode & bits:  # else no file shows it to the reader of the view
                    first = oldest.setdefault((top, value.identity), value) if added else value
                    key = (top, bits, first, None if added else array)
                    place = Place(index, array.sums.get(index))
                    listed.setdefault(key, []).append((everything if added else shown, place))
    return listed


def _merge(value: Value, members: list[tuple[Batch, Place]]) -> tuple[Batch, Place]:
    # The samples of values that belong together, with one number for each home.
    found: dict[Home, list[tuple[Any, int | None]]] = {}
    for batch, place in members:
        for chunk in batch.chunks:
            columns = (chunk.homes, chunk.columns[place.value], chunk.sums(place))
            for home, number, total in zip(*columns, strict=True):
                found.setdefault(home, []).append((number, total))
        pause()
    rows = ((home, _add_pairs(value, pairs)) for home, pairs in found.items())
    return Batch(rows, 1), Place(0, 1)


def _add_pairs(value: Value, pairs: list[tuple[Any, int | None]]) -> Row:
    # Where a histogram that counted something has no sum, all have none: theirs would not be that
    # of all that is in the buckets.
    sums = [total for number, total in pairs if total is not None]
    lacking = not sums or any(total is None and any(number) for number, total in pairs)
    total = None if lacking else wrap_sum(sum(sums), Type.U64)
    return add_numbers(value, [number for number, _ in pairs]), total

"""The recorder: what changed in each interval becomes rows of a file.

Owns what is known of each source: the numbers that were written last. An interval is written at
once, as a row group of its own; those of some minutes are then written anew, sorted by source.

Threading: one thread's. Sorting many intervals takes longer than one, so a thread of the recorder
does it meanwhile.
"""

import itertools
import json
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Description, Path, Schema
from statsfs.eyes.places import Place
from statsfs.eyes.samples import Number, Sample
from statsfs.recordings.growing_file import create_file
from statsfs.recordings.tables import (
    Announcement,
    Interval,
    Names,
    Packed,
    encode,
    make_schema,
    make_tables,
)

__all__ = ["Recorder", "describe", "join"]

_WAITING_MAX: Final = 64 << 20  # bytes in memory until they are sorted
_ROWS_MAX: Final = 16_000_000
_INTERVALS_MAX: Final = 300
_ASKED_MAX: Final = 8  # schemas of single sources in an interval; for more, that of all


def join(place: str, path: Path) -> str:
    """Return the name of a source in a recording: its place, and its path there."""
    return "/".join((place.rstrip("/"), *path)) or "/"


def describe(descriptions: Mapping[str, Description]) -> str:
    """Return the descriptions of a source's files as JSON, without defaults."""
    usual = Description("")
    return json.dumps(
        [
            {"name": name}
            | {
                key: value
                for key in Description.__slots__
                if (value := getattr(what, key)) != getattr(usual, key) and key != "name"
            }
            for name, what in descriptions.items()
        ]
    )


class Recorder:
    """Records places into a file.

    Args:
        name: the file's; it must not exist, or be empty.
        places: what is recorded.
        interval: the seconds between two samples, for the file to tell.

    Attributes:
        intervals: how many were written.
        rows: how many rows they had.
    """

    def __init__(self, name: str, places: Sequence[Place], interval: float) -> None:
        about = {"places": [place.name for place in places], "interval": interval}
        self._schema = make_schema(about)
        self._file = create_file(name, encode(self._schema.empty_table()))
        self._sources, self._values = Names(), Names()
        self._parts = [_Part(place, self._sources, self._values) for place in places]
        self._waiting: list[Packed] = []
        self._waiting_size = self._waiting_rows = 0
        self._appended: list[memoryview] = []  # those in `_waiting`, as they were written
        self._sorter = ThreadPoolExecutor(1, "statsfs-record")
        self._sorted: Future[list[memoryview]] | None = None
        self.intervals = self.rows = 0

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return self._file.size

    def record(self, time: float) -> dict[str, SampleError]:
        """Take a sample of each place and write what changed.

        The sources of a place without numbers have left. The errors say why, by the place's name.

        Args:
            time: the seconds since 1970.

        Raises:
            SampleError: it could not be written. The file is as it was before.
        """
        interval = Interval(round(time * 1e6))
        errors = {}
        for part in self._parts:
            try:
                part.add(interval, part.place.read_sample())
            except SampleError as error:
                part.add(interval, None)
                errors[part.place.name] = error
        before = self._waiting[-1] if self._waiting else None
        packed = interval.pack(before)
        tables = self._encode([packed])
        self._file.append(tables)
        if self.intervals:
            self._appended += tables
            self._waiting.append(packed)
            self._waiting_size += packed.size(before)
            self._waiting_rows += len(packed)
        else:
            # Whole numbers: among changes they would not become smaller, and changes larger.
            self._file.settle(tables)
        self.intervals += 1
        self.rows += len(packed)
        if self._sorted is not None and (self._sorted.done() or self._is_full()):
            self._settle()
        if self._sorted is None and self._is_full():
            self._sort()
        return errors

    def close(self) -> None:
        """Finish the file."""
        try:
            self._settle()
            if len(self._waiting) > 1:
                self._sort()
                self._settle()
        finally:
            self._sorter.shutdown()
            self._file.close()

    def _is_full(self) -> bool:
        return (
            self._waiting_size >= _WAITING_MAX
            or self._waiting_rows >= _ROWS_MAX
            or len(self._waiting) >= _INTERVALS_MAX
        )

    def _sort(self) -> None:
        self._sorted = self._sorter.submit(self._encode, self._waiting)
        self._waiting, self._appended = [], []
        self._waiting_size = self._waiting_rows = 0

    def _settle(self) -> None:
        # Writes the sorted rows, and behind them the later ones.
        if self._sorted is not None:
            self._file.settle(self._sorted.result(), self._appended)
            self._sorted = None

    def _encode(self, intervals: Sequence[Packed]) -> list[memoryview]:
        tables = make_tables(intervals, [*self._sources], [*self._values], self._schema)
        return [encode(table) for table in tables]


class _Part:
    # One place, and what was last written of its sources.

    def __init__(self, place: Place, sources: Names, values: Names) -> None:
        self.place = place
        self._sources = sources
        self._values = values
        self._known: dict[Path, tuple[int, Mapping[str, Number]]] = {}
        self._columns: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
        self._texts: dict[int, tuple[Mapping[str, Description], str]] = {}
        self._unknown: set[Path] = set()  # no schema yet

    def add(self, interval: Interval, sample: Sample | None) -> None:
        known, self._known = self._known, {}
        again, self._unknown = self._unknown, set()
        changed = set(again)  # whose description may be another
        for path, numbers in () if sample is None else sample.walk():
            entry = known.pop(path, None)
            if entry is None:
                entry = self._sources[join(self.place.name, path)], {}
                changed.add(path)
            source, before = entry
            if numbers == before:
                self._known[path] = entry
                continue
            self._known[path] = source, numbers
            if not numbers.keys() <= before.keys():
                changed.add(path)
            self._compare(interval, source, before, numbers)
        for source, before in known.values():
            self._compare(interval, source, before, dict.fromkeys(before, 0))  # its sum is 0 then
            interval.announcements.append(Announcement(source, None, None))
        if changed := changed & self._known.keys():
            self._announce(interval, changed, again)

    def _compare(
        self,
        interval: Interval,
        source: int,
        before: Mapping[str, Number],
        now: Mapping[str, Number],
    ) -> None:
        names = tuple(now)
        if not before or names == tuple(before):
            # The usual case, at the speed of C: all are integers, as they were.
            columns = self._columns.get(names)
            if columns is None:
                columns = [self._values[name] for name in names], [-1] * len(names)
                self._columns[names] = columns
            old: Iterable[Any] = before.values() if before else itertools.repeat(0)
            new: Iterable[Any] = now.values()
            try:
                changes = list(map(operator.sub, new, old))
            except TypeError:
                pass  # there are histograms
            else:
                interval.add(source, columns[0], changes, columns[1], first=not before)
                return
        for name, number in now.items():
            self._compare_one(interval, source, name, before.get(name), number)
        for name in before.keys() - now.keys():
            self._compare_one(interval, source, name, before[name], 0)
            interval.add(source, [self._values[name]], [None], [-1])

    def _compare_one(
        self, interval: Interval, source: int, name: str, before: Number | None, now: Number
    ) -> None:
        changes: list[int] = []
        buckets: list[int] = []
        if isinstance(before, int) or isinstance(now, int):
            old, new = (one if isinstance(one, int) else 0 for one in (before, now))
            changes, buckets = [new - old], [-1]
        if isinstance(before, list) or isinstance(now, list):
            lists = (one if isinstance(one, list) else [] for one in (now, before))
            changes += [new - old for new, old in itertools.zip_longest(*lists, fillvalue=0)]
            buckets += range(len(changes) - len(buckets))
        values = [self._values[name]] * len(changes)
        interval.add(source, values, changes, buckets, first=before is None)

    def _announce(self, interval: Interval, paths: Set[Path], again: Set[Path]) -> None:
        # Only the outermost are asked for, as their schema has those below them. Those that were
        # announced without a schema are announced again once there is one.
        asked = [path for path in paths if path[:-1] not in paths or not path]
        if len(asked) > _ASKED_MAX:
            asked = [()]
        schemas = [(path, schema) for path in asked if (schema := self._read_schema(path))]
        for path in sorted(paths):
            labels, text = {}, None
            for top, schema in schemas:
                if path[: len(top)] == top and (found := schema.find(path[len(top) :])) is not None:
                    labels, text = dict(schema.labels(path[len(top) :])), self._describe(found)
            source = self._known[path][0]
            if text is None:
                self._unknown.add(path)
                if path in again:
                    continue
            interval.announcements.append(Announcement(source, json.dumps(labels), text or "[]"))

    def _read_schema(self, path: Path) -> Schema | None:
        try:
            return self.place.read_schema(path)
        except SampleError:
            return None  # it has left meanwhile; else it is asked for again

    def _describe(self, found: Mapping[str, Description]) -> str:
        # Sources that are alike share one dictionary, and so one text. It is kept, so that its id
        # is not another's.
        kept = self._texts.get(id(found))
        if kept is None:
            kept = self._texts[id(found)] = found, describe(found)
        return kept[1]

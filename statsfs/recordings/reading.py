"""A recording, read: its moments, sources and numbers.

Threading: one thread's.
"""

import bisect
import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Description
from statsfs.recordings.growing_file import mend
from statsfs.recordings.tables import FORMAT, METADATA_KEY

__all__ = ["Events", "Key", "Recorded", "Recording", "Series", "open_recording"]

Key = tuple[str, str, int]
"""A series: its source, its value, and its bucket, or -1."""

_Times = npt.NDArray[np.float64]
_HALF: Final = 5e-7  # times have microseconds
_TRIES: Final = 4


@dataclass(slots=True)
class Recorded:
    """A source of a recording.

    Attributes:
        name: its place and path.
        labels: those of its samples in Prometheus.
        values: the descriptions of its files, by name.
    """

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    values: dict[str, Description] = field(default_factory=dict)


class Events:
    """When sources came and left, by the indices of moments.

    Args:
        found: moment, source, and whether it is there from then on; in the order of time.
    """

    def __init__(self, found: list[tuple[int, str, bool]]) -> None:
        self._found = found
        self._moments = [moment for moment, _, _ in found]
        self._left = sorted({moment for moment, _, there in found if not there})

    def between(self, after: int, to: int) -> list[tuple[str, bool]]:
        """Return the sources that came or left behind one moment up to another."""
        low, high = (bisect.bisect_right(self._moments, moment) for moment in (after, to))
        return [(source, there) for _, source, there in self._found[low:high]]

    def left_after(self, moment: int) -> list[int]:
        """Return the next moment at which one left, if there is one."""
        index = bisect.bisect_right(self._left, moment)
        return self._left[index : index + 1]


@dataclass(frozen=True, slots=True)
class Series:
    """A number over time: it is `numbers[i]` from `times[i]` on.

    Attributes:
        times: seconds since 1970.
        exact: modulo 2^64, so that differences are right; where there is no number, 0.
        numbers: the same; not a number where it was not there.
    """

    times: _Times
    exact: npt.NDArray[np.int64]
    numbers: _Times

    def sample(self, moments: _Times) -> "Series":
        """Return the number at each of some moments."""
        index = np.searchsorted(self.times, moments + _HALF, side="right") - 1
        kept = np.maximum(index, 0)
        numbers = np.where(index < 0, np.nan, self.numbers[kept])
        return Series(moments, self.exact[kept], numbers)

    def differences(self) -> _Times:
        """Return the growth of a counter from one time to the next.

        It is not a number where that is not known: it was cleared, came or left.
        """
        grown = np.diff(self.exact)
        missing = np.isnan(self.numbers)
        return np.where((grown < 0) | missing[1:] | missing[:-1], np.nan, grown)


class Recording:
    """A file of `statsfs record`.

    Attributes:
        name: the file's.
        places: what was recorded.
        moments: when samples were taken, in seconds since 1970.
        sources: by name, in the order in which they came.
        events: when they came and left.
    """

    def __init__(
        self, name: str, file: pq.ParquetFile, progress: Callable[[float], object] = id
    ) -> None:
        self.name = name
        self._file = file
        self._progress = progress
        try:
            about = json.loads(file.metadata.metadata[METADATA_KEY])
            version = about["format"]
            self.places: list[str] = about["places"]
        except (ValueError, TypeError, KeyError) as error:
            raise SampleError(
                f"{name}: not a recording: its metadata are of something else", name
            ) from error
        if version != FORMAT:
            raise SampleError(f"{name}: format {version} is of a newer statsfs", name)
        self.sources: dict[str, Recorded] = {}
        self._left: dict[str, list[float]] = {}
        self._came_or_left: list[tuple[float, str, bool]] = []
        self.moments = self._read_heads()
        times = np.array([time for time, _, _ in self._came_or_left])
        found = zip(np.searchsorted(self.moments, times).tolist(), self._came_or_left, strict=True)
        self.events = Events([(moment, source, there) for moment, (_, source, there) in found])

    def is_unsigned(self, source: str, value: str) -> bool:
        """Tell whether a value has no sign."""
        described = self.sources[source].values.get(value)
        return described is not None and described.type.startswith("u")

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The first and the last time of each row group, in microseconds since 1970."""
        metadata = self._file.metadata
        found = []
        for group in range(metadata.num_row_groups):
            times = metadata.row_group(group).column(0).statistics
            found.append((times.min_raw, times.max_raw))
        return found

    def read_group(self, index: int, columns: list[str]) -> pa.Table:
        """Return a row group; SampleError if it cannot be read."""
        with self._reading():
            return self._file.read_row_group(index, columns=columns)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            text = f"{self.name}: it changed while it was read; try again: {error}"
            raise SampleError(text, self.name) from error

    def _groups(self, columns: list[str], share: float, of: float) -> Iterator[pa.Table]:
        count = self._file.num_row_groups
        for index in range(count):
            self._progress(share + (of - share) * index / count)
            yield self._file.read_row_group(index, columns=columns)

    def _read_heads(self) -> _Times:
        # The rows without a number: moments, and sources that came and left.
        moments: list[float] = []
        for table in self._groups(["time", "source", "value", "labels", "schema"], 0, 0.5):
            heads = table.filter(pc.is_null(table["value"]))
            times = (heads["time"].cast(pa.int64()).to_numpy() / 1e6).tolist()
            texts = [heads[name].to_pylist() for name in ("source", "labels", "schema")]
            for time, source, labels, schema in zip(times, *texts, strict=True):
                if source is None:
                    moments.append(time)
                    continue
                self._came_or_left.append((time, source, labels is not None))
                if labels is None:
                    self._left.setdefault(source, []).append(time)
                else:
                    self._announce(source, labels, schema)
        return np.array(moments)

    def _announce(self, source: str, labels: str, schema: str) -> None:
        known = self.sources.setdefault(source, Recorded(source))
        known.labels = json.loads(labels) or known.labels
        described = {one["name"]: Description(**_freeze(one)) for one in json.loads(schema)}
        known.values |= described

    def read(self, wanted: Collection[tuple[str, str]]) -> dict[Key, Series]:
        """Return the numbers of some values of some sources.

        Args:
            wanted: pairs of a source's name and a value's.

        Returns:
            the series by source, value and bucket, which is -1 where the value is no histogram.
        """
        sources = pa.array(sorted({source for source, _ in wanted}), pa.string())
        values = pa.array(sorted({value for _, value in wanted}), pa.string())
        found: dict[Key, list[_Changes]] = {}
        columns = ["time", "source", "value", "bucket", "change"]
        with self._reading():
            for table in self._groups(columns, 0.5, 1):
                table = table.unify_dictionaries().combine_chunks()
                chosen = pc.and_(
                    pc.is_in(table["source"].cast(pa.string()), sources),
                    pc.is_in(table["value"].cast(pa.string()), values),
                )
                for key, part in _split(table.filter(chosen)):
                    if key[:2] in wanted:
                        found.setdefault(key, []).append(part)
        return {
            key: self._join(key, parts, found.get((*key[:2], -1), []))
            for key, parts in found.items()
        }

    def _join(self, key: Key, parts: list["_Changes"], plain: list["_Changes"]) -> Series:
        # A histogram that is gone has no row for each bucket.
        gone = [part.times[part.gone] for part in plain] if key[2] >= 0 else []
        gone.append(np.array(self._left.get(key[0], []), np.float64))
        ends = np.concatenate(gone)
        times = np.concatenate([*(part.times for part in parts), ends])
        exact = np.cumsum(np.concatenate([part.changes for part in parts]))
        missing = np.concatenate([*(part.gone for part in parts), np.ones(len(ends), np.bool_)])
        exact = np.concatenate([exact, np.zeros(len(ends), np.int64)])
        numbers = exact.astype(np.float64)
        if self.is_unsigned(*key[:2]):
            numbers = exact.view(np.uint64).astype(np.float64)
        numbers[missing] = np.nan
        order = np.argsort(times, kind="stable")
        return Series(times[order], exact[order], numbers[order])


@dataclass(frozen=True, slots=True)
class _Changes:
    # The rows of a series in a row group.
    times: _Times
    changes: npt.NDArray[np.int64]
    gone: npt.NDArray[np.bool_]


def _split(table: pa.Table) -> Iterator[tuple[Key, _Changes]]:
    # Each series of a table by itself.
    if not table.num_rows:
        return
    table = table.combine_chunks()
    texts = [table[name].combine_chunks().dictionary_encode() for name in ("source", "value")]
    source, value = (text.indices.to_numpy() for text in texts)
    bucket = pc.fill_null(table["bucket"], -1).to_numpy()
    times = table["time"].cast(pa.int64()).to_numpy() / 1e6
    change = pc.fill_null(table["change"], 0).to_numpy()
    gone = pc.is_null(table["change"]).to_numpy()
    order = np.lexsort((times, bucket, value, source))  # it is stable
    key = np.stack([source, value, bucket])[:, order]
    edges = np.flatnonzero(np.any(key[:, 1:] != key[:, :-1], axis=0)) + 1
    for indices in np.split(order, edges):
        first = indices[0]
        name = tuple(text.dictionary[text.indices[int(first)].as_py()].as_py() for text in texts)
        part = _Changes(times[indices], change[indices], gone[indices])
        yield (name[0], name[1], int(bucket[first])), part


def _freeze(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in found.items()}


def open_recording(name: str, progress: Callable[[float], object] = id) -> tuple[Recording, bool]:
    """Open a recording, which may be in the making.

    Args:
        name: the file's.
        progress: is called with what share of the file was read, from time to time.

    Returns:
        the recording, and whether an unfinished interval was cut off.

    Raises:
        SampleError: it is none.
    """
    tries = _TRIES
    while True:
        mended = mend(name)
        try:
            file = pq.ParquetFile(name, page_checksum_verification=True)
            if METADATA_KEY not in (file.metadata.metadata or {}):
                raise SampleError(f"{name}: a Parquet file, but not a recording", name)
            return Recording(name, file, progress), mended
        except (pa.ArrowException, OSError) as error:
            tries -= 1  # a recorder may write it just now
            if isinstance(error, SampleError):
                raise
            if not tries:
                raise SampleError(f"{name}: not a recording: {error}", name) from error

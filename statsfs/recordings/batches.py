"""The changes of a recording by their moments, a batch of row groups at a time.

Sorted row groups have many moments each, and those that were sorted together the same ones.
Threading: one thread's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from statsfs.recordings.reading import Key, Recording

__all__ = ["Batch", "Batches", "Changes"]

_COLUMNS: Final = ["time", "source", "value", "bucket", "change"]

_Indices = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed between two moments.

    Attributes:
        sums: of each series its number, the sum of its changes, and the moment of the last one.
        gone: the numbers of the series whose numbers went, and when.
    """

    sums: Sequence[tuple[int, int, int]]
    gone: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of some row groups, in the order of time.

    Attributes:
        begin: the index of their first moment.
        end: of their last one.
    """

    begin: int
    end: int
    moments: _Indices
    series: _Indices
    changes: npt.NDArray[np.int64]
    gone: npt.NDArray[np.bool_]

    def sum_up(self, after: int, to: int) -> Changes:
        """Return what changed behind one moment up to another."""
        low, high = np.searchsorted(self.moments, [after, to], side="right")
        series, changes = self.series[low:high], self.changes[low:high]
        moments, gone = self.moments[low:high], self.gone[low:high]
        lost = list(zip(series[gone].tolist(), moments[gone].tolist(), strict=True))
        if not len(series):
            return Changes([], lost)
        order = np.argsort(series, kind="stable")
        found = series[order]
        begins = np.flatnonzero(np.concatenate([[True], found[1:] != found[:-1]]))
        ends = np.concatenate([begins[1:], [len(found)]]) - 1
        columns = (found[begins], np.add.reduceat(changes[order], begins), moments[order[ends]])
        return Changes(list(zip(*(column.tolist() for column in columns), strict=True)), lost)


class Batches:
    """The batches of a recording; the last that was asked for is kept.

    Attributes:
        keys: of each number of a series, what it is.
        limits: of each, the lowest number behind the highest one. Sums are right modulo 2^64.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._moments = np.round(recording.moments * 1e6).astype(np.int64)
        self._numbers: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.limits: list[int] = []
        self._ranges = self._find_ranges()
        self._batch: Batch | None = None

    def _find_ranges(self) -> list[tuple[int, int, list[int]]]:
        # The moments of row groups; those that have some in common are one batch.
        ranges: list[tuple[int, int, list[int]]] = []
        for group, (low, high) in enumerate(self._recording.ranges):
            begin, end = (int(np.searchsorted(self._moments, moment)) for moment in (low, high))
            if ranges and begin <= ranges[-1][1]:
                before = ranges.pop()
                begin, end = min(begin, before[0]), max(end, before[1])
                ranges.append((begin, end, [*before[2], group]))
            else:
                ranges.append((begin, end, [group]))
        return ranges

    def find(self, moment: int) -> Batch:
        """Return the batch that has a moment."""
        if self._batch is None or not self._batch.begin <= moment <= self._batch.end:
            self._batch = None  # its memory goes first
            begin, end, groups = next(one for one in self._ranges if one[1] >= moment)
            self._batch = self._read(begin, end, groups)
        return self._batch

    def _read(self, begin: int, end: int, groups: Sequence[int]) -> Batch:
        parts = [self._convert(self._recording.read_group(group, _COLUMNS)) for group in groups]
        moments, series, changes, gone = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        order = np.argsort(moments, kind="stable")
        return Batch(begin, end, moments[order], series[order], changes[order], gone[order])

    def _convert(
        self, table: pa.Table
    ) -> tuple[_Indices, _Indices, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        table = table.filter(pc.is_valid(table["value"])).unify_dictionaries().combine_chunks()
        if not table.num_rows:
            none = np.zeros(0, np.int32)
            return none, none, np.zeros(0, np.int64), np.zeros(0, np.bool_)
        times = table["time"].cast(pa.int64()).to_numpy()
        moments = np.searchsorted(self._moments, times).astype(np.int32)
        texts = [table[name].combine_chunks() for name in ("source", "value")]
        source, value = (text.indices.to_numpy() for text in texts)
        bucket = pc.fill_null(table["bucket"], -1).to_numpy()
        key = np.stack([source, value, bucket])
        # Each series is a run of rows.
        begins = np.flatnonzero(np.any(np.diff(key, prepend=-2) != 0, axis=0))
        names = [text.dictionary.to_pylist() for text in texts]
        found = [
            self._number((names[0][one], names[1][two], three))
            for one, two, three in key[:, begins].T.tolist()
        ]
        counts = np.diff(begins, append=len(times))
        series = np.repeat(np.array(found, np.int32), counts)
        changes = pc.fill_null(table["change"], 0).to_numpy()
        return moments, series, changes, pc.is_null(table["change"]).to_numpy()

    def _number(self, key: Key) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.keys)
            self.keys.append(key)
            self.limits.append(1 << (64 if self._recording.is_unsigned(*key[:2]) else 63))
        return number

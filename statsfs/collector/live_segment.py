"""Live segments: the segments in the tree, as sources.

Owns how the numbers of one segment are read while its producer counts: by `pread`, never through a
mapping, where truncation raises SIGBUS. A file that was truncated, or grew, is not read again;
totals keep its last numbers.

Threading: `refresh` and `clear_value` come from readers' threads, all else from the collector's.
The lock of the numbers is held from reading the file to taking what was read, so that no older
reading replaces a newer one. No other lock is taken under it.
"""

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from statsfs.collector.journal_file import Baselines, KeptBaselines, RetainedRows
from statsfs.collector.known_values import is_number_of
from statsfs.collector.trusted_directory import Location, identify
from statsfs.formats.binary import Number
from statsfs.model.arrays import intern_array, split_array
from statsfs.model.external import Numbers
from statsfs.model.locking import locked
from statsfs.model.readers import convert_number
from statsfs.model.values import Kind, Value
from statsfs.segments.file_format import SegmentMetadata
from statsfs.segments.locks import is_alive
from statsfs.tree.index import ClearRecorder
from statsfs.tree.source import Source

__all__ = ["LiveSegment", "SegmentNumbers", "find_rights", "weigh"]


class SegmentNumbers(Numbers):
    """The numbers of one segment, read from its file.

    Args:
        values: the tree's values, by name and in the order of the file's.
        metadata, id, location, status: the file's.
        fd: its descriptor, which is closed with this.

    Attributes:
        id: the file's, by which it is known when it is closed.
        identity: its device and inode.
        location: where the file is; replaced when it is moved.
        rights: the file's permission bits for reading, its user and its group.
        final: whether the file is never read again.
    """

    __slots__ = (
        "_broken", "_clearing", "_fd", "_kept", "_last", "_metadata", "_offset", "_request",
        "final", "id", "identity", "location", "rights",
    )  # fmt: skip

    def __init__(
        self,
        values: Mapping[str, Value],
        metadata: SegmentMetadata,
        id: str,
        location: Location,
        fd: int,
        status: os.stat_result,
    ) -> None:
        super().__init__(values)
        self.id: Final = id
        self.identity: Final = identify(status)
        self.location = location
        self.rights = find_rights(status)
        self.final = False
        self._metadata: Final = metadata
        self._offset: Final = metadata.data_offset
        self._fd = fd
        # One more byte shows whether the file grew.
        self._request: Final = metadata.data_size + (status.st_size == metadata.size)
        self._last = b""
        self._broken = False
        # What is being cleared: what will be the baseline, or None of a peak.
        self._clearing: dict[str, Number | None] = {}
        self._kept = KeptBaselines({})

    @locked
    def refresh(self) -> None:
        """Read the numbers; raise OSError if the file was truncated or grew."""
        if self.final:
            return
        data = os.pread(self._fd, self._request, self._offset)
        if data == self._last and not self._broken:
            return
        # For good: truncating a file again and again would fill the log.
        self._broken = self._broken or len(data) != self._metadata.data_size
        if self._broken:
            raise OSError(errno.ENODATA, "the segment was truncated, or grew")
        self._take(self._metadata.layout.numbers(data))
        self._last = data

    @locked
    def finish(self) -> bool:
        """Read for the last time; return whether that succeeded."""
        try:
            self.refresh()
        except OSError:
            return False
        finally:
            self.final = True
        return True

    @locked
    def close(self) -> None:
        """Close the file; the numbers stay."""
        self.final = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def status(self) -> os.stat_result:
        """The file's, wherever it is."""
        return os.fstat(self._fd)

    def probe(self) -> bool:
        """Tell whether the producer is alive."""
        return is_alive(self._fd)

    @locked
    def change_values(self, values: Mapping[str, Value]) -> None:
        """Go on with values of the same names that differ in nothing but who may read them."""
        self._values = values

    @locked
    def find_baselines(self) -> Baselines:
        """Return all numbers as they are in the file, to be subtracted if it comes back."""
        raw = zip(self._values.values(), self._raw, strict=True)
        return {value.name: number for value, number in raw if value.cumulative}

    @locked
    def find_cleared(self) -> KeptBaselines:
        """Return what was cleared, and what is being cleared; the same object while it is equal."""
        coming = {name: one for name, one in self._clearing.items() if one is not None}
        cleared = self.baselines | coming
        if cleared != self._kept:
            self._kept = KeptBaselines(cleared)
        return self._kept

    @locked
    def begin_clear(self, names: Iterable[str]) -> None:
        """Note which values are to be cleared, and what will be their baselines."""
        places = {name: place for place, name in enumerate(self._values)}
        self._clearing = {
            name: self._raw[places[name]] if self._values[name].cumulative else None
            for name in names
        }

    @locked
    def end_clear(self) -> None:
        """Forget what was noted."""
        self._clearing = {}

    def restore(self, baselines: Baselines) -> None:
        """Put back what an earlier collector cleared, before the first reading, where it fits."""
        for name, baseline in baselines.items():
            value = self._values.get(name)
            cleared = value is not None and value.kind not in (Kind.INSTANT, Kind.PEAK)
            if value is not None and cleared and is_number_of(value, baseline):
                self.baselines[name] = baseline

    def clear_value(self, name: str) -> None:
        """Make a number its baseline; write 0 into the segment for a PEAK, or raise OSError."""
        if self._values[name].kind is Kind.PEAK:
            self._clear_peak(name)
        elif (baseline := self._clearing.get(name)) is not None:
            self._set_baseline(name, baseline)
        else:
            super().clear_value(name)

    @locked
    def _set_baseline(self, name: str, baseline: Number) -> None:
        # What was recorded, and not what the number is by now.
        self.baselines[name] = baseline
        self._take(self._raw)

    @locked
    def _clear_peak(self, name: str) -> None:
        if not self.final:
            self._write_zero(list(self._values).index(name))
        self[name] = 0

    def _write_zero(self, index: int) -> None:
        directory, name = self.location
        fd = directory.open_for_writing(name, self.identity)
        with open(fd, "wb", 0):
            os.pwrite(fd, bytes(8), self._offset + self._metadata.layout.descriptors[index].offset)
        # The producer may write the same number again, which has to be taken then.
        self._last = b""

    def make_source(self, owner: tuple[int, int], recorder: ClearRecorder) -> Source:
        """Return a source that shows the numbers; the recorder records their clears."""
        name, label = self._metadata.components[-1], self._metadata.labels[-1]
        source = Source(
            "%s",  # a path is no format, and may have a "%"
            name,
            label=label,
            refresh=self.refresh,
            blocking=False,
            recorder=recorder,
            owner=owner,
        )
        for array in self.arrays:
            source.add_values(array, self)
        return source

    @property
    def arrays(self) -> list[tuple[Value, ...]]:
        """The arrays that a source shows of it."""
        return split_array(list(self._values.values()))

    def retained_rows(self) -> RetainedRows:
        """Return the sums, peaks and buckets that a source above retains; 0 of what is cleared."""
        return {
            array: tuple(map(self._find_retained, array))
            for array in self.arrays
            if intern_array(array).retained
        }

    def _find_retained(self, value: Value) -> Number:
        cleared = value.name in self._clearing
        number: Number = convert_number(value, value.zero if cleared else self[value.name])
        return number


@dataclass(eq=False, slots=True)
class LiveSegment:
    """A segment that was admitted.

    Attributes:
        source: shows its numbers.
        owner: the user and the group of the file.
        removed: whether the file is not at its location any more, though the producer may live.
        refused: whether it ends, as its file's user may not publish there, and may come back.
        missing_since: when it was seen to be dead, with its file somewhere else; or 0.
        probes: the number of the last series of probes.
    """

    metadata: SegmentMetadata
    numbers: SegmentNumbers
    source: Source
    owner: tuple[int, int]
    removed: bool = False
    refused: bool = False
    missing_since: float = 0.0
    probes: int = 0

    @property
    def id(self) -> str:
        """The file's."""
        return self.numbers.id

    @property
    def location(self) -> Location:
        """Where the file is, or was."""
        return self.numbers.location


def find_rights(status: os.stat_result) -> tuple[int, int, int]:
    """Return what a source takes over of a file: its permission bits to read, user and group."""
    return status.st_mode & 0o444, status.st_uid, status.st_gid


def weigh(metadata: SegmentMetadata) -> int:
    """Return the cost of a segment in the tree, in integers; each value takes four more."""
    return 4 * len(metadata.values) + metadata.data_size // 8

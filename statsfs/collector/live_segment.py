"""Leaves: the segments of living producers, as sources of the tree.

Owns how the numbers of one segment are read while its producer counts, and the source that shows
them. Who is let in, and where in the tree, is the business of others.

A file is read by `pread`, never through a mapping, which a stranger who truncates the file could
turn into a SIGBUS. What is not as long any more as it was gives no numbers again; the totals keep
its last.

Threading: `refresh` and `clear_value` come from the readers' threads, all else from the
collector's. The lock of the numbers is held from reading the file to taking what was read, so that
no reader ever takes an older reading after a newer one; nothing else is taken under it.
"""

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from statsfs.collector.trusted_directory import SegmentDirectory
from statsfs.model.arrays import intern_array
from statsfs.model.external import Numbers
from statsfs.model.readers import convert_number
from statsfs.model.values import Kind, Value
from statsfs.segments.file_format import SegmentMetadata
from statsfs.segments.locks import is_alive
from statsfs.tree.retention import find_plan
from statsfs.tree.source import Source

__all__ = ["Leaf", "SegmentNumbers", "identify", "weigh"]


class SegmentNumbers(Numbers):
    """The numbers of one segment, read from its file.

    Args:
        values: what stands for its values, by name and in their order.
        head: what the file says of itself.
        directory, name: where it is.
        fd: its descriptor, which is closed with this.
        status: what it is.

    Attributes:
        final: whether it is read no more.
    """

    __slots__ = (
        "_broken",
        "_directory",
        "_fd",
        "_head",
        "_identity",
        "_last",
        "_name",
        "_offset",
        "_request",
        "final",
    )

    def __init__(
        self,
        values: Mapping[str, Value],
        head: SegmentMetadata,
        directory: SegmentDirectory,
        name: str,
        fd: int,
        status: os.stat_result,
    ) -> None:
        super().__init__(values)
        self._head = head
        self._directory = directory
        self._name = name
        self._fd = fd
        self._identity = identify(status)
        self._offset = head.data_offset
        # One byte more than there should be tells of a file that grew.
        self._request = head.data_size + (status.st_size == head.size)
        self._last = b""
        self._broken = False
        self.final = False

    def refresh(self) -> None:
        """Read what is counted now.

        Raises:
            OSError: the file is not what it was; the numbers stay.
        """
        with self._lock:
            if self.final:
                return
            data = os.pread(self._fd, self._request, self._offset)
            if data == self._last and not self._broken:
                return
            # For good, or a stranger could fill the log by truncating a file again and again.
            self._broken = self._broken or len(data) != self._head.data_size
            if self._broken:
                raise OSError(errno.ENODATA, "the segment was truncated, or grew")
            self.take(self._head.layout.numbers(data))
            self._last = data

    def finish(self) -> bool:
        """Read for the last time; return whether that went well."""
        with self._lock:
            try:
                self.refresh()
            except OSError:
                return False
            finally:
                self.final = True
        return True

    def close(self) -> None:
        """Close the file; what was read stays."""
        with self._lock:
            self.final = True
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def exists(self) -> bool:
        """Tell whether the file has a name, wherever."""
        return os.fstat(self._fd).st_nlink > 0

    def move(self, directory: SegmentDirectory, name: str) -> None:
        """Note where the file is now."""
        with self._lock:
            self._directory, self._name = directory, name

    def probe(self) -> bool:
        """Tell whether its producer is alive."""
        return is_alive(self._fd)

    def restore(self, baselines: Mapping[str, Any]) -> None:
        """Put back what was cleared in an earlier life of the collector, before the first reading.

        What does not fit the values is left out.
        """
        for name, baseline in baselines.items():
            value = self._values.get(name)
            if value is None or value.kind in (Kind.INSTANT, Kind.PEAK):
                continue
            size = len(baseline) if isinstance(baseline, list) else None
            if size == (value.size if value.histogram else None):
                self.baselines[name] = baseline

    def clear_value(self, name: str) -> None:
        """Make what a value is now its baseline; a PEAK becomes 0 in the segment itself.

        Raises:
            OSError: the segment of a PEAK cannot be written.
            ValueError: the value is INSTANT.
        """
        if self._values[name].kind is not Kind.PEAK:
            super().clear_value(name)
            return
        with self._lock:
            if not self.final:
                self._write_zero(list(self._values).index(name))
            self[name] = 0

    def _write_zero(self, index: int) -> None:
        fd = self._directory.open_for_writing(self._name, self._identity)
        try:
            offset = self._offset + self._head.layout.descriptors[index].offset
            os.pwrite(fd, bytes(8), offset)
        finally:
            os.close(fd)
        # The producer may put back at once what was there, and that is news.
        self._last = b""


class Leaf:
    """A segment that was let in, as a source that is in no tree yet.

    Args:
        directory, file: where it is.
        head: what the file says of itself.
        values: what stands for its values.
        numbers: what reads it.
        status: what it is.
        cleared: told of what was cleared.

    Attributes:
        key: the file's name, behind that of its directory if that is not the collector's own.
        parent: the branch that it is on, or None.
        source: what shows it.
        identity: the device and the inode of the file.
        removed: whether somebody removed the file, though the producer lives.
        missed: since when it is dead and its file somewhere else; 0 if that is not so.
        probes: how often it had to be asked whether its producer lives.
    """

    __slots__ = (
        "components",
        "directory",
        "file",
        "head",
        "identity",
        "key",
        "missed",
        "numbers",
        "owner",
        "parent",
        "probes",
        "removed",
        "source",
        "values",
    )

    def __init__(
        self,
        directory: SegmentDirectory,
        file: str,
        head: SegmentMetadata,
        values: Mapping[str, Value],
        numbers: SegmentNumbers,
        status: os.stat_result,
        cleared: Callable[[], object],
    ) -> None:
        self.directory = directory
        self.file = file
        self.key = directory.prefix + file
        self.head = head
        self.components: Final = head.components
        self.values = values
        self.numbers = numbers
        self.identity = identify(status)
        self.owner = (status.st_uid, status.st_gid)
        self.parent: Any = None
        self.removed = False
        self.probes = 0
        self.missed = 0.0
        self.source = Source(
            self.name,
            label=head.labels[-1],
            refresh=numbers.refresh,
            blocking=False,
            cleared=cleared,
            owner=self.owner,
        )
        for value in values.values():
            self.source.add_values(intern_array((value,)).values, numbers)

    def find(self) -> os.stat_result | None:
        """Return what lies where its file was; None if there is nothing."""
        return self.directory.find(self.file)

    @property
    def name(self) -> str:
        """The last component of its path."""
        return self.components[-1]

    @property
    def path(self) -> str:
        """Its path in the tree."""
        return self.head.path

    @property
    def weight(self) -> int:
        """What it costs to have it: each value costs as much as a few integers."""
        return weigh(self.head)

    def move(self, directory: SegmentDirectory, file: str) -> None:
        """Note that its file is somewhere else, or there again."""
        self.directory = directory
        self.file = file
        self.key = directory.prefix + file
        self.removed = False
        self.missed = 0.0
        self.numbers.move(directory, file)

    def retains(self) -> dict[Value, Any]:
        """Return what is to be retained of it: sums, peaks and buckets."""
        arrays = (intern_array((value,)) for value in self.values.values())
        return {
            array.values[0]: convert_number(array.values[0], self.numbers[array.values[0].name])
            for array in arrays
            if find_plan(array).files
        }


def identify(status: os.stat_result) -> tuple[int, int]:
    """Return what no other file has while this one is open: its device and its inode."""
    return status.st_dev, status.st_ino


def weigh(head: SegmentMetadata) -> int:
    """Return what it costs to have a segment in the tree, in integers."""
    return 4 * len(head.values) + head.data_size // 8

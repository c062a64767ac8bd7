"""A Parquet file that grows by row groups, and can be read while it does.

Owns the bytes on disk. After each interval the file ends in a footer. The new data and the new
footer are written behind the old footer, which is good until then: a writer that is killed at any
moment leaves a file that ends in a footer, or in an unfinished interval behind one, which `mend`
cuts off. From time to time the row groups of the last intervals are replaced by one, which is
smaller; the old footers go then.

Threading: one thread's. A lock on the file, held until it is closed, keeps other writers away.
"""

import contextlib
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from typing import Final

from statsfs.exceptions import SampleError
from statsfs.recordings.footers import MAGIC, RowGroup, parse_footer, split_file

__all__ = ["GrowingFile", "create_file", "mend", "open_new"]

_FOOTER_MAX: Final = 1 << 28


class GrowingFile:
    """A file that is being written.

    Args:
        name: what people call it.
        descriptor: open for writing; it is closed here.
        empty: a Parquet file without rows, with the schema and metadata of all that follow.
    """

    def __init__(self, name: str, descriptor: int, empty: memoryview) -> None:
        self._name = name
        self._descriptor = descriptor
        _, self._footer, _ = split_file(empty, len(MAGIC))
        self._settled: list[RowGroup] = []  # those before `_place`, which stay as they are
        self._waiting: list[RowGroup] = []
        self._place = self.size = len(MAGIC)
        self._write(0, MAGIC + self._footer.render([]))

    def append(self, table: memoryview) -> None:
        """Add the row groups of a Parquet file of the same schema; OSError leaves it as it was."""
        data, _, groups = split_file(table, self.size)
        self._waiting += groups
        try:
            self._write_end(self.size, data)
        except OSError:
            del self._waiting[-len(groups) :]
            raise

    def settle(self, table: memoryview) -> None:
        """Replace what was added since the last time by one table of the same rows."""
        high = self.size
        before, self._waiting = self._waiting, []
        data, _, groups = split_file(table, high)
        self._settled += groups
        try:
            self._write_end(high, data)
        except OSError:
            del self._settled[-len(groups) :]
            self._waiting = before
            raise
        # The same once more, where the replaced row groups are: until the file is cut, its end
        # is right, and cutting is one step.
        del self._settled[-len(groups) :]
        data, _, low = split_file(table, self._place)
        text = bytes(data) + self._footer.render([*self._settled, *low])
        if self._place + len(text) <= high:
            self._settled += low
            self._put(self._place, text)
            self.size = self._place + len(text)
            os.ftruncate(self._descriptor, self.size)
            self._place += len(data)
        else:
            self._settled += groups
            self._place = high + len(data)

    def close(self) -> None:
        """Close the file, which is whole."""
        os.close(self._descriptor)

    def _write_end(self, at: int, data: memoryview) -> None:
        self._write(at, bytes(data) + self._footer.render([*self._settled, *self._waiting]))

    def _write(self, at: int, text: bytes) -> None:
        try:
            self._put(at, text)
        except OSError as error:
            os.ftruncate(self._descriptor, self.size if at else 0)
            raise SampleError(f"{self._name}: {error.strerror}", self._name) from error
        self.size = at + len(text)

    def _put(self, at: int, text: bytes) -> None:
        left = memoryview(text)
        while left:
            written = os.pwrite(self._descriptor, left, at)
            at += written
            left = left[written:]


def create_file(name: str, empty: memoryview) -> GrowingFile:
    """Create a file; SampleError if it cannot be, or if there is one with something in it."""
    descriptor = open_new(name)
    try:
        return GrowingFile(name, descriptor, empty)
    except BaseException:
        os.close(descriptor)
        raise


def open_new(name: str) -> int:
    """Open a file that is new or empty, and lock it; SampleError if that cannot be."""
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SampleError(f"{name}: {error.strerror}", name) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            reason = "not a file"
        elif os.fstat(descriptor).st_size:
            reason = "it exists; remove it, or give another name"
        else:
            return descriptor
    except BlockingIOError:
        reason = "another recorder writes it"
    os.close(descriptor)
    raise SampleError(f"{name}: {reason}", name)


def mend(name: str) -> bool:
    """Cut off an interval that was not finished, and tell whether there was one.

    A file that a recorder writes is left as it is. SampleError: it is not a recording.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SampleError(f"{name}: {error.strerror}", name) from error
        stack.callback(os.close, descriptor)
        try:
            size = os.fstat(descriptor).st_size
            view = stack.enter_context(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
        except (OSError, ValueError):  # a directory, a device; an empty file
            raise SampleError(f"{name}: not a recording", name) from None
        if view[: len(MAGIC)] != MAGIC:
            raise SampleError(f"{name}: not a recording", name)
        end = next(_find_ends(view), None)
        if end is None:
            raise SampleError(f"{name}: not a recording: it has no footer", name)
        if end == size:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(name, end)
        except BlockingIOError:
            return False
        except OSError as error:
            reason = f"its last interval is unfinished, and cannot be cut off: {error.strerror}"
            raise SampleError(f"{name}: {reason}", name) from error
        return True


def _find_ends(view: mmap.mmap) -> Iterator[int]:
    # Where footers end, from the last one backwards.
    at = len(view)
    while (at := view.rfind(MAGIC, 0, at)) >= 8:
        if _is_footer(view, at):
            yield at + len(MAGIC)


def _is_footer(view: mmap.mmap, at: int) -> bool:
    (length,) = struct.unpack("<I", view[at - 4 : at])
    begin = at - 4 - length
    if begin < len(MAGIC) or length > _FOOTER_MAX:
        return False
    try:
        _, groups = parse_footer(view[begin : at - 4])
    except ValueError:
        return False
    return all(group.end <= begin for group in groups)

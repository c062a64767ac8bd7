"""A Parquet file that grows by row groups, and can be read while it does.

Owns the bytes on disk. After each interval the file ends in a footer. The new data and the new
footer are written behind the old footer, which is good until then: a writer that is killed at any
moment leaves a file that ends in a footer, or in an unfinished interval behind one, which `mend`
cuts off. From time to time the row groups of the last intervals are replaced by others, which are
smaller; the old footers go then.

Threading: one thread's. A lock on the file, held until it is closed, keeps other writers away.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from statsfs.exceptions import SampleError
from statsfs.recordings.footers import MAGIC, RowGroup, parse_footer, split_file

__all__ = ["GrowingFile", "create_file", "mend", "open_new"]

_FOOTER_MAX: Final = 1 << 28
_BLOCK: Final = 1 << 16  # bytes that are searched at once


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
        self._place = len(MAGIC)
        self.size = 0
        self._write(0, MAGIC, [])

    def append(self, tables: Sequence[memoryview]) -> None:
        """Add the row groups of Parquet files of the same schema.

        Raises:
            SampleError: they could not be written. The file is as it was before.
        """
        data, groups = _lay(tables, self.size)
        self._write(self.size, data, [*self._settled, *self._waiting, *groups])
        self._waiting += groups

    def settle(self, sorted_: Sequence[memoryview], newer: Sequence[memoryview] = ()) -> None:
        """Replace what was added since the last time by tables of the same rows.

        Args:
            sorted_: the tables that stay as they are.
            newer: those behind them, which are replaced the next time.

        Raises:
            SampleError: they could not be written. The rows of the file are as before.
        """
        first, settled = _lay(sorted_, self._place)
        later, waiting = _lay(newer, self._place + len(first))
        low = first + later + self._footer.render([*self._settled, *settled, *waiting])
        high = self.size
        if self._place + len(low) > high:  # there is nothing to gain
            kept = len(self._waiting) - len(waiting)
            self._settled += self._waiting[:kept]
            del self._waiting[:kept]
            self._place = self._settled[-1].end
            return
        # It is written behind the end first, then where the replaced row groups are: until the
        # file is cut, its end is right, and cutting is one step.
        data, groups = _lay([*sorted_, *newer], high)
        self._write(high, data, [*self._settled, *groups])
        try:
            self._put(self._place, low)
            os.ftruncate(self._descriptor, self._place + len(low))
        except OSError as error:
            # The rows are those behind the end now: the replaced ones may be overwritten.
            self._place, self._waiting = high, groups
            raise SampleError(f"{self._name}: {error.strerror}", self._name) from error
        self.size = self._place + len(low)
        self._settled += settled
        self._waiting = waiting
        self._place += len(first)

    def close(self) -> None:
        """Close the file, which is whole."""
        os.close(self._descriptor)

    def _write(self, at: int, data: bytes, groups: Sequence[RowGroup]) -> None:
        text = data + self._footer.render(groups)
        try:
            self._put(at, text)
        except OSError as error:
            os.ftruncate(self._descriptor, self.size)
            raise SampleError(f"{self._name}: {error.strerror}", self._name) from error
        self.size = at + len(text)

    def _put(self, at: int, text: bytes) -> None:
        left = memoryview(text)
        while left:
            written = os.pwrite(self._descriptor, left, at)
            at += written
            left = left[written:]


def _lay(tables: Sequence[memoryview], at: int) -> tuple[bytes, list[RowGroup]]:
    # The data of files in memory one behind the other, and their row groups as if it were `at`.
    laid = bytearray()
    groups: list[RowGroup] = []
    for table in tables:
        data, _, found = split_file(table, at + len(laid))
        laid += data
        groups += found
    return bytes(laid), groups


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
    except OSError as error:  # a filesystem without locks
        reason = str(error.strerror)
    os.close(descriptor)
    raise SampleError(f"{name}: {reason}", name)


def mend(name: str) -> bool:
    """Cut off an interval that was not finished, and tell whether there was one.

    A file that a recorder writes is left as it is. SampleError: it is not a recording.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SampleError(f"{name}: {error.strerror}", name) from error
        stack.callback(os.close, descriptor)
        # It is read, and not mapped: a recorder at work may cut it, and then the memory behind its
        # end would be gone, which ends the process.
        try:
            size = os.fstat(descriptor).st_size
            magic = os.pread(descriptor, len(MAGIC), 0)
        except OSError:  # a directory, a pipe
            magic = b""
        if magic != MAGIC:
            raise SampleError(f"{name}: not a recording", name)
        end = next(_find_ends(descriptor, size), None)
        if end is None:
            raise SampleError(f"{name}: not a recording: it has no footer", name)
        if end == size:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size != size:
                return False  # a recorder wrote it meanwhile, and ended
            os.truncate(name, end)
        except BlockingIOError:
            return False
        except OSError as error:
            reason = f"its last interval is unfinished, and cannot be cut off: {error.strerror}"
            raise SampleError(f"{name}: {reason}", name) from error
        return True


def _find_ends(descriptor: int, size: int) -> Iterator[int]:
    # Where footers end, from the last one backwards.
    begin = size
    while begin > 0:
        begin, end = max(0, begin - _BLOCK), begin
        # A magic that begins in the block may end behind it.
        block = os.pread(descriptor, end - begin + len(MAGIC) - 1, begin)
        at = len(block)
        while (at := block.rfind(MAGIC, 0, at)) >= 0:
            if _is_footer(descriptor, begin + at):
                yield begin + at + len(MAGIC)


def _is_footer(descriptor: int, at: int) -> bool:
    length = int.from_bytes(os.pread(descriptor, 4, max(0, at - 4)), "little")
    begin = at - 4 - length
    if begin < len(MAGIC) or length > _FOOTER_MAX:
        return False
    try:
        _, groups = parse_footer(os.pread(descriptor, length, begin))
    except ValueError:
        return False
    return all(group.end <= begin for group in groups)

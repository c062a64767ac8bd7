"""File ids: what identifies a segment's file, wherever it is moved and whatever it is called.

Owns what an id is: the random text that its producer wrote, which a copy of the file has too. If a
producer wrote none, it is device, inode and time of birth. No rename, link or chmod changes these.
A filesystem may give the inode to a new file at once, but that one was born later.

Threading: no state.
"""

import ctypes
import os
import struct
from typing import Final

from statsfs.segments.file_format import SegmentMetadata

__all__ = ["find_id", "outlives_file"]

_AT_EMPTY_PATH: Final = 0x1000  # <linux/fcntl.h>: the descriptor itself
_BIRTH: Final = 0x800  # <linux/stat.h>: STATX_BTIME, and where it is in the structure
_BIRTH_AT: Final = struct.Struct("=80xqI")

_statx: Final = ctypes.CDLL(None).statx


def find_id(metadata: SegmentMetadata, fd: int) -> str:
    """Return the id of an open file, which has neither a "." nor a "/"."""
    if metadata.id is not None:
        return metadata.id
    status = os.fstat(fd)
    seconds, nanoseconds = _find_birth(fd)
    return f"{status.st_dev}:{status.st_ino}:{seconds}:{nanoseconds}"


def _find_birth(fd: int) -> tuple[int, int]:
    # Zeros where the filesystem does not know it. Python has no statx(2) before 3.15.
    found = ctypes.create_string_buffer(256)
    _statx(fd, b"", _AT_EMPTY_PATH, _BIRTH, found)
    seconds, nanoseconds = _BIRTH_AT.unpack_from(found)
    return seconds, nanoseconds


def outlives_file(id: str) -> bool:
    """Tell whether a copy of a file that is gone would have its id."""
    return ":" not in id

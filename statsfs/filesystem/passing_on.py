"""Passing on: what is written into a file of a mount that was replaced goes to the successor.

Owns when that is the same file. Only this process knows who opened the old file, and the kernel let
him; so the new one must have the same path, owner and mode.

Threading: any thread but the serving one; the new mount has another server.
"""

import os
import stat

from statsfs.exceptions import StatsfsError
from statsfs.filesystem.known import Attributes

__all__ = ["OtherFileError", "pass_on"]


class OtherFileError(StatsfsError, OSError):
    """The successor has no such file, or somebody else's."""


def pass_on(path: str, expected: Attributes, data: bytes) -> None:
    """Write into a file of the successor's mount, or raise OSError.

    Args:
        path: of the file.
        expected: the attributes of the old one.
        data: what was written into that.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise OtherFileError(f"{path}: {error.strerror}", path) from error
    try:
        status = os.fstat(fd)
        rights = (status.st_mode, (status.st_uid, status.st_gid))
        if rights != (stat.S_IFREG | stat.S_IMODE(expected.mode), expected.owner):
            raise OtherFileError(f"{path}: it is another file now", path)
        os.write(fd, data)
    finally:
        os.close(fd)

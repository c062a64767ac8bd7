"""Passing on: a write into a file of a replaced mount goes to the successor's mount.

Owns which file of the successor's is the same one. The kernel has checked the user's rights to the
old file, and cannot check them again; so the new file must have the same path, owner and mode.

Threading: any thread but the serving one; the new mount has another server.
"""

import os
import stat

from statsfs.exceptions import StatsfsError
from statsfs.filesystem.known import Attributes

__all__ = ["OtherFileError", "pass_on"]


class OtherFileError(StatsfsError, OSError):
    """The successor has no such file, or one with another owner or mode."""


def pass_on(path: str, expected: Attributes, data: bytes) -> None:
    """Write into a file of the successor's mount, or raise OSError.

    Args:
        path: the path of the file.
        expected: the attributes of the old file.
        data: the bytes that were written into the old file.
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

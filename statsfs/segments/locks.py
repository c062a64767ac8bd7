"""Locks that tell whether a producer is alive: held for life, dropped by the kernel at death.

Owns the calls for open-file-description locks (fcntl(2), "Open file description locks"). They
belong to the open file and not to a process: a mapping keeps one after its descriptor is closed,
and probes from several descriptors do not collide. Each may raise OSError.

Threading: system calls; safe from any thread.
"""

import errno
import fcntl
import os
import struct
from typing import Final

__all__ = ["hold", "is_alive"]

# Python's fcntl has none of these before 3.13: <asm-generic/fcntl.h>.
_F_OFD_GETLK: Final = 36
_F_OFD_SETLK: Final = 37
# struct flock: type, whence, start, length (0: to the end and beyond), pid, which must be 0.
_FLOCK: Final = struct.Struct("@hhqqi4x")


def _pack(type: int) -> bytes:
    return _FLOCK.pack(type, os.SEEK_SET, 0, 0, 0)


def hold(fd: int) -> bool:
    """Take the lock of a file that is open for writing; return whether it was free."""
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, _pack(fcntl.F_WRLCK))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def is_alive(fd: int) -> bool:
    """Tell whether a process that may write a file holds its lock, through another descriptor."""
    # A read lock does not collide with the locks of readers.
    (found, *_) = _FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, _pack(fcntl.F_RDLCK)))
    return bool(found != fcntl.F_UNLCK)

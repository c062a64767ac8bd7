"""`mount -o remount`: a mounted statsfs becomes read-only, or writable again.

Owns the options that may change: `ro` and `rw`, which the kernel changes without the server.
mount(8) also passes the options that the mount has, and those of fstab: these are ignored. Others
are refused, as they would have no effect. Threading: main thread only.
"""

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Final

from statsfs.exceptions import MountError
from statsfs.filesystem.mountpoints import FILESYSTEM, find_mount, find_options, unescape

__all__ = ["find_new_options", "remount"]

_FSTAB: Final = "/etc/fstab"
_MS_REMOUNT: Final = 32
# Flags of mount(2) that statvfs(3) returns; without them they would be lost.
_KEPT: Final = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
_CHANGES: Final = ("ro", "rw")


def find_new_options(path: str, options: Sequence[str]) -> list[str]:
    """Return the options that neither are changes, nor belong to the mount or its line of fstab."""
    known = {*_CHANGES, "remount", *find_options(path), *_read_fstab(path)}
    return [option for option in options if option not in known]


def remount(path: str, options: Sequence[str]) -> None:
    """Make what is mounted on a path read-only or writable, as the last of `ro` and `rw` says.

    Without either it stays as it is.

    Raises:
        MountError: it is not a statsfs, or cannot be changed.
    """
    if find_mount(path) != FILESYSTEM:
        raise MountError(f"{path}: no statsfs is mounted there", path, errno.EINVAL)
    try:
        before = os.statvfs(path).f_flag
        flags = _MS_REMOUNT | (before & _KEPT)
        changes = [option for option in options if option in _CHANGES]
        if changes[-1] == "ro" if changes else before & os.ST_RDONLY:
            flags |= os.ST_RDONLY
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(flags), None):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    except OSError as error:
        reasons = {
            errno.EBUSY: "a file of it is open for writing; close it, then try again",
            errno.EPERM: "only root can remount",
            errno.ENOTCONN: "it is not served any more; mount it anew",
        }
        reason = reasons.get(error.errno or 0, error.strerror)
        raise MountError(f"{path}: cannot be remounted: {reason}", path, error.errno) from error


def _read_fstab(path: str) -> Iterator[str]:
    try:
        with open(_FSTAB, "rb") as table:
            lines = [[os.fsdecode(unescape(field)) for field in line.split()] for line in table]
    except OSError:
        return
    for fields in lines:
        commented = not fields or fields[0].startswith("#")
        if not commented and len(fields) > 3 and os.path.realpath(fields[1]) == path:
            yield from fields[3].split(",")

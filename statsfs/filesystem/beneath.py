"""Replacing a mount by another one, with no moment between.

Owns the system calls for that, of Linux 6.5 (MOVE_MOUNT_BENEATH). A new filesystem is mounted
nowhere at first, and served. It is put beneath the old mount, and then the old mount is detached:
at every moment a path leads into one of the two, and open files stay open. If this process dies
before that, the kernel drops the new filesystem, and the old mount stays.

Threading: system calls; as the caller's. They need CAP_SYS_ADMIN.
"""

import ctypes
import errno
import os
from collections.abc import Iterable
from typing import Final

__all__ = ["DetachedMount", "detach", "find_obstacle"]

# The numbers are those of all architectures: <asm-generic/unistd.h>.
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432

# <linux/mount.h>
_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6  # FSCONFIG_...
_FROM_FD: Final = 0x4  # MOVE_MOUNT_F_EMPTY_PATH
_BENEATH: Final = 0x200  # MOVE_MOUNT_BENEATH
_ATTRIBUTES: Final = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8}  # MOUNT_ATTR_...
_AT_FDCWD: Final = -100
_MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)
# What every mount(2) of a FUSE filesystem has.
_ALWAYS: Final = ("nosuid", "nodev")


def _call(number: int, *arguments: int | bytes | None) -> int:
    # The caller gives all arguments: the kernel reads the registers of missing ones, too.
    found: int = _libc.syscall(ctypes.c_long(number), *map(_convert, arguments))
    return _check(found)


def _check(found: int) -> int:
    # Returns the result of a call, or raises OSError if that is an error.
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def _convert(argument: int | bytes | None) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)


def find_obstacle() -> str | None:
    """Return why this process cannot put a mount beneath another; None if it can."""
    try:
        _call(_MOVE_MOUNT, -1, b"", _AT_FDCWD, b"/", _FROM_FD | _BENEATH)
    except OSError as error:
        if error.errno == errno.EPERM:
            return "taking over needs the right to mount (CAP_SYS_ADMIN)"
        if error.errno != errno.EBADF:  # that is: of all this, only the descriptor is wrong
            return f"taking over needs Linux 6.5; this is {os.uname().release}"
    return None


class DetachedMount:
    """A FUSE filesystem that is not mounted yet; the kernel drops it if this is closed before.

    Args:
        device: the descriptor of /dev/fuse from which it is served.
        options: those of libfuse; only the ones that the kernel knows are used.

    OSError: it cannot be made.
    """

    def __init__(self, device: int, options: Iterable[str]) -> None:
        options = {*options, *_ALWAYS}
        context = _call(_FSOPEN, b"fuse", _CLOEXEC)
        try:
            fixed = {
                "source": "statsfs",
                "fd": str(device),
                "rootmode": "40000",
                "user_id": str(os.geteuid()),
                "group_id": str(os.getegid()),
            }
            for name, text in fixed.items():
                _call(_FSCONFIG, context, _SET_STRING, name.encode(), text.encode(), 0)
            for option in options:
                name, _, text = option.partition("=")
                if name == "subtype":
                    _call(_FSCONFIG, context, _SET_STRING, b"subtype", text.encode(), 0)
                elif name in ("allow_other", "default_permissions", "ro"):
                    _call(_FSCONFIG, context, _SET_FLAG, name.encode(), None, 0)
            _call(_FSCONFIG, context, _CREATE, None, None, 0)
            attributes = sum(_ATTRIBUTES.get(option, 0) for option in options)
            self._descriptor = _call(_FSMOUNT, context, _CLOEXEC, attributes)
        finally:
            os.close(context)  # it would keep the filesystem

    def close(self) -> None:
        """Drop it, unless it was mounted."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    disown = close

    def put_beneath(self, path: str) -> None:
        """Mount it beneath what is mounted at a path, or raise OSError."""
        _call(_MOVE_MOUNT, self._descriptor, b"", _AT_FDCWD, os.fsencode(path), _FROM_FD | _BENEATH)


def detach(path: str) -> None:
    """Detach the topmost mount of a path, or raise OSError; files that are open stay open."""
    _check(_libc.umount2(os.fsencode(path), _MNT_DETACH))

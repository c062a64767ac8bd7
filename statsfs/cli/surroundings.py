"""What a command finds around it: descriptors, a current directory, /proc.

Owns what is put right before a command begins, and the one line for what is missing and may be
missed anywhere. Threading: main thread only.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Collection
from typing import Final

__all__ = ["close_inherited", "explain", "open_standard_streams"]

_FIRST_PASSED: Final = 3  # sd_listen_fds(3)


def open_standard_streams() -> None:
    """Open /dev/null as each of the descriptors 0, 1 and 2 that is closed.

    Else the first files that are opened would have these numbers, and be written to by whoever
    writes an error.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, errors="backslashreplace", closefd=False))


def close_inherited(keep: Collection[int]) -> None:
    """Close the descriptors above 2 in a child, but for those to keep and what systemd passes.

    A lock that one of them holds, or a reader of its pipe, would else wait for this process.
    """
    passed = range(_FIRST_PASSED, _FIRST_PASSED + _count_passed())
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in keep and number not in passed:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(number)


def _count_passed() -> int:
    # It is the parent that was started with them.
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getppid()) or not count.isascii():
        return 0
    return int(count) if count.isdecimal() else 0


def explain(error: OSError) -> str | None:
    """Return what is wrong with the process, and not with what it was asked to do; or None."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files; allow more (ulimit -n 1024)"
    if not os.path.exists("/proc/self"):
        return "/proc is not there; mount proc first: mount -t proc proc /proc"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the current directory was deleted; change to another"
    return None

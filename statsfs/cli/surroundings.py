"""The surroundings of a command: its descriptors, its current directory, /proc.

Owns the repairs before a command begins, and the errors for what any part of a command may miss.
Threading: main thread only.
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

    Else the next files that are opened would get these numbers, and error messages would be written
    into them.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, errors="backslashreplace", closefd=False))


def close_inherited(keep: Collection[int]) -> None:
    """Close the descriptors above 2 in a child, but for those to keep and those from systemd.

    Else this process would keep locks, and the readers of pipes would wait for its end.
    """
    passed = range(_FIRST_PASSED, _FIRST_PASSED + _count_passed())
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in keep and number not in passed:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(number)


def _count_passed() -> int:
    # systemd names the process that it started, which is the parent.
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getppid()) or not count.isascii():
        return 0
    return int(count) if count.isdecimal() else 0


def explain(error: OSError) -> str | None:
    """Return what the process lacks, if an error comes from that and not from its task; or None."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files; allow more (ulimit -n 1024)"
    if not os.path.exists("/proc/self"):
        return "/proc is not there; mount proc first: mount -t proc proc /proc"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the current directory was deleted; change to another"
    return None

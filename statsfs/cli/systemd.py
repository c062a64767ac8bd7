"""systemd: the notifications of a service, and the priorities of its journal.

Owns sd_notify(3)'s protocol, a datagram of `NAME=value` lines to the socket that the environment
names; sd_watchdog_enabled(3)'s variables; and the priorities of sd-daemon(3) before lines on
stderr. It takes fewer lines than the use of libsystemd. Threading: that of the caller.
"""

import logging
import math
import os
import socket
from syslog import LOG_ERR, LOG_INFO, LOG_WARNING
from typing import Final

__all__ = ["is_service", "notify", "prioritize", "watchdog_interval"]

log = logging.getLogger(__name__)

_STDERR: Final = 2


def is_service() -> bool:
    """Tell whether this is a service of systemd with notifications (`Type=notify`)."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def watchdog_interval() -> float:
    """Return how often systemd is to be told WATCHDOG=1, in seconds; infinity: never."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or not int(microseconds):
        return math.inf
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return math.inf
    return int(microseconds) / 2e6  # half of it, as sd_watchdog_enabled(3) recommends


def notify(*states: str, wait: bool = True) -> None:
    """Send states such as "READY=1" to systemd, if this is a service of it; log a failure.

    Args:
        wait: whether to wait while systemd's socket is full.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # "@" stands for the NUL that an abstract name begins with.
    name = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(wait)
            sender.sendto("\n".join(states).encode(), os.fsencode(name))
    except OSError as error:
        log.warning("cannot notify systemd of %s: %s: %s", states[0], address, error)


def prioritize(text: str, level: int, *, always: bool = False) -> str:
    """Begin each line of a text with the priority of a level of `logging`, for the journal alone.

    The journal takes lines of stderr without a priority for informational ones. With `always` the
    lines are for another reader of priorities.
    """
    if not (always or _has_journal()):
        return text
    number = LOG_INFO
    if level >= logging.WARNING:
        number = LOG_ERR if level >= logging.ERROR else LOG_WARNING
    return "\n".join(f"<{number}>{line}" for line in text.split("\n"))


def _has_journal() -> bool:
    # Whether stderr goes there now: it may have been redirected since the service was started.
    status = os.fstat(_STDERR)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"

"""Notifications to systemd: the service is ready, or about to end.

Owns sd_notify(3)'s protocol: a datagram of `NAME=value` lines to the socket that the environment
names. It takes fewer lines than the use of libsystemd. Threading: that of the caller.
"""

import logging
import os
import socket

__all__ = ["notify"]

log = logging.getLogger(__name__)


def notify(*states: str) -> None:
    """Send states such as "READY=1" to systemd, if this is a service of it; log a failure."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # "@" stands for the NUL that an abstract name begins with.
    name = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(states).encode(), os.fsencode(name))
    except OSError as error:
        log.warning("cannot notify systemd of %s: %s: %s", states[0], address, error)

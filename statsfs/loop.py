"""How pyfuse3 waits for requests.

Owns the reading of the FUSE descriptor. It relies on nothing of pyfuse3 but `main`.

pyfuse3 waits until the descriptor is readable and then reads it with the interpreter locked. A
client that is killed in between takes its request back, and a blocking read would stop every thread
of the program until the next request. So the descriptor does not block, and a loop that ends with
EAGAIN is begun again. One task serves: no handler waits, so a second would only make it slower.

Threading: `serve` runs on the serving thread.
"""

import errno
import logging
import os
import stat
from typing import Final

import pyfuse3

__all__ = ["find_descriptors", "serve"]

log = logging.getLogger(__name__)

# By number, whatever its path: containers are given it by another.
_DEVICE: Final = os.makedev(10, 229)


def find_descriptors() -> set[int]:
    """Return the descriptors of this process that are open on /dev/fuse."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:  # the descriptor of the listing itself, and what other threads close
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == _DEVICE:
            found.add(int(name))
    return found


def _is_again(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.EWOULDBLOCK)


async def serve(descriptor: int) -> None:
    """Answer requests until the session is terminated or unmounted.

    Args:
        descriptor: the session's, on /dev/fuse.

    Raises:
        OSError: reading failed in a way that serving cannot survive; in an exception group.
    """
    os.set_blocking(descriptor, False)
    while True:
        try:
            await pyfuse3.main(min_tasks=1, max_tasks=1)
            return
        except* OSError as group:
            if group.split(_is_again)[1] is not None:
                raise
            log.debug("a client took its request back")

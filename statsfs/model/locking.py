"""Locks that a signal handler cannot leave locked.

Python calls signal handlers in the main thread, after a call or at the beginning of a function or
of a round of a loop; what they raise (KeyboardInterrupt, say) goes on from there. In Python 3.14,
and in 3.15 before 3.15.2, one of these places is between a `with` statement's taking a lock and its
block: the lock is never given back (python/cpython#148874).

Threading: any thread.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["call_locked"]

_T = TypeVar("_T")


def call_locked(lock: "threading.RLock | threading.Lock", function: Callable[[], _T]) -> _T:
    """Call a function under a lock, and release it whatever a signal handler raises; return both.

    What the handler raises is raised here, before the lock was taken or after it was released.
    """
    taken: list[bool] = []
    try:
        # To take the lock and to note that are one call of C: nothing comes in between.
        taken.extend(map(lock.acquire, (True,)))
        return function()
    finally:
        # No handler comes before the first call, and after that one the lock is free.
        if taken:
            lock.release()

"""Locks that a signal handler cannot leave locked.

Python calls signal handlers in the main thread, after a call or at the beginning of a function or
of a round of a loop; what they raise (KeyboardInterrupt, say) goes on from there. In Python 3.14,
and in 3.15 before 3.15.2, one of these places is between a `with` statement's taking a lock and its
block: the lock is never given back (python/cpython#148874).

Threading: any thread.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar

__all__ = ["Flag", "call_locked", "locked"]

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


def call_locked(lock: "threading.RLock | threading.Condition", function: Callable[[], _T]) -> _T:
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


def locked(method: _F) -> _F:
    """Make a method run under its object's `_lock`, as by `call_locked`."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # `call_locked` written out: it is called for each segment that is read.
        lock, taken = self._lock, list[bool]()
        try:
            taken.extend(map(lock.acquire, (True,)))
            return method(self, *args, **kwargs)
        finally:
            if taken:
                lock.release()

    return call  # type: ignore[return-value]  # the same arguments and result


class Flag:
    """A flag that is set once, and waited for.

    As `threading.Event`, whose lock is written in Python: a signal handler that raises in `wait`
    may leave that locked, and then `set` never returns.
    """

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._lock.acquire()
        self._unset: Final = [True]

    def set(self) -> None:
        """Set the flag; nothing happens if it is set."""
        try:
            self._unset.pop()
        except IndexError:
            return
        self._lock.release()

    def is_set(self) -> bool:
        """Tell whether the flag is set."""
        return not self._unset

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the flag is set, at most so many seconds; return whether it is."""
        left = -1 if seconds is None else min(max(0, seconds), threading.TIMEOUT_MAX)
        taken: list[bool] = []
        try:
            if self._unset:
                taken.extend(map(self._lock.acquire, (True,), (left,)))
        finally:
            if any(taken):
                self._lock.release()
        return not self._unset

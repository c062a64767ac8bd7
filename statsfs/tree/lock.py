"""Changes of the tree: the one lock, what waits behind it, and who is told.

Owns the lock under which trees change and are sampled, and the order of what happens around it:
first the change, under the lock and with garbage collection off; then, with the lock released, what
the change dropped is let go of (which may run the user's finalizers) and listeners are told; then
the changes that were made from inside it (by a signal handler, say) have their turn.

Threading: this is the threading. The lock is reentrant only so that a thread which holds it can be
recognised; a change inside a change never runs at once.
"""

import contextlib
import gc
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

__all__ = [
    "Change",
    "Listening",
    "Operation",
    "apply_change",
    "count_under_lock",
    "lock_tree",
    "suspend_collection",
    "tree_lock",
]

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Change:
    """What a listener is told: which directories are not as they were.

    Attributes:
        touched: the names of subordinates that came or went, by the place of the directory (0 is
            the registry). A directory of which only files came or went has an empty set.
        left: the places of the sources that were removed; what is below them went with them.
    """

    touched: dict[int, set[str]] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)


class Listening:
    """Something that tells listeners of changes below it; `registry.Registry` is the one."""

    def notify(self, change: Change) -> None:
        """Call the listeners, in the calling thread and under no lock."""
        raise NotImplementedError


class Operation:
    """One change being made.

    Attributes:
        garbage: what the change drops; kept here so that no finalizer runs under the lock.
    """

    __slots__ = ("_changes", "garbage")

    def __init__(self) -> None:
        self.garbage: list[object] = []
        self._changes: dict[Listening, Change] = {}

    def touch(self, registry: Listening | None, place: int, name: str | None = None) -> None:
        """Note that a directory changed; `name` is the subordinate that came or went."""
        if registry is not None:
            names = self._changes.setdefault(registry, Change()).touched.setdefault(place, set())
            if name is not None:
                names.add(name)

    def leave(self, registry: Listening | None, place: int) -> None:
        """Note that a source left its place."""
        if registry is not None:
            self._changes.setdefault(registry, Change()).left.append(place)

    def finish(self) -> None:
        """Drop the garbage and tell the listeners; to be called under no lock."""
        self.garbage.clear()
        for registry, change in self._changes.items():
            registry.notify(change)


tree_lock: Final = threading.RLock()
"""Taken directly only to count something, with no call under it."""
_changing = False
_waiting: Final[deque[Callable[[Operation], None]]] = deque()
_suspended = False  # collection is off, by `suspend_collection`

# A child that was forked while another thread held the lock would wait for ever.
os.register_at_fork(
    before=tree_lock.acquire, after_in_parent=tree_lock.release, after_in_child=tree_lock.release
)


def count_under_lock(count: Callable[[], _T]) -> _T:
    """Call a function that changes nothing but a number, and drops nothing, under the lock.

    Unlike a change it is not queued: inside one, of the same thread, it runs at once.
    """
    with tree_lock:
        return count()


def lock_tree(sample: Callable[[], _T]) -> _T:
    """Call a function while the tree stands still, with garbage collection off.

    Python 3.11 collects garbage in the middle of a C call; a finalizer there lets other threads in
    and may want the tree itself. Collection is switched on again only if it was on.
    """
    # Not a context manager: an interrupt (Ctrl-C) in its `__enter__` would leave the tree locked.
    with tree_lock:
        collecting = gc.isenabled()
        try:
            gc.disable()
            return sample()
        finally:
            if collecting:
                gc.enable()


@contextlib.contextmanager
def suspend_collection() -> Iterator[None]:
    """Keep garbage collection off for a while in which the tree may change; if it was on.

    What a large snapshot leaves behind would have everything in the process looked at: 13 ms at
    once for the rows of 7,000 sources, and 40 ms for their tree, in which no thread goes on. Not
    for the thread that a signal handler may interrupt. Where several ask at the same time, the
    first one's end is the end, so that garbage is not kept for ever.
    """
    global _suspended
    # Under the lock, where it is seen what nobody else has switched off meanwhile.
    with tree_lock:
        ours = gc.isenabled()
        if ours:
            _suspended = True
            gc.disable()
    try:
        yield
    finally:
        if ours:
            with tree_lock:
                _suspended = False
                gc.enable()


def _resume_in_child() -> None:
    # The thread that would have done it is not there.
    global _suspended
    if _suspended:
        _suspended = False
        gc.enable()


os.register_at_fork(after_in_child=_resume_in_child)


def apply_change(operation: Callable[[Operation], None]) -> None:
    """Make a change under the lock, then tell the listeners before returning.

    From inside another change of the same thread (a signal handler, a finalizer) it is queued
    behind that change instead, which makes it before it returns; what it raises is then logged.
    """
    global _changing
    changes = [Operation()]
    failures: list[Exception] = []
    try:
        with tree_lock:
            # Between taking the lock and this line a signal handler may make a whole change of its
            # own; that is as good as before this one.
            if _changing:
                _waiting.append(operation)
                return
            collecting = gc.isenabled()
            try:
                # A signal handler may raise after any call from here on.
                _changing = True
                gc.disable()
                operation(changes[0])
            finally:
                try:
                    _apply_waiting(changes, failures)
                finally:
                    _changing = False
                    if collecting:
                        gc.enable()
    finally:
        for change in changes:
            change.finish()
        for failure in failures:
            log.error("a change made from inside another change failed", exc_info=failure)
    if _waiting:
        # A signal handler came between the last look at the queue and the end.
        apply_change(_change_nothing)


def _apply_waiting(changes: list[Operation], failures: list[Exception]) -> None:
    # In the order in which they were asked for, before any other thread has its turn.
    while _waiting:
        operation, change = _waiting.popleft(), Operation()
        changes.append(change)
        try:
            operation(change)
        except Exception as error:
            failures.append(error)


def _change_nothing(operation: Operation) -> None:
    """For the sake of what is waiting."""

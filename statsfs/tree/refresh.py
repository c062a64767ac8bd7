"""Refreshes: functions that bring the numbers of a source up to date before they are read.

Owns when refreshes run, in which threads, for how long, and what follows when one fails. What a
refresh asks, and where it puts the answer, is up to the source's `refresh` function.

All refreshes of one sample begin at the same time and share one deadline. A source that misses it
is *late*: samples no longer wait for it, and it is refreshed in the background until a refresh
succeeds. A refresh that began before a reader came may bring older numbers; so the reader waits for
the next one, which it shares with all readers that came meanwhile. A refresh may ask what they
read (`current_reads`), and leave out the rest.

Threading: all functions and methods may be called from any thread, without the tree's lock. A
refresh that may block runs in a daemon thread, of which there are never more than sources that are
being refreshed; others run in the thread that reads. A refresh that reads its own source does not
wait for itself.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar, Final

from statsfs.exceptions import UnavailableError
from statsfs.model.foreign import describe_error, foreign
from statsfs.model.locking import Flag, call_locked
from statsfs.tree.pauses import pause, pausing
from statsfs.tree.refresh_calls import (
    Awaiter,
    Read,
    check_result,
    current_reads,
    enter_refresh,
    find_awaiter,
    is_refreshing,
    wrap_async,
)

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = [
    "DEADLINE",
    "Read",
    "Refresher",
    "Refreshing",
    "current_reads",
    "find_refreshing",
    "is_refreshing",
    "refresh_all",
]

log = logging.getLogger(__name__)

DEADLINE: Final = 1.0
"""Seconds that all refreshes of one sample may take together."""

# Seconds for which a listing waits for refreshes that have made no subordinates yet.
_IMPATIENT: Final = 0.1

# So many refreshes that do not block, at a few microseconds each, run without a thread, if what
# they bring are no more numbers than that, at up to 50 ns each.
_FEW: Final = 64
_QUICK: Final = 10_000
_IDLE: Final = 10.0  # seconds after which an idle thread ends

# Reentrant, as a signal handler may read a value too. No foreign code is called under it.
_lock = threading.RLock()


class _Run:
    # One call of a refresh, under way or wanted.
    __slots__ = ("awaiter", "done", "process", "reads")

    def __init__(self, reads: "frozenset[Read]", awaiter: Awaiter | None) -> None:
        self.reads = reads
        self.awaiter = awaiter  # of an async function
        self.process = os.getpid()  # a forked child does not have the thread that makes the call
        self.done = Flag()


class _Aged:
    # A function whose numbers are new enough for some time after they were asked for.
    __slots__ = ("_asked", "_function", "_max_age")

    def __init__(self, function: Callable[[], object], max_age: float) -> None:
        self._function = function
        self._max_age = max_age
        self._asked = float("-inf")

    def __call__(self) -> None:
        asked = time.monotonic()
        check_result(self._function())
        self._asked = asked

    def is_fresh(self) -> bool:
        return time.monotonic() - self._asked < self._max_age


class Refresher:
    """The refresh of one source, and how it went.

    Args:
        source: the source that it brings up to date, with all its descendants.
        function: called without arguments, and awaited if it is async; it raises if there are no
            numbers.
        blocking: whether it may block.
        max_age: seconds after it was called for which it is not called again.
        baseline: whether a clear of what it brings subtracts.

    Attributes:
        asynchronous: whether the function is async.
        names: whether it may make sources, and so runs before directories are listed.
        idle: whether it is not to be called, as the source above brings the numbers up to date.
        failure: why the numbers are unavailable, or None.
        late: whether samples do not wait for it.
    """

    __slots__ = (
        "_next",
        "_running",
        "asynchronous",
        "baseline",
        "blocking",
        "failure",
        "function",
        "idle",
        "late",
        "names",
        "source",
    )

    made: ClassVar[int] = 0
    """How many there ever were; while there are none, readers need not look for any."""

    def __init__(
        self,
        source: "Source",
        function: Callable[[], object],
        blocking: bool,
        max_age: float = 0,
        baseline: bool = False,
    ) -> None:
        Refresher.made += 1
        self.source = source
        awaited = wrap_async(function)
        self.asynchronous = awaited is not None
        function = awaited or function
        self.function = _Aged(function, max_age) if max_age else function
        self.blocking = blocking or self.asynchronous
        self.baseline = baseline
        self.names = True
        self.failure: str | None = None
        self.idle = False
        self.late = False
        self._running: _Run | None = None
        self._next: _Run | None = None

    @property
    def resting(self) -> bool:
        """Whether it need not be called now."""
        return self.idle or (isinstance(self.function, _Aged) and self.function.is_fresh())

    @property
    def weight(self) -> int:
        """How many numbers the source has by itself."""
        # In a list, which one call makes: the tree may change meanwhile.
        return sum([key[0].size for key in list(self.source._directory.entries)])

    def check(self) -> None:
        """Raise UnavailableError if the last refresh failed."""
        failure = self.failure
        if failure is not None:
            raise UnavailableError(f"{self.source.path}: {_describe(failure)}", self.source)

    def begin(
        self, reads: "frozenset[Read]" = frozenset(), awaiter: Awaiter | None = None
    ) -> _Run | None:
        """Have the function called in a thread; return the call to wait for, if it is not late."""
        run, new = call_locked(_lock, lambda: self._find_run(_Run(reads, awaiter)))
        if new:
            # Not under the lock: starting a thread waits until it runs.
            _workers.start(self)
        return run

    def _find_run(self, run: _Run) -> tuple[_Run | None, bool]:
        # The call to wait for, if any, and whether a thread is to be started.
        running, late = self._running, self.late
        if running is None or running.process != os.getpid():
            self._running, self._next = run, None
            return (None if late else run), True
        if not late and self._next is None:
            self._next = run
        elif self._next is not None:
            self._next.reads |= run.reads
            self._next.awaiter = run.awaiter
        return (None if late else self._next), False

    def run(self) -> None:
        """Call the function until no further call is wanted; in a thread of ours."""
        while True:
            if not self.finish(self._call()):
                return

    def _call(self) -> str | None:
        running = self._running
        assert running is not None
        leave = enter_refresh(running.reads, running.awaiter)
        try:
            check_result(self.function())
        except foreign() as error:
            return describe_error(error)
        finally:
            leave()
        return None

    def finish(self, failure: str | None) -> bool:
        """Note how a call in a thread ended; return whether another one is wanted."""
        done, before, wanted = call_locked(_lock, lambda: self._end_run(failure))
        self._tell(before, failure)
        assert done is not None
        done.done.set()
        return wanted

    def _end_run(self, failure: str | None) -> tuple[_Run | None, str | None, bool]:
        done, self._running, self._next = self._running, self._next, None
        return done, self._note(failure), self._running is not None

    def settle(self, failure: str | None) -> None:
        """Note how a call in the reader's thread ended."""
        self._tell(self._note(failure), failure)

    def _note(self, failure: str | None) -> str | None:
        # Returns how the call before ended.
        before, self.failure = self.failure, failure
        if failure is None:
            self.late = False
        return before

    def _tell(self, before: str | None, failure: str | None) -> None:
        # Not under our lock: the log's handlers are foreign code, and may wait for anything. A
        # source in no tree is not worth a line: a VM that ended does not answer.
        if (before is None) is (failure is None) or self.source.parent is None:
            return
        if failure is None:
            log.info("%s: available again", self.source.path)
        else:
            self.source._directory.warn(log, "%s", _describe(failure))

    def give_up(self, run: _Run) -> None:
        """Note that a call missed the deadline; from now on samples do not wait for it.

        Args:
            run: from `begin`; nothing happens if it has ended.
        """
        failure = self.failure or f"no answer within {DEADLINE:g} s"
        given_up = call_locked(_lock, lambda: self._give_up(run, failure))
        if given_up is not None:
            runs, before = given_up
            self._tell(before, failure)
            for one in runs:
                if one is not None:
                    one.done.set()

    def _give_up(
        self, run: _Run, failure: str
    ) -> tuple[tuple[_Run | None, _Run | None], str | None] | None:
        if run not in (self._running, self._next):
            return None
        runs = (self._running, self._next)
        self._next = None
        self.late = True
        return runs, self._note(failure)


def _describe(failure: str) -> str:
    return f"unavailable: the refresh failed: {failure}"


class Refreshing:
    """The refreshes of one sample.

    Args:
        refreshers: what to refresh.
        reads: for what.
        patient: whether to wait until the deadline, as for numbers; names can be had without.

    Attributes:
        ended: whether `run` has returned.
    """

    __slots__ = ("_blocking", "_others", "_patient", "_reads", "ended")

    def __init__(
        self, refreshers: Iterable[Refresher], reads: Iterable[Read], *, patient: bool = True
    ) -> None:
        self.ended = False
        self._patient = patient
        self._reads = frozenset(reads)
        self._blocking: list[Refresher] = []
        self._others: list[Refresher] = []
        for refresher in refreshers:
            if refresher.resting:
                continue
            (self._blocking if refresher.blocking else self._others).append(refresher)

    @property
    def quick(self) -> bool:
        """Whether `run` does not block, and takes a fraction of a millisecond."""
        return (
            not self._blocking
            and len(self._others) <= _FEW
            and sum([refresher.weight for refresher in self._others]) <= _QUICK
        )

    def run(self) -> None:
        """Refresh; return when all have ended or the deadline is over.

        Raises:
            UnavailableError: a refresh is async, and this thread has no loop that awaits it.
        """
        awaiter = self._find_awaiter()
        deadline = time.monotonic() + (DEADLINE if self._patient else _IMPATIENT)
        begun = [(one, one.begin(self._reads, awaiter)) for one in self._blocking]
        with pausing() if len(self._others) > 1 else nullcontext():
            self._call_others(deadline)
        for refresher, run in begun:
            left = max(0.0, deadline - time.monotonic())
            if run is not None and not run.done.wait(left) and self._patient:
                refresher.give_up(run)
        self.ended = True

    def _find_awaiter(self) -> Awaiter | None:
        sources = [one.source for one in self._blocking if one.asynchronous]
        return find_awaiter(sources[0]) if sources else None

    def _call_others(self, deadline: float) -> None:
        # In line: of a read of thousands of files, two calls each were a tenth.
        leave = enter_refresh(self._reads)
        try:
            for number, refresher in enumerate(self._others):
                if not (number + 1) % _FEW and time.monotonic() > deadline:
                    for late in self._others[number:]:
                        late.settle(f"no time left within {DEADLINE:g} s")
                    return
                try:
                    if (result := refresher.function()) is not None:
                        check_result(result)
                except foreign() as error:
                    refresher.settle(describe_error(error))
                else:
                    if refresher.failure is not None:
                        refresher.settle(None)
                pause()
        finally:
            leave()


def find_refreshing(sources: "Iterable[Source]", name: str | None = None) -> Refreshing | None:
    """Return what to run before these sources and their descendants are read; None for nothing.

    Inside a refresh it is nothing.

    Args:
        sources: what is read.
        name: the one of their names that is read; None for all.
    """
    if not Refresher.made or is_refreshing():
        return None
    found: dict[Refresher, None] = {}
    reads = [(source, name) for source in sources]
    for source, _ in reads:
        found.update(dict.fromkeys(source._directory.find_refreshers()))
    return Refreshing(found, reads) if found else None


def refresh_all(sources: "Iterable[Source]", name: str | None = None) -> None:
    """Bring these sources and their descendants up to date; return within the deadline."""
    refreshing = find_refreshing(sources, name)
    if refreshing is not None:
        refreshing.run()


# The threads


class _Workers:
    # Daemon threads: one that waits for an answer for ever does not keep the program from ending.

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._idle = 0
        self._wanted: deque[Refresher] = deque()

    def start(self, refresher: Refresher) -> None:
        if call_locked(self._changed, lambda: self._hand_over(refresher)):
            return
        try:
            threading.Thread(target=self._work, name="statsfs-refresh", daemon=True).start()
        except RuntimeError as error:
            if not call_locked(self._changed, lambda: self._take_back(refresher)):
                return  # another thread has it already
            while refresher.finish(f"no thread can be started: {error}"):
                pass

    def _hand_over(self, refresher: Refresher) -> bool:
        # Whether an idle thread will have it.
        self._wanted.append(refresher)
        if self._idle < len(self._wanted):
            return False
        self._changed.notify()
        return True

    def _take_back(self, refresher: Refresher) -> bool:
        if refresher not in self._wanted:
            return False
        self._wanted.remove(refresher)
        return True

    def _work(self) -> None:
        while (refresher := self._next()) is not None:
            refresher.run()
            del refresher  # an idle thread must not keep a source

    def _next(self) -> Refresher | None:
        with self._changed:
            self._idle += 1
            try:
                if not self._wanted:
                    self._changed.wait_for(lambda: self._wanted, _IDLE)
            finally:
                self._idle -= 1
            return self._wanted.popleft() if self._wanted else None


_workers = _Workers()


def _begin_anew_in_child() -> None:
    # The threads are gone, and one of them may have held a lock.
    global _workers, _lock
    _workers = _Workers()
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_begin_anew_in_child)

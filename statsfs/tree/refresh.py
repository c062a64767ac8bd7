"""Refreshes: numbers that must be asked for are asked for before they are read.

Owns who is asked, in which threads, for how long, and what becomes of those that do not answer.
What is asked, and where the answer goes, is the business of each source's `refresh`.

All refreshes of one sample begin at the same time and share one deadline. A source that misses it
is *late*: nobody waits for it again, until it is asked once more in the background and answers. A
refresh that was begun before a reader came may bring numbers from before; so the reader waits for
the next one, which it shares with all who came meanwhile.

Threading: functions and methods may be called from any thread, under no lock of the tree. A refresh
that may take long runs in a daemon thread of ours, of which there are never more than sources that
are being asked; others run in the thread that wants them. A refresh that reads what it refreshes
does not wait for itself.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar, Final

from statsfs.exceptions import UnavailableError

__all__ = ["DEADLINE", "Refresher", "Refreshing", "find_refreshing", "refresh_all"]

log = logging.getLogger(__name__)

DEADLINE: Final = 1.0
"""Seconds that all refreshes of one sample may take together."""

# Refreshes that take no longer than a few microseconds each, and so are made at once.
_FEW: Final = 64
_IDLE: Final = 10.0  # seconds after which a thread that nobody needs ends

# Reentrant, for a signal handler may read a value too. Under it nothing foreign is called.
_lock = threading.RLock()
_inside: Final = threading.local()


class _Run:
    # One call of a refresh, and who waits for its end.
    __slots__ = ("process", "waiting")

    def __init__(self) -> None:
        self.process = os.getpid()  # in a forked child nobody will end it
        self.waiting: list[Refreshing] = []


class Refresher:
    """The refresh of one source, and whether it answers.

    Args:
        source: whose numbers, and those of all below, it brings up to date.
        function: called without arguments; it raises where there are no numbers.
        blocking: whether it may take long.

    Attributes:
        failure: why there are no numbers, or None.
        late: whether nobody waits for it.
    """

    __slots__ = ("_next", "_running", "blocking", "failure", "function", "late", "source")

    made: ClassVar[int] = 0
    """How many there ever were; where there are none, readers need not look for any."""

    def __init__(self, source: Any, function: Callable[[], object], blocking: bool) -> None:
        Refresher.made += 1
        self.source = source
        self.function = function
        self.blocking = blocking
        self.failure: str | None = None
        self.late = False
        self._running: _Run | None = None
        self._next: _Run | None = None

    def check(self) -> None:
        """Raise UnavailableError if there are no numbers."""
        failure = self.failure
        if failure is not None:
            path = self.source.path
            raise UnavailableError(f"{path}: no numbers: {failure}", self.source)

    def ask(self, refreshing: "Refreshing") -> bool:
        """Have it called in a thread; return whether that is to be waited for.

        Args:
            refreshing: who is told of its end.
        """
        with _lock:
            running = self._running
            if running is not None and running.process == os.getpid():
                if self.late:
                    return False
                if self._next is None:
                    self._next = _Run()
                self._next.waiting.append(refreshing)
                return True
            self._running, self._next = _Run(), None
            if not self.late:
                self._running.waiting.append(refreshing)
            waited = not self.late
        # Not under the lock: starting a thread waits for it to be there.
        _start(self)
        return waited

    def run(self) -> None:
        """Call the function, as often as it is wanted meanwhile; in a thread of ours."""
        while True:
            try:
                failure = self.call()
            except BaseException as error:  # what would end this thread must not leave it asked
                failure = repr(error)
            if self._finish(failure) is None:
                return

    def call(self) -> str | None:
        """Call the function; return why it failed, or None."""
        _inside.refresh = True
        try:
            self.function()
        except Exception as error:
            return _describe(error)
        finally:
            _inside.refresh = False
        return None

    def _finish(self, failure: str | None) -> _Run | None:
        # Tells who waits; returns the next run, if one is wanted.
        with _lock:
            done, self._running, self._next = self._running, self._next, None
            before = self._note(failure)
            following = self._running
        assert done is not None
        self._tell(before, failure)
        for refreshing in done.waiting:
            refreshing.finish(self)
        return following

    def fail(self, failure: str) -> None:
        """Note that it cannot even be called, however often that was wanted."""
        list(iter(lambda: self._finish(failure), None))

    def settle(self, failure: str | None) -> None:
        """Note how a call ended."""
        self._tell(self._note(failure), failure)

    def _note(self, failure: str | None) -> str | None:
        # Returns how the call before ended.
        before, self.failure = self.failure, failure
        if failure is None:
            self.late = False
        return before

    def _tell(self, before: str | None, failure: str | None) -> None:
        # Not under our lock: the log's handlers are foreign, and may wait for anything. Of what is
        # in no tree nothing is said: that a VM which ended does not answer is no news.
        if (before is None) is (failure is None) or getattr(self.source, "parent", None) is None:
            return
        if failure is None:
            log.info("%s: there are numbers again", self.source.path)
        else:
            log.warning("%s: no numbers: %s", self.source.path, failure)

    def give_up(self, refreshing: "Refreshing") -> None:
        """Note that it has not answered in time; nobody waits for it any more.

        Args:
            refreshing: whose time is over; nothing happens if it has just been answered.
        """
        with _lock:
            runs = [run for run in (self._running, self._next) if run is not None]
            waiting = [one for run in runs for one in run.waiting]
            if refreshing not in waiting:
                return
            self.late = True
            failure = self.failure or f"no answer within {DEADLINE:g} s"
            before = self._note(failure)
            for run in runs:
                run.waiting = []
            self._next = None
        self._tell(before, failure)
        for one in waiting:
            one.finish(self)


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


_NEVER: Final = threading.Event()


class Refreshing:
    """The refreshes of one sample.

    Args:
        refreshers: what must be asked.
    """

    __slots__ = ("_asked", "_deadline", "_done", "_pending", "_quick", "_when_done")

    def __init__(self, refreshers: Iterable[Refresher]) -> None:
        self._quick: list[Refresher] = []
        self._asked: list[Refresher] = []
        for refresher in refreshers:
            (self._asked if refresher.blocking else self._quick).append(refresher)
        self._deadline = 0.0
        self._pending: set[object] = set()
        self._done = _NEVER  # most never wait, and making one takes microseconds
        self._when_done: Callable[[], object] = _do_nothing

    @property
    def prompt(self) -> bool:
        """Whether `run` would not wait, and take a fraction of a millisecond."""
        return not self._asked and len(self._quick) <= _FEW

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return max(0.0, self._deadline - time.monotonic())

    def run(self) -> None:
        """Ask, and return when all have answered or the time is over."""
        if not self._asked:
            self._call_quick()
            return
        self._begin()
        self._wait_for(self._asked)
        self._call_quick()
        self._done.wait(self.seconds_left)
        self.end()

    def start(self, when_done: Callable[[], object]) -> None:
        """Ask, and return at once; to be followed by `end`.

        Args:
            when_done: called in any thread when all have answered, or in this one.
        """
        self._begin()
        self._when_done = when_done
        batch = Refresher(None, self._call_quick, True) if self._quick else None
        self._wait_for([*self._asked, batch] if batch is not None else self._asked)

    def _call_quick(self) -> None:
        # In line: of a read of thousands of files, two calls each were a tenth.
        _inside.refresh = True
        try:
            for refresher in self._quick:
                try:
                    refresher.function()
                except Exception as error:
                    refresher.settle(_describe(error))
                else:
                    if refresher.failure is not None:
                        refresher.settle(None)
        finally:
            _inside.refresh = False

    def _begin(self) -> None:
        self._done = threading.Event()
        self._deadline = time.monotonic() + DEADLINE

    def _wait_for(self, refreshers: Collection[Refresher]) -> None:
        # Before any is asked: the first may be done before the last is asked.
        self._pending.update(refreshers)
        self._pending.add(self)
        for refresher in refreshers:
            if not refresher.ask(self):
                self.finish(refresher)
        self.finish(self)

    def finish(self, one: object) -> None:
        """Note that one is done."""
        with _lock:
            self._pending.discard(one)
            last = not self._pending and not self._done.is_set()
            if last:
                self._done.set()
        if last:
            self._when_done()

    def end(self) -> None:
        """Give up who has not answered; to be called when all have, or when the time is over."""
        self._when_done = _do_nothing
        with _lock:
            pending = [one for one in self._pending if isinstance(one, Refresher)]
        for refresher in pending:
            if refresher.source is not None:
                refresher.give_up(self)


def _do_nothing() -> None:
    """Nobody is to be told."""


def find_refreshing(sources: Iterable[Any]) -> Refreshing | None:
    """Return what must be asked before these sources and all below are read; None for nothing.

    Inside a refresh it is nothing.
    """
    if not Refresher.made or getattr(_inside, "refresh", False):
        return None
    found: dict[Refresher, None] = {}
    for source in sources:
        found.update(dict.fromkeys(source._directory.find_refreshers()))
    return Refreshing(found) if found else None


def refresh_all(sources: Iterable[Any]) -> None:
    """Bring up to date what these sources and all below show; return within the deadline."""
    refreshing = find_refreshing(sources)
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
        with self._changed:
            self._wanted.append(refresher)
            if self._idle >= len(self._wanted):
                self._changed.notify()
                return
        try:
            threading.Thread(target=self._work, name="statsfs-refresh", daemon=True).start()
        except RuntimeError as error:
            with self._changed:
                if refresher not in self._wanted:
                    return  # another thread has it already
                self._wanted.remove(refresher)
            refresher.fail(f"no thread can be started: {error}")

    def _work(self) -> None:
        while (refresher := self._next()) is not None:
            refresher.run()
            del refresher  # whom nobody has any more is not kept until another is asked

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


def _start(refresher: Refresher) -> None:
    _workers.start(refresher)


def _begin_anew_in_child() -> None:
    # None of the threads are there, and a lock may be held by one of them.
    global _workers, _lock
    _workers = _Workers()
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_begin_anew_in_child)

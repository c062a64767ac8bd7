"""How requests are waited for: a loop of our own in place of pyfuse3's, and the way without it.

Owns the waiting for the FUSE descriptor, and who reads it. pyfuse3 takes Lock and wait_readable
from its module attribute `trio`, which `pyfuse3.asyncio.enable` replaces too; so do we, while we
serve. We rely on these names of pyfuse3: `main`, `trio`, `_session_loop`, `_wait_fuse_readable`.
Where one of the last three is missing, pyfuse3's own loop serves: as well, and slower.

Session tasks read and answer, each in a `pyfuse3.main` of its own, so that one that fails does not
cancel the others. With our loop one of them is the reader, and stays so while no handler has to
wait; one more is parked. A handler that is about to wait calls `hand_over`, and the parked task, or
a new one, reads on. What is then too many ends when it has nothing to do.

The reader looks for a request at once, then looks again for a short while (a client's next request
comes within microseconds, and falling asleep and waking up cost more than serving it), and only
then waits as trio does, which takes no CPU. It looks with the interpreter locked: releasing it
would cost each request a switch interval beside a thread that computes. At the end of each turn it
waits as trio does anyway, so that neither trio's other tasks nor other threads starve.

A client that is killed takes its request back, and a blocking read would stop every thread of the
program until the next one. So the descriptor does not block, and a session task that ends with
EAGAIN begins again; it has lost pyfuse3's receive buffer, 1 MiB of addresses of which a few pages
are used. Our loop makes that rare: it looks just before each read.

Threading: `serve` and `hand_over` run on the serving thread.
"""

import contextlib
import ctypes
import errno
import logging
import os
import select
import stat
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextvars import ContextVar
from typing import Any, Final, cast

import pyfuse3
import trio

__all__ = ["find_descriptors", "hand_over", "serve"]

log = logging.getLogger(__name__)

# By number, whatever its path: containers are given it by another.
_DEVICE: Final = os.makedev(10, 229)

_HOOKS: Final = ("trio", "_session_loop", "_wait_fuse_readable")
# Seconds for which the reader looks for the next request before it waits. Waking a client on
# another CPU takes 50 us and more: with 50 a `pread` there took up to three times as long as with
# 100; 200 gained nothing.
_PATIENCE: Final = 100e-6
# A yield to others on this CPU that took so many seconds was to others than the client, and while
# it lasts nobody has the interpreter; so for so many seconds there is none.
_LATE: Final = 500e-6
_NO_YIELD: Final = 0.1
# Seconds after which trio's other tasks, and other threads, have their turn. With 0.5 ms a 1 ms
# ticker's 99th percentile of lateness beside four hammering clients is 1.9 ms on a busy machine,
# with 1 ms 2.5; waiting as trio does costs as much as one request.
_TURN: Final = 500e-6
# Session tasks at rest, and at most. One more costs pyfuse3's receive buffer, of which a few pages
# are touched; there are never more than handlers that wait at one moment.
_SEATS: Final = 2
_MOST: Final = 256
# pyfuse3 starts and ends no session task of its own: it counts those of all `main`s as one.
_NO_MORE: Final = -(1 << 30)
_NO_FEWER: Final = 1 << 30

_pyfuse3: Final = cast(Any, pyfuse3)


class _Seat:
    # A session task, whatever trio tasks it consists of.

    __slots__ = ("dismissed", "loop", "task")

    def __init__(self, loop: "_Loop") -> None:
        self.loop = loop
        self.task: trio.lowlevel.Task | None = None  # while it is parked
        self.dismissed = False


_seat: Final[ContextVar[_Seat | None]] = ContextVar("statsfs_seat", default=None)


class _Loop:
    # pyfuse3's own loop; its lock passes from one session task to the next.

    # Where two others wait for a request, a session task ends.
    least = _SEATS - 1

    def __init__(self) -> None:
        self._seats = 0
        self._nursery: trio.Nursery | None = None

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in range(_SEATS):
                self._add()

    def _add(self) -> None:
        if self._nursery is not None and self._seats < _MOST:
            self._seats += 1
            self._nursery.start_soon(self._sit, name="statsfs session task")

    @trio.lowlevel.enable_ki_protection
    async def _sit(self) -> None:
        seat = _Seat(self)
        _seat.set(seat)
        done = False
        try:
            while not done:
                try:
                    await pyfuse3.main(min_tasks=self.least, max_tasks=_NO_MORE)
                    done = True
                except* OSError as group:
                    if group.split(_is_again)[1] is not None:
                        raise
                    log.debug("a client took its request back")
        finally:
            self._seats -= 1
            self.left(seat)

    def left(self, seat: _Seat) -> None:
        pass

    def hand_over(self, seat: _Seat) -> None:
        self._add()


class _OwnLoop(_Loop):
    # Ours. It is the lock that pyfuse3 takes around its waiting, too.

    least = _NO_FEWER

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._reader: _Seat | None = None
        self._parked: deque[_Seat] = deque()
        self._ended = False
        self._is_readable = _make_poll(descriptor)
        self._turn_ends = 0.0
        self._may_yield = 0.0

    def left(self, seat: _Seat) -> None:
        if not seat.dismissed:
            self.end()

    def end(self) -> None:
        """Unpark all: the session has ended, or is ending."""
        self._ended = True
        while self._parked:
            self._wake(self._parked.popleft())

    def hand_over(self, seat: _Seat) -> None:
        if self._reader is not seat:
            return
        self._reader = None
        if self._parked:
            self._reader = self._parked.popleft()
            self._wake(self._reader)
        else:
            self._add()

    @staticmethod
    def _wake(seat: _Seat) -> None:
        assert seat.task is not None
        trio.lowlevel.reschedule(seat.task)

    # The lock

    def __aenter__(self) -> Awaitable[None]:
        seat = _seat.get()
        return _NOTHING if self._reader is seat is not None else self._take(seat)

    def __aexit__(self, *error: object) -> Awaitable[None]:
        # The reader goes on reading, unless its handler hands over.
        return _NOTHING

    async def _take(self, seat: _Seat | None) -> None:
        assert seat is not None
        if self._ended:
            raise trio.ClosedResourceError
        if self._reader is None:
            self._reader = seat
            return
        if len(self._parked) >= _SEATS - 1:
            seat.dismissed = True
            raise trio.ClosedResourceError
        await self._park(seat)
        if self._reader is not seat:
            raise trio.ClosedResourceError

    async def _park(self, seat: _Seat) -> None:
        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            self._parked.remove(seat)
            return trio.lowlevel.Abort.SUCCEEDED

        seat.task = trio.lowlevel.current_task()
        self._parked.append(seat)
        await trio.lowlevel.wait_task_rescheduled(abort)

    # The waiting

    async def wait_readable(self, descriptor: int) -> None:
        if time.perf_counter() < self._turn_ends and (self._is_readable() or self._look_again()):
            return
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            # At once before pyfuse3 reads: trio takes a while from the one to the other.
            if self._is_readable():
                break
        self._turn_ends = time.perf_counter() + _TURN

    def _look_again(self) -> bool:
        # Whether a request comes soon. A client on this same CPU needs the CPU to make one.
        now = time.perf_counter()
        until = now + _PATIENCE
        while now < until:
            if now >= self._may_yield:
                _yield_cpu()
                before, now = now, time.perf_counter()
                if now - before > _LATE:
                    self._may_yield = now + _NO_YIELD
            else:
                now = time.perf_counter()
            if self._is_readable():
                return True
        return False

    def notify_closing(self, descriptor: int) -> None:
        trio.lowlevel.notify_closing(descriptor)
        self.end()

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        # What pyfuse3 does with trio goes through us.
        global _replaced
        before = _replaced = _pyfuse3.trio
        lowlevel = _Instead(
            trio.lowlevel, wait_readable=self.wait_readable, notify_closing=self.notify_closing
        )
        _pyfuse3.trio = _Instead(
            trio, Lock=lambda: self, lowlevel=lowlevel, open_nursery=_open_nursery
        )
        try:
            yield
        finally:
            _pyfuse3.trio, _replaced = before, None

    async def serve(self) -> None:
        with self.in_place():
            await super().serve()


class _Nothing:
    # Awaited, it returns at once; a coroutine would have to be made each time.

    def __await__(self) -> Generator[None, None, None]:
        return cast(Any, iter(()))  # type: ignore[no-any-return]


_NOTHING: Final = _Nothing()


class _Instead:
    # A module with some of its names replaced.

    def __init__(self, module: object, **names: object) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@trio.lowlevel.enable_ki_protection
async def _protected(function: Callable[..., Awaitable[None]], *args: object) -> None:
    await function(*args)


@contextlib.asynccontextmanager
async def _open_nursery() -> AsyncIterator[_Instead]:
    # pyfuse3's session task is a child of `main`. Children of a protected task are not protected:
    # Ctrl-C in a trio program would strike in the middle of a handler.
    async with trio.open_nursery() as nursery:

        def start_soon(
            function: Callable[..., Awaitable[None]], *args: object, name: object = None
        ) -> None:
            nursery.start_soon(_protected, function, *args, name=name)

        yield _Instead(nursery, start_soon=start_soon)


# What is to be restored of pyfuse3 in a forked child, which serves nothing.
_replaced: object = None


def _restore_in_child() -> None:
    global _replaced
    if _replaced is not None:
        _pyfuse3.trio, _replaced = _replaced, None


os.register_at_fork(after_in_child=_restore_in_child)


class _PollFd(ctypes.Structure):
    _fields_ = (
        ("descriptor", ctypes.c_int),
        ("wanted", ctypes.c_short),
        ("found", ctypes.c_short),
    )


# Neither lets other threads have the interpreter, as select.poll and os.sched_yield would.
_poll: Final = ctypes.PyDLL(None).poll
_yield_cpu: Final = ctypes.PyDLL(None).sched_yield


def _make_poll(descriptor: int) -> Callable[[], bool]:
    polled = ctypes.byref(_PollFd(descriptor, select.POLLIN))

    def is_readable() -> bool:
        return _poll(polled, 1, 0) > 0  # type: ignore[no-any-return]  # an int

    return is_readable


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


def _choose(descriptor: int) -> _Loop:
    missing = [name for name in _HOOKS if not hasattr(pyfuse3, name)]
    if not missing:
        return _OwnLoop(descriptor)
    log.warning("pyfuse3 has no %s: its own loop serves, which is slower", ", ".join(missing))
    return _Loop()


async def serve(descriptor: int) -> None:
    """Answer requests until the session is terminated or unmounted.

    Args:
        descriptor: the session's, on /dev/fuse.

    Raises:
        OSError: reading failed in a way that serving cannot survive; in an exception group.
    """
    os.set_blocking(descriptor, False)
    await _choose(descriptor).serve()


def hand_over() -> None:
    """Let another session task read requests; a handler calls it before it waits for anything.

    Without it nobody is served until the handler is done. It does nothing outside a handler, nor
    when a handler calls it again.
    """
    seat = _seat.get()
    if seat is not None:
        seat.loop.hand_over(seat)

"""How requests are waited for: a loop of our own in place of pyfuse3's.

Owns the waiting for the FUSE descriptor, and the choice of the task that reads it. While it serves,
the loop replaces `pyfuse3._wait_fuse_readable`, and wraps `pyfuse3._session_loop`, which `main`
starts. With a pyfuse3 that lacks one of these names, pyfuse3's own loop serves, more slowly.

Session tasks read and answer requests, each in a `pyfuse3.main` of its own, so that the failure of
one does not cancel the others. With our loop one of them is the reader, and stays the reader while
no handler waits; one more is parked. Before a handler waits, the parked task, or a new one,
becomes the reader. Surplus tasks end when they have no request to answer.

The reader polls for a request, polls again for a short while (the next request of a client comes
within microseconds, and sleeping and waking up cost more than serving it), and only then waits
through trio, which takes no CPU. It polls without releasing the interpreter: beside a thread that
computes, a release would cost each request a switch interval. At the end of each turn it waits
through trio even if there are requests, so that trio's other tasks and other threads have theirs.

When a client is killed, the kernel takes its request back; a blocking read would then stop all
threads of the program until the next request. So the descriptor does not block, and a session task
that ends with EAGAIN starts again. It has lost pyfuse3's receive buffer, 1 MiB of addresses of
which a few pages are used. Our loop makes that rare, as it polls just before each read.

Threading: all of this runs on the serving thread.
"""

import ctypes
import errno
import logging
import os
import select
import stat
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from math import inf
from time import perf_counter
from typing import Final

import pyfuse3
import trio

from statsfs.model.foreign import call_foreign

__all__ = ["WAITING_MAX", "Loop", "find_descriptors", "make_loop", "run_in_thread", "wait"]

log = logging.getLogger(__name__)

# The device's number: containers may have it under another path.
_DEVICE: Final = os.makedev(10, 229)

_HOOKS: Final = ("_session_loop", "_wait_fuse_readable")
# Seconds for which the reader polls before it waits. Waking a client on another CPU takes 50 us and
# more: with 50 a `pread` there took up to three times as long as with 100; 200 gained nothing.
_PATIENCE: Final = 100e-6
# A yield of the CPU that took so many seconds went to others than the client, and during it no
# thread has the interpreter; so for so many seconds the CPU is not yielded again.
_LATE: Final = 500e-6
_NO_YIELD: Final = 0.1
# Seconds after which trio's other tasks, and other threads, have their turn. With 0.5 ms a 1 ms
# ticker's 99th percentile of lateness beside four hammering clients is 1.9 ms on a busy machine,
# with 1 ms 2.5; waiting through trio costs as much as one request.
_TURN: Final = 500e-6
# Session tasks at rest. One more costs pyfuse3's receive buffer, of which a few pages are touched.
_TASKS: Final = 2

WAITING_MAX: Final = 512
"""How many handlers may wait at one moment; with more nobody would read requests any more."""

_TASKS_MAX: Final = WAITING_MAX + _TASKS
# pyfuse3 counts the tasks of all `main`s as those of one, so it must start and end none itself.
_NO_MORE: Final = -(1 << 30)
_NO_FEWER: Final = 1 << 30


@dataclass(slots=True, eq=False)
class _SessionTask:
    # One `pyfuse3.main`, restarts included.
    loop: "Loop"
    surplus: bool = False


_current: Final[ContextVar[_SessionTask]] = ContextVar("statsfs_session_task")


class Loop:
    """pyfuse3's own loop; its lock passes from one session task to the next."""

    # Where two others wait for a request, a session task ends.
    _least = _TASKS - 1

    def __init__(self) -> None:
        self.ended = False
        self.waiting: set[trio.CancelScope] = set()  # those of handlers that wait
        self._tasks = 0
        self._nursery: trio.Nursery | None = None

    async def serve(self) -> None:
        """Answer requests until the session ends; raise an exception group if reading fails."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in range(_TASKS):
                self._add()

    def terminate(self) -> None:
        """Have `serve` return; handlers that wait end at once."""
        self._end()
        pyfuse3.terminate()

    def _end(self) -> None:
        # The session has ended, or is ending.
        self.ended = True
        for scope in self.waiting:
            scope.cancel()

    def _add(self) -> None:
        if self._nursery is not None and self._tasks < _TASKS_MAX:
            self._tasks += 1
            self._nursery.start_soon(self._run_task, name="statsfs session task")

    @trio.lowlevel.enable_ki_protection
    async def _run_task(self) -> None:
        task, done = _SessionTask(self), False
        _current.set(task)
        try:
            while not done:
                try:
                    await pyfuse3.main(min_tasks=self._least, max_tasks=_NO_MORE)
                    done = True
                except* OSError as group:
                    if group.split(_is_again)[1] is not None:
                        raise
                    log.debug("a client took its request back")
        finally:
            self._tasks -= 1
            self._left(task)

    def _left(self, task: _SessionTask) -> None:
        pass

    def hand_over(self, task: _SessionTask) -> None:
        """Have requests read while the handler of a session task waits."""
        self._add()


class _OwnLoop(Loop):
    # Ours: it waits in place of pyfuse3.

    _least = _NO_FEWER

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._reader: _SessionTask | None = None
        self._parked: deque[tuple[_SessionTask, trio.lowlevel.Task]] = deque()
        self._descriptor = descriptor
        # A struct pollfd: the descriptor, what is asked for, what is found.
        asked = struct.pack("=ihh", descriptor, select.POLLIN, 0)
        self._polled = ctypes.create_string_buffer(asked)
        self._turn_ends = 0.0
        self._may_yield = 0.0

    async def serve(self) -> None:
        session_loop: Callable[..., Awaitable[None]] = vars(pyfuse3)["_session_loop"]

        # The session loop is a child of `main`, and children of a protected task are not protected:
        # Ctrl-C in a trio program would strike in the middle of a handler.
        @trio.lowlevel.enable_ki_protection
        async def protected(*args: object) -> None:
            await session_loop(*args)

        _replace(_session_loop=protected, _wait_fuse_readable=self._wait)
        try:
            await super().serve()
        finally:
            _restore()

    def _left(self, task: _SessionTask) -> None:
        if not task.surplus:
            self._end()

    def _end(self) -> None:
        super()._end()
        while self._parked:
            trio.lowlevel.reschedule(self._parked.popleft()[1])

    def hand_over(self, task: _SessionTask) -> None:
        if self._reader is not task:
            return
        self._reader = None
        if self._parked:
            self._reader, parked = self._parked.popleft()
            trio.lowlevel.reschedule(parked)
        else:
            self._add()

    async def _wait(self) -> bool:
        # Waits for a request, in place of pyfuse3; False if the session task is to end.
        task = _current.get()
        if self._reader is task:
            # In line, as each request comes here.
            if perf_counter() < self._turn_ends and (
                _poll(self._polled, 1, 0) > 0 or self._look_again()
            ):
                return True
        elif not await self._become_reader(task):
            return False
        try:
            # The end may have been announced after trio found the descriptor readable.
            while not self.ended:
                await trio.lowlevel.wait_readable(self._descriptor)
                # Just before pyfuse3 reads: trio takes a while to get here, and the request may
                # have been taken back meanwhile.
                if self._is_readable():
                    self._turn_ends = perf_counter() + _TURN
                    return True
        except trio.ClosedResourceError:
            pass
        return False

    def _is_readable(self) -> bool:
        return _poll(self._polled, 1, 0) > 0

    def _look_again(self) -> bool:
        # Whether a request comes soon. A client on this same CPU needs the CPU to make one.
        now = perf_counter()
        until = now + _PATIENCE
        while now < until:
            if now >= self._may_yield:
                _yield_cpu()
                before, now = now, perf_counter()
                if now - before > _LATE:
                    self._may_yield = now + _NO_YIELD
            else:
                now = perf_counter()
            if self._is_readable():
                return True
        return False

    async def _become_reader(self, task: _SessionTask) -> bool:
        # Parks until the task is the reader; False if it is to end.
        if self.ended:
            return False
        if self._reader is None:
            self._reader = task
        elif len(self._parked) < _TASKS - 1:
            await self._park(task)
        else:
            task.surplus = True
        return self._reader is task

    async def _park(self, task: _SessionTask) -> None:
        parked = (task, trio.lowlevel.current_task())

        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            self._parked.remove(parked)
            return trio.lowlevel.Abort.SUCCEEDED

        self._parked.append(parked)
        await trio.lowlevel.wait_task_rescheduled(abort)


# What is replaced in pyfuse3, by name. A forked child serves nothing.
_originals: Final[dict[str, object]] = {}


def _replace(**names: object) -> None:
    for name, new in names.items():
        _originals[name] = getattr(pyfuse3, name)
        setattr(pyfuse3, name, new)


def _restore() -> None:
    while _originals:
        setattr(pyfuse3, *_originals.popitem())


os.register_at_fork(after_in_child=_restore)


# Neither lets other threads have the interpreter, as select.poll and os.sched_yield would.
_poll: Final[Callable[..., int]] = ctypes.PyDLL(None).poll
_yield_cpu: Final = ctypes.PyDLL(None).sched_yield


def _is_news(record: logging.LogRecord) -> bool:
    # A detached mount ends with the release of its last file, before the answer to that is sent:
    # nobody waits for the answer, and the kernel has dropped the request.
    late = str(record.msg).startswith(("fuse_release()", "fuse_releasedir()"))
    return not (late and record.args == (os.strerror(errno.ENOENT),))


logging.getLogger("pyfuse3").addFilter(_is_news)


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


def make_loop(descriptor: int) -> Loop:
    """Return the loop for a session's descriptor on /dev/fuse, which does not block from now on."""
    os.set_blocking(descriptor, False)
    missing = [name for name in _HOOKS if not hasattr(pyfuse3, name)]
    if not missing:
        return _OwnLoop(descriptor)
    log.warning("pyfuse3 has no %s: its own loop serves, which is slower", ", ".join(missing))
    return Loop()


async def run_in_thread(
    function: Callable[[], object], limiter: trio.CapacityLimiter, seconds: float = inf
) -> bool:
    """Run a function in a thread, in a handler, as `wait` does; it may run on afterwards."""
    run = partial(trio.to_thread.run_sync, abandon_on_cancel=True, limiter=limiter)
    return await wait(partial(run, call_foreign, function), seconds)


async def wait(waiting: Callable[[], Awaitable[object]], seconds: float = inf) -> bool:
    """Wait for something in a handler, at most so long; other requests are answered meanwhile.

    Return False if serving ended meanwhile, and the handler must too.
    """
    task = _current.get()
    loop = task.loop
    loop.hand_over(task)
    with trio.move_on_after(seconds) as scope:
        loop.waiting.add(scope)
        try:
            if loop.ended:
                scope.cancel()
            await waiting()
        finally:
            loop.waiting.discard(scope)
    return not (scope.cancelled_caught and loop.ended)

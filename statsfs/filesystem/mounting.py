"""Mounting: `mount` for any program, `mounted` for trio programs.

Owns the session: what is checked before, the serving thread, the end, and what a fork or a death
leaves behind. Handlers are those of `fuse`, invalidations those of `invalidator`, waiting that of
`loop`.

Threading: pyfuse3 has one session per process, and so have we. `mount` serves from a daemon thread
with a trio loop of its own; `mounted` serves from the program's trio loop. The session is closed on
the thread that served it, or libfuse leaks that thread's pipes.

pyfuse3 and trio are imported when something is mounted, so that counting works without them.
"""

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from statsfs.closings import Closing
from statsfs.exceptions import MountError
from statsfs.filesystem.mountpoints import (
    find_device,
    lock_mountpoint,
    make_mountpoint,
    prepare_mountpoint,
    remove_mountpoint,
    resolve_mountpoint,
)
from statsfs.filesystem.switching import Switching
from statsfs.filesystem.vfs import Vfs
from statsfs.filesystem.watcher import Watcher
from statsfs.tree.registry import Registry

if TYPE_CHECKING:
    import trio

__all__ = ["Mount", "mount", "mounted"]

log = logging.getLogger(__name__)

_INSTALL: Final = (
    "mounting needs pyfuse3: apt install fuse3 libfuse3-dev pkg-config gcc python3-dev, "
    "then pip install 'statsfs[fuse]'"
)

_session_lock: Final = threading.Lock()
_session: "_Session | None" = None


class _Session:
    # The one session of the process, from the checks before to the unmounting.

    def __init__(
        self,
        registry: Registry,
        mountpoint: str | os.PathLike[str],
        uid: int | None,
        gid: int | None,
        allow_other: bool | None,
        create: bool,
        switch_interval: float | None,
        root: str | None,
    ) -> None:
        self._pyfuse3, self._fuse, self._invalidator, self._loop = _import_fuse(mountpoint)
        if not isinstance(registry, Registry):
            raise TypeError(f"not a Registry: {registry!r}")
        self.mountpoint = resolve_mountpoint(mountpoint)
        self._owner = (
            _check_id(self.mountpoint, "uid", os.geteuid() if uid is None else uid),
            _check_id(self.mountpoint, "gid", os.getegid() if gid is None else gid),
        )
        self._allow_other = os.geteuid() == 0 if allow_other is None else allow_other
        self._switching = Switching(self.mountpoint, switch_interval)
        self.root = _check_root(self.mountpoint, registry, root)
        self._pid = os.getpid()
        self._registry = registry
        self.done = threading.Event()
        self.serving = threading.Event()
        self._begun = threading.Lock()  # taken by the thread that serves, or when none is to
        self.server: threading.Thread | None = None
        self._thread: int | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._before: set[int] | None = None
        self.open = False
        self.failure: BaseException | None = None
        self._mounted = False
        self._device: str | None = None
        self._undo = contextlib.ExitStack()
        self._claim()
        try:
            self._mount(self._undo, create)
        except BaseException as error:
            self._undo.close()
            if isinstance(error, MountError) or not isinstance(error, OSError):
                raise
            raise MountError(
                f"{self.mountpoint}: {error.strerror}", self.mountpoint, error.errno
            ) from error

    def _mount(self, undo: contextlib.ExitStack, create: bool) -> None:
        undo.callback(self._unclaim)
        created = make_mountpoint(self.mountpoint) if create else []
        undo.callback(remove_mountpoint, created)
        self._switching.begin()
        undo.callback(self._switching.end)
        # A watcher that is just clearing a dead mount here must not clear ours.
        with lock_mountpoint(self.mountpoint):
            prepare_mountpoint(self.mountpoint, allow_other=self._allow_other)
            self._vfs = Vfs(self._registry, top=self.root, owner=self._owner)
            handlers = self._fuse.Handlers(self._vfs)
            # pyfuse3 keeps the handlers until the next mount.
            undo.callback(handlers.detach)
            self.invalidator = self._invalidator.Invalidator(self._vfs)
            self._registry.add_listener(self.invalidator)
            undo.callback(self._registry.remove_listener, self.invalidator)
            undo.callback(self._vfs.close_all)
            self._watcher = Watcher(self.mountpoint)
            undo.callback(self._watcher.close)
            # Before the watcher is ended: it would wait for a mount that nobody serves.
            undo.callback(self._unmount)
            self._init(handlers)

    def _claim(self) -> None:
        global _session
        with _session_lock:
            if _session is not None:
                raise MountError(
                    f"{self.mountpoint}: this process has a mount already, at "
                    f"{_session.mountpoint}; close it first, or mount from another process",
                    self.mountpoint,
                )
            _session = self

    def _unclaim(self) -> None:
        global _session
        with _session_lock:
            _session = None

    def _init(self, handlers: object) -> None:
        options = {*self._pyfuse3.default_options, "fsname=statsfs", "subtype=statsfs", "noexec"}
        if self._allow_other:
            options.add("allow_other")
        self._before = self._loop.find_descriptors()
        # Before, not after: Ctrl-C may strike as soon as it is mounted.
        self._mounted = True
        try:
            self._pyfuse3.init(handlers, self.mountpoint, options)
        except RuntimeError as error:
            self._mounted = False
            self._pyfuse3.close(unmount=False)
            raise MountError(
                f"{self.mountpoint}: the mount was refused; mounting needs root, or the rights "
                "that fusermount3 asks for (its message is above)",
                self.mountpoint,
            ) from error
        self._descriptor = (self._loop.find_descriptors() - self._before).pop()
        self._requests = self._loop.make_loop(self._descriptor)
        self._device = find_device(self.mountpoint)
        self.open = True
        self.invalidator.start()

    def _unmount(self) -> None:
        if self._mounted:
            self._mounted = self.open = False
            self._pyfuse3.close(unmount=self._is_ours())

    def serve_here(self) -> None:
        """Say that this thread is the one that serves, or will."""
        self.begin()
        self._thread = threading.get_ident()
        self.invalidator.serve_from(self._thread, self._descriptor)

    def begin(self) -> bool:
        """Say that a thread is about to serve; False if that was called off."""
        return self._begun.acquire(blocking=False)

    def call_off(self) -> None:
        """End a session for which a thread may have been started, or not."""
        if self._begun.acquire(blocking=False):
            self.server = None
            self.finish()
        else:
            self.close()

    async def serve(self) -> None:
        """Serve until the session ends; then close it, on this same thread."""
        import trio

        self._token = trio.lowlevel.current_trio_token()
        self.serve_here()
        self.serving.set()
        try:
            await self._requests.serve()
        except Exception:
            log.exception("%s: serving failed", self.mountpoint)
        finally:
            self.finish()

    def finish(self) -> None:
        """Unmount; on the thread that served, or where none could."""
        if not self.open:
            return
        try:
            # Whatever is still being sent ends by itself: nobody serves a mount that is gone, and
            # one that is stopped by us was quiet before.
            self.invalidator.stop()
            self._unmount()
            self._undo.close()
        finally:
            self.done.set()

    def _is_ours(self) -> bool:
        # libfuse would unmount whatever is there by now.
        try:
            return self._device is None or find_device(self.mountpoint) == self._device
        except OSError:  # the program has no descriptor left to look with
            return True

    def terminate(self) -> None:
        """Make `serve` return; on the serving thread."""
        if self.open:
            self._requests.terminate()

    def close(self) -> None:
        """End the session from another thread than the serving one; return when it is unmounted."""
        if os.getpid() != self._pid or self.done.is_set():
            return
        if threading.get_ident() == self._thread:
            raise RuntimeError(
                f"{self.mountpoint}: close() would wait for the thread that calls it; leave the "
                "`async with` block instead, or call it in trio.to_thread.run_sync"
            )
        self.serving.wait()
        # While the loop still answers: an invalidation may wait for an answer.
        self.invalidator.stop()
        if self._token is not None:
            import trio

            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.terminate)
        self.done.wait()
        if self.server is not None:
            # It is at its end; until then it would keep the tree alive.
            self.server.join()

    def disown(self) -> None:
        """Let go of the mount in a forked child, which would keep a dead server's mount alive."""
        if self._before is None:
            return
        self.open = False
        for descriptor in self._loop.find_descriptors() - self._before:
            os.close(descriptor)
        self._watcher.disown()
        self._switching.end()
        self._registry.remove_listener(self.invalidator)
        self.done.set()


def _import_fuse(mountpoint: object) -> tuple[Any, Any, Any, Any]:
    try:
        import pyfuse3
        import trio  # noqa: F401  # whether it is there

        from statsfs.filesystem import fuse_handlers, invalidator, request_loop
    except ImportError as error:
        raise MountError(_INSTALL, mountpoint) from error
    return pyfuse3, fuse_handlers, invalidator, request_loop


def _check_id(mountpoint: str, what: str, number: object) -> int:
    # The highest is how the kernel says "none".
    if not isinstance(number, int) or not 0 <= number < 0xFFFFFFFF:
        raise MountError(f"{mountpoint}: {what} {number!r} is not one that a user has", mountpoint)
    return number


def _check_root(mountpoint: str, registry: Registry, name: str | None) -> str | None:
    shown = [source.name for source in registry.sources if not source.hidden]
    if name is not None and name not in shown:
        raise MountError(
            f"{mountpoint}: no source {name!r} is registered that could be the root; "
            f"there is {', '.join(map(repr, shown)) or 'none'}",
            mountpoint,
        )
    return name


def _disown_in_child() -> None:
    global _session, _session_lock
    session, _session = _session, None
    _session_lock = threading.Lock()  # type: ignore[misc]  # its owner is not in this process
    if session is not None:
        session.disown()


def _close_at_exit() -> None:
    if _session is not None and _session.open:
        _session.call_off()


os.register_at_fork(after_in_child=_disown_in_child)
atexit.register(_close_at_exit)


class Mount(Closing):
    """A live mount; a context manager that unmounts at its end.

    Attributes:
        mountpoint: where it is, as an absolute path.
        root: the name of the one source that is the root, or None.
    """

    def __init__(self, session: _Session) -> None:
        self._session = session
        self.mountpoint: Final = session.mountpoint
        self.root: Final = session.root

    def __repr__(self) -> str:
        return f"<Mount {self.mountpoint!r}{' closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether it is unmounted, by `close` or by somebody else."""
        return self._session.done.is_set()

    def close(self) -> None:
        """Unmount, and return when that is done; once more does nothing.

        Files that clients hold open answer ENOTCONN from then on.

        Raises:
            RuntimeError: this is the thread that serves (the trio thread, for `mounted`).
        """
        self._session.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is unmounted, by `close` or by somebody else.

        Args:
            timeout: seconds to wait at most; None for ever.

        Returns:
            Whether it is unmounted.
        """
        return self._session.done.wait(timeout)


def mount(
    registry: Registry,
    mountpoint: str | os.PathLike[str],
    *,
    uid: int | None = None,
    gid: int | None = None,
    allow_other: bool | None = None,
    create: bool = False,
    switch_interval: float | None = None,
    root: str | None = None,
) -> Mount:
    """Mount a registry, and serve it from a background thread.

    It is mounted when this returns; use the result as a context manager, or close it. At the end of
    the program it is closed by itself. A program must not read its own mount from a thread that
    holds the interpreter without releasing it; ordinary reads are fine.

    Args:
        registry: what the root shows.
        mountpoint: an empty directory; or one of a debugfs.
        uid, gid: who owns what is in no source with an `owner`; by default the user that this
            process runs as.
        allow_other: whether other users may look; by default only if this process is root's.
        create: make the directory if it is not there, and remove it afterwards.
        switch_interval: seconds, for `sys.setswitchinterval` while it is mounted; None leaves it.
            Beside a thread that computes in Python, a reader waits about one switch interval for a
            whole `cat`: 6 ms at the median with Python's default of 5 ms, 2 with 0.001. It is the
            whole process's, and has its price: two threads that compute got 10 % less done.
        root: the name of a top-level source that is mounted as the root, in place of all of them.
            The root is empty while none of that name is registered. It has no files but those of
            one integer, and that a name is not there may be kept by the kernel for a second.

    Raises:
        MountError: it is refused; the message is one line that says what to do.
    """
    session = _Session(registry, mountpoint, uid, gid, allow_other, create, switch_interval, root)
    server = threading.Thread(
        target=_serve_session, args=(session,), name="statsfs-serve", daemon=True
    )
    session.server = server
    try:
        server.start()
        session.serving.wait()
    except RuntimeError as error:
        session.call_off()
        raise MountError(
            f"{session.mountpoint}: no thread can be started: {error}", session.mountpoint
        ) from error
    except BaseException:
        # Ctrl-C, of which nobody can say whether the thread had been started.
        session.call_off()
        raise
    if session.failure is not None:
        raise MountError(
            f"{session.mountpoint}: cannot serve: {session.failure}", session.mountpoint
        ) from session.failure
    return Mount(session)


def _serve_session(session: _Session) -> None:
    if not session.begin():
        return
    try:
        import trio

        trio.run(session.serve)
    except BaseException as error:
        log.debug("%s: serving ended", session.mountpoint, exc_info=True)
        session.failure = error
    finally:
        session.finish()
        session.serving.set()


@asynccontextmanager
async def mounted(
    registry: Registry,
    mountpoint: str | os.PathLike[str],
    *,
    uid: int | None = None,
    gid: int | None = None,
    allow_other: bool | None = None,
    create: bool = False,
    switch_interval: float | None = None,
    root: str | None = None,
) -> AsyncIterator[Mount]:
    """Mount a registry, and serve it from the trio program that calls.

    ::

        async with mounted(registry, "/run/stats"):
            await work()

    The arguments and errors are those of `mount`. The program must not read its own mount from the
    trio thread: it would wait for itself. `trio.to_thread.run_sync` may.
    """
    _check_trio(mountpoint)
    session = _Session(registry, mountpoint, uid, gid, allow_other, create, switch_interval, root)
    import trio

    session.serve_here()
    served = trio.Event()

    async def serve() -> None:
        try:
            await session.serve()
        finally:
            served.set()

    try:
        # A system task: what the body raises is not wrapped in an exception group, and Ctrl-C does
        # not strike in the middle of a handler.
        trio.lowlevel.spawn_system_task(serve, name="statsfs")
    except BaseException:
        session.finish()
        raise
    try:
        yield Mount(session)
    finally:
        with trio.CancelScope(shield=True):
            # An invalidation may wait for an answer, which only this thread can give.
            await trio.to_thread.run_sync(session.invalidator.stop)
            session.terminate()
            await served.wait()


def _check_trio(mountpoint: str | os.PathLike[str]) -> None:
    _import_fuse(mountpoint)
    import trio

    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError as error:
        raise MountError(
            f"{mountpoint}: mounted() is for trio programs; use mount() in this one", mountpoint
        ) from error

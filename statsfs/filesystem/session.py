"""Session: the one FUSE session of the process, from the checks before the mount to the unmount.

Owns pyfuse3's session: how it begins, which thread serves it, how it ends, and what becomes of it
in a forked child. Imported when something is mounted, as it needs pyfuse3 and trio.

Threading: pyfuse3 has one session per process, so there is one `Session` at a time. It is served by
a daemon thread with a trio loop of its own, or by the program's trio loop. It is closed on the
thread that served it, or libfuse leaks that thread's pipes.
"""

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator
from typing import Final

import pyfuse3
import trio

from statsfs.exceptions import MountError
from statsfs.filesystem.fuse_handlers import Handlers
from statsfs.filesystem.invalidator import Invalidator
from statsfs.filesystem.mount_options import MountOptions
from statsfs.filesystem.mountpoints import (
    find_device,
    lock_mountpoint,
    make_mountpoint,
    prepare_mountpoint,
    remove_mountpoint,
    resolve_mountpoint,
)
from statsfs.filesystem.request_loop import find_descriptors, make_loop
from statsfs.filesystem.switching import Switching
from statsfs.filesystem.vfs import Vfs
from statsfs.filesystem.watcher import Watcher
from statsfs.tree.registry import Registry

__all__ = ["Session", "serve_in_thread", "serve_in_trio"]

log = logging.getLogger(__name__)

_lock: Final = threading.Lock()
_current: "Session | None" = None


class Session:
    """A mount, with what serves it; mounted when this returns, and not served yet.

    Args:
        registry, mountpoint: as for `mount`.
        options: how to mount.

    Attributes:
        mountpoint: where it is, as an absolute path.
        root: the name of the one source that is the root, or None.
        done: set when it is unmounted.
        serving: set when it is served, or will never be.
        failure: why it cannot be served.

    Raises:
        MountError: it is refused; nothing is mounted, and nothing is left.
    """

    def __init__(
        self, registry: Registry, mountpoint: str | os.PathLike[str], options: MountOptions
    ) -> None:
        if not isinstance(registry, Registry):
            raise TypeError(f"not a Registry: {registry!r}")
        self.mountpoint: Final = resolve_mountpoint(mountpoint)
        options.check(self.mountpoint)
        self.root: Final = options.root
        _check_root(self.mountpoint, registry, options.root)
        self._pid = os.getpid()
        self._registry = registry
        self._switching = Switching(options.switch_interval)
        self.done: Final = threading.Event()
        self.serving: Final = threading.Event()
        self.failure: BaseException | None = None
        self._begun = threading.Lock()  # taken by the thread that serves, or when none is to
        self._server: threading.Thread | None = None
        self._thread: int | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._before: set[int] | None = None
        self._open = False
        self._mounted = False
        self._device: str | None = None
        self._undo = contextlib.ExitStack()
        self._claim()
        try:
            self._mount(self._undo, options)
        except BaseException as error:
            self._undo.close()
            if isinstance(error, MountError) or not isinstance(error, OSError):
                raise
            raise MountError(
                f"{self.mountpoint}: {error.strerror}", self.mountpoint, error.errno
            ) from error

    # The beginning

    def _claim(self) -> None:
        global _current
        with _lock:
            if _current is not None:
                raise MountError(
                    f"{self.mountpoint}: this process has a mount already, at "
                    f"{_current.mountpoint}; close it first, or mount from another process",
                    self.mountpoint,
                )
            _current = self

    def _unclaim(self) -> None:
        global _current
        with _lock:
            _current = None

    def _mount(self, undo: contextlib.ExitStack, options: MountOptions) -> None:
        undo.callback(self._unclaim)
        created = make_mountpoint(self.mountpoint) if options.create else []
        undo.callback(remove_mountpoint, created)
        self._switching.begin()
        undo.callback(self._switching.end)
        # A watcher that is just clearing a dead mount here must not clear ours.
        with lock_mountpoint(self.mountpoint):
            prepare_mountpoint(self.mountpoint, allow_other=options.lets_others_in)
            self._vfs = Vfs(self._registry, top=self.root, owner=options.owner)
            handlers = Handlers(self._vfs)
            # pyfuse3 keeps the handlers until the next mount.
            undo.callback(handlers.detach)
            self._invalidator = Invalidator(self._vfs)
            self._registry.add_listener(self._invalidator)
            undo.callback(self._registry.remove_listener, self._invalidator)
            undo.callback(self._vfs.close_all)
            self._watcher = Watcher(self.mountpoint)
            undo.callback(self._watcher.close)
            # Before the watcher ends: it would wait for a mount that is not served any more.
            undo.callback(self._unmount)
            self._init(handlers, options.lets_others_in)

    def _init(self, handlers: Handlers, allow_other: bool) -> None:
        options = {*pyfuse3.default_options, "fsname=statsfs", "subtype=statsfs", "noexec"}
        if allow_other:
            options.add("allow_other")
        self._before = find_descriptors()
        # Before, not after: Ctrl-C may strike as soon as it is mounted.
        self._mounted = True
        try:
            pyfuse3.init(handlers, self.mountpoint, options)
        except RuntimeError as error:
            self._mounted = False
            pyfuse3.close(unmount=False)
            raise MountError(
                f"{self.mountpoint}: the mount was refused; mounting needs root, or the rights "
                "that fusermount3 asks for (its message is above)",
                self.mountpoint,
            ) from error
        self._descriptor = (find_descriptors() - self._before).pop()
        self._loop = make_loop(self._descriptor)
        self._device = find_device(self.mountpoint)
        self._open = True
        self._invalidator.start()

    # Serving

    def start(self) -> None:
        """Serve from a daemon thread; return when it serves.

        Raises:
            MountError: no thread or no event loop can be started; it is unmounted again.
        """
        self._server = threading.Thread(target=self._run, name="statsfs-serve", daemon=True)
        try:
            self._server.start()
            self.serving.wait()
        except RuntimeError as error:
            self.call_off()
            raise MountError(
                f"{self.mountpoint}: no thread can be started: {error}", self.mountpoint
            ) from error
        except BaseException:
            # Ctrl-C; the thread may have been started, or not.
            self.call_off()
            raise
        if self.failure is not None:
            raise MountError(
                f"{self.mountpoint}: cannot serve: {self.failure}", self.mountpoint
            ) from self.failure

    def _run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        try:
            trio.run(self.serve)
        except BaseException as error:
            log.debug("%s: serving ended", self.mountpoint, exc_info=True)
            self.failure = error
        finally:
            self.finish()
            self.serving.set()

    def call_off(self) -> None:
        """End a session for which a thread may have been started, or not."""
        if self._begun.acquire(blocking=False):
            self._server = None
            self.finish()
        else:
            self.close()

    def serve_here(self) -> None:
        """Say that this thread is the one that serves, or will."""
        self._begun.acquire(blocking=False)
        self._thread = threading.get_ident()
        self._invalidator.serve_from(self._thread, self._descriptor)

    async def serve(self) -> None:
        """Serve until the session ends; then close it, on this same thread."""
        self._token = trio.lowlevel.current_trio_token()
        self.serve_here()
        self.serving.set()
        try:
            await self._loop.serve()
        except Exception:
            log.exception("%s: serving failed", self.mountpoint)
        finally:
            self.finish()

    # The end

    def stop_invalidating(self) -> None:
        """Send no more invalidations; to be called while the loop still answers.

        An invalidation may wait for an answer, so not on the serving thread.
        """
        self._invalidator.stop()

    def terminate(self) -> None:
        """Make `serve` return; on the serving thread."""
        if self._open:
            self._loop.terminate()

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
        self.stop_invalidating()
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.terminate)
        self.done.wait()
        if self._server is not None:
            # It is at its end; until then it would keep the tree alive.
            self._server.join()

    def finish(self) -> None:
        """Unmount; on the thread that served, or where none could."""
        if not self._open:
            return
        try:
            # An invalidation that is being sent ends by itself: a mount that has ended answers
            # none, and before a mount that we end all were sent.
            self._invalidator.stop()
            self._unmount()
            self._undo.close()
        finally:
            self.done.set()

    def _unmount(self) -> None:
        if self._mounted:
            self._mounted = self._open = False
            pyfuse3.close(unmount=self._is_ours())

    def _is_ours(self) -> bool:
        # libfuse would unmount whatever is there by now.
        try:
            return self._device is None or find_device(self.mountpoint) == self._device
        except OSError:  # the program has no descriptor left to look with
            return True

    def disown(self) -> None:
        """Let go of the mount in a forked child, which would keep a dead server's mount alive."""
        if self._before is None:
            return
        self._open = False
        for descriptor in find_descriptors() - self._before:
            os.close(descriptor)
        self._watcher.disown()
        self._switching.end()
        self._registry.remove_listener(self._invalidator)
        self.done.set()


def _check_root(mountpoint: str, registry: Registry, name: str | None) -> None:
    shown = [source.name for source in registry.sources if not source.hidden]
    if name is not None and name not in shown:
        raise MountError(
            f"{mountpoint}: no source {name!r} is registered that could be the root; "
            f"there is {', '.join(map(repr, shown)) or 'none'}",
            mountpoint,
        )


def serve_in_thread(
    registry: Registry, mountpoint: str | os.PathLike[str], options: MountOptions
) -> Session:
    """Mount, and serve from a thread of our own; raises as `Session` and its `start` do."""
    session = Session(registry, mountpoint, options)
    session.start()
    return session


@contextlib.asynccontextmanager
async def serve_in_trio(
    registry: Registry, mountpoint: str | os.PathLike[str], options: MountOptions
) -> AsyncIterator[Session]:
    """Mount, and serve from the trio program that calls until the block ends.

    Raises:
        MountError: it is refused, or this is not a trio program.
    """
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError as error:
        raise MountError(
            f"{mountpoint}: mounted() is for trio programs; use mount() in this one", mountpoint
        ) from error
    session = Session(registry, mountpoint, options)
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
        yield session
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(session.stop_invalidating)
            session.terminate()
            await served.wait()


def _disown_in_child() -> None:
    global _current, _lock
    session, _current = _current, None
    _lock = threading.Lock()  # type: ignore[misc]  # its owner is not in this process
    if session is not None:
        session.disown()


def _close_at_exit() -> None:
    if _current is not None and _current._open:
        _current.call_off()


os.register_at_fork(after_in_child=_disown_in_child)
atexit.register(_close_at_exit)

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
from collections.abc import Callable
from typing import Final

import pyfuse3
import trio

from statsfs.exceptions import MountError
from statsfs.filesystem.beneath import DetachedMount, detach, find_obstacle
from statsfs.filesystem.fuse_handlers import Handlers
from statsfs.filesystem.invalidator import Invalidator
from statsfs.filesystem.mount_options import MountOptions, switch_interval
from statsfs.filesystem.mountpoints import (
    find_device,
    lock_mountpoint,
    make_mountpoint,
    prepare_mountpoint,
    remove_mountpoint,
    resolve_mountpoint,
)
from statsfs.filesystem.presence import CALM, Presence
from statsfs.filesystem.request_loop import find_descriptors, make_loop
from statsfs.filesystem.takeover import LINGER, Handover, Offer, Predecessor
from statsfs.filesystem.vfs import Vfs
from statsfs.filesystem.watcher import Watcher
from statsfs.model.locking import Flag
from statsfs.tree.gil import GIL_OFF, is_gil_on
from statsfs.tree.registry import Registry, check_registry

__all__ = ["Session"]

log = logging.getLogger(__name__)

# The session of this process, if it has one. `setdefault` needs no lock.
_sessions: Final[dict[None, "Session"]] = {}


class Session:
    """A mount, and what serves it; mounted when this returns, and not served yet.

    With a predecessor it is mounted by `take_place`, when it is already served.

    Args:
        registry, mountpoint, options: those of `mount`.
        handover: what a successor gets besides the mount.
        predecessor: the server to take over from; by default, with `replace`, that of the mount.

    Raises:
        MountError: it is refused; nothing is mounted, and nothing is left.
    """

    def __init__(
        self,
        registry: Registry,
        mountpoint: str | os.PathLike[str],
        options: MountOptions,
        handover: Handover | None = None,
        predecessor: Predecessor | None = None,
    ) -> None:
        check_registry(registry)
        self.mountpoint: Final = resolve_mountpoint(mountpoint)
        options.check(self.mountpoint)
        if not is_gil_on():
            raise self._error(GIL_OFF)
        self.root: Final = options.root
        self._registry = registry
        self._check_root()
        self._pid = os.getpid()
        self.done: Final = Flag()  # set when it is unmounted
        self._serving = Flag()  # set when it is served, or will never be
        self._failure: BaseException | None = None  # why it cannot be served
        self._begun = threading.Lock()  # taken by the thread that serves, or when none is to
        self._server: threading.Thread | None = None
        self._thread: int | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._before: set[int] | None = None
        self._open = False
        self._mounted = False
        self._device: str | None = None
        self._handover = handover or Handover()
        self._offer: Offer | None = None
        self._predecessor = predecessor
        self._detached: DetachedMount | None = None
        self._placed = trio.Event()  # set when it is at its mount point
        self._undo = contextlib.ExitStack()
        self._undo_in_child = contextlib.ExitStack()
        other = _sessions.setdefault(None, self)
        if other is not self:
            raise self._error(
                f"this process has a mount already, at {other.mountpoint}; "
                "close it first, or mount from another process"
            )
        try:
            self._mount(self._undo, options)
        except BaseException as error:
            self._undo.close()
            if isinstance(error, MountError) or not isinstance(error, OSError):
                raise
            raise self._error(str(error.strerror), error.errno) from error

    def _error(self, text: str, number: int | None = None) -> MountError:
        return MountError(f"{self.mountpoint}: {text}", self.mountpoint, number)

    # The beginning

    def _check_root(self) -> None:
        shown = [source.name for source in self._registry.sources if not source.hidden]
        if self.root is not None and self.root not in shown:
            raise self._error(
                f"no source {self.root!r} is registered that could be the root; "
                f"there is {', '.join(map(repr, shown)) or 'none'}"
            )

    def _mount(self, undo: contextlib.ExitStack, options: MountOptions) -> None:
        undo.callback(_sessions.clear)
        if options.replace and self._predecessor is None:
            self._predecessor = Predecessor(self.mountpoint)
            undo.callback(self._predecessor.close)
        if self._predecessor is not None:
            self._created = self._predecessor.created
        else:
            self._created = make_mountpoint(self.mountpoint) if options.create else []
        undo.callback(remove_mountpoint, self._created)  # fails while a successor's mount is there
        undo.callback(self._undo_in_child.close)
        self._undo_in_child.enter_context(switch_interval(options.switch_interval))
        # A watcher that is just clearing a dead mount here must not clear ours.
        with lock_mountpoint(self.mountpoint):
            if self._predecessor is None:
                prepare_mountpoint(self.mountpoint, allow_other=options.lets_others_in)
            self.vfs = Vfs(self._registry, top=self.root, owner=options.owner)
            self.vfs.forget_root()
            handlers = Handlers(self.vfs, self._find_successor)
            # pyfuse3 keeps the handlers until the next mount.
            undo.callback(handlers.detach)
            self.invalidator = Invalidator(self.vfs)
            self._registry.add_listener(self.invalidator)
            self._undo_in_child.callback(self._registry.remove_listener, self.invalidator)
            self._undo_in_child.callback(self.vfs.end_events)
            undo.callback(self.vfs.close_all)
            self._watcher = Watcher(self.mountpoint)
            undo.callback(self._watcher.close)
            # Before the watcher ends: it would wait for a mount that is not served any more.
            undo.callback(self._unmount)
            self._init(handlers, options)

    def _init(self, handlers: Handlers, wanted: MountOptions) -> None:
        options = {*pyfuse3.default_options, "fsname=statsfs", "subtype=statsfs", "noexec"}
        if wanted.lets_others_in:
            options.add("allow_other")
        if wanted.read_only:
            # Of the filesystem, and so of each mount of it: bind mounts, copies in containers.
            options.add("ro")
        self._before = find_descriptors()
        target = self.mountpoint
        if self._predecessor is not None:
            # libfuse takes a descriptor as well, of a filesystem that somebody else mounts.
            target = f"/dev/fd/{os.open('/dev/fuse', os.O_RDWR | os.O_CLOEXEC)}"
        # Before, not after: Ctrl-C may strike as soon as it is mounted.
        self._mounted = True
        try:
            pyfuse3.init(handlers, target, options)
        except RuntimeError as error:
            self._mounted = False
            pyfuse3.close(unmount=False)
            raise self._error(
                "the mount was refused; mounting needs root, or the rights that fusermount3 asks "
                "for (its message is above)"
            ) from error
        self._descriptor = (find_descriptors() - self._before).pop()
        self._loop = make_loop(self._descriptor)
        self._presence = Presence()
        self._undo_in_child.callback(self._presence.close)
        if self._predecessor is not None:
            # From now on a stat of all open files would wait for this mount, which is not served.
            self._detached = DetachedMount(self._descriptor, options)
        else:
            self._device = self._presence.device = find_device(self.mountpoint)
            self._placed.set()
        self._open = True
        self.invalidator.start()
        self._make_offer()

    def take_place(self) -> None:
        """Replace the predecessor's mount by this one, if there is a predecessor.

        This one must be served already.

        Raises:
            MountError: that failed; the predecessor goes on.
        """
        predecessor, detached = self._predecessor, self._detached
        if predecessor is None or detached is None:
            return
        try:
            self._device = self._presence.device = predecessor.replace_by(detached)
            self.run_soon(self._placed.set)
        finally:
            detached.close()
            predecessor.close()
        self._make_offer()

    def _make_offer(self) -> None:
        # Only if a successor could mount: the offer takes a thread.
        if self._device is None or find_obstacle() is not None:
            return
        try:
            self._offer = Offer(
                self.mountpoint, self._device, self._handover, self._created, self._linger
            )
        except (OSError, RuntimeError) as error:
            log.info("%s: no successor can take over: %s", self.mountpoint, error)

    def _linger(self) -> None:
        # Serves open files of a replaced mount; the kernel ends it after the last one.
        if not self.done.wait(LINGER):
            log.warning("%s: ending, though files of the old mount are open", self.mountpoint)
            self.run_soon(self.terminate)

    @property
    def replaced(self) -> bool:
        """Whether a successor took over."""
        return self._offer is not None and self._offer.replaced

    def _find_successor(self) -> str | None:
        return self.mountpoint if self.replaced else None

    # Serving

    def start(self) -> None:
        """Serve from a daemon thread; return when it serves.

        Raises:
            MountError: no thread or no event loop can be started; it is unmounted again.
        """
        self._server = threading.Thread(target=self._run, name="statsfs-serve", daemon=True)
        try:
            self._server.start()
            self._serving.wait()
        except RuntimeError as error:
            self.call_off()
            raise self._error(f"no thread can be started: {error}") from error
        except BaseException:
            # Ctrl-C; the thread may have been started, or not.
            self.call_off()
            raise
        if self._failure is not None:
            raise self._error(f"cannot serve: {self._failure}") from self._failure
        try:
            self.take_place()
        except BaseException:
            self.close()
            raise

    def _run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        try:
            trio.run(self.serve)
        except BaseException as error:
            level = logging.ERROR if self._serving.is_set() else logging.DEBUG
            log.log(level, "%s: serving ended", self.mountpoint, exc_info=True)
            self._failure = error
        finally:
            self.finish()
            self._serving.set()

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
        self.invalidator.serve_from(self._thread, self._descriptor)

    async def serve(self) -> None:
        """Serve until the session ends; then close it, on this same thread."""
        self._token = trio.lowlevel.current_trio_token()
        self.serve_here()
        self._serving.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_gone)
                await self._loop.serve()
                nursery.cancel_scope.cancel()
        except Exception:
            log.exception("%s: serving failed", self.mountpoint)
        finally:
            self.finish()

    def run_soon(self, function: Callable[[], object]) -> None:
        """Have the serving loop call a function between two requests; any thread may ask."""
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function)

    @trio.lowlevel.enable_ki_protection
    async def _end_when_gone(self) -> None:
        # Else copies in other namespaces would keep it, and its collector's lock.
        await self._placed.wait()
        await self._presence.gone()
        while self._offer is not None and self._offer.swapping:
            await trio.sleep(CALM)
        if self.replaced:
            return  # it ends after its last open file
        who = await self._presence.find_keeper(self.vfs)
        log.warning("%s: unmounted; ending, though it is kept by %s", self.mountpoint, who)
        # While the loop still answers: an invalidation may wait for an answer.
        await trio.to_thread.run_sync(self.invalidator.stop)
        self.terminate()

    # The end

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
        self._serving.wait()
        # While the loop still answers: an invalidation may wait for an answer.
        self.invalidator.stop()
        self.run_soon(self.terminate)
        self.done.wait()
        if self._server is not None:
            # It is at its end; until then it would keep the tree alive.
            self._server.join()

    def finish(self) -> None:
        """Unmount; on the thread that served, or where none could."""
        if not self._open:
            return
        try:
            if self._offer is not None:
                self._offer.close()
            # An invalidation that is being sent ends by itself: a mount that has ended answers
            # none, and before a mount that we end all were sent.
            self.invalidator.stop()
            self._unmount()
            self._undo.close()
        finally:
            self.done.set()

    def _unmount(self) -> None:
        if self._mounted:
            self._mounted = self._open = False
            ours = self._is_ours()
            if self._predecessor is not None and ours and self._device is not None:
                # libfuse did not mount it. Where the rights are gone by now, the watcher does it.
                with contextlib.suppress(OSError):
                    detach(self.mountpoint)
            if self._detached is not None:
                self._detached.close()
            pyfuse3.close(unmount=ours and self._predecessor is None)

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
        for one in (self._offer, self._detached, self._predecessor):
            if one is not None:
                one.disown()
        for descriptor in find_descriptors() - self._before:
            os.close(descriptor)
        self._watcher.disown()
        self._undo_in_child.close()
        self.done.set()


def _disown_in_child() -> None:
    while _sessions:
        _sessions.popitem()[1].disown()


def _close_at_exit() -> None:
    session = _sessions.get(None)
    if session is not None and session._open:
        session.call_off()


os.register_at_fork(after_in_child=_disown_in_child)
atexit.register(_close_at_exit)

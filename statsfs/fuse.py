"""The FUSE protocol over `vfs`: handlers, errnos, and what the kernel must forget.

Owns the one table from errors to errnos, and the rule that nothing but a `FUSEError` leaves a
handler: pyfuse3 ends its loop, and the mount with it, at any other exception.

Threading: handlers run on the serving thread. Invalidations are sent by the thread that changed the
tree, before its change returns, but for changes made on the serving thread: the kernel would wait
for a reply that this thread must give, so a thread of our own sends those.
"""

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from queue import SimpleQueue
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from statsfs.changes import Change
from statsfs.exceptions import ReadOnlyValueError, ReleasedError, StatsfsError, UnknownValueError
from statsfs.pauses import make_pause
from statsfs.registry import Registry
from statsfs.vfs import (
    FILE_SIZE,
    NAME_MAX,
    Attributes,
    BrokenValueError,
    NoSuchAttributeError,
    NoSuchFileError,
    NotZeroError,
    Stale,
    TooMuchOpenError,
    Vfs,
)
from statsfs.views import Rendering

__all__ = ["ERRNOS", "Handlers", "Invalidator"]

log = logging.getLogger(__name__)

ERRNOS: Final[dict[type[StatsfsError], int]] = {
    NoSuchFileError: errno.ENOENT,
    UnknownValueError: errno.ENOENT,
    ReleasedError: errno.ENOENT,
    ReadOnlyValueError: errno.EACCES,
    NotZeroError: errno.EINVAL,
    NoSuchAttributeError: errno.ENODATA,
    BrokenValueError: errno.EIO,
    TooMuchOpenError: errno.ENFILE,
}

# Seconds for which the kernel may keep names and attributes. They change only by what we tell it;
# the end of it is a second line of defence.
_TIMEOUT: Final = 300.0
# How long a change on the serving thread waits for its invalidations, at most, in seconds: they
# take 10 to 100 us, unless a lookup in the same directory is under way, which waits for us.
_PATIENCE: Final = 0.002
_PATIENCE_UNASKED: Final = 0.25
# Views that are rendered at the same time. They share one interpreter, so more would gain nothing;
# fewer, and a small one would wait for the end of a large one.
_RENDERINGS: Final = 4
# How often `stop` looks whether all is quiet, in seconds.
_POLL: Final = 0.001

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _handler(
    function: Callable[Concatenate["Handlers", _P], _T],
) -> Callable[Concatenate["Handlers", _P], Coroutine[Any, Any, _T]]:
    # Makes a plain method a handler that raises nothing but FUSEError.
    @wraps(function)
    async def handle(self: "Handlers", *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(self.errno_of(error, function.__name__)) from None

    # `wraps` hides that `self` is positional only.
    return cast(Any, handle)  # type: ignore[no-any-return]


def _refuse(code: int) -> Callable[..., Coroutine[Any, Any, NoReturn]]:
    async def refuse(self: "Handlers", *args: object) -> NoReturn:
        raise FUSEError(code)

    return refuse


class Handlers(pyfuse3.Operations):
    """What pyfuse3 calls.

    Args:
        vfs: the filesystem.
        uid, gid: who owns all files.
        hand_over: called when a handler is about to wait, so that others are served meanwhile.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self, vfs: Vfs, uid: int, gid: int, hand_over: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self._vfs = vfs
        self._uid = uid
        self._gid = gid
        self._hand_over = hand_over
        self._limiter = trio.CapacityLimiter(_RENDERINGS)
        self._logged: set[tuple[str, str]] = set()

    def detach(self) -> None:
        """Let go of the filesystem: pyfuse3 keeps these handlers until the next mount."""
        self._vfs = Vfs(Registry())

    def errno_of(self, error: Exception, where: str) -> int:
        """Return the errno for an error; one that is in no table is logged once, and EIO."""
        code = ERRNOS.get(type(error))  # type: ignore[arg-type]  # others are not in it
        if code is not None:
            return code
        key = (where, repr(error))
        if key not in self._logged:
            self._logged.add(key)
            log.error("%s failed; the reader gets EIO", where, exc_info=error)
        return errno.EIO

    def _entry(
        self, attributes: Attributes, entry: EntryAttributes | None = None
    ) -> EntryAttributes:
        if entry is None:
            entry = EntryAttributes()
            entry.st_uid = self._uid
            entry.st_gid = self._gid
            entry.entry_timeout = _TIMEOUT
        inode, mode, links, size, modified, live = attributes
        entry.st_ino = InodeT(inode)
        entry.st_mode = ModeT(mode)
        entry.st_nlink = links
        entry.st_size = size
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = modified
        entry.attr_timeout = 0 if live else _TIMEOUT
        return entry

    # Names and attributes

    @_handler
    def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Find a name."""
        if len(name) > NAME_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        return self._entry(self._vfs.lookup(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take back lookups; there is nobody to answer to, so it never raises."""
        for inode, lookups in inode_list:
            try:
                self._vfs.forget(inode, lookups)
            except Exception:
                log.exception("forget failed")

    @_handler
    def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Return attributes."""
        return self._entry(self._vfs.attributes(inode, ctx.pid))

    @_handler
    def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Let a file that can be written be truncated, without effect; refuse all else."""
        if (
            fields.update_mode
            or fields.update_uid
            or fields.update_gid
            or (not fields.update_size and (fields.update_mtime or fields.update_atime))
        ):
            raise FUSEError(errno.EPERM)
        if fields.update_size:
            self._vfs.check_truncate(inode)
        return self._entry(self._vfs.attributes(inode))

    @_handler
    def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        """Return an extended attribute; there are none but the user's, as in sysfs."""
        if not name.startswith(b"user."):
            # Told so, `ls -l` does not ask for a context and an ACL of each file.
            raise FUSEError(errno.EOPNOTSUPP)
        return self._vfs.extended_attribute(inode, name)

    @_handler
    def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[bytes]:
        """Return the names of the extended attributes."""
        return list(self._vfs.extended_attributes(inode))

    @_handler
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Say that nothing is stored here, as sysfs does."""
        data = StatvfsData()
        data.f_bsize = data.f_frsize = FILE_SIZE
        data.f_namemax = NAME_MAX
        return data

    # Directories

    @_handler
    def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        return FileHandleT(self._vfs.open_directory(inode))

    @_handler
    def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List a directory, attributes included."""
        entry: EntryAttributes | None = None  # filled anew for each name: the reply is a copy

        def reply(name: bytes, attributes: Attributes, offset: int) -> bool:
            nonlocal entry
            entry = self._entry(attributes, entry)
            return pyfuse3.readdir_reply(token, FileNameT(name), entry, offset)

        self._vfs.list_directory(fh, start_id, reply)

    @_handler
    def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._vfs.close_directory(fh)

    # Files

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file; a view is rendered first."""
        try:
            handle = self._vfs.open(inode, flags, mask=self._mask(ctx), client=ctx.pid)
            rendering = self._vfs.rendering(handle)
            if rendering is not None:
                try:
                    await self._render(handle, rendering)
                except BaseException:
                    self._vfs.close(handle)
                    raise
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(self.errno_of(error, "open")) from None
        # Without direct_io the page cache would cut the text to the size, and keep it.
        return FileInfo(FileHandleT(handle), direct_io=True, keep_cache=False)

    def _mask(self, ctx: RequestContext) -> int:
        # Which permission bits are this client's; its further groups are not known.
        if ctx.uid == 0:
            return 0o444
        if ctx.uid == self._uid:
            return 0o400
        return 0o040 if ctx.gid == self._gid else 0o004

    async def _render(self, handle: int, rendering: Rendering) -> None:
        if rendering.quick:
            rendering.run()
        else:
            await self._render_in_thread(rendering)
        self._vfs.finish(handle, rendering)

    async def _render_in_thread(self, rendering: Rendering) -> None:
        token = trio.lowlevel.current_trio_token()
        self._hand_over()
        # Whatever a base waits for, the mount may end.
        with (
            trio.CancelScope() as scope,
            self._vfs.waiting(lambda: token.run_sync_soon(scope.cancel)),
        ):
            await trio.to_thread.run_sync(
                rendering.run, make_pause(), abandon_on_cancel=True, limiter=self._limiter
            )
        if scope.cancelled_caught:
            raise FUSEError(errno.ENOTCONN)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read a file; a view is rendered anew when it is read from the beginning once more."""
        try:
            rendering = self._vfs.rendering(fh, off)
            if rendering is not None:
                await self._render(fh, rendering)
            return self._vfs.read(fh, off, size)
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(self.errno_of(error, "read")) from None

    @_handler
    def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Clear a file; the offset is ignored, so that ">>" works as ">"."""
        return self._vfs.write(fh, buf)

    @_handler
    def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        self._vfs.close(fh)

    # What sysfs refuses. `flush`, `fsync` and `access` stay unimplemented: the kernel asks once,
    # is told ENOSYS and does without, which saves a request a file.

    create = _refuse(errno.EACCES)
    mknod = _refuse(errno.EACCES)
    mkdir = _refuse(errno.EPERM)
    unlink = _refuse(errno.EPERM)
    rmdir = _refuse(errno.EPERM)
    rename = _refuse(errno.EPERM)
    symlink = _refuse(errno.EPERM)
    link = _refuse(errno.EPERM)
    setxattr = _refuse(errno.EPERM)
    removexattr = _refuse(errno.EPERM)
    readlink = _refuse(errno.EINVAL)


class Invalidator:
    """Tells the kernel what to forget after each change of the tree; a listener of the registry.

    Args:
        vfs: knows what the kernel was told.

    It does nothing until `start`, and nothing after `stop`: without a session pyfuse3 crashes.
    """

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self._pid = os.getpid()
        self._serving: int | None = None
        self._running = False
        # How deep each thread is in here. Each touches its own number only, so there is no lock
        # that a signal handler's exception could leave held.
        self._busy: dict[int, int] = {}
        self._stoppers: set[int] = set()
        self._requests: select.poll | None = None
        self._queue: SimpleQueue[tuple[Stale, threading.Event] | None] = SimpleQueue()
        self._worker: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the session is there."""
        self._running = True

    def serve_from(self, thread: int, descriptor: int | None = None) -> None:
        """Say which thread answers the kernel (`threading.get_ident`), and on what descriptor."""
        self._serving = thread
        if descriptor is not None:
            self._requests = select.poll()
            self._requests.register(descriptor, select.POLLIN)

    def __call__(self, change: Change) -> None:
        """Send what follows from a change."""
        # A forked child has no session.
        if not self._running or os.getpid() != self._pid:
            return
        stale = self._vfs.find_stale(change)
        if not stale.names and not stale.directories:
            return
        if threading.get_ident() == self._serving:
            self._hand_over(stale)
        else:
            self._send(stale)

    def _hand_over(self, stale: Stale) -> None:
        if self._worker is None:
            self._worker = threading.Thread(
                target=self._work, name="statsfs-invalidate", daemon=True
            )
            self._worker.start()
        sent = threading.Event()
        self._queue.put((stale, sent))
        if not self._running:
            # `stop` may have come before there was a worker to end.
            self._queue.put(None)
        deadline = time.monotonic() + _PATIENCE_UNASKED
        # Nearly always done by then. If not, and there is a request, it may be a lookup that waits
        # for this very thread; if there is none, the other thread just had no turn yet.
        while not sent.wait(_PATIENCE) and not self._is_asked() and time.monotonic() < deadline:
            pass

    def _is_asked(self) -> bool:
        return self._requests is None or bool(self._requests.poll(0))

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            stale, sent = job
            try:
                self._send(stale)
            except Exception:
                # A dead worker would send nothing any more.
                log.exception("an invalidation failed")
            finally:
                sent.set()

    def _send(self, stale: Stale) -> None:
        thread = threading.get_ident()
        depth = self._busy.get(thread, 0)
        try:
            self._busy[thread] = depth + 1
            for parent, name in stale.names:
                self._forget_name(parent, name)
            for inode, by_name in stale.directories:
                self._forget_attributes(inode, by_name)
        finally:
            if depth:
                self._busy[thread] = depth
            else:
                self._busy.pop(thread, None)

    # Each call to pyfuse3 is preceded by a look at `_running`: a signal handler may have closed the
    # mount in the middle of a change.

    def _forget_name(self, parent: int, name: bytes) -> None:
        if self._running:
            _invalidate_name(parent, name)

    def _forget_attributes(self, inode: int, by_name: tuple[int, bytes] | None) -> None:
        try:
            if self._running:
                pyfuse3.invalidate_inode(InodeT(inode), attr_only=True)
        except FileNotFoundError:
            # The kernel is being told of this directory just now, perhaps with old attributes; this
            # waits until it knows it.
            if by_name is not None:
                self._forget_name(*by_name)
        except OSError as error:
            log.debug("invalidating inode %d: %s", inode, error)

    def stop(self) -> None:
        """End; return when nothing is being sent any more. Nor is any view waited for.

        Not on the serving thread while it serves: what is being sent may wait for it. From a signal
        handler that interrupted a change, that change sends nothing more.
        """
        self._stoppers.add(threading.get_ident())
        self._running = False
        self._vfs.stop_waiting()
        while not self._stoppers.issuperset(self._busy.copy()):
            time.sleep(_POLL)
        worker, self._worker = self._worker, None
        if worker is not None:
            self._queue.put(None)
            worker.join()


def _invalidate_name(parent: int, name: bytes) -> None:
    try:
        pyfuse3.invalidate_entry(InodeT(parent), FileNameT(name))
    except FileNotFoundError:
        pass  # not cached
    except OSError as error:
        log.debug("invalidating %r: %s", name, error)

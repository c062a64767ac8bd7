"""The FUSE protocol over `vfs`: handlers and errnos.

Owns the one table from errors to errnos, and the rule that nothing but a `FUSEError` leaves a
handler: pyfuse3 ends its loop, and the mount with it, at any other exception.

Threading: handlers run on the serving thread.
"""

import contextlib
import errno
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import wraps
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

from statsfs.exceptions import (
    ExhaustedError,
    ReadOnlyValueError,
    ReleasedError,
    StatsfsError,
    UnavailableError,
    UnknownValueError,
)
from statsfs.filesystem.inodes import ABSENT_TIMEOUT
from statsfs.filesystem.vfs import (
    ABSENT,
    FILE_SIZE,
    NAME_MAX,
    Attributes,
    BrokenValueError,
    NoSuchAttributeError,
    NoSuchFileError,
    NotZeroError,
    TooMuchOpenError,
    Vfs,
)
from statsfs.formats.views import Rendering
from statsfs.tree.refresh import Refreshing
from statsfs.tree.registry import Registry

__all__ = ["ERRNOS", "Handlers"]

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
    UnavailableError: errno.ENODATA,
    ExhaustedError: errno.EOVERFLOW,
}

# Seconds for which the kernel may keep names and attributes. They change only by what we tell it;
# the end of it is a second line of defence.
_TIMEOUT: Final = 300.0
# Views that are rendered at the same time. They share one interpreter, so more would gain nothing;
# fewer, and a small one would wait for the end of a large one.
_RENDERINGS: Final = 4

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
        hand_over: called when a handler is about to wait, so that others are served meanwhile.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, vfs: Vfs, hand_over: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._vfs = vfs
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
            entry.entry_timeout = _TIMEOUT
        inode, mode, links, size, modified, (entry.st_uid, entry.st_gid), live = attributes
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
        attributes = self._vfs.lookup(parent_inode, name)
        entry = self._entry(attributes)
        if attributes is ABSENT:
            entry.entry_timeout = ABSENT_TIMEOUT
        return entry

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
            handle = self._vfs.open(inode, flags, user=(ctx.uid, ctx.gid), client=ctx.pid)
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

    async def _refresh(self, refreshing: Refreshing) -> None:
        if refreshing.prompt:
            refreshing.run()
            return
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()

        def tell() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        self._hand_over()
        with self._waiting(token):
            refreshing.start(tell)
            with trio.move_on_after(refreshing.seconds_left):
                await done.wait()
        refreshing.end()

    @contextlib.contextmanager
    def _waiting(self, token: trio.lowlevel.TrioToken) -> Iterator[None]:
        # Whatever is waited for, the mount may end.
        with (
            trio.CancelScope() as scope,
            self._vfs.waiting(lambda: token.run_sync_soon(scope.cancel)),
        ):
            yield
        if scope.cancelled_caught:
            raise FUSEError(errno.ENOTCONN)

    async def _render(self, handle: int, rendering: Rendering) -> None:
        refreshing = rendering.refreshing()
        if refreshing is not None:
            await self._refresh(refreshing)
        if rendering.quick:
            rendering.run()
        else:
            await self._render_in_thread(rendering)
        self._vfs.finish(handle, rendering)

    async def _render_in_thread(self, rendering: Rendering) -> None:
        token = trio.lowlevel.current_trio_token()
        self._hand_over()
        with self._waiting(token):
            await trio.to_thread.run_sync(
                rendering.run, abandon_on_cancel=True, limiter=self._limiter
            )

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read a file; a view is rendered anew when it is read from the beginning once more."""
        try:
            rendering = self._vfs.rendering(fh, off)
            if rendering is not None:
                await self._render(fh, rendering)
            elif (refreshing := self._vfs.refreshing(fh, off)) is not None:
                await self._refresh(refreshing)
            return self._vfs.read(fh, off, size)
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(self.errno_of(error, "read")) from None

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Clear a file; the offset is ignored, so that ">>" works as ">"."""
        try:
            refreshing = self._vfs.refreshing(fh)
            if refreshing is not None:
                await self._refresh(refreshing)
            return self._vfs.write(fh, buf)
        except FUSEError:
            raise
        except Exception as error:
            raise FUSEError(self.errno_of(error, "write")) from None

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

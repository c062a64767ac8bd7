"""The FUSE protocol over `vfs`: handlers and errnos.

Owns the one table from errors to errnos, and the rule that only a `FUSEError` leaves a handler:
pyfuse3 ends its loop, and the mount with it, at any other exception. `pyfuse3.Operations` says what
each handler is for.

Threading: handlers run on the serving thread.
"""

import errno
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial, wraps
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
    UnavailableError,
    UnknownValueError,
)
from statsfs.filesystem.inodes import ABSENT_TIMEOUT
from statsfs.filesystem.known import (
    ABSENT,
    Attributes,
    BusyDirectoryError,
    FixedDirectoryError,
    NoSuchAttributeError,
    NoSuchFileError,
)
from statsfs.filesystem.limiters import FairLimiter
from statsfs.filesystem.passing_on import OtherFileError, pass_on
from statsfs.filesystem.reading import UnrecordedError
from statsfs.filesystem.request_loop import WAITING_MAX, run_in_thread, wait
from statsfs.filesystem.shares import Shares, ShareUsedUpError, TooMuchOpenError
from statsfs.filesystem.value_files import FILE_SIZE, BrokenValueError, NotZeroError
from statsfs.filesystem.vfs import Vfs
from statsfs.filesystem.works import Work
from statsfs.model.foreign import describe_error, foreign, is_interrupt
from statsfs.tree import refresh
from statsfs.tree.refresh import Refreshing
from statsfs.tree.registry import Registry

__all__ = ["ERRNOS", "Handlers"]

log = logging.getLogger(__name__)

ERRNOS: Final[dict[type[BaseException], int]] = {
    NoSuchFileError: errno.ENOENT,
    UnknownValueError: errno.ENOENT,
    ReleasedError: errno.ENOENT,
    ReadOnlyValueError: errno.EACCES,
    NotZeroError: errno.EINVAL,
    NoSuchAttributeError: errno.ENODATA,
    FixedDirectoryError: errno.EPERM,
    BusyDirectoryError: errno.EBUSY,
    UnrecordedError: errno.EIO,
    OtherFileError: errno.ESTALE,
    BrokenValueError: errno.EIO,
    ShareUsedUpError: errno.EMFILE,
    TooMuchOpenError: errno.ENFILE,
    UnavailableError: errno.ENODATA,
    ExhaustedError: errno.EOVERFLOW,
}

_USED_UP: Final = (errno.EMFILE, errno.ENFILE)

_NAME_MAX: Final = 255  # bytes
# Seconds for which the kernel may cache names and attributes. They change only by our
# invalidations; the timeout is a second line of defence.
_TIMEOUT: Final = 300.0
# The highest offset of a write. The kernel takes the end of a write for the end of the file, and
# appends there: after a write near the highest possible offset every append would fail.
_OFFSET_MAX: Final = 2**40
# How many different errors are logged, once each.
_LOGGED_MAX: Final = 100
# How many threads work at a time, and for one user. They share one interpreter, so more would gain
# nothing; with fewer a small view would wait for the end of a larger one.
_WORKS: Final = (4, 2)
# The same for works that take much memory,
_LARGE_WORKS: Final = (1, 1)
# and for refreshes and removals, which mostly wait.
_ASKING: Final = (64, 16)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Method = Callable[Concatenate["Handlers", _P], _T]


def _handler(function: _Method[_P, _T]) -> _Method[_P, Coroutine[object, None, _T]]:
    # Makes a plain method a handler that raises nothing but FUSEError.
    @wraps(function)
    async def handle(self: "Handlers", *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(self, *args, **kwargs)
        except BaseException as error:
            raise self._refusal(error, function.__name__) from None

    # `wraps` hides that `self` is positional only.
    return cast(Any, handle)  # type: ignore[no-any-return]


def _refuse(code: int) -> Callable[..., Coroutine[object, None, NoReturn]]:
    async def refuse(self: "Handlers", *args: object) -> NoReturn:
        raise FUSEError(code)

    return refuse


def _find_none() -> None:
    return None


class Handlers(pyfuse3.Operations):
    """What pyfuse3 calls.

    Args:
        vfs: what is served.
        find_successor: returns the path of the mount that replaced this one, or None.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, vfs: Vfs, find_successor: Callable[[], str | None] = _find_none) -> None:
        super().__init__()
        self._vfs = vfs
        self._find_successor = find_successor
        self._stats = vfs.stats
        self._waiting = Shares("requests that wait", WAITING_MAX)
        self._working = FairLimiter(*_WORKS)
        self._large = FairLimiter(*_LARGE_WORKS)
        self._asking = FairLimiter(*_ASKING)
        self._running: dict[Work[Any], trio.Event] = {}  # each set when it has ended
        self._logged: set[tuple[str, str]] = set()
        # One for all, as the reply is a copy. Without direct_io the page cache would cut the text
        # to the size, and keep it.
        self._opened = FileInfo(direct_io=True, keep_cache=False)

    def detach(self) -> None:
        """Let go of the filesystem: pyfuse3 keeps these handlers until the next mount."""
        self._vfs = Vfs(Registry())
        self._find_successor = _find_none

    def errno_of(self, error: BaseException, where: str) -> int:
        """Return the errno for an error; one that is not in the table is logged once, and EIO."""
        code = ERRNOS.get(type(error))
        if code is not None:
            return code
        key = (where, describe_error(error))
        if key not in self._logged and len(self._logged) < _LOGGED_MAX:
            self._logged.add(key)
            try:
                log.error("%s failed; the reader gets EIO", where, exc_info=error)
            except foreign():  # of one of the log's handlers
                pass
        return errno.EIO

    def _refusal(self, error: BaseException, where: str) -> BaseException:
        # Returns what to raise. The end of the mount, and interrupts of the program, pass.
        if isinstance(error, trio.Cancelled):
            passes = trio.current_effective_deadline() == -math.inf  # else foreign code made it
        else:
            passes = isinstance(error, FUSEError) or is_interrupt(error)
        if passes:
            return error
        code = self.errno_of(error, where)
        self._stats.failed_requests += code == errno.EIO
        self._stats.refused_requests += code in _USED_UP
        return FUSEError(code)

    # Names and attributes

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

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        try:
            return await self._lookup(parent_inode, name, ctx.uid)
        except BaseException as error:
            raise self._refusal(error, "lookup") from None

    async def _lookup(self, parent: int, name: bytes, user: int) -> EntryAttributes:
        if len(name) > _NAME_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        try:
            attributes = self._vfs.lookup(parent, name)
        except NoSuchFileError:
            if not await self._ask(self._vfs.prepare_lookup(parent), user):
                raise
            attributes = self._vfs.lookup(parent, name)
        else:
            if attributes is ABSENT and await self._ask(self._vfs.prepare_lookup(parent), user):
                attributes = self._vfs.lookup(parent, name)
        entry = self._entry(attributes)
        if attributes is ABSENT:
            entry.entry_timeout = ABSENT_TIMEOUT
        return entry

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        # It has no reply, so it never raises.
        for inode, lookups in inode_list:
            try:
                self._vfs.forget(inode, lookups)
            except foreign():
                log.exception("forget failed")

    @_handler
    def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
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
        """Let a writable file be truncated, without effect; refuse all else."""
        times = fields.update_mtime or fields.update_atime
        owner_or_mode = fields.update_mode or fields.update_uid or fields.update_gid
        if owner_or_mode or (times and not fields.update_size):
            raise FUSEError(errno.EPERM)
        if fields.update_size:
            self._vfs.check_truncate(inode)
        return self._entry(self._vfs.attributes(inode))

    @_handler
    def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        if not name.startswith(b"user."):
            # As in sysfs. Told so, `ls -l` does not ask for a context and an ACL of each file.
            raise FUSEError(errno.EOPNOTSUPP)
        return self._vfs.extended_attribute(inode, name)

    @_handler
    def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[bytes]:
        return list(self._vfs.extended_attributes(inode))

    @_handler
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        # Nothing is stored here, as in sysfs.
        data = StatvfsData()
        data.f_bsize = data.f_frsize = FILE_SIZE
        data.f_namemax = _NAME_MAX
        return data

    # Directories

    @_handler
    def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(self._vfs.open_directory(inode, ctx.uid))

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        try:
            if not start_id:
                await self._ask(self._vfs.prepare_listing(fh), self._vfs.user_of_directory(fh))
            self._list(fh, start_id, token)
        except BaseException as error:
            raise self._refusal(error, "readdir") from None

    def _list(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        entry: EntryAttributes | None = None  # filled anew for each name: the reply is a copy

        def reply(name: bytes, attributes: Attributes, offset: int) -> bool:
            nonlocal entry
            entry = self._entry(attributes, entry)
            return pyfuse3.readdir_reply(token, FileNameT(name), entry, offset)

        self._vfs.list_directory(fh, start_id, reply)

    @_handler
    def releasedir(self, fh: FileHandleT) -> None:
        self._vfs.close_directory(fh)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        try:
            remove = self._vfs.prepare_rmdir(parent_inode, name, ctx.uid)
            await self._run(remove, self._asking, ctx.uid)
        except BaseException as error:
            raise self._refusal(error, "rmdir") from None

    # Files

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        try:
            handle = self._vfs.open_value(inode, flags, ctx.uid)
            if handle is None:
                handle = await self._open_view(inode, flags, ctx)
        except BaseException as error:
            raise self._refusal(error, "open") from None
        self._stats.opens += 1
        self._stats.open_files += 1
        self._opened.fh = FileHandleT(handle)
        return self._opened

    async def _open_view(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> int:
        handle = self._vfs.open(inode, flags, user=(ctx.uid, ctx.gid), client=ctx.pid)
        try:
            await self._prepare(self._vfs.prepare_read(handle, None), ctx.uid)
        except BaseException:
            self._vfs.close(handle)
            raise
        return handle

    async def _prepare(self, works: Iterator[Refreshing | Work[Any]], user: int) -> None:
        for work in works:
            if work.quick:
                work.run()
            elif isinstance(work, Work):
                await self._do(work)
            else:
                await self._refresh(work, user)
                if not work.ended:
                    raise FUSEError(errno.ENODATA)  # better no numbers than old ones

    async def _refresh(self, refreshing: Refreshing, user: int) -> None:
        # It ends within its own deadline, unless a refresh blocks that must not.
        work = Work(refreshing.run, user)
        await self._run(work.run, self._asking, user, 2 * refresh.DEADLINE)

    async def _ask(self, asking: Refreshing | None, user: int) -> bool:
        # Runs refreshes before a lookup or a listing. If a source does not answer in time, its
        # present names are used. Returns whether names may have changed.
        if asking is None:
            return False
        self._vfs.asking += 1
        try:
            if asking.quick:
                asking.run()
            else:
                await self._refresh(asking, user)
        finally:
            self._vfs.asking -= 1
        return True

    async def _do(self, work: Work[Any]) -> None:
        ended = self._running.get(work)
        if ended is not None:  # another handler runs it
            await self._wait(partial(wait, ended.wait), work.user)
            return
        ended = self._running[work] = trio.Event()
        try:
            await self._run(work.run, self._large if work.large else self._working, work.user)
        finally:
            del self._running[work]
            ended.set()

    async def _run(
        self,
        function: Callable[[], object],
        limiter: FairLimiter,
        user: int,
        seconds: float = math.inf,
    ) -> None:
        await self._wait(partial(run_in_thread, function, limiter.of(user), seconds), user)

    async def _wait(self, waiting: Callable[[], Awaitable[bool]], user: int) -> None:
        self._waiting.take(user)
        try:
            if not await waiting():
                raise FUSEError(errno.ENOTCONN)  # the mount ends
        finally:
            self._waiting.give_back(user)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self._stats.reads += 1
        try:
            text = self._vfs.read_at_once(fh, off, size)
            if text is None:
                await self._prepare(self._vfs.prepare_read(fh, off), self._vfs.user_of(fh))
                text = self._vfs.read(fh, off, size)
            return text
        except BaseException as error:
            raise self._refusal(error, "read") from None

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Clear a file; the offset is ignored, so that ">>" works as ">"."""
        if off > _OFFSET_MAX:
            raise FUSEError(errno.EFBIG)
        try:
            try:
                await self._prepare(self._vfs.prepare_write(fh, buf), self._vfs.user_of(fh))
            except UnrecordedError:
                successor = self._find_successor()
                if successor is None:
                    raise
                # The user could open the file here, and so may write the same file there.
                path, expected = self._vfs.locate(fh)
                passing = partial(pass_on, f"{successor}/{path}", expected, buf)
                await self._run(passing, self._asking, self._vfs.user_of(fh))
            self._stats.clears += 1
            return len(buf)
        except BaseException as error:
            raise self._refusal(error, "write") from None

    async def release(self, fh: FileHandleT) -> None:
        self._stats.open_files -= 1
        try:
            self._vfs.close(fh)
        except BaseException as error:
            raise self._refusal(error, "release") from None

    # What sysfs refuses. `flush`, `fsync` and `access` stay unimplemented: the kernel asks once,
    # is told ENOSYS and does without, which saves a request a file.

    create = mknod = _refuse(errno.EACCES)
    mkdir = unlink = rename = symlink = link = _refuse(errno.EPERM)
    setxattr = removexattr = _refuse(errno.EPERM)
    readlink = _refuse(errno.EINVAL)

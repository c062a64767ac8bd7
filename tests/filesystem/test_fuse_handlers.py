"""The handlers, called as pyfuse3 calls them but with no kernel: replies, refusals, errnos."""

import errno
import gc
import logging
import os
import stat
import weakref
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pyfuse3
import pytest
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT, RequestContext, SetattrFields

from statsfs import exceptions
from statsfs.exceptions import StatsfsError
from statsfs.filesystem import handles, known, vfs
from statsfs.filesystem.fuse_handlers import ERRNOS, Handlers
from statsfs.filesystem.known import ROOT
from statsfs.filesystem.serving_stats import ServingStats
from statsfs.filesystem.vfs import Vfs
from statsfs.formats.views import VIEWS, Rendering
from statsfs.model.values import Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.trees import add_cpu, make_kvm

T = TypeVar("T")

CTX = cast(RequestContext, SimpleNamespace(pid=1, uid=0, gid=0))
ENTRY = cast(pyfuse3.EntryAttributes, None)
TOKEN = cast(pyfuse3.ReaddirToken, object())

REFUSED = {
    "create": errno.EACCES,
    "mknod": errno.EACCES,
    "mkdir": errno.EPERM,
    "unlink": errno.EPERM,
    "rename": errno.EPERM,
    "symlink": errno.EPERM,
    "link": errno.EPERM,
    "setxattr": errno.EPERM,
    "removexattr": errno.EPERM,
    "readlink": errno.EINVAL,
}
# Asked for once, and then done without: implemented, each would cost a request a file.
LEFT_OUT = {"access", "flush", "fsync", "fsyncdir", "poll"}
# Those that `Vfs` serves, by the method of it that each calls.
CALLS = {
    "lookup": ("lookup", (ROOT, b"kvm", CTX)),
    "getattr": ("attributes", (ROOT, CTX)),
    "getxattr": ("extended_attribute", (ROOT, b"user.statsfs.label", CTX)),
    "listxattr": ("extended_attributes", (ROOT, CTX)),
    "opendir": ("open_directory", (ROOT, CTX)),
    "readdir": ("list_directory", (1, 0, TOKEN)),
    "releasedir": ("close_directory", (1,)),
    "rmdir": ("prepare_rmdir", (ROOT, b"kvm", CTX)),
    "open": ("open", (5, os.O_RDONLY, CTX)),
    "read": ("read", (1, 0, 4096)),
    "write": ("write", (1, 0, b"0")),
    "release": ("close", (1,)),
}


def run(handler: Coroutine[Any, Any, T]) -> T:
    """Run a handler, which must not wait for anything."""
    try:
        handler.send(None)
    except StopIteration as stop:
        return cast(T, stop.value)
    raise AssertionError("a handler waited")


def refused(handler: Coroutine[Any, Any, object]) -> int:
    """Run a handler that is refused; return the errno."""
    with pytest.raises(FUSEError) as caught:
        run(handler)
    return caught.value.errno


@pytest.fixture
def handlers(registry: Registry) -> Handlers:
    """Handlers of a tree with `kvm`, `cpu0` and `cpu1`."""
    make_kvm(registry)
    return Handlers(Vfs(registry, owner=(12, 34)))


def find(handlers: Handlers, path: str) -> InodeT:
    """Look a path up."""
    inode = InodeT(ROOT)
    for name in path.split("/"):
        inode = run(handlers.lookup(inode, FileNameT(name.encode()), CTX)).st_ino
    return inode


def fields(**updated: bool) -> SetattrFields:
    """Make what setattr is told is to be set."""
    kinds = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
    values = {f"update_{kind}": updated.get(kind, False) for kind in kinds}
    return cast(SetattrFields, SimpleNamespace(**values))


def test_every_operation_is_decided_on() -> None:
    """Each is served, refused as sysfs does, or left out on purpose; none is forgotten."""
    ours = {name for name in vars(Handlers) if name in vars(pyfuse3.Operations)}
    serving = {*CALLS, "setattr", "statfs", "forget"}
    lifecycle = {"init", "stacktrace"}
    all_of_them = {
        name
        for name, attribute in vars(pyfuse3.Operations).items()
        if callable(attribute) and not name.startswith("_")
    }
    assert all_of_them - lifecycle - LEFT_OUT <= serving | REFUSED.keys()
    assert ours >= serving | REFUSED.keys()
    assert not ours & LEFT_OUT


def test_entries(handlers: Handlers) -> None:
    """Owner, times, and timeouts that spare the kernel from asking again."""
    entry = run(handlers.lookup(InodeT(ROOT), FileNameT(b"kvm"), CTX))
    assert entry.st_mode == stat.S_IFDIR | 0o755
    assert (entry.st_uid, entry.st_gid, entry.st_nlink, entry.st_size) == (12, 34, 4, 0)
    assert entry.st_atime_ns == entry.st_mtime_ns == entry.st_ctime_ns > 0
    assert entry.entry_timeout == entry.attr_timeout == 300
    file = run(handlers.getattr(find(handlers, "kvm/exits"), CTX))
    assert (file.st_mode, file.st_size) == (stat.S_IFREG | 0o644, 4096)
    assert file.st_ino == find(handlers, "kvm/exits")


def test_open_read_write_release(handlers: Handlers) -> None:
    """Direct I/O without a cache; the offset of a write is ignored; errors have their errnos."""
    info = run(handlers.open(find(handlers, "kvm/exits"), FlagT(os.O_RDWR), CTX))
    assert (info.direct_io, info.keep_cache) == (True, False)
    assert run(handlers.read(info.fh, 0, 4096)) == b"0\n"
    assert run(handlers.read(info.fh, 1, 4096)) == b"\n"
    assert run(handlers.write(info.fh, 77, b"0\n")) == 2
    assert refused(handlers.write(info.fh, 0, b"1\n")) == errno.EINVAL
    assert run(handlers.release(info.fh)) is None
    busy = find(handlers, "kvm/busy")
    assert refused(handlers.open(busy, FlagT(os.O_WRONLY), CTX)) == errno.EACCES


def test_directories(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and attributes go out together, with the offset at which to go on."""
    replies: list[tuple[bytes, int, int]] = []

    def readdir_reply(token: object, name: bytes, entry: Any, offset: int) -> bool:
        assert token is TOKEN
        replies.append((name, entry.st_ino, offset))
        return len(replies) < 4

    monkeypatch.setattr(pyfuse3, "readdir_reply", readdir_reply)
    handle = run(handlers.opendir(InodeT(ROOT), CTX))
    run(handlers.readdir(handle, 0, TOKEN))
    assert replies == [(b".", 1, 1), (b"..", 1, 2), (b"kvm", find(handlers, "kvm"), 3)]
    run(handlers.releasedir(handle))
    assert refused(handlers.opendir(InodeT(999), CTX)) == errno.ENOENT


@pytest.mark.parametrize(
    ("name", "code"),
    [(b"nothing", errno.ENOENT), (b"\xff", errno.ENOENT), (b"x" * 255, errno.ENOENT),
     (b"x" * 256, errno.ENAMETOOLONG)],
)  # fmt: skip
def test_lookups_that_fail(handlers: Handlers, name: bytes, code: int) -> None:
    """ENOENT, which pyfuse3 does not let the kernel cache; a name too long says so."""
    assert refused(handlers.lookup(InodeT(ROOT), FileNameT(name), CTX)) == code


def test_what_is_not_there_below_a_root_of_its_own(registry: Registry) -> None:
    """An entry without an inode, which the kernel keeps for a second."""
    make_kvm(registry)
    handlers = Handlers(Vfs(registry, top="kvm"))
    for parent in (InodeT(ROOT), find(handlers, "cpu0")):
        entry = run(handlers.lookup(parent, FileNameT(b"nothing"), CTX))
        assert (entry.st_ino, entry.entry_timeout) == (0, 1)
    assert run(handlers.lookup(InodeT(ROOT), FileNameT(b"exits"), CTX)).entry_timeout == 300


def test_owners(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry has its own, in listings too, where one is filled again and again."""
    for name, owner in (("a", None), ("b", (56, 78)), ("c", None)):
        registry.register(Source(name, owner=owner))
    handlers = Handlers(Vfs(registry, owner=(12, 34)))
    found: dict[bytes, tuple[int, int]] = {}

    def readdir_reply(token: object, name: bytes, entry: Any, offset: int) -> bool:
        found[name] = entry.st_uid, entry.st_gid
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", readdir_reply)
    run(handlers.readdir(run(handlers.opendir(InodeT(ROOT), CTX)), 0, TOKEN))
    mounts, b = (12, 34), (56, 78)
    assert found == {b".": mounts, b"..": mounts, b"a": mounts, b"b": b, b"c": mounts}
    entry = run(handlers.getattr(find(handlers, "b"), CTX))
    assert (entry.st_uid, entry.st_gid) == b


def test_extended_attributes(handlers: Handlers) -> None:
    """Names and values; others there are none, and no others could be."""
    kvm = find(handlers, "kvm")
    assert run(handlers.listxattr(kvm, CTX)) == [b"user.statsfs.label"]
    assert run(handlers.getxattr(kvm, b"user.statsfs.label", CTX)) == b"module"
    assert refused(handlers.getxattr(kvm, b"security.capability", CTX)) == errno.EOPNOTSUPP


def test_statfs(handlers: Handlers) -> None:
    """An empty filesystem with names of up to 255 bytes."""
    data = run(handlers.statfs(CTX))
    assert (data.f_bsize, data.f_frsize, data.f_namemax) == (4096, 4096, 255)
    assert (data.f_blocks, data.f_bfree, data.f_bavail, data.f_files) == (0, 0, 0, 0)


@pytest.mark.parametrize(("name", "code"), REFUSED.items())
def test_refusals(handlers: Handlers, name: str, code: int) -> None:
    """What sysfs refuses, with any arguments."""
    for arguments in ((), (ROOT, b"name", b"target", 0o644, CTX)):
        assert refused(getattr(handlers, name)(*arguments)) == code


def test_rmdir_refuses(handlers: Handlers) -> None:
    """A directory is the program's; what is no directory is not there."""
    kvm = find(handlers, "kvm")
    for inode, name in ((InodeT(ROOT), b"kvm"), (kvm, b"cpu0")):
        assert refused(handlers.rmdir(inode, FileNameT(name), CTX)) == errno.EPERM
    for name in (b"exits", b"new", b"\xff", b".stats.json"):
        assert refused(handlers.rmdir(kvm, FileNameT(name), CTX)) == errno.ENOENT


@pytest.mark.parametrize(
    "updated",
    [
        {"mode": True},
        {"uid": True},
        {"gid": True},
        {"uid": True, "gid": True},
        {"atime": True, "mtime": True},
        {"mtime": True},
        {"mode": True, "size": True},
        {"size": True, "uid": True},
    ],
)
def test_setattr_refuses(handlers: Handlers, updated: dict[str, bool]) -> None:
    """Mode, owner and times are the program's."""
    inode = find(handlers, "kvm/exits")
    assert refused(handlers.setattr(inode, ENTRY, fields(**updated), None, CTX)) == errno.EPERM


@pytest.mark.parametrize(
    "updated", [{"size": True}, {"size": True, "mtime": True, "ctime": True}, {}, {"ctime": True}]
)
def test_setattr_truncates_without_effect(handlers: Handlers, updated: dict[str, bool]) -> None:
    """A file that can be written may be truncated; nothing happens."""
    inode = find(handlers, "kvm/exits")
    for fh in (None, FileHandleT(5)):
        entry = run(handlers.setattr(inode, ENTRY, fields(**updated), fh, CTX))
        assert (entry.st_ino, entry.st_size) == (inode, 4096)


def test_setattr_does_not_truncate_what_cannot_be_written(handlers: Handlers) -> None:
    """A read-only file is EACCES, one that is not there ENOENT."""
    busy = find(handlers, "kvm/busy")
    for inode, code in ((busy, errno.EACCES), (InodeT(999), errno.ENOENT)):
        assert refused(handlers.setattr(inode, ENTRY, fields(size=True), None, CTX)) == code


# Errors


def raising(error: Exception) -> Any:
    """Make a `Vfs` of which everything raises."""

    class Broken:
        stats = ServingStats()

        def __getattr__(self, name: str) -> Any:
            raise error

    return Broken()


def test_the_errno_table() -> None:
    """Each error of the table has its errno, and each that a reader can meet is in it."""
    handlers = Handlers(raising(Exception()))
    for kind, code in ERRNOS.items():
        assert handlers.errno_of(kind("message"), "test") == code
    readers = {getattr(vfs, name) for name in vfs.__all__ if name.endswith("Error")}
    assert readers <= ERRNOS.keys()
    assert all(issubclass(kind, StatsfsError) for kind in ERRNOS)
    # Those of making and mounting a tree cannot come from looking at it.
    others = {getattr(exceptions, name) for name in exceptions.__all__} - ERRNOS.keys()
    assert {kind.__name__ for kind in others} == {
        "StatsfsError", "TreeError", "DuplicateNameError", "InvalidNameError",
        "BaseMismatchError", "FormatError", "MountError", "SegmentError", "QmpError",
        "KvmError", "SampleError",
    }  # fmt: skip


ANYTHING = [
    ValueError("x"), KeyError("x"), RuntimeError("x"), MemoryError(), RecursionError(),
    OSError(errno.ENOSPC, "full"), ReferenceError(), StatsfsError("x"), AssertionError(),
    StopIteration(), ExceptionGroup("several", [ValueError()]),
    UnicodeDecodeError("a", b"", 0, 0, "b"),
]  # fmt: skip


@pytest.mark.parametrize("name", [*CALLS, "setattr", "statfs"])
@pytest.mark.parametrize("error", [*ANYTHING, *(kind("x") for kind in ERRNOS)], ids=repr)
def test_nothing_but_an_errno_leaves_a_handler(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the filesystem raises; what is in no table is EIO."""
    handlers = Handlers(raising(error))
    arguments: Any = (
        CALLS[name][1] if name in CALLS else (ROOT, ENTRY, fields(size=True), None, CTX)
    )
    if name == "statfs":
        arguments = (CTX,)

        def statvfs_data() -> None:
            raise error

        monkeypatch.setattr("statsfs.filesystem.fuse_handlers.StatvfsData", statvfs_data)
    code = refused(getattr(handlers, name)(*arguments))
    assert code == next((ERRNOS[kind] for kind in ERRNOS if kind is type(error)), errno.EIO)


def test_what_is_in_no_table_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """With its traceback, for each handler and message; what is in the table is not logged."""
    for error, logged in ((ValueError("x"), 2), (known.NoSuchFileError("x"), 0)):
        handlers = Handlers(raising(error))
        caplog.clear()
        for _ in range(3):
            refused(handlers.getattr(InodeT(ROOT), CTX))
            refused(handlers.read(FileHandleT(1), 0, 1))
        assert len(caplog.records) == logged
        assert all(record.levelno == logging.ERROR for record in caplog.records)
        assert all(record.exc_info for record in caplog.records)


def test_a_fuse_error_goes_through(registry: Registry) -> None:
    """One that comes from below is not made EIO."""
    handlers = Handlers(raising(FUSEError(errno.E2BIG)))
    assert refused(handlers.getattr(InodeT(ROOT), CTX)) == errno.E2BIG


def test_forget_never_raises(handlers: Handlers, caplog: pytest.LogCaptureFixture) -> None:
    """There is nobody to answer to; all others of the list are still forgotten."""
    inode = find(handlers, "kvm/exits")
    run(handlers.forget([(InodeT(999), 5), (inode, 1)]))
    assert refused(handlers.getattr(inode, CTX)) == errno.ENOENT
    broken = Handlers(raising(ValueError("x")))
    run(broken.forget([(InodeT(1), 1), (InodeT(2), 1)]))
    assert caplog.text.count("forget failed") == 2


def test_a_broken_value_is_eio(handlers: Handlers, registry: Registry) -> None:
    """A base that lost its value, and a released source, have their errnos."""
    source, base = Source("source"), SimpleNamespace(one=1)
    source.add_values([Value("one")], base)
    registry.register(source)
    inode = find(handlers, "source/one")
    info = run(handlers.open(inode, FlagT(os.O_RDONLY), CTX))
    del base.one
    assert refused(handlers.read(info.fh, 0, 4096)) == errno.EIO
    run(handlers.release(info.fh))
    source.put()
    registry.unregister(source)
    assert refused(handlers.open(inode, FlagT(os.O_RDONLY), CTX)) == errno.ENOENT


def test_views_that_are_held_open_have_an_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they hold is memory of the program: EMFILE, until one is closed; others read on."""
    make_kvm(registry)
    size = len(make_view(registry))
    monkeypatch.setattr(handles, "TEXTS_MAX", 6 * size)
    handlers = Handlers(Vfs(registry))
    view = find(handlers, "kvm/.stats.json")
    first = run(handlers.open(view, FlagT(os.O_RDONLY), CTX)).fh
    text = run(handlers.read(first, 0, 4096))
    held = [run(handlers.open(view, FlagT(os.O_RDONLY), CTX)).fh for _ in range(2)]
    assert refused(handlers.open(view, FlagT(os.O_RDONLY), CTX)) == errno.EMFILE
    # Another user has a share of what is left; then there is nothing left.
    others = [cast(RequestContext, SimpleNamespace(pid=1, uid=uid, gid=0)) for uid in range(1, 5)]
    held += [run(handlers.open(view, FlagT(os.O_RDONLY), ctx)).fh for ctx in others[:3]]
    assert refused(handlers.open(view, FlagT(os.O_RDONLY), others[0])) == errno.ENFILE
    assert refused(handlers.open(view, FlagT(os.O_RDONLY), others[3])) == errno.ENFILE
    # Read anew it would be longer now; it stays what it was.
    add_cpu(registry.sources[0], "cpu2")
    assert refused(handlers.read(first, 0, 4096)) == errno.ENFILE
    assert run(handlers.read(first, 1, 4096)) == text[1:]
    for handle in (first, *held):
        run(handlers.release(handle))
    assert run(handlers.open(view, FlagT(os.O_RDONLY), CTX)).fh


def make_view(registry: Registry) -> bytes:
    """Return what `.stats.json` shows of the first source."""
    rendering = Rendering(VIEWS[".stats.json"], registry.sources[0], 0o444)
    rendering.run()
    return rendering.text


def test_detached_handlers(handlers: Handlers, registry: Registry) -> None:
    """After the end of a mount pyfuse3 keeps them, but they keep nothing of its tree."""
    kvm = weakref.ref(registry.sources[0])
    handlers.detach()
    assert run(handlers.getattr(InodeT(ROOT), CTX)).st_nlink == 2
    assert refused(handlers.lookup(InodeT(ROOT), FileNameT(b"kvm"), CTX)) == errno.ENOENT
    registry.unregister(registry.sources[0])
    gc.collect()
    assert kvm() is None

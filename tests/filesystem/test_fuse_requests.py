"""The handlers, asked at random for all that a kernel may ask: an answer, or a known errno."""

import errno
import os
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock

import pyfuse3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pyfuse3 import FileHandleT, FileNameT, FlagT, FUSEError, InodeT

from statsfs.filesystem.fuse_handlers import Handlers
from statsfs.filesystem.known import ROOT
from statsfs.filesystem.vfs import Vfs
from statsfs.formats.views import VIEWS
from statsfs.tree.registry import Registry
from tests.filesystem.test_fuse_handlers import CTX, ENTRY, TOKEN, fields, run
from tests.support.trees import add_cpu, make_kvm, subordinate

T = TypeVar("T")

NAMES = ("kvm", "cpu0", "cpu1", "exits", "busy", "wait", "wait.max", *VIEWS)
names = st.one_of(
    st.sampled_from([name.encode() for name in NAMES]), st.binary(min_size=1, max_size=300)
)
flags = st.builds(
    lambda access, more: access | sum(more),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]),
    st.sets(st.sampled_from([os.O_TRUNC, os.O_APPEND, os.O_NONBLOCK, os.O_DIRECT, os.O_SYNC])),
)
sizes = st.one_of(st.integers(0, 10), st.integers(0, 1 << 17))
offsets = st.one_of(st.integers(0, 300), st.integers(0, (1 << 63) - 1))
data = st.one_of(st.sampled_from([b"0", b"0\n", b" -0x0", b"", b"1"]), st.binary(max_size=5000))
attributes = st.one_of(
    st.sampled_from([b"user.statsfs.type", b"user.statsfs.label", b"security.capability"]),
    st.binary(min_size=1, max_size=255),
)
kinds = st.sets(st.sampled_from(["mode", "uid", "gid", "size", "atime", "mtime", "ctime"]))


@dataclass
class Opened:
    handle: int
    inode: int
    flags: int


@dataclass
class Listed:
    handle: int
    inode: int
    offsets: list[int] = field(default_factory=lambda: [0])


class Requests(RuleBasedStateMachine):
    """A kernel that asks at random; it knows what it was told, as a kernel does."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        make_kvm(self.registry)
        self.vfs = Vfs(self.registry)
        self.handlers = Handlers(self.vfs)
        self.lookups: Counter[int] = Counter()
        self.files: list[Opened] = []
        self.directories: list[Listed] = []

    def ask(self, handler: Coroutine[Any, Any, T], *codes: int) -> T | None:
        """Have one handler answer; it may be refused with one of some errnos, and nothing else."""
        try:
            return run(handler)
        except FUSEError as error:
            if error.errno not in codes:
                raise
            return None

    def pick(self, draw: st.DataObject) -> InodeT:
        """Choose an inode that the kernel knows."""
        return InodeT(draw.draw(st.sampled_from([ROOT, *sorted(self.lookups)])))

    # Names and attributes

    @rule(draw=st.data(), name=names)
    def lookup(self, draw: st.DataObject, name: bytes) -> None:
        parent = self.pick(draw)
        asked = self.handlers.lookup(parent, FileNameT(name), CTX)
        entry = self.ask(asked, errno.ENOENT, errno.ENAMETOOLONG)
        if entry is not None:
            self.lookups[entry.st_ino] += 1

    @rule(draw=st.data())
    def walk(self, draw: st.DataObject) -> None:
        """The way down, which names at random would seldom find."""
        inode = InodeT(ROOT)
        path = draw.draw(st.sampled_from([("kvm", "cpu0"), ("kvm", "cpu1"), ("kvm",), ()]))
        for name in (*path, draw.draw(st.sampled_from(NAMES))):
            asked = self.handlers.lookup(inode, FileNameT(name.encode()), CTX)
            entry = self.ask(asked, errno.ENOENT)
            if entry is None:
                return
            inode = entry.st_ino
            self.lookups[inode] += 1

    @precondition(lambda self: self.lookups)
    @rule(draw=st.data())
    def forget(self, draw: st.DataObject) -> None:
        inode = draw.draw(st.sampled_from(sorted(self.lookups)))
        # A kernel keeps what is open.
        used: list[int] = [opened.inode for opened in self.files]
        used += [listed.inode for listed in self.directories]
        in_use = inode in used
        times = draw.draw(st.integers(1, self.lookups[inode])) - in_use
        run(self.handlers.forget([(InodeT(inode), times)]))
        self.lookups[inode] -= times
        self.lookups += Counter()  # without those that are 0

    @rule(draw=st.data(), name=attributes, updated=kinds)
    def ask_for_attributes(self, draw: st.DataObject, name: bytes, updated: set[str]) -> None:
        inode = self.pick(draw)
        found = self.ask(self.handlers.getattr(inode, CTX))
        assert found is not None
        assert found.st_ino == inode
        self.ask(self.handlers.getxattr(inode, name, CTX), errno.ENODATA, errno.EOPNOTSUPP)
        for each in self.ask(self.handlers.listxattr(inode, CTX)) or ():
            assert self.ask(self.handlers.getxattr(inode, each, CTX)) is not None
        new = fields(**dict.fromkeys(updated, True))
        refused = (errno.EPERM, errno.EACCES)
        self.ask(self.handlers.setattr(inode, ENTRY, new, None, CTX), *refused)
        self.ask(self.handlers.statfs(CTX))

    # Files

    @rule(draw=st.data(), flags=flags)
    def open(self, draw: st.DataObject, flags: int) -> None:
        inode = self.pick(draw)
        asked = self.handlers.open(inode, FlagT(flags), CTX)
        info = self.ask(asked, errno.ENOENT, errno.EACCES)
        if info is not None:
            self.files.append(Opened(info.fh, inode, flags & os.O_ACCMODE))

    @precondition(lambda self: self.files)
    @rule(draw=st.data(), offset=offsets, size=sizes)
    def read(self, draw: st.DataObject, offset: int, size: int) -> None:
        opened = draw.draw(st.sampled_from(self.files))
        if opened.flags == os.O_WRONLY:
            return
        handle = FileHandleT(opened.handle)
        whole = self.ask(self.handlers.read(handle, 0, 1 << 17))
        # That of a view may be empty, if there is nothing to be told.
        assert whole is not None
        piece = self.ask(self.handlers.read(handle, offset, size))
        # At 0 it is computed anew: a view has a new moment, but here nothing else counts.
        assert piece == whole[offset : offset + size]

    @precondition(lambda self: self.files)
    @rule(draw=st.data(), offset=offsets, data=data)
    def write(self, draw: st.DataObject, offset: int, data: bytes) -> None:
        opened = draw.draw(st.sampled_from(self.files))
        if opened.flags == os.O_RDONLY:
            return
        asked = self.handlers.write(FileHandleT(opened.handle), offset, data)
        written = self.ask(asked, errno.EINVAL)
        assert written in (None, len(data))

    @precondition(lambda self: self.files)
    @rule(draw=st.data())
    def release(self, draw: st.DataObject) -> None:
        opened = draw.draw(st.sampled_from(self.files))
        self.files.remove(opened)
        self.ask(self.handlers.release(FileHandleT(opened.handle)))

    # Directories

    @rule(draw=st.data())
    def opendir(self, draw: st.DataObject) -> None:
        inode = self.pick(draw)
        handle = self.ask(self.handlers.opendir(inode, CTX), errno.ENOENT)
        if handle is not None:
            self.directories.append(Listed(handle, inode))

    @precondition(lambda self: self.directories)
    @rule(draw=st.data(), room=st.integers(0, 12), anywhere=offsets)
    def readdir(self, draw: st.DataObject, room: int, anywhere: int) -> None:
        opened = draw.draw(st.sampled_from(self.directories))
        start = draw.draw(st.sampled_from([*opened.offsets, anywhere]))
        seen: list[bytes] = []

        def reply(token: object, name: bytes, entry: Any, offset: int) -> bool:
            if len(seen) == room:
                return False
            seen.append(name)
            opened.offsets.append(offset)
            if name not in (b".", b".."):
                self.lookups[entry.st_ino] += 1
            return True

        with mock.patch.object(pyfuse3, "readdir_reply", reply):
            self.ask(self.handlers.readdir(FileHandleT(opened.handle), start, TOKEN))
        assert len(set(seen)) == len(seen)

    @precondition(lambda self: self.directories)
    @rule(draw=st.data())
    def releasedir(self, draw: st.DataObject) -> None:
        opened = draw.draw(st.sampled_from(self.directories))
        self.directories.remove(opened)
        self.ask(self.handlers.releasedir(FileHandleT(opened.handle)))

    # What the program does meanwhile

    @rule(name=st.sampled_from(["cpu0", "cpu1"]))
    def change(self, name: str) -> None:
        (kvm,) = self.registry.sources
        if kvm.find(name) is None:
            add_cpu(kvm, name)
        else:
            kvm.remove_subordinate(subordinate(kvm, name))

    @invariant()
    def nothing_is_known_that_was_not_told(self) -> None:
        assert len(self.vfs._inodes) == len(self.lookups)

    def teardown(self) -> None:
        for opened in self.files:
            run(self.handlers.release(FileHandleT(opened.handle)))
        for listed in self.directories:
            run(self.handlers.releasedir(FileHandleT(listed.handle)))
        run(self.handlers.forget([(InodeT(inode), n) for inode, n in self.lookups.items()]))
        assert len(self.vfs._inodes) == 0
        assert not self.vfs._handles.files
        assert not self.vfs._handles.directories


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=15)

"""A client that asks for everything that a kernel can be asked for; standard library only.

It calls at random whatever a system call can be made of on the mount, and counts by call what came
of it: 0 or an errno. Which errnos may be is known to `fuzzing`.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import select
import stat
import sys
import tempfile
import termios
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

__all__ = ["ask_everything"]

_libc: Final = ctypes.CDLL(None, use_errno=True)
_AT_EMPTY_PATH: Final = 0x1000
_SEEK_DATA, _SEEK_HOLE = 3, 4
# FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FIGETBSZ, FIBMAP; BLKGETSIZE64, and no number
# that anything has.
_IOCTLS: Final = (
    0x80086601, 0x40086602, 0x801C581F, 2, 1, 0x80081272, 0xDEAD, termios.FIONREAD, termios.TCGETS,
)  # fmt: skip
_LEASES: Final = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)

_TEXTS: Final = (b"0", b"0\n", b" +0x0\t", b"-00", b"", b"1", b"0 0", b"\0", b"0\0", b"00000000000")
_NAMES: Final = (
    b".", b".stats.json", b".stats.prom", b".stats.openmetrics", b".stats.bin",
    b".schema.json", b".stats", b".hidden", b"cpu0", b"exits", b"wait.min", b"wait.sum", b"exits ",
    b"cpu\xff", "é".encode(), b"a" * 255, b"a" * 256, b"\n", b"*", b"..." , b".git", b"autorun.inf",
)  # fmt: skip
_FLAGS: Final = (
    os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NONBLOCK, os.O_SYNC, os.O_DSYNC,
    os.O_DIRECT, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_NOATIME, os.O_PATH, os.O_TMPFILE, os.O_NOCTTY,
)  # fmt: skip


def _call(name: str, *arguments: Any) -> int:
    # A function of libc that has no wrapper in `os`.
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


class _Asker:
    def __init__(self, mountpoint: str, seed: int) -> None:
        self.root = os.fsencode(mountpoint)
        self.own_files = os.open("/proc/self/fd", os.O_PATH)
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.scratch = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.scratch.write(bytes(8192))
        self.pipe = os.pipe2(os.O_NONBLOCK)
        self.buffer = ctypes.create_string_buffer(1 << 16)
        self.by_path = self._named("path_")
        self.by_descriptor = self._named("file_")
        self._lock_in()

    def _lock_in(self) -> None:
        # Nothing that is done here may reach what is beside the mount, whatever becomes of it: no
        # name is "..", and whoever may makes the mount its root.
        if os.geteuid() == 0:
            os.chroot(self.root)
            os.chdir("/")
            self.root = b"/"

    def _named(self, prefix: str) -> list[tuple[str, Callable[[Any], object]]]:
        return [
            (name.removeprefix(prefix), getattr(self, name))
            for name in dir(self)
            if name.startswith(prefix)
        ]

    def ask(self, until: float) -> None:
        while time.monotonic() < until:
            path = self.path()
            self.count(*self.random.choice(self.by_path), path)
            descriptor = self.open(path)
            if descriptor is None:
                continue
            for name, function in self.random.choices(self.by_descriptor, k=4):
                self.count(name, function, descriptor)
            os.close(descriptor)

    def count(self, name: str, function: Callable[[Any], object], argument: Any) -> Any:
        result = None
        code = "0"
        try:
            result = function(argument)
        except OSError as error:
            code = errno.errorcode[error.errno or 0]
        self.seen[f"{name} {code}"] += 1
        return result

    # What is asked for

    def path(self) -> bytes:
        """A path: nearly always of something that is there, sometimes of nothing."""
        parts = [self.root]
        for choices in ((b"kvm", b"."), (b"cpu0", b"cpu1", b"."), _NAMES):
            part = self.random.choice(choices)
            if self.random.random() < 0.1:
                part = self.random.choice((self.name(), *_NAMES))
            if self.random.random() < 0.1:
                break
            parts.append(part)
        return b"/".join(parts)

    def name(self) -> bytes:
        length = self.random.choice((1, 3, 30, 254, 255, 256, 300))
        name = self.random.randbytes(length).replace(b"\0", b"x").replace(b"/", b"y")
        name = name if self.random.random() < 0.5 else b"." + name[1:]
        return b"dots" if name == b".." else name

    def open(self, path: bytes) -> int | None:
        flags = self.random.choice((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
        for flag in self.random.sample(_FLAGS, self.random.choice((0, 0, 1, 2, 3))):
            flags |= flag
        # Nobody waits, whatever it is.
        found: int | None = self.count("open", lambda path: os.open(path, flags, 0o644), path)
        return found

    def text(self) -> bytes:
        if self.random.random() < 0.6:
            return self.random.choice(_TEXTS)
        return self.random.randbytes(self.random.choice((1, 10, 4095, 4096, 4097, 70000)))

    def size(self) -> int:
        near = (0, 1, 2, 4095, 4096, 4097, 1 << 16, 1 << 20)
        return self.random.choice((*near, self.random.randrange(1 << 12)))

    def offset(self) -> int:
        edges = (0, 1, 4095, 4096, 4097, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 62) + 1)
        return self.random.choice((*edges, self.random.randrange(1 << 14)))

    # By path

    def path_stat(self, path: bytes) -> None:
        found = os.lstat(path)
        assert stat.S_IFMT(found.st_mode) in (stat.S_IFREG, stat.S_IFDIR)

    def path_statx(self, path: bytes) -> None:
        mask = self.random.choice((0, 0x7FF, 0xFFF, 0x3FFF))
        flags = self.random.choice((0, 0x100, 0x2000, 0x4000, 0x800))
        _call("statx", -100, path, flags, mask, self.buffer)

    def path_statvfs(self, path: bytes) -> None:
        os.statvfs(path)

    def path_access(self, path: bytes) -> None:
        _call("faccessat", -100, path, self.random.randrange(8), 0)

    def path_chmod(self, path: bytes) -> None:
        os.chmod(path, self.random.randrange(0o10000))

    def path_chown(self, path: bytes) -> None:
        os.lchown(path, self.random.choice((-1, 0, 5)), self.random.choice((-1, 0, 5)))

    def path_utime(self, path: bytes) -> None:
        os.utime(path, self.random.choice((None, (0, 0), (1e9, 1e9))))

    def path_truncate(self, path: bytes) -> None:
        os.truncate(path, self.offset())

    def path_link(self, path: bytes) -> None:
        os.link(path, self.path())

    def path_symlink(self, path: bytes) -> None:
        os.symlink(b"target", path)

    def path_readlink(self, path: bytes) -> None:
        os.readlink(path)

    def path_rename(self, path: bytes) -> None:
        flags = self.random.choice((0, 0, 1, 2, 4))
        target = self.path()
        _call("renameat2", -100, path, -100, target, flags)
        # To itself is no change, and no error.
        assert os.path.normpath(path) == os.path.normpath(target)

    def path_mkdir(self, path: bytes) -> None:
        os.mkdir(path)

    def path_mknod(self, path: bytes) -> None:
        kind = self.random.choice((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR))
        os.mknod(path, kind | 0o644, os.makedev(1, 3))

    def path_unlink(self, path: bytes) -> None:
        os.unlink(path)

    def path_rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def path_execute(self, path: bytes) -> None:
        found = os.lstat(path)
        assert stat.S_ISDIR(found.st_mode) or not found.st_mode & 0o111

    def path_listxattr(self, path: bytes) -> None:
        for name in os.listxattr(path):
            os.getxattr(path, name)

    def path_getxattr(self, path: bytes) -> None:
        spaces = (b"user.", b"user.statsfs.", b"security.", b"trusted.", b"system.posix_acl_access")
        name = self.random.choice(spaces) + self.random.choice((b"", b"type", b"kind", b"x" * 200))
        _call("getxattr", path, name, self.buffer, self.random.choice((0, 1, 2, 100)))

    def path_setxattr(self, path: bytes) -> None:
        name = self.random.choice((b"user.statsfs.type", b"user.x", b"trusted.x", b"security.x"))
        os.setxattr(path, name, self.text(), self.random.choice((0, 1, 2)))

    def path_removexattr(self, path: bytes) -> None:
        os.removexattr(path, self.random.choice((b"user.statsfs.type", b"user.x")))

    def path_handle(self, path: bytes) -> None:
        handle = bytearray(b"\x80\0\0\0" + bytes(196))
        shared = (ctypes.c_char * len(handle)).from_buffer(handle)
        _call("name_to_handle_at", -100, path, shared, self.buffer, 0)
        mount = os.open(self.root, os.O_RDONLY)
        try:
            if self.random.random() < 0.5:
                handle[8:16] = self.random.randbytes(8)
            os.close(_call("open_by_handle_at", mount, shared, os.O_RDONLY))
        finally:
            os.close(mount)

    def path_inotify(self, path: bytes) -> None:
        watching = _call("inotify_init1", os.O_NONBLOCK)
        try:
            _call("inotify_add_watch", watching, path, 0xFFF)
        finally:
            os.close(watching)

    def path_cat(self, path: bytes) -> None:
        with open(path, "rb", buffering=self.random.choice((0, 2, 7, 8192))) as file:
            file.read(self.random.choice((-1, 1, 100)))

    def path_list(self, path: bytes) -> None:
        names = os.listdir(path)
        assert len(set(names)) == len(names)

    def path_echo(self, path: bytes) -> None:
        with open(path, self.random.choice(("wb", "ab", "r+b")), buffering=0) as file:
            file.write(self.text())

    # By descriptor

    def file_read(self, file: int) -> None:
        os.read(file, self.size())

    def file_pread(self, file: int) -> None:
        # The same text, whatever is asked for, until it is computed anew.
        whole = os.pread(file, 1 << 17, 0)
        size, offset = self.size(), self.offset() or 1
        assert os.pread(file, size, offset) == whole[offset : offset + size]

    def file_preadv(self, file: int) -> None:
        buffers = [bytearray(self.random.choice((0, 1, 5, 5000))) for _ in range(3)]
        os.preadv(file, buffers, self.offset(), self.random.choice((0, os.RWF_NOWAIT, 1)))

    def file_write(self, file: int) -> None:
        text = self.text()
        assert os.write(file, text) == len(text)

    def file_pwrite(self, file: int) -> None:
        text = self.text()
        assert os.pwrite(file, text, self.offset()) == len(text)

    def file_pwritev(self, file: int) -> None:
        os.pwritev(file, [self.text(), self.text()], self.offset(), self.random.choice((0, 2, 16)))

    def file_lseek(self, file: int) -> None:
        how = self.random.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, _SEEK_DATA, _SEEK_HOLE))
        os.lseek(file, self.random.choice((1, -1)) * self.offset(), how)

    def file_ftruncate(self, file: int) -> None:
        os.ftruncate(file, self.offset())

    def file_fallocate(self, file: int) -> None:
        mode = self.random.choice((0, 1, 2, 3, 8, 16, 32))
        offset, size = ctypes.c_long(self.offset()), ctypes.c_long(self.size())
        _call("fallocate", file, mode, offset, size)

    def file_fstat(self, file: int) -> None:
        os.fstat(file)

    def file_fstatx(self, file: int) -> None:
        _call("statx", file, b"", _AT_EMPTY_PATH, 0xFFF, self.buffer)

    def file_fchmod(self, file: int) -> None:
        os.fchmod(file, 0o600)

    def file_futime(self, file: int) -> None:
        os.utime(file, None)

    def file_sync(self, file: int) -> None:
        self.random.choice((os.fsync, os.fdatasync))(file)

    def file_sync_range(self, file: int) -> None:
        _call("sync_file_range", file, ctypes.c_long(0), ctypes.c_long(self.size()), 7)

    def file_advise(self, file: int) -> None:
        os.posix_fadvise(file, 0, self.size(), self.random.randrange(6))

    def file_readahead(self, file: int) -> None:
        _call("readahead", file, ctypes.c_long(0), ctypes.c_long(self.size()))

    def file_flock(self, file: int) -> None:
        fcntl.flock(file, self.random.choice((fcntl.LOCK_SH, fcntl.LOCK_EX)) | fcntl.LOCK_NB)

    def file_lock(self, file: int) -> None:
        fcntl.lockf(file, self.random.choice((fcntl.LOCK_SH, fcntl.LOCK_EX)) | fcntl.LOCK_NB)

    def file_lease(self, file: int) -> None:
        fcntl.fcntl(file, fcntl.F_SETLEASE, self.random.choice(_LEASES))
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def file_flags(self, file: int) -> None:
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        flag = self.random.choice((os.O_APPEND, os.O_NONBLOCK, os.O_DIRECT, os.O_NOATIME))
        fcntl.fcntl(file, fcntl.F_SETFL, flags ^ flag)

    def file_seals(self, file: int) -> None:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)

    def file_ioctl(self, file: int) -> None:
        fcntl.ioctl(file, self.random.choice(_IOCTLS), bytes(64))

    def file_mmap(self, file: int) -> None:
        how = self.random.choice((mmap.MAP_PRIVATE, mmap.MAP_SHARED))
        access = self.random.choice((mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE))
        # Not of a view, which may have become empty: the first byte would be a SIGBUS.
        if b"/." not in os.readlink(b"%d" % file, dir_fd=self.own_files):
            with mmap.mmap(file, 1, how, access) as mapped:
                mapped[0]

    def file_sendfile(self, file: int) -> None:
        offset = self.random.choice((None, 0, 3))
        os.sendfile(self.pipe[1], file, offset, self.random.choice((1, 4096, 1 << 16)))

    def file_sendfile_in(self, file: int) -> None:
        os.sendfile(file, self.scratch.fileno(), 0, self.size())

    def file_splice(self, file: int) -> None:
        os.splice(file, self.pipe[1], self.random.choice((1, 4096, 1 << 16)), None, None, 2)

    def file_splice_in(self, file: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.pipe[1], self.text()[:4096])
        os.splice(self.pipe[0], file, self.random.choice((1, 4096)), flags=2)

    def file_copy_range(self, file: int) -> None:
        os.copy_file_range(file, self.scratch.fileno(), self.size(), 0, 0)

    def file_copy_range_in(self, file: int) -> None:
        os.copy_file_range(self.scratch.fileno(), file, self.size(), 0, 0)

    def file_copy_range_self(self, file: int) -> None:
        os.copy_file_range(file, file, 10, 0, 100)

    def file_poll(self, file: int) -> None:
        poll = select.poll()
        poll.register(file)
        poll.poll(0)

    def file_epoll(self, file: int) -> None:
        with select.epoll() as epoll:
            epoll.register(file, select.EPOLLIN | select.EPOLLET)
            epoll.poll(0)

    def file_getdents(self, file: int) -> None:
        if self.random.random() < 0.5:
            os.lseek(file, self.random.choice((0, 1, 2, 7, self.offset())), os.SEEK_SET)
        sizes = (1, 23, 24, 32, 280, 4096, 1 << 16)
        _call("getdents64", file, self.buffer, self.random.choice(sizes))

    def file_openat(self, file: int) -> None:
        os.close(os.open(self.random.choice((*_NAMES, self.name())), os.O_RDONLY, dir_fd=file))

    def file_reopen(self, file: int) -> None:
        mode = self.random.choice((os.O_RDONLY, os.O_RDWR))
        os.close(os.open(str(file), mode, dir_fd=self.own_files))

    def file_chdir(self, file: int) -> None:
        before = os.open(".", os.O_PATH)
        try:
            os.fchdir(file)
            os.listdir(".")
        finally:
            os.fchdir(before)
            os.close(before)

    def file_xattr(self, file: int) -> None:
        for name in os.listxattr(file):
            os.getxattr(file, name)

    def file_dup(self, file: int) -> None:
        os.close(os.dup(file))

    def file_drain(self, file: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.pipe[0], 1 << 16)


def ask_everything(mountpoint: str, seed: str, until: str) -> None:
    """Ask until a moment of the monotonic clock; print how often each call ended how."""
    asker = _Asker(mountpoint, int(seed))
    asker.ask(float(until))
    json.dump(asker.seen, sys.stdout)

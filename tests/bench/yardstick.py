"""The yardstick: a minimal filesystem on pyfuse3 as its documentation shows it.

    python -m tests.bench.yardstick MOUNTPOINT DIRECTORIES FILES

Each directory has so many files, all with the same constant text. It ends when stdin does.
"""

import errno
import os
import stat
import sys

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
)

TEXT = b"12345\n"
# Inodes: the root is 1, directories follow from _STEP in steps of it, their files in between.
_STEP = 1 << 20


class Yardstick(pyfuse3.Operations):
    """Directories `d0` … with files `f0` …; their names and attributes may be kept for 300 s."""

    def __init__(self, directories: int, files: int) -> None:
        super().__init__()
        self.directories = {b"d%d" % number: (number + 1) * _STEP for number in range(directories)}
        self.files = {b"f%d" % number: number + 1 for number in range(files)}

    def _entry(self, inode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(inode)
        is_file = inode > 1 and inode % _STEP
        entry.st_mode = ModeT(stat.S_IFREG | 0o644 if is_file else stat.S_IFDIR | 0o755)
        entry.st_size = len(TEXT) if is_file else 0
        return entry

    def _names(self, inode: int) -> dict[bytes, int]:
        if inode == 1:
            return self.directories
        return {name: inode + number for name, number in self.files.items()}

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Return attributes."""
        return self._entry(inode)

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Find a name."""
        if parent_inode == 1:
            inode = self.directories.get(name, 0)
        else:
            inode = self.files[name] + parent_inode if name in self.files else 0
        if not inode:
            raise FUSEError(errno.ENOENT)
        return self._entry(inode)

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List a directory."""
        names = list(self._names(fh).items())
        for offset, (name, inode) in enumerate(names[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, FileNameT(name), self._entry(inode), offset):
                break

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file."""
        return FileInfo(fh=FileHandleT(inode), direct_io=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read a file."""
        return TEXT[off : off + size]


async def serve() -> None:
    """Serve until stdin ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        await trio.to_thread.run_sync(sys.stdin.read)
        pyfuse3.terminate()


def main() -> None:
    """Mount and serve."""
    mountpoint, directories, files = sys.argv[1:]
    operations = Yardstick(int(directories), int(files))
    pyfuse3.init(operations, os.path.abspath(mountpoint), {*pyfuse3.default_options})
    print("mounted", flush=True)
    try:
        trio.run(serve)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()

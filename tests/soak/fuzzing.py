"""Random requests: each is answered, by nothing but the errnos that are expected of it."""

import contextlib
import random
import time
from collections import Counter
from typing import Final

from tests.soak.clients import client, collect
from tests.soak.measures import check_use, expect_quiet, serving_long, use_of, warm_up
from tests.soak.requests import ask_everything
from tests.support import mount_calls as calls
from tests.support import mount_threads as threads
from tests.support.deadlines import DEADLINE

__all__ = ["fuzz"]

CLIENTS = 3
GROWTH = 4.0  # MiB
COUNTED = 7

# What the kernel says of any path, and of a descriptor of the wrong kind (opened with O_PATH, not
# for this, a directory, or with arguments that make no sense).
_PATH: Final = "ENOENT ENOTDIR ENAMETOOLONG"
_FILE: Final = "EBADF EISDIR EINVAL"
# Besides these. What is refused is refused as by sysfs: EPERM, EACCES; what there is not, as by any
# file that has no such thing: ENOTTY, ENODEV, ENODATA, EOPNOTSUPP (ENOTSUP is the same number).
EXPECTED: Final = {
    **dict.fromkeys(("stat", "statx", "statvfs", "execute", "listxattr", "inotify"), _PATH),
    **dict.fromkeys(("chmod", "chown", "utime"), f"{_PATH} EPERM ENODATA"),
    **dict.fromkeys(("mkdir", "symlink", "link"), f"{_PATH} EEXIST EPERM"),
    "access": f"{_PATH} EACCES",
    "cat": f"{_PATH} EISDIR EACCES",
    "getxattr": f"{_PATH} ENODATA ERANGE EINVAL ENOTSUP",
    "handle": f"{_PATH} ESTALE EPERM ENOTSUP",
    "list": _PATH,
    "mknod": f"{_PATH} EEXIST EACCES EPERM",
    "open": f"{_PATH} EACCES EEXIST EINVAL EISDIR ENOTSUP EPERM",
    "readlink": f"{_PATH} EINVAL",
    "removexattr": f"{_PATH} EACCES EPERM ENODATA",
    "rename": f"{_PATH} EBUSY EEXIST EINVAL EISDIR ENOTEMPTY EPERM EXDEV",
    "rmdir": f"{_PATH} EBUSY EINVAL ENOTEMPTY EPERM",
    "setxattr": f"{_PATH} E2BIG EACCES ENODATA EEXIST ENOTSUP EPERM",
    "truncate": f"{_PATH} EACCES EISDIR EINVAL",
    "unlink": f"{_PATH} EISDIR EPERM",
    "echo": f"{_PATH} EACCES EISDIR EINVAL",
    **dict.fromkeys(("read", "pread", "ftruncate", "readahead"), _FILE),
    **dict.fromkeys(("write", "pwrite"), f"{_FILE} EFBIG"),
    **dict.fromkeys(("dup", "drain", "fstat", "poll", "advise"), _FILE),
    **dict.fromkeys(("sync", "sync_range", "xattr", "fstatx"), _FILE),
    **dict.fromkeys(("fchmod", "futime", "flags", "seals"), f"{_FILE} EPERM"),
    **dict.fromkeys(("copy_range", "copy_range_in", "copy_range_self"), f"{_FILE} EXDEV EFBIG"),
    **dict.fromkeys(("sendfile", "sendfile_in", "splice", "splice_in"), f"{_FILE} EAGAIN EFBIG"),
    "preadv": f"{_FILE} ENOTSUP EAGAIN",
    "pwritev": f"{_FILE} ENOTSUP EAGAIN EFBIG",
    **dict.fromkeys(("flock", "lock"), f"{_FILE} EAGAIN EACCES"),
    "chdir": f"{_FILE} {_PATH}",
    "epoll": f"{_FILE} EPERM",
    "fallocate": f"{_FILE} ENOTSUP EFBIG",
    "getdents": f"{_FILE} {_PATH}",
    "ioctl": f"{_FILE} ENOTTY EPERM",
    "lease": f"{_FILE} EAGAIN EACCES",
    "lseek": f"{_FILE} ENXIO",
    "mmap": f"{_FILE} EACCES ENODEV",
    "openat": f"{_FILE} {_PATH} EACCES",
    "reopen": f"{_FILE} EACCES ENOENT",
}


def fuzz(seconds: float) -> str:
    """Ask for all that can be asked for, at random, while the tree changes.

    Nothing but the errnos that each call is documented to have; what was not cleared is as it was,
    nothing is left open, and nothing was logged.
    """
    seeds = [random.randrange(1 << 32) for _ in range(CLIENTS)]
    seen: Counter[str] = Counter()
    with serving_long(seconds) as server, contextlib.ExitStack() as stack:
        warm_up(server)
        before = use_of(server)
        for name in ("cpu0", "cpu1"):
            server.call(calls.add, name, COUNTED)
        names = {path.name for path in (server / "kvm").iterdir()}
        server.call(threads.start_churn, 1)
        end = time.monotonic() + seconds
        clients = [
            stack.enter_context(client(ask_everything, server.mountpoint, seed, end))
            for seed in seeds
        ]
        for process, seed in zip(clients, seeds, strict=True):
            try:
                seen.update(collect(process, seconds + DEADLINE))
            except BaseException as error:
                error.add_note(f"the seed is {seed}")
                raise
        rounds, errors = server.call(threads.end_churn)
        assert errors == []
        assert rounds
        check_answers(seen)
        assert {path.name for path in (server / "kvm").iterdir()} == names
        assert all(
            (server / f"kvm/{name}/exits").read_text() in ("0\n", f"{COUNTED}\n")
            for name in ("cpu0", "cpu1")
        )
        server.call(calls.clear)
        expect_quiet(server)
        memory = check_use(before, use_of(server), GROWTH)
    kinds = len({entry.split()[0] for entry in seen})
    return f"{seen.total()} requests of {kinds} kinds, {len(seen)} different answers; {memory}"


def check_answers(seen: Counter[str]) -> None:
    """See that each call was answered by an errno that it may have, and that all were made."""
    unexpected = {}
    for entry, times in seen.items():
        call, code = entry.split()
        if code != "0" and code not in EXPECTED[call].split():
            unexpected[entry] = times
    assert not unexpected, unexpected
    # Nothing that would change what is there has succeeded.
    for call in ("mkdir", "mknod", "symlink", "link", "rmdir", "unlink", "setxattr"):
        assert f"{call} 0" not in seen, call

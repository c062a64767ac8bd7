"""The status of mounted filesystems, read from their files; no other rights are needed.

Owns how mounts are read although a server may hang. A signal does not end a read from such a mount,
so a child process reads each mount, and is left behind if it takes too long.

Threading: main thread only, of a process that has no other.
"""

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from select import select
from typing import Any, Final, NoReturn

from statsfs.filesystem.mountpoints import FILESYSTEM, find_device, find_mount, find_mounts
from statsfs.formats.metric_conflicts import OWN

__all__ = ["Status", "ask_all", "ask_mounts"]

_NO_MOUNT: Final = "not a mounted statsfs"
_PATIENCE: Final = 5.0  # seconds for all mounts together
_USER: Final = "user-"

Status = dict[str, Any]
"""The status of a mount, in JSON's types; or `error`, the reason why there is none.

`mountpoint` is always there. `numbers` are those of the files of `statsfs/`; `users` has those of
each user's directory, and `refusal_reasons`, a list of lines, or None if this user may not read
them. These, `version` and `pid` are None if the mount has no `statsfs/`. `sources` has the number
of subordinates of each top-level source, `vms` the way by which each virtual machine is read.
"""


def ask_all() -> list[Status]:
    """Return the status of each statsfs of this host."""
    # One may be gone by now, or beneath another mount, where no path leads to it.
    found = ask_mounts(find_mounts(FILESYSTEM))
    return [one for one in found if one.get("error") != _NO_MOUNT]


def ask_mounts(paths: Sequence[str]) -> list[Status]:
    """Return the status of each mount."""
    asked = [(path, *_start(path)) for path in paths]
    deadline = time.monotonic() + _PATIENCE
    return [_finish(path, pid, fd, deadline) for path, pid, fd in asked]


def _start(path: str) -> tuple[int, int]:
    # Returns the process that reads, and the pipe into which it writes.
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        _answer(path, write)
    os.close(write)
    return pid, read


def _answer(path: str, pipe: int) -> NoReturn:
    try:
        # The readers of our output must not wait for the end of this process.
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        with open(pipe, "w", encoding="utf-8") as file:
            json.dump({"mountpoint": path, **_read_or_explain(path)}, file)
    finally:
        os._exit(0)


def _finish(path: str, pid: int, fd: int, deadline: float) -> Status:
    with open(fd, "rb", 0) as pipe:
        text = b""
        while select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
            some = pipe.read(1 << 16)
            if not some:
                os.waitpid(pid, 0)
                return json.loads(text)  # type: ignore[no-any-return]  # made by `_answer`
            text += some
    os.kill(pid, signal.SIGKILL)
    hint = "its server hangs, or is stopped"
    return {"mountpoint": path, "error": f"no answer within {_PATIENCE:g} s: {hint}"}


def _read_or_explain(path: str) -> Status:
    try:
        found = path if find_mount(path) is not None else os.path.realpath(path)
        if find_mount(found) != FILESYSTEM:
            return {"error": _NO_MOUNT}
        device = os.stat(found).st_dev
        if f"{os.major(device)}:{os.minor(device)}" != find_device(found):
            return {"error": _NO_MOUNT}
        return _read(found)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return {"error": "its server is dead; fusermount3 -uz removes the mount"}
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return {"error": _NO_MOUNT}
        if error.errno == errno.EACCES:
            return {"error": "it is another user's, who lets nobody else in"}
        return {"error": str(error.strerror)}


def _read(path: str) -> Status:
    tops = _list_directories(path)
    numbers, users = None, None
    texts: dict[str, str] = {}
    own = os.path.join(path, OWN)
    # Another source may have the name, in a program's mount.
    if OWN in tops and "daemon.pid" in (texts := _read_attributes(own)):
        numbers, users = _read_own(own)
    return {
        "version": texts.get("version") if numbers is not None else None,
        "pid": int(texts["daemon.pid"]) if numbers is not None else None,
        "numbers": numbers,
        "users": users,
        "sources": {name: os.stat(f"{path}/{name}").st_nlink - 2 for name in tops},
        "vms": dict(_find_vms(path, tops)),
    }


def _list_directories(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _read_attributes(path: str) -> dict[str, str]:
    # Those of a directory that may be gone by now.
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listxattr(path):
            found[name.removeprefix("user.statsfs.")] = os.getxattr(path, name).decode()
    return found


def _read_own(path: str) -> tuple[Status, Status]:
    # The numbers of the daemon, and those of each user, by number.
    with open(f"{path}/.stats.json", encoding="utf-8") as file:
        view = json.load(file)
    users = {}
    for name, below in view["subordinates"].items():
        users[name.removeprefix(_USER)] = {
            **below["values"],
            "refusal_reasons": _read_reasons(f"{path}/{name}"),
        }
    return view["values"], users


def _read_reasons(path: str) -> list[str] | None:
    # None: they are not for this user.
    try:
        with open(f"{path}/refusal_reasons", encoding="utf-8") as file:
            return [line for line in file.read().split("\n") if line]
    except OSError:
        return None


def _find_vms(path: str, tops: Sequence[str]) -> Iterator[tuple[str, Status]]:
    # They are in `kvm`, which may be the root itself.
    below = [f"kvm/{name}" for name in _list_directories(f"{path}/kvm")] if "kvm" in tops else tops
    for name in below:
        texts = _read_attributes(f"{path}/{name}")
        if "kvm.source" in texts:
            vm = {"name": texts.get("kvm.name"), "source": texts["kvm.source"]}
            yield os.path.basename(name), vm

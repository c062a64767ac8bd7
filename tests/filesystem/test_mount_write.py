"""Writing to a real mount: what clears, what is refused and how, for every way to ask."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from statsfs.model.values import Value
from statsfs.tree.source import Source
from tests.support import mount_calls as calls
from tests.support.mount_server import World, mount_here
from tests.support.mounts import Server, run, serving, shell
from tests.support.trees import Cpu, add_cpu, make_kvm, subordinate

pytestmark = pytest.mark.mount


class Stubborn:
    """A base that cannot be cleared."""

    @property
    def count(self) -> int:
        """What it counted."""
        return 7


def build(world: World) -> None:
    """Make `kvm` with two CPUs and a base that refuses."""
    kvm = make_kvm(world.registry, cpus=0)
    world.kept["cpus"] = [add_cpu(kvm, f"cpu{number}") for number in range(2)]
    world.kept["frozen"] = Source("frozen")
    world.kept["frozen"].add_values([Value("count")], Stubborn())
    kvm.add_subordinate(world.kept["frozen"])


def set_numbers(world: World, number: int) -> None:
    """Have both CPUs hold a number in all their values."""
    for cpu in world.kept["cpus"]:
        cpu.exits = cpu.wait = cpu.busy = number


def numbers(world: World) -> list[tuple[int, int, int]]:
    """Return what the bases hold."""
    return [(cpu.exits, cpu.wait, cpu.busy) for cpu in world.kept["cpus"]]


@pytest.fixture(scope="module")
def writable() -> Iterator[Server]:
    """A server that all tests here write to."""
    with serving() as server:
        server.call(build)
        yield server


@pytest.fixture
def kvm(writable: Server) -> Path:
    """Its one directory; all values are 5."""
    writable.call(set_numbers, 5)
    return writable / "kvm"


# What clears


@pytest.mark.parametrize(
    "script",
    [
        'echo 0 >"$1"',
        'echo 0 >>"$1"',
        'printf 0 >"$1"',
        'printf 0x0 >"$1"',
        'printf " +0 " >"$1"',
        'printf "\\t-000\\n\\n" >"$1"',
        'echo 0 | tee "$1" >/dev/null',
        'echo 0 | tee -a "$1" >/dev/null',
        'echo 0 | dd of="$1" status=none',
        'echo 0 | dd of="$1" seek=3 bs=7 conv=notrunc status=none',
        'echo 0 | cat - >"$1"',
        'exec 3<>"$1"; echo 0 >&3',
        'echo 0 >"$1"; echo 0 >"$1"',
    ],
)
def test_zero_clears(writable: Server, kvm: Path, script: str) -> None:
    """Truncating, appending, at any offset, with or without a newline; nothing else changes."""
    assert shell(script, kvm / "cpu0/exits") == ""
    assert writable.call(numbers) == [(0, 5, 5), (5, 5, 5)]
    assert run("cat", kvm / "cpu0/exits", kvm / "exits").stdout == "0\n5\n"


@pytest.mark.parametrize("name", ["wait.min", "wait.max", "wait.avg"])
def test_an_aggregate_clears_all_below(writable: Server, kvm: Path, name: str) -> None:
    """Each file of it does."""
    (kvm / name).write_text("0\n")
    assert writable.call(numbers) == [(5, 0, 5), (5, 0, 5)]


@pytest.mark.parametrize("text", ["1", "", "\n", "0 0", "00x0", "-", "0x", "zero", "0\0", "0\n1\n"])
def test_anything_else_is_refused(writable: Server, kvm: Path, text: str) -> None:
    """EINVAL, and nothing changes."""
    before = writable.call(numbers)
    for name in ("cpu0/exits", "exits", "wait.max"):
        with open(kvm / name, "wb", buffering=0) as file:
            if text:
                with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
                    file.write(text.encode())
            else:
                file.write(b"")
    assert writable.call(numbers) == before


def test_a_shell_says_what_was_wrong(kvm: Path) -> None:
    """In its own words."""
    assert "Invalid argument" in shell('/bin/echo 1 >"$1"', kvm / "exits", status=1)
    assert "Permission denied" in shell('echo 0 >"$1"', kvm / "busy", status=2)
    assert "Permission denied" in shell('echo 0 >"$1"', kvm / "new", status=2)
    assert "Is a directory" in shell('echo 0 >"$1"', kvm, status=2)


def test_reading_and_writing_one_open_file(writable: Server, kvm: Path) -> None:
    """A read at 0 after a write sees it; the text in between stays."""
    with open(kvm / "cpu0/exits", "r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 1, 0) == b"5"
        assert file.write(b"0\n") == 2
        assert os.pread(file.fileno(), 9, 1) == b"\n"
        assert os.pread(file.fileno(), 9, 0) == b"0\n"
        with pytest.raises(OSError, match="Invalid argument"):
            file.write(b"12")
        assert os.pread(file.fileno(), 9, 0) == b"0\n"


def test_truncating_changes_nothing(writable: Server, kvm: Path) -> None:
    """As in sysfs: it is what a shell does before it writes."""
    before = writable.call(numbers)
    file = kvm / "cpu0/exits"
    shell(': >"$1"', file)
    run("truncate", "-s", "0", file)
    run("truncate", "-s", "100", file)
    with open(file, "r+b") as opened:
        opened.truncate(3)
    assert writable.call(numbers) == before
    assert os.stat(file).st_size == 4096
    assert file.read_text() == "5\n"


def test_a_write_far_beyond(kvm: Path) -> None:
    """Refused: the kernel would append after it, where no file may reach."""
    with open(kvm / "exits", "wb", buffering=0) as file:
        for offset in (2**40 + 1, 2**62, 2**63 - 2):
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                os.pwrite(file.fileno(), b"0", offset)
        assert os.pwrite(file.fileno(), b"0", 2**20) == 1
    assert shell('echo 0 >>"$1"; echo 0 >>"$1"', kvm / "exits") == ""


def test_a_read_only_mount() -> None:
    """Nobody clears, through another mount of the filesystem neither: EROFS, for root too."""
    elsewhere = """
        mkdir "$1"; mount -t tmpfs tmpfs "$1"; mkdir "$1/copy"
        mount --bind "$0" "$1/copy"; mount -i -o remount,bind,rw "$1/copy"
        mount -i -o remount,bind,rw "$0"
        for place in "$0" "$1/copy"; do /bin/echo 0 >"$place/kvm/exits"; done; rmdir "$0/kvm"
    """
    with serving("later") as server, tempfile.TemporaryDirectory() as free:
        server.call(build)
        server.call(mount_here, server.mountpoint, read_only=True)
        text = (server / "kvm/exits").read_text()
        own_namespace = ("unshare", "--mount", "--propagation", "slave")
        command = (*own_namespace, "sh", "-uc", elsewhere, server.mountpoint, f"{free}/x")
        said = run(*command, status=1).stderr
        assert said.count("Read-only file system") == 3, said
        assert (server / "kvm/exits").read_text() == text
        server.call(calls.close)


def test_a_base_that_refuses(kvm: Path) -> None:
    """EACCES from the write; its mode did not know."""
    with open(kvm / "frozen/count", "wb", buffering=0) as file, pytest.raises(PermissionError):
        file.write(b"0")
    assert (kvm / "frozen/count").read_text() == "7\n"


def test_clearing_while_counting(writable: Server, kvm: Path) -> None:
    """Again and again: the next read starts from there."""
    for number in range(100):
        writable.call(set_numbers, number)
        assert (kvm / "exits").read_text() == f"{2 * number}\n"
        (kvm / "exits").write_text("0")
        assert (kvm / "exits").read_text() == "0\n"


# What is refused


NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY
REFUSALS: list[tuple[str, int, Callable[[Path], object]]] = [
    ("write a read-only file", errno.EACCES, lambda kvm: os.open(kvm / "busy", os.O_WRONLY)),
    ("append to it", errno.EACCES, lambda kvm: os.open(kvm / "busy", os.O_WRONLY | os.O_APPEND)),
    ("read and write it", errno.EACCES, lambda kvm: os.open(kvm / "busy", os.O_RDWR)),
    ("truncate it", errno.EACCES, lambda kvm: os.truncate(kvm / "busy", 0)),
    ("write a directory", errno.EISDIR, lambda kvm: os.open(kvm, os.O_WRONLY)),
    ("read and write a directory", errno.EISDIR, lambda kvm: os.open(kvm / "cpu0", os.O_RDWR)),
    ("truncate a directory", errno.EISDIR, lambda kvm: os.truncate(kvm, 0)),
    ("create", errno.EACCES, lambda kvm: os.open(kvm / "new", NEW)),
    ("create at the top", errno.EACCES, lambda kvm: os.open(kvm.parent / "new", NEW)),
    ("create what is there", errno.EEXIST, lambda kvm: os.open(kvm / "exits", NEW)),
    ("mknod", errno.EACCES, lambda kvm: os.mknod(kvm / "new")),
    ("mkfifo", errno.EACCES, lambda kvm: os.mkfifo(kvm / "new")),
    ("mkdir", errno.EPERM, lambda kvm: os.mkdir(kvm / "new")),
    ("mkdir at the top", errno.EPERM, lambda kvm: os.mkdir(kvm.parent / "new")),
    ("unlink", errno.EPERM, lambda kvm: os.unlink(kvm / "exits")),
    ("unlink an own value", errno.EPERM, lambda kvm: os.unlink(kvm / "cpu0/exits")),
    ("rmdir", errno.EPERM, lambda kvm: os.rmdir(kvm / "cpu0")),
    ("rmdir at the top", errno.EPERM, lambda kvm: os.rmdir(kvm)),
    ("rename", errno.EPERM, lambda kvm: os.rename(kvm / "exits", kvm / "new")),
    ("rename over another", errno.EPERM, lambda kvm: os.rename(kvm / "exits", kvm / "busy")),
    ("rename a directory", errno.EPERM, lambda kvm: os.rename(kvm / "cpu0", kvm.parent / "new")),
    ("symlink", errno.EPERM, lambda kvm: os.symlink("exits", kvm / "new")),
    ("link", errno.EPERM, lambda kvm: os.link(kvm / "exits", kvm / "new")),
    ("readlink", errno.EINVAL, lambda kvm: os.readlink(kvm / "exits")),
    ("chmod", errno.EPERM, lambda kvm: os.chmod(kvm / "exits", 0o600)),
    ("chmod a directory", errno.EPERM, lambda kvm: os.chmod(kvm, 0o700)),
    ("chown", errno.EPERM, lambda kvm: os.chown(kvm / "exits", 1, 1)),
    ("chgrp", errno.EPERM, lambda kvm: os.chown(kvm / "exits", -1, 1)),
    ("set times", errno.EPERM, lambda kvm: os.utime(kvm / "exits")),
    ("set times of a directory", errno.EPERM, lambda kvm: os.utime(kvm, (1, 1))),
    ("setxattr", errno.EPERM, lambda kvm: os.setxattr(kvm / "exits", "user.statsfs.unit", b"x")),
    ("setxattr of another", errno.EPERM, lambda kvm: os.setxattr(kvm, "user.new", b"x")),
    ("removexattr", errno.EPERM, lambda kvm: os.removexattr(kvm / "exits", "user.statsfs.unit")),
]


@pytest.mark.parametrize(
    ("code", "refused"),
    [(code, refused) for _, code, refused in REFUSALS],
    ids=[what for what, _, _ in REFUSALS],
)
def test_refusals(
    writable: Server, kvm: Path, code: int, refused: Callable[[Path], object]
) -> None:
    """As in sysfs, for root too; and nothing changes."""
    before = writable.call(numbers), sorted(os.listdir(kvm)), os.stat(kvm / "exits")
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        refused(kvm)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]
    assert (writable.call(numbers), sorted(os.listdir(kvm)), os.stat(kvm / "exits")) == before


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("touch", "exits"), "Operation not permitted"),
        (("touch", "new"), "Permission denied"),
        (("rm", "-f", "exits"), "Operation not permitted"),
        (("rm", "-rf", "cpu0"), "Operation not permitted"),
        (("mv", "exits", "new"), "Operation not permitted"),
        (("ln", "exits", "new"), "Operation not permitted"),
        (("ln", "-s", "exits", "new"), "Operation not permitted"),
        (("mkdir", "new"), "Operation not permitted"),
        (("rmdir", "cpu0"), "Operation not permitted"),
        (("mkfifo", "new"), "Permission denied"),
        (("chmod", "600", "exits"), "Operation not permitted"),
        (("chown", "1:1", "exits"), "Operation not permitted"),
        (("setfattr", "-n", "user.new", "-v", "1", "exits"), "Operation not permitted"),
        (("truncate", "-s", "0", "busy"), "Permission denied"),
        (("cp", "/proc/version", "exits"), "Invalid argument"),
        (("cp", "/proc/version", "new"), "Permission denied"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)
def test_refusals_in_the_words_of_tools(kvm: Path, command: tuple[str, ...], words: str) -> None:
    """None of them ever says "Function not implemented"."""
    done = run(*command, status=None, cwd=kvm)
    assert done.returncode != 0
    assert words in done.stderr


def test_nothing_was_removed(writable: Server, kvm: Path) -> None:
    """After all of this the tree is as the program made it."""
    assert sorted(os.listdir(kvm)) == sorted(
        ["cpu0", "cpu1", "frozen", "exits", "busy", "wait.min", "wait.max", "wait.avg"]
    )


def test_a_source_whose_values_were_revoked_can_be_written(writable: Server, kvm: Path) -> None:
    """There is nothing left to clear, and that is no error."""
    with open(kvm / "cpu1/exits", "r+b", buffering=0) as file:
        writable.call(revoke, "cpu1")
        assert os.pread(file.fileno(), 9, 0) == b"0\n"
        assert file.write(b"0") == 1
    (kvm / "cpu1/exits").write_text("0")
    assert writable.call(numbers) == [(5, 5, 5), (5, 5, 5)]
    assert (kvm / "exits").read_text() == "5\n"
    writable.call(restore, "cpu1")
    assert (kvm / "exits").read_text() == "10\n"


def revoke(world: World, name: str) -> None:
    """Revoke the values of a CPU."""
    subordinate(world.registry.sources[0], name).revoke()


def restore(world: World, name: str) -> None:
    """Add them again."""
    subordinate(world.registry.sources[0], name).add_values(Cpu, world.kept["cpus"][1])

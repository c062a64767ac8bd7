"""Reading a real mount with real tools."""

import errno
import os
import select
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from statsfs.model.values import Aggregate, Type, Value
from statsfs.tree.source import Source
from tests.support.mount_server import World
from tests.support.mounts import Server, run, serving, shell
from tests.support.trees import Cpu

pytestmark = pytest.mark.mount

LONG = "é" * 127 + "x"  # 255 bytes
STATE = (Value("state", Type.U8, Aggregate.MAX, show=("halted", "running").__getitem__),)
TOTALS = ["busy", "exits", "state", "wait.avg", "wait.max", "wait.min"]


def build(world: World) -> None:
    """Make `kvm` with two virtual machines of three CPUs, `empty`, and a long name."""
    kvm = Source("kvm", label="module")
    for vm in range(2):
        machine = Source("%d-%d", 1000 + vm, 11, label="vm")
        for number in range(3):
            source, cpu = Source("vcpu%d", number, label="vcpu"), Cpu()
            cpu.exits, cpu.wait, cpu.busy = 100 * vm + number, -number, number
            source.add_values(Cpu, cpu)
            source.add_values(STATE, {"state": vm})
            machine.add_subordinate(source)
            world.kept[source.path] = cpu
        kvm.add_subordinate(machine)
    world.registry.register(kvm)
    world.registry.register(Source("empty"))
    world.registry.register(Source(LONG))


def flicker(world: World, on: bool) -> None:
    """Have a thread write numbers of two kinds into a CPU, as fast as it can."""
    cpu: Cpu = world.kept["1000-11/vcpu0"]
    if not on:
        world.kept.pop("stop").set()
        world.kept.pop("thread").join()
        cpu.exits = 0
        return
    stop = world.kept["stop"] = threading.Event()

    def count() -> None:
        while not stop.is_set():
            cpu.exits = 1111111111
            cpu.exits = 222222222222222

    world.kept["thread"] = threading.Thread(target=count)
    world.kept["thread"].start()


@pytest.fixture(scope="module")
def still() -> Iterator[Server]:
    """A server whose tree all tests here read, and none changes."""
    with serving() as server:
        server.call(build)
        yield server


@pytest.fixture
def kvm(still: Server) -> Path:
    """Its one directory with something in it."""
    return still / "kvm"


def test_the_mount_table(still: Server) -> None:
    """The type is fuse.statsfs; nothing of it can be executed or be a device."""
    table = Path("/proc/mounts").read_text().splitlines()
    (line,) = (line.split() for line in table if str(still.mountpoint) in line)
    assert line[0] == "statsfs"
    assert line[2] == "fuse.statsfs"
    assert {"nosuid", "nodev", "noexec", "default_permissions"} <= set(line[3].split(","))


def test_cat(kvm: Path) -> None:
    """One file, several, own values and totals."""
    assert run("cat", kvm / "exits").stdout == "306\n"
    files = [kvm / "1001-11/vcpu2" / name for name in ("exits", "wait", "busy", "state")]
    assert run("cat", *files).stdout == "102\n-2\n1\nrunning\n"
    files = [kvm / "1001-11" / name for name in ("wait.min", "wait.max", "wait.avg", "busy")]
    assert run("cat", *files).stdout == "-2\n0\n-1\n2\n"
    assert run("cat", kvm / "1000-11/state", kvm / "state").stdout == "halted\nrunning\n"


@pytest.mark.parametrize(
    "script",
    [
        'dd if="$1" bs=1 status=none',
        'dd if="$1" bs=2 status=none',
        'dd if="$1" bs=1M status=none',
        'tail -n 1 "$1"',
        'tail -c 99 "$1"',
        'head -n 5 "$1"',
        'head -c 4096 "$1"',
        'sort "$1"',
        'awk "{ print \\$1 }" "$1"',
        'sed "" "$1"',
        'tac "$1"',
        'grep . "$1"',
        'cat <"$1"',
        'while read -r line; do echo "$line"; done <"$1"',
        'mapfile=$(cat "$1"); echo "$mapfile"',
    ],
)
def test_a_text_through_many_tools(kvm: Path, script: str) -> None:
    """Whatever the size of its reads, and whether it looks at the size first."""
    assert shell(script, kvm / "1001-11/vcpu1/exits") == "101\n"


def test_arithmetic(kvm: Path) -> None:
    """What a script does with the numbers."""
    script = 'awk "{ sum += \\$1 } END { print sum }" "$1"/vcpu*/exits'
    assert shell(script, kvm / "1001-11") == "303\n"
    assert shell('echo $(( $(cat "$1") + 1 ))', kvm / "exits") == "307\n"


def test_wc_and_cmp(kvm: Path) -> None:
    """The bytes are counted, not believed; equal texts are equal."""
    file = kvm / "1001-11/vcpu1/exits"
    assert run("wc", "-c", file).stdout.split()[0] == "4"
    assert run("wc", "-l", file).stdout.split()[0] == "1"
    run("cmp", file, file)
    run("diff", "-r", kvm / "1000-11", kvm / "1000-11")
    done = run("diff", kvm / "1001-11/exits", file, status=1)
    assert "< 303\n" in done.stdout


def test_a_shell_reads_byte_by_byte(still: Server, kvm: Path) -> None:
    """One number, however fast it changes: never half of one and half of another."""
    still.call(flicker, True)
    try:
        script = 'for i in $(seq 20); do read -r line <"$1" && echo "$line"; done'
        file = kvm / "1000-11/vcpu0/exits"
        lines = [line for _ in range(10) for line in shell(script, file).split()]
    finally:
        still.call(flicker, False)
    assert len(lines) == 200
    assert set(lines) <= {"1111111111", "222222222222222"}


def test_pread(kvm: Path) -> None:
    """At 0 it is computed anew; past the end there is nothing."""
    with open(kvm / "exits", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4096, 0) == b"306\n"
        assert os.pread(file.fileno(), 2, 1) == b"06"
        assert os.pread(file.fileno(), 4096, 4) == b""
        assert os.pread(file.fileno(), 4096, 1 << 40) == b""
        assert file.read() == b"306\n"
        assert file.seek(0) == 0
        assert file.read(1) + file.read() == b"306\n"


def test_grep(kvm: Path) -> None:
    """A whole tree in one command."""
    lines = run("grep", "-r", ".", kvm).stdout.splitlines()
    assert len(lines) == 6 * 4 + 3 * 6
    assert f"{kvm}/1001-11/vcpu2/exits:102" in lines
    assert run("grep", "-rl", "^306$", kvm).stdout.split() == [f"{kvm}/exits"]


def test_find(kvm: Path) -> None:
    """By type, by depth, by mode; no file seems empty."""
    assert len(run("find", kvm, "-type", "f").stdout.split()) == 42
    assert len(run("find", kvm, "-type", "d").stdout.split()) == 9
    assert run("find", kvm, "-empty").stdout == ""
    assert run("find", kvm, "-maxdepth", "1", "-perm", "444").stdout == f"{kvm}/busy\n"
    assert run("find", kvm.parent / "empty", "-empty").stdout == f"{kvm.parent}/empty\n"
    assert run("find", kvm, "-newermt", "tomorrow").stdout == ""


def test_ls(still: Server, kvm: Path) -> None:
    """Names, modes, link counts, sizes."""
    assert run("ls", still.mountpoint).stdout.split() == ["empty", "kvm", LONG]
    assert run("ls", kvm).stdout.split() == ["1000-11", "1001-11", *TOTALS]
    assert run("ls", "-a", kvm / "1000-11/vcpu0").stdout.split()[:2] == [".", ".."]
    lines = [line.split() for line in run("ls", "-ln", kvm).stdout.splitlines()[1:]]
    assert [line[:5] for line in lines[:3]] == [
        ["drwxr-xr-x", "5", str(os.geteuid()), str(os.getegid()), "0"],
        ["drwxr-xr-x", "5", str(os.geteuid()), str(os.getegid()), "0"],
        ["-r--r--r--", "1", str(os.geteuid()), str(os.getegid()), "4096"],
    ]
    # The kernel's own inode numbers, those of readdir and those of stat, are one.
    ours = run("ls", "-i", kvm).stdout.split()[::2]
    assert [int(number) for number in ours] == [
        os.stat(kvm / name).st_ino for name in ("1000-11", "1001-11", *TOTALS)
    ]


def test_types_in_directories(kvm: Path) -> None:
    """A listing tells directories from files, without a stat."""
    with os.scandir(kvm) as entries:
        found = {entry.name: (entry.is_dir(), entry.inode()) for entry in entries}
    assert [name for name, (directory, _) in found.items() if directory] == ["1000-11", "1001-11"]
    assert os.stat(kvm / "..").st_ino == os.stat(kvm.parent).st_ino == 1
    assert {name: inode for name, (_, inode) in found.items()} == {
        name: os.stat(kvm / name).st_ino for name in found
    }


def test_stat(kvm: Path) -> None:
    """A number for everything."""
    answer = run("stat", "-c", "%F %a %h %s %B %b %o", kvm / "exits", kvm / "busy", kvm).stdout
    assert answer.splitlines() == [
        "regular file 644 1 4096 512 0 4096",
        "regular file 444 1 4096 512 0 4096",
        "directory 755 4 0 512 0 4096",
    ]
    assert run("test", "-s", kvm / "exits").returncode == 0
    assert run("du", "-s", kvm).stdout.split()[0] == "0"


def test_df(still: Server) -> None:
    """Nothing is stored; and that is no error."""
    fields = run("df", "-a", still.mountpoint).stdout.splitlines()[1].split()
    assert fields == ["statsfs", "0", "0", "0", "-", str(still.mountpoint)]
    line = run("stat", "-f", "-c", "%t %l %s %b", still.mountpoint).stdout
    assert line == "65735546 255 4096 0\n"


def test_cp(kvm: Path, tmp_path: Path) -> None:
    """Texts are copied to the byte, one by one and in a tree."""
    run("cp", kvm / "exits", tmp_path / "one")
    assert (tmp_path / "one").read_text() == "306\n"
    run("cp", "-r", kvm, tmp_path / "all")
    assert (tmp_path / "all/1001-11/vcpu2/exits").read_text() == "102\n"
    assert len(run("find", tmp_path / "all", "-type", "f").stdout.split()) == 42
    run("install", kvm / "exits", tmp_path / "two")
    assert (tmp_path / "two").read_text() == "306\n"


def test_tar(kvm: Path, tmp_path: Path) -> None:
    """As on sysfs: tar believes the size, and pads what is shorter with zeros."""
    archive = tmp_path / "kvm.tar"
    done = run("tar", "-cf", archive, "-C", kvm.parent, "kvm", status=1)
    assert "File shrank by 4092 bytes; padding with zeros" in done.stderr
    with tarfile.open(archive) as tar:
        assert len(tar.getnames()) == 9 + 42
        member = tar.extractfile("kvm/1001-11/vcpu2/exits")
        assert member is not None
        assert member.read().rstrip(b"\0") == b"102\n"


def test_getfattr(kvm: Path) -> None:
    """What a value is, and a source's label."""
    lines = run("getfattr", "-d", "--absolute-names", kvm / "1000-11/vcpu0/exits").stdout.split(
        "\n"
    )
    assert lines[1:8] == [
        'user.statsfs.aggregate="sum"',
        'user.statsfs.base="10"',
        'user.statsfs.description="VM exits"',
        'user.statsfs.exponent="0"',
        'user.statsfs.kind="cumulative"',
        'user.statsfs.type="u64"',
        'user.statsfs.unit="none"',
    ]
    assert os.getxattr(kvm / "1000-11", "user.statsfs.label") == b"vm"
    assert os.listxattr(kvm.parent) == []
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(kvm, "user.statsfs.nothing")


def test_names(still: Server) -> None:
    """Up to 255 bytes of UTF-8; longer ones, and what is no UTF-8, as on any filesystem."""
    assert (still / LONG).is_dir()
    for name, code in (
        (b"x" * 255, errno.ENOENT),
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"\xff\xfe", errno.ENOENT),
        (b"kvm/exits/x", errno.ENOTDIR),
    ):
        with pytest.raises(OSError, match=os.strerror(code)):
            os.stat(os.fsencode(still.mountpoint) + b"/" + name)


def test_polling(kvm: Path) -> None:
    """As any regular file, it is always ready; a program that uses epoll is not refused."""
    with open(kvm / "exits") as file:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        assert poll.poll(0) == [(file.fileno(), select.POLLIN)]
        with select.epoll() as epoll:
            epoll.register(file, select.EPOLLIN)
            assert epoll.poll(0) == [(file.fileno(), select.EPOLLIN)]


def test_sendfile(kvm: Path) -> None:
    """A web server's way of reading."""
    reading, writing = os.pipe()
    with open(kvm / "exits", "rb") as file:
        assert os.sendfile(writing, file.fileno(), 0, 4096) == 4
    assert os.read(reading, 99) == b"306\n"
    os.close(reading)
    os.close(writing)


def test_many_open_at_once(kvm: Path) -> None:
    """Each open file has its own text."""
    with ExitStack() as stack:
        files = [stack.enter_context(open(kvm / "exits")) for _ in range(200)]
        assert [file.read() for file in files] == ["306\n"] * 200


def test_a_file_is_no_directory(kvm: Path) -> None:
    """And a directory is not read as a file."""
    for path, flags, code in (
        (kvm / "exits", os.O_DIRECTORY, errno.ENOTDIR),
        (kvm, os.O_RDONLY | os.O_TRUNC, errno.EISDIR),
    ):
        with pytest.raises(OSError, match=os.strerror(code)):
            os.open(path, flags)
    with pytest.raises(IsADirectoryError):
        kvm.read_text()
    assert stat.S_ISREG(os.stat(kvm / "exits").st_mode)


def test_clients_in_parallel(kvm: Path) -> None:
    """Many at once, and each gets all of it."""
    clients = [
        subprocess.Popen(["grep", "-rc", ".", kvm], stdout=subprocess.PIPE, text=True)
        for _ in range(20)
    ]
    outputs = {client.communicate()[0] for client in clients}
    assert len(outputs) == 1
    assert outputs.pop().count(":1\n") == 42

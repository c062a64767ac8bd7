"""One source as the root of a real mount: what clients see, and what comes and goes at once."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import mount_calls as calls
from tests.support import mount_roots as roots
from tests.support.commands import STATSFS
from tests.support.deadlines import wait_until
from tests.support.kvm_stat import KvmStat
from tests.support.mount_server import mount_here, try_to_mount
from tests.support.mounts import Server, exists, is_mounted, one_cpu, run, serving

pytestmark = pytest.mark.mount

FILES = {"exits", "busy", "wait.min", "wait.max", "wait.avg"}
VIEWS = (".stats.json", ".stats.prom", ".stats.openmetrics", ".stats.bin", ".schema.json")


@pytest.fixture(scope="module", params=["thread", "trio"])
def mode(request: pytest.FixtureRequest) -> str:
    """How the server mounts: in the second case the serving thread itself makes the changes."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared(mode: str) -> Iterator[Server]:
    """A server for all tests of this module."""
    with one_cpu(), serving(mode, options={"root": "kvm"}) as server:
        yield server


@pytest.fixture
def kvm(shared: Server) -> Path:
    """The root, with `cpu0` and `cpu1`."""
    shared.call(calls.clear)
    for number in range(2):
        shared.call(calls.add, f"cpu{number}", 10 + number)
    return shared.mountpoint


def at_once(mode: str, found: Callable[..., object], *arguments: object) -> None:
    """Expect something at the first look; with trio soon, as `test_mount_changes` explains."""
    if mode == "trio":
        wait_until(lambda: found(*arguments))
    assert found(*arguments)


def test_what_it_shows(kvm: Path) -> None:
    """The source's files, subdirectories and views; it is inode 1, and the parent of these."""
    assert set(os.listdir(kvm)) == {"cpu0", "cpu1", *FILES}
    assert (kvm / "exits").read_text() == "21\n"
    assert (kvm / "cpu1/exits").read_text() == "11\n"
    found = os.stat(kvm)
    assert (found.st_ino, found.st_nlink) == (1, 4)
    assert os.stat(kvm / "cpu0/..").st_ino == 1
    assert run("sh", "-c", 'cd "$1/cpu0" && cd .. && ls -d exits', "sh", kvm).stdout == "exits\n"
    assert json.loads((kvm / ".stats.json").read_text())["values"]["exits"] == 21
    assert b"kvm" in (kvm / ".stats.bin").read_bytes()
    assert all(exists(kvm / name) for name in VIEWS)
    (kvm / "exits").write_text("0")
    assert (kvm / "cpu0/exits").read_text() == "0\n"


def test_link_counts(shared: Server, kvm: Path, mode: str) -> None:
    """They follow what comes and goes."""
    for _ in range(20):
        shared.call(calls.add, "cpu2")
        at_once(mode, lambda: os.stat(kvm).st_nlink == 5)
        shared.call(calls.remove, "cpu2")
        at_once(mode, lambda: os.stat(kvm).st_nlink == 4)


def test_a_root_that_goes_and_comes_back(shared: Server, kvm: Path, mode: str) -> None:
    """Empty as soon as it has gone, with everything cached; there again as soon as it is back."""
    paths = [kvm / name for name in ("exits", "cpu0", "cpu0/exits", *VIEWS)]
    for _ in range(50):
        inodes = [os.stat(path).st_ino for path in paths]
        shared.call(calls.unregister)
        at_once(mode, lambda: not any(map(exists, paths)))
        assert os.listdir(kvm) == []
        assert (os.stat(kvm).st_ino, os.stat(kvm).st_nlink) == (1, 2)
        shared.call(calls.register)
        at_once(mode, lambda: all(map(exists, paths)))
        assert not set(inodes) & {os.stat(path).st_ino for path in paths}
        assert os.stat(kvm).st_nlink == 4


def test_another_root(shared: Server, kvm: Path, mode: str) -> None:
    """A source of the same name takes the place with nothing in between."""
    for number in range(50):
        assert exists(kvm / "cpu0/exits")
        assert not exists(kvm / "cpu7")
        shared.call(roots.replace_root, number)
        at_once(mode, lambda number: (kvm / "exits").read_text() == f"{number}\n", number)
        assert not exists(kvm / "cpu1")


def test_files_and_directories_that_are_held_open(shared: Server, kvm: Path, mode: str) -> None:
    """Open files read on when their root has gone; an open root lists what it has by now."""
    with open(kvm / "exits") as file, open(kvm / ".stats.json") as view:
        root = os.open(kvm, os.O_DIRECTORY)
        try:
            shared.call(calls.unregister)
            assert file.read() == "21\n"
            assert '"exits": 21' in view.read()
            at_once(mode, lambda: os.listdir(root) == [])
            shared.call(calls.register)
            at_once(mode, lambda: "cpu1" in os.listdir(root))
            assert os.stat("cpu1/exits", dir_fd=root).st_size == 4096
        finally:
            os.close(root)


def test_what_is_missing_is_kept_for_a_while(shared: Server, kvm: Path) -> None:
    """The kernel asks once for it while it may keep it, in the root and below."""
    before = shared.call(roots.keep_missing_names, 1000)
    shared.call(roots.count_lookups)
    missed = []

    def is_cached() -> bool:
        for _ in range(100):
            assert not exists(kvm / "nothing")
            assert not exists(kvm / "cpu0/nothing")
        missed.append(len(shared.call(roots.missed)))
        return missed[-1] == 0

    # Another test may have the kernel drop its caches meanwhile.
    wait_until(is_cached, "a round without a lookup")
    assert missed[0] >= 2
    assert shared.call(roots.keep_missing_names, before) == 1000


def test_new_names_are_there_at_once(shared: Server, kvm: Path, mode: str) -> None:
    """Though that they were missing was cached just before: directories, files, totals."""
    for number in range(2, 100):
        name = f"cpu{number}"
        paths = [kvm / name, kvm / name / "exits", kvm / f"cpu{number + 1}"]
        assert not any(exists(path) for path in paths)
        shared.call(calls.add, name, number)
        at_once(mode, lambda paths: exists(paths[0]) and exists(paths[1]), paths)
        assert not exists(paths[2])
    for path, names in (("cpu0", ("cpu0/second", "second")), ("cpu1", ("cpu1/second",))):
        assert not any(exists(kvm / name) for name in names)
        shared.call(roots.add_second, path)
        at_once(mode, lambda names: all(exists(kvm / name) for name in names), names)


def test_names_that_another_root_brings(shared: Server, kvm: Path, mode: str) -> None:
    """Also if they were missed while there was none."""
    for _ in range(50):
        shared.call(calls.unregister)
        at_once(mode, lambda: not exists(kvm / "exits"))
        assert not exists(kvm / "cpu0")
        shared.call(calls.register)
        at_once(mode, lambda: exists(kvm / "exits") and exists(kvm / "cpu0"))


# What reads debugfs


def test_kvm_stat() -> None:
    """It adds up the mock's VMs, all or one; what is missing is asked for and then cached."""
    with serving("later") as server:
        exits = server.call(roots.start_mock, 4, 4)
        server.call(mount_here, server.mountpoint, root="kvm")
        server.call(roots.keep_missing_names, 1000)
        server.call(roots.count_lookups)
        stat = KvmStat(server.mountpoint)
        assert "exits" in stat.fields
        assert not any(name.endswith("_hist") for name in stat.fields)
        found = stat.read()
        assert found["exits"] == sum(exits.values()) == int((server / "exits").read_text())
        # Its fields are those of VMs and of vCPUs, whose totals the root has as well.
        assert {"halt_exits", "pages_4k"} <= found.keys()
        for name, count in exits.items():
            pid = int(name.partition("-")[0])
            assert stat.guests(pid) == [name]
            assert stat.read(pid)["exits"] == count
        assert set(server.call(roots.missed)) == {b"vcpu0", b"vcpu1", b"vcpu2", b"vcpu3"}
        wait_until(lambda: stat.read() and not server.call(roots.missed), "no more lookups")
        # Without a root of its own it does not work: the file of a directory is none of its.
        server.call(calls.close)
        server.call(mount_here, server.mountpoint)
        assert KvmStat(server.mountpoint).fields == []
        with pytest.raises(ValueError, match="invalid literal"):
            KvmStat(server / "kvm").read(int(next(iter(exits)).partition("-")[0]))
        server.call(calls.close)


# Refusals, and the command line


def test_a_root_that_is_not_registered() -> None:
    """One line, which says what there is; hidden ones are not. Nothing is mounted."""
    with serving("later") as server:
        message, _ = server.call(try_to_mount, server.mountpoint, root="kvm")
        assert message == (
            f"{server.mountpoint}: no source 'kvm' is registered that could be the root; "
            "there is none"
        )
        server.call(calls.build)
        message, _ = server.call(try_to_mount, server.mountpoint, root="kvm/cpu0")
        assert message.endswith("that could be the root; there is 'kvm'")
        assert not is_mounted(server.mountpoint, server.pid)
        server.call(mount_here, server.mountpoint, root="kvm")
        assert exists(server / "cpu0")
        server.call(calls.close)


def test_the_command_line(mountpoint: Path, tmp_path: Path) -> None:
    """`--root` of `demo`; and of `mount`, where the wrong name is one line."""
    with subprocess.Popen(
        [*STATSFS, "demo", mountpoint, "--root", "kvm", "--vms", "1", "--rate", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as demo:  # fmt: skip
        try:
            wait_until(lambda: is_mounted(mountpoint) or demo.poll() is not None)
            assert (
                KvmStat(mountpoint).read()["exits"] == int((mountpoint / "exits").read_text()) > 0
            )
        finally:
            demo.terminate()
            _, errors = demo.communicate()
        assert (demo.returncode, errors) == (0, "")
    (tmp_path / "app.py").write_text("def setup(registry): ...\n")
    done = run(*STATSFS, "mount", mountpoint, "--load", "app:setup", "--root", "kvm",
               status=1, cwd=tmp_path)  # fmt: skip
    assert done.stderr == (
        f"statsfs: error: {mountpoint}: no source 'kvm' is registered that could be the root; "
        "there is 'statsfs'\n"
    )

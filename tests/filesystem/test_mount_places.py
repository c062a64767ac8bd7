"""Where a mount is made, or not: on autofs, and in namespaces that the host does not see."""

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import STATSFS
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import children, detach, is_mounted, run

pytestmark = [pytest.mark.mount, pytest.mark.root]


@pytest.fixture
def automounted(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory that waits for a mount, and the pipe by which whoever mounts is asked for it."""
    path = tmp_path / "auto"
    path.mkdir()
    reading, writing = os.pipe()
    # Processes of this group, ours, are those that mount: they look into it as it is.
    options = f"fd={writing},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    run("mount", "-i", "-t", "autofs", "-o", options, "test", path, pass_fds=[writing])
    try:
        yield path, reading
    finally:
        detach(path)
        run("umount", "-l", path, status=None)
        os.close(reading)
        os.close(writing)


def kinds(path: Path) -> list[str]:
    """The types of what is mounted there, from below."""
    done = run("findmnt", "-n", "-o", "TARGET,FSTYPE", "-l", status=None)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [kind for target, kind in lines if target == str(path)]


@pytest.mark.parametrize("death", ["terminated", "unmounted", "killed"])
def test_autofs(automounted: tuple[Path, int], death: str, tmp_path: Path) -> None:
    """It is mounted on, and not looked into: who does would have to wait for our mount."""
    path, asked = automounted
    command = [*STATSFS, "mount", str(path), "--segments", str(tmp_path / "a")]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            wait_until(lambda: kinds(path) == ["autofs", "fuse.statsfs"], "the mount")
            (watcher,) = children(process.pid)
            if death == "terminated":
                process.terminate()
            elif death == "killed":
                process.kill()
            else:
                run("umount", path)
            process.wait(DEADLINE)
            wait_until(lambda: not os.path.exists(f"/proc/{watcher}"), "the watcher's end")
            assert kinds(path) == ["autofs"]
            assert not select.select([asked], [], [], 0)[0]
        finally:
            process.kill()


def mount_in(path: Path, *unshare: str) -> "subprocess.CompletedProcess[str]":
    """Mount at a path in a filesystem, and in namespaces of their own; SIGTERM ends it.

    The filesystem is shared with other namespaces, as all are where systemd is.
    """
    serve = f"""
        "$@" & pid=$!
        while kill -0 $pid 2>/dev/null && ! grep -q " {path} " /proc/self/mountinfo; do
            sleep 0.01
        done
        kill $pid 2>/dev/null; wait $pid
    """
    home = path.parent
    shared = f"mount -t tmpfs t {home}; mount --make-shared {home}; mkdir {path} {home}/a"
    inner = ["sh", "-c", serve, "sh", *STATSFS, "mount", str(path)]
    outer = ["unshare", "--mount", "--propagation", "private"]
    outer += ["sh", "-euc", f'{shared}\n"$@"', "sh"]
    return subprocess.run(
        [*outer, *unshare, *inner, "--segments", str(path.parent / "a")],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


HIDDEN = "the host would not see the mount"
SLAVE = ("unshare", "--mount", "--propagation", "slave")
CONTAINER = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.mark.parametrize(
    ("unshare", "refused"),
    [
        (SLAVE, True),
        ((*SLAVE, "sh", "-ec", 'mount --make-rprivate /; "$@"', "sh"), False),
        (("unshare", "--mount", "--propagation", "unchanged"), False),
        (("unshare", "--mount", "--propagation", "private"), False),
        # A container, of which all is seen by its first process.
        ((*CONTAINER, "--propagation", "slave"), False),
        # A service in it with a namespace of its own: its mounts are shared, but not with the host.
        (
            (*CONTAINER, "--propagation", "shared", "sh", "-ec", '"$@"; exit', "sh", *SLAVE),
            True,
        ),
        (
            (
                *(*CONTAINER, "--propagation", "shared", "sh", "-ec", '"$@"; exit', "sh"),
                *(*SLAVE, "sh", "-ec", 'mount --make-rshared /; "$@"', "sh"),
            ),
            True,
        ),
    ],
    ids=["slave", "private", "shared", "own", "container", "service", "systemd"],
)
def test_namespaces(unshare: tuple[str, ...], refused: bool, tmp_path: Path) -> None:
    """Where the host has the directory and would not see the mount, one line says so."""
    (tmp_path / "fs").mkdir()
    path = tmp_path / "fs" / "stats"
    done = mount_in(path, *unshare)
    if refused:
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"statsfs: error: {path}: {HIDDEN}")
        assert done.stderr.count("\n") == 1
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"statsfs: mounted at {path}\nstatsfs: unmounted {path}\n"
    assert not is_mounted(path)

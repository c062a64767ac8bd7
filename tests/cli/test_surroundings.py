"""What a command finds around it: closed and inherited descriptors, /proc, its directory, PATH."""

import fcntl
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from tests.support.commands import STATSFS, find_server, is_mounted
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import directory_for_a_mount, run

pytestmark = pytest.mark.mount

BACKGROUND = shlex.join([*STATSFS, "mount", "--background"])


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for segments and logs."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def mountpoint() -> Iterator[Path]:
    """Where it is mounted, and where nothing may be left."""
    with directory_for_a_mount() as path:
        yield path


def unmount(path: Path) -> None:
    """Unmount, and let the server end."""
    subprocess.run(["fusermount3", "-u", path], check=True)
    wait_until(lambda: not is_mounted(path), "it is unmounted")


CLOSED = [closed for count in (1, 2, 3) for closed in combinations((0, 1, 2), count)]


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_standard_descriptors_that_are_closed(
    closed: tuple[int, ...], place: Path, mountpoint: Path
) -> None:
    """It is mounted when the command returns, and what it says later is in its log."""
    closing = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    more = f"--segments {place}/segments --log {place}/log"
    script = f"{BACKGROUND} {mountpoint} {more} {closing}"
    # Not into pipes, which the server would hold if it did not close them.
    with open(place / "said", "wb") as said:
        done = subprocess.run(["sh", "-c", script], stdout=said, stderr=said, timeout=DEADLINE)
    assert done.returncode == 0, (place / "said").read_text()
    assert is_mounted(mountpoint)
    os.listdir(mountpoint)
    log = place / "log"
    # Others may write there from now on, so that it is not read any more: that is logged.
    (place / "segments").chmod(0o777)
    (place / "segments/x.stats").write_bytes(b"")
    unmount(mountpoint)
    wait_until(lambda: f"unmounted {mountpoint}" in log.read_text(), "its last line is logged")


@pytest.mark.parametrize("closed", ["0<&- 2>&-", "1>&- 2>&-", "2>&-"])
def test_a_refusal_without_standard_descriptors(closed: str, place: Path) -> None:
    """Its status is that of the error."""
    script = f"{BACKGROUND} {place}/nowhere --log {place}/log {closed}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, timeout=DEADLINE)
    assert done.returncode == 1


def test_what_it_inherits_is_closed(place: Path, mountpoint: Path) -> None:
    """The lock of a script can be taken again, and what reads its pipe comes to the end."""
    script = f"""
        exec 9>{place}/lock; flock 9; exec 7>&1
        {BACKGROUND} {mountpoint} --segments {place}/segments --log {place}/log >/dev/null 2>&1
    """
    run("sh", "-euc", f"({script}) | cat")
    assert is_mounted(mountpoint)
    with open(place / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unmount(mountpoint)


@pytest.mark.parametrize(("owner", "kept"), [("$$", True), ("1", False), ("", False)])
def test_what_systemd_passes_is_kept(owner: str, kept: bool, place: Path, mountpoint: Path) -> None:
    """If it passes it to this process; sd_listen_fds(3) has the rules."""
    log = f"--segments {place}/segments --log {place}/log"
    script = f"""
        exec 3>{place}/passed 4>{place}/other
        export LISTEN_FDS=1 LISTEN_PID={owner}
        exec {BACKGROUND} {mountpoint} {log}
    """
    run("sh", "-euc", script)
    held = files(find_server(mountpoint))
    assert (f"{place}/passed" in held) is kept
    assert f"{place}/other" not in held
    unmount(mountpoint)


def files(process: int) -> list[str]:
    """Return what a process has open."""
    found = []
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except OSError:
            continue
    return found


LACKING = {
    "no directory": ("mkdir gone; cd gone; rmdir ../gone", "the current directory was deleted"),
    "no proc": ("mount -t tmpfs none /proc", "mount proc first: mount -t proc proc /proc"),
    "few descriptors": ("ulimit -n 6", "oo many open files"),
}
COMMANDS = (
    "mount", "mount --create", "umount", "demo", "mount --background", "mount --kvm",
    "mount --qmp sock --background", "mount --segments segments", "mount --load app:setup",
)  # fmt: skip
FRUGAL = ("umount", "mount --load app:setup")  # what is wrong with them needs no more to be said
CASES = [
    pytest.param(command, *LACKING[what], id=f"{what}-{command}")
    for what in LACKING
    for command in COMMANDS
    if what != "few descriptors" or command not in FRUGAL
]


@pytest.mark.parametrize(("command", "surroundings", "reason"), CASES)
@pytest.mark.root
def test_what_is_lacking_is_one_line(
    command: str, surroundings: str, reason: str, place: Path
) -> None:
    """That says what, and what to do."""
    script = f"{surroundings}; exec {shlex.join(STATSFS)} {command} x"
    # Coverage would miss descriptors, too.
    environment = {key: text for key, text in os.environ.items() if not key.startswith("COVERAGE_")}
    environment["PYTHONPATH"] = os.getcwd()
    isolated = ("unshare", "--mount", "sh", "-euc", script)
    done = subprocess.run(
        isolated, cwd=place, env=environment, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("statsfs: error: ")
    assert reason in lines[-1]
    assert "Traceback" not in done.stderr

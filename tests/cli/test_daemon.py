"""`statsfs mount` as the host's daemon: segments, systemd, the background."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate
from statsfs.segments import Segment, publish
from tests.support.commands import STATSFS, mounting
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.machine import Machine, private_machine
from tests.support.mounts import NOBODY, is_mounted, run

pytestmark = pytest.mark.mount


class AppStats(Stats):
    requests = u64(Aggregate.SUM)


@contextmanager
def daemon(
    mountpoint: Path, *options: str | Path, **environment: str
) -> Iterator["subprocess.Popen[str]"]:
    """Run `statsfs mount` until the test has ended it, or at its end."""
    command = [*STATSFS, "mount", mountpoint, "--create", *options]
    own = {**os.environ, **environment}
    with mounting(command, mountpoint, stdout=subprocess.PIPE, env=own) as process:
        yield process
        process.terminate()
        said, logged = process.communicate(timeout=DEADLINE)
        words = f"statsfs: mounted at {mountpoint}\nstatsfs: unmounted {mountpoint}\n"
        assert (process.returncode, said) == (0, words)
        # Which directories it made for segments.
        assert all(line.startswith("made ") for line in logged.splitlines()), logged


def refused(*arguments: str | Path, status: int = 1) -> str:
    """The one line in which `statsfs mount` refuses something."""
    done = run(*STATSFS, "mount", *arguments, status=status)
    assert done.stdout == ""
    assert done.stderr.startswith("statsfs: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def count(segment: Segment[AppStats], number: int) -> None:
    """Have a producer count."""
    segment.stats.requests += number


def lost(file: Path) -> bool:
    """Tell whether a file is gone."""
    # A mount that is just ending answers with an error.
    return not os.path.lexists(file)


# Segments


def test_segments(tmp_path: Path) -> None:
    """Several directories are one tree, and what programs counted outlives them."""
    directories = [tmp_path / "a", tmp_path / "b"]
    mountpoint = tmp_path / "stats"
    options = [option for directory in directories for option in ("--segments", directory)]
    with daemon(mountpoint, *options):
        for name, directory in zip("ab", directories, strict=True):
            with publish(f"{name}/one", values=AppStats, directory=directory) as segment:
                count(segment, 5)
                file = mountpoint / name / "one" / "requests"
                wait_until(file.exists, "the segment")
                assert file.read_text() == "5\n"
            wait_until(partial(lost, file), "its end")
            assert (mountpoint / name / "requests").read_text() == "5\n"


def test_segments_beside_other_sources(tmp_path: Path) -> None:
    """With --load there are segments only where they are asked for."""
    program = "from statsfs import Source\ndef setup(registry): registry.register(Source('mine'))\n"
    (tmp_path / "program.py").write_text(program)
    mountpoint = tmp_path / "stats"
    segments = tmp_path / "segments"
    load = ("--load", "program:setup")
    runtime = {"PYTHONPATH": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    with daemon(mountpoint, *load, **runtime):
        assert sorted(os.listdir(mountpoint)) == ["mine", "statsfs"]
    with (
        daemon(mountpoint, *load, "--segments", segments, **runtime),
        publish("app", values=AppStats, directory=segments),
    ):
        wait_until((mountpoint / "app").is_dir, "the segment")
        assert sorted(os.listdir(mountpoint)) == ["app", "mine", "statsfs"]


def test_segments_that_are_refused(tmp_path: Path) -> None:
    """A directory that others can write, or that has a collector, is one line and status 1."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    mountpoint = tmp_path / "other"
    assert "chmod go-w" in refused(mountpoint, "--create", "--segments", open_to_all)
    said = refused(mountpoint, "--create", "--segments", tmp_path / "typo" / "segments")
    assert f"{tmp_path}/typo/segments: No such file or directory; make {tmp_path}/typo\n" in said
    segments = tmp_path / "segments"
    with daemon(tmp_path / "stats", "--segments", segments) as process:
        said = refused(mountpoint, "--create", "--segments", segments)
        assert f"{segments} has a collector already: process {process.pid}" in said
    assert not mountpoint.exists()


def test_many_segments(tmp_path: Path) -> None:
    """It takes as many descriptors as it may have, which are one for each segment."""
    script = 'ulimit -Sn 128; exec "$@"'
    options = ("--create", "--segments", str(tmp_path / "a"))
    command = [*STATSFS, "mount", str(tmp_path / "stats"), *options]
    with subprocess.Popen(["sh", "-c", script, "sh", *command], stdout=subprocess.PIPE) as process:
        try:
            wait_until(lambda: is_mounted(tmp_path / "stats"), "the mount")
            limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
            soft, hard = next(x.split()[3:5] for x in limits if x.startswith("Max open files"))
            assert soft == hard
        finally:
            process.terminate()
            process.wait(DEADLINE)


# systemd


def test_systemd_is_told(tmp_path: Path) -> None:
    """It is told when the tree is there, and when the end begins."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(DEADLINE)
        mountpoint = tmp_path / "stats"
        with daemon(mountpoint, "--segments", tmp_path / "a", NOTIFY_SOCKET=str(path)) as process:
            assert manager.recv(1000) == f"READY=1\nSTATUS=mounted at {mountpoint}".encode()
            assert os.listdir(mountpoint) == ["statsfs"]
            process.terminate()
            assert manager.recv(1000) == b"STOPPING=1"


def test_an_idle_daemon(tmp_path: Path) -> None:
    """It does not poll for an unmount: none of its threads wakes up."""
    with daemon(tmp_path / "stats", "--segments", tmp_path / "a") as process:

        def switches() -> list[str]:
            tasks = sorted(Path(f"/proc/{process.pid}/task").glob("*/status"))
            lines = [line for task in tasks for line in task.read_text().splitlines()]
            return [line for line in lines if line.startswith(("Pid:", "voluntary"))]

        seen: list[list[str]] = []

        def is_still() -> bool:
            seen.append(switches())
            return len(seen) > 100 and all(some == seen[-1] for some in seen[-100:])

        wait_until(is_still, "an idle moment")


# The background


def mount_in_background(mountpoint: Path, *options: str | Path) -> str:
    """Run `statsfs mount --background`; return what it printed, on stderr too."""
    done = run(*STATSFS, "mount", mountpoint, "--background", *options)
    return done.stdout + done.stderr


def test_the_background(tmp_path: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is mounted when the command returns; relative paths are those of then."""
    monkeypatch.chdir(tmp_path)
    said = mount_in_background(mountpoint, "--segments", "segments", "--log", "log")
    assert said == f"statsfs: mounted at {mountpoint}\n"
    log = tmp_path / "log"
    with publish("app", values=AppStats, directory=tmp_path / "segments"):
        wait_until((mountpoint / "app" / "requests").exists, "the segment")
    # What is refused later is said in the log.
    os.mkfifo(tmp_path / "segments" / ".pipe")
    os.rename(tmp_path / "segments" / ".pipe", tmp_path / "segments" / "pipe.stats")
    refusal = "pipe.stats is refused: not a regular file"
    wait_until(lambda: refusal in log.read_text(), "the refusal")
    run(*STATSFS, "umount", mountpoint)
    wait_until(lambda: "unmounted" in log.read_text(), "the end")


def test_the_background_fails(tmp_path: Path) -> None:
    """What goes wrong before it is mounted is seen by the caller, as in the foreground."""
    log = ("--background", "--log", tmp_path / "log")
    segments = ("--segments", tmp_path / "segments")
    assert "no such directory" in refused(tmp_path / "not-there", *segments, *log)
    (tmp_path / "raises.py").write_text("def setup(registry): raise ValueError('no')\n")
    load = ("--load", "raises:setup")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run_with(env, "mount", tmp_path / "stats", "--create", *load, *log)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ValueError: no" in done.stderr
    assert "--log: /not/there" in refused(tmp_path, "-b", "--log", "/not/there")
    assert "--background" in refused(tmp_path, *log[1:], status=2)


def run_with(
    environment: dict[str, str], *arguments: str | Path
) -> "subprocess.CompletedProcess[str]":
    """Run a command with another environment."""
    return subprocess.run(
        [*STATSFS, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.parametrize(
    ("death", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by signal 9"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "stopped by a signal before it was mounted"),
    ],
    ids=["killed", "stopped"],
)
def test_a_server_that_dies_at_once(death: str, words: str, tmp_path: Path) -> None:
    """The caller is told, and not that all is well."""
    (tmp_path / "dies.py").write_text(f"import os, signal\ndef setup(registry): {death}\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run_with(env, "mount", tmp_path / "stats", "--create", "-b", "--load", "dies:setup")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_caller_that_goes_away(tmp_path: Path) -> None:
    """When the parent is killed, the server unmounts and ends."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\ndef setup(registry): os.kill(os.getppid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    mountpoint = tmp_path / "stats"
    # The server has our pipe until it ends.
    done = run_with(env, "mount", mountpoint, "--create", "-b", "--load", "slow:setup")
    assert done.returncode == -signal.SIGKILL
    wait_until(partial(lost, mountpoint), "the end of the server")


# The host


@pytest.fixture(scope="module")
def host() -> Iterator[Machine]:
    """A machine with a /run of its own."""
    with private_machine() as machine:
        yield machine


PUBLISHER = """
import os, sys
from statsfs import Aggregate, Stats, u64
from statsfs.segments import publish

class AppStats(Stats):
    requests = u64(Aggregate.SUM)

os.setresuid(*[int(sys.argv[2])] * 3)
with publish(sys.argv[1], values=AppStats, directory=sys.argv[3] or None) as segment:
    segment.stats.requests += 7
    print("counting", flush=True)
    sys.stdin.read()
"""


@contextmanager
def publisher(host: Machine, path: str, uid: int = 0, directory: str = "") -> Iterator[None]:
    """Have a program on the host publish, and count to 7."""
    enter = ("nsenter", f"--mount={host.namespace}", "--wdns=/", "--")
    with subprocess.Popen(
        [*enter, sys.executable, "-c", PUBLISHER, path, str(uid), directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"counting\n"
        yield


@pytest.mark.root
def test_the_hosts_daemon(host: Machine) -> None:
    """Without a word about segments they are those of the host, whose directory is made."""
    assert host.run(*STATSFS, "mount", "/run/stats", "-b", "--log", "/run/log")
    status = (host.root / "run/statsfs").stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o755)
    requests = host.root / "run/stats/app/requests"
    with publisher(host, "app/one"):
        wait_until(requests.exists, "the segment")
        assert requests.read_text() == "7\n"
    host.run("umount", "/run/stats")
    host.wait_until_quiet()


@pytest.mark.root
def test_the_rights_of_the_unit(host: Machine) -> None:
    """With no more capabilities than the unit has, and no new ones, it mounts and reads others'."""
    unit = (Path(__file__).parent.parent.parent / "examples/statsfs.service").read_text()
    line = next(line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet="))
    names = line.partition("=")[2].split()
    rights = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in names)])
    assert "NoNewPrivileges=yes" in unit
    theirs = host.root / "run/statsfs/theirs"
    theirs.mkdir(parents=True, exist_ok=True)
    os.chown(theirs, NOBODY, NOBODY)
    limited = ("setpriv", f"--bounding-set={rights}", "--no-new-privs", *STATSFS)
    host.run(*limited, "mount", "/run/stats", "-b", "--log", "/run/log")
    requests = host.root / "run/stats/theirs/requests"
    with publisher(host, "theirs/one", NOBODY, "/run/statsfs/theirs"):
        wait_until(requests.exists, "the segment of another user")
        assert requests.read_text() == "7\n"
    one = host.root / "run/stats/theirs/one"
    wait_until(lambda: not one.exists(), "its end")
    assert requests.read_text() == "7\n"
    assert list(theirs.iterdir()) == []
    host.run("umount", "/run/stats")
    host.wait_until_quiet()
    theirs.rmdir()

"""`statsfs mount` as a service: how it stops, and what systemd is told; systemd is played by us."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import STATSFS, mounting
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import detach, is_mounted, run

pytestmark = pytest.mark.mount


def serving(
    mountpoint: Path, *options: str | Path, command: str = "mount", **environment: str
) -> contextlib.AbstractContextManager["subprocess.Popen[str]"]:
    """Run a server until the test has ended it; or at the end."""
    arguments = [*STATSFS, command, mountpoint, *options]
    # A group of its own, as in a shell: one that is orphaned, as after `setsid`, ignores SIGTSTP.
    return mounting(arguments, mountpoint, env={**os.environ, **environment}, process_group=0)


def wait_until_idle(process: "subprocess.Popen[str]") -> None:
    """Wait until the main thread waits for a signal, so that nothing of its own wakes it up."""
    calls = {"23", "270"}  # select and pselect6
    path = Path(f"/proc/{process.pid}/syscall")
    wait_until(lambda: path.read_text().split()[0] in calls, "an idle server")


@pytest.mark.parametrize("stop", [signal.SIGSTOP, signal.SIGTSTP])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_is_stopped(
    number: signal.Signals, stop: signal.Signals, tmp_path: Path
) -> None:
    """After SIGCONT the kernel gives it to any thread, but none is lost.

    systemd sends the three at a reboot; a shell the last two for Ctrl-Z and `kill %1`.
    """
    mountpoint = tmp_path / "stats"
    for _ in range(8 if (number, stop) == (signal.SIGTERM, signal.SIGSTOP) else 1):
        with serving(mountpoint, "--create", "--segments", tmp_path / "a") as process:
            wait_until_idle(process)
            process.send_signal(stop)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            assert process.wait(DEADLINE) == 0
            assert not is_mounted(mountpoint)


def test_a_stopped_demo(tmp_path: Path) -> None:
    """So it is with the demo, between two lines."""
    mountpoint = tmp_path / "stats"
    with serving(mountpoint, "--rate", "0", command="demo") as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.wait(DEADLINE) == 0


# systemd


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket at which systemd would listen."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        yield manager


def test_signs_of_life(manager: socket.socket, tmp_path: Path) -> None:
    """They come while requests are answered, whatever other signals the program takes."""
    mountpoint = tmp_path / "stats"
    (tmp_path / "program.py").write_text(
        "import signal\ndef setup(registry): signal.signal(signal.SIGUSR1, lambda *_: None)\n"
    )
    options = ("--create", "--load", "program:setup")
    environment = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "100000",
        "PYTHONPATH": str(tmp_path),
    }
    with serving(mountpoint, *options, **environment) as process:
        assert manager.recv(1000).startswith(b"READY=1")
        for _ in range(5):
            assert manager.recv(1000) == b"WATCHDOG=1"
        # Another signal wakes the main thread, and does not stop it.
        process.send_signal(signal.SIGUSR1)
        for _ in range(5):
            assert manager.recv(1000) == b"WATCHDOG=1"
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                manager.recv(1000)
        manager.settimeout(DEADLINE)
        process.send_signal(signal.SIGCONT)
        assert manager.recv(1000) == b"WATCHDOG=1"
        process.terminate()
        while manager.recv(1000) != b"STOPPING=1":
            pass
        assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("command", [("umount",), (*STATSFS, "umount")], ids=["umount", "statsfs"])
def test_an_unmount_by_others(
    command: tuple[str, ...], manager: socket.socket, tmp_path: Path
) -> None:
    """It is a failure of a service, which is then started again; else it is a way to end it."""
    mountpoint = tmp_path / "stats"
    options = ("--create", "--segments", tmp_path / "a")
    with serving(mountpoint, *options, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
        run(*command, mountpoint)
        assert process.wait(DEADLINE) == 1
        assert process.stderr is not None
        said = process.stderr.read()
        assert said.endswith(f"statsfs: error: {mountpoint}: unmounted by somebody else\n")
    with serving(mountpoint, *options) as process:
        run(*command, mountpoint)
        assert process.wait(DEADLINE) == 0


def test_priorities_in_the_journal(tmp_path: Path) -> None:
    """What is refused is a warning, an error is an error; what a program logs its own way stays."""
    mountpoint, directory = tmp_path / "stats", tmp_path / "a"
    directory.mkdir(mode=0o755)
    os.mkfifo(directory / "pipe.stats")
    reading, writing = os.pipe()
    with os.fdopen(reading) as journal:
        status = os.fstat(writing)
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        command: list[str | Path] = [*STATSFS, "mount", mountpoint, "--create"]
        command += ["--segments", directory]
        with subprocess.Popen(command, stderr=writing, env=environment) as process:
            try:
                said = journal.readline()
                assert said == f"<4>{directory}/pipe.stats is refused: not a regular file\n"
                wait_until(lambda: is_mounted(mountpoint), "the mount")
                # The collector's directory is its own.
                other = [tmp_path / "b" if word == mountpoint else word for word in command]
                assert subprocess.run(other, stderr=writing, env=environment).returncode == 1
                assert journal.readline().startswith("<3>statsfs: error: ")
                process.terminate()
                assert process.wait(DEADLINE) == 0
            finally:
                process.kill()
                detach(mountpoint)
        os.close(writing)
        assert journal.read() == ""


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """It is refused before anything is mounted, or made."""
    mountpoint = tmp_path / "stats"
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        options = ("--create", "--segments", tmp_path / "a", "--listen", str(port))
        with serving(mountpoint, *options) as process:
            assert process.wait(DEADLINE) == 1
            assert process.stderr is not None
            assert "statsfs: error: --listen: " in process.stderr.read()
            assert not mountpoint.exists()

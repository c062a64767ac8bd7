"""The command line as processes: run to their end, serving a mount, on a terminal."""

import contextlib
import io
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from statsfs.cli import main
from statsfs.filesystem.mountpoints import find_mount
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import detach

__all__ = [
    "STATSFS",
    "CommandServer",
    "Terminal",
    "assert_error",
    "find_server",
    "is_mounted",
    "mounting",
    "on_terminal",
    "run",
    "run_here",
    "serving",
]

STATSFS = [sys.executable, "-m", "statsfs"]


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STATSFS, *args],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def run_here(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As `run`, in this process: a refusal takes milliseconds, and half a second in its own.

    For commands that are refused before they handle signals.
    """
    handlers = {number: signal.getsignal(number) for number in signal.Signals}
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = main(args)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    return subprocess.CompletedProcess(args, status, out.getvalue(), err.getvalue())


def is_mounted(path: Path) -> bool:
    return find_mount(str(path)) == "fuse.statsfs"


def find_server(mountpoint: Path) -> int:
    """The process of the `statsfs mount` that serves a mount, as its own source tells it."""
    return int(os.getxattr(mountpoint / "statsfs", "user.statsfs.daemon.pid"))


@contextmanager
def mounting(
    command: Sequence[str | Path], mountpoint: Path, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run a command that mounts, and wait until it has, or has ended; it leaves nothing.

    Args:
        command: the program and its arguments.
        mountpoint: where it mounts.
        options: those of `subprocess.Popen`, where they differ.
    """
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **{**streams, **options}) as process:
        try:
            wait_until(lambda: process.poll() is not None or is_mounted(mountpoint), "the mount")
            yield process
        finally:
            process.kill()
            detach(mountpoint)


class CommandServer:
    """A running `statsfs demo` or `statsfs mount`, and everything that it prints."""

    def __init__(self, process: subprocess.Popen[str], mountpoint: Path) -> None:
        self.process = process
        self.mountpoint = mountpoint
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def line(self, start: str) -> str:
        """The newest line that starts so; waits for one."""

        def found() -> list[str]:
            return [line for line in self.lines if line.startswith(start)]

        wait_until(lambda: bool(found()) or self.process.poll() is not None)
        assert found(), (self.lines, self.process.stderr and self.process.stderr.read())
        return found()[-1]

    def read(self, name: str) -> int:
        """The integer in a file."""
        return int((self.mountpoint / name).read_text())

    def ended(self) -> tuple[int, str]:
        """The exit status and what it said on stderr."""
        status = self.process.wait(DEADLINE)
        self._reader.join()
        assert self.process.stderr is not None
        return status, self.process.stderr.read()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, and see that it ends as it should."""
        self.process.send_signal(number)
        assert self.ended() == (0, "")
        assert not is_mounted(self.mountpoint)
        assert self.lines[-1] == f"statsfs: unmounted {self.mountpoint}"


@contextmanager
def serving(
    command: str,
    mountpoint: Path,
    *args: str,
    cwd: Path | None = None,
    started: str = "statsfs: mounted at ",
) -> Iterator[CommandServer]:
    """Start a command that mounts, and wait until it has; the test ends it."""
    with subprocess.Popen(
        [*STATSFS, command, str(mountpoint), *args],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        server = CommandServer(process, mountpoint)
        try:
            server.line(started)
            assert server.lines[0] == f"statsfs: mounted at {mountpoint}"
            assert is_mounted(mountpoint)
            yield server
            assert process.poll() is not None, "the test has left it running"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if is_mounted(mountpoint):
                subprocess.run(["fusermount3", "-uz", str(mountpoint)], check=False)


def assert_error(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One line on stderr, nothing on stdout, the exit status as documented."""
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("statsfs: error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


class Terminal(Protocol):
    """What `on_terminal` yields: types some keys, then reads until a marker was seen."""

    def __call__(self, marker: str, keys: bytes = b"") -> str:
        """Return all that was seen from the start."""


@contextmanager
def on_terminal(
    cwd: Path, *args: str, term: str = "xterm", program: Sequence[str] = STATSFS
) -> Iterator[Terminal]:
    """Run a command with a terminal of its own."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with subprocess.Popen(
        # setsid(1) makes the terminal the controlling one, so that Ctrl-C is a signal.
        ["setsid", "--ctty", *program, *args],
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": term, "COLUMNS": "100", "LINES": "30"},
    ) as process:
        os.close(theirs)
        seen = b""

        def until(marker: str, keys: bytes = b"") -> str:
            nonlocal seen
            os.write(ours, keys)
            deadline = time.monotonic() + DEADLINE
            while marker.encode() not in seen:
                assert time.monotonic() < deadline, seen
                if select.select([ours], [], [], 0.1)[0]:
                    try:
                        seen += os.read(ours, 1 << 16)
                    except OSError:  # EIO: it has ended
                        break
            return seen.decode(errors="replace")  # a read may end inside a character

        try:
            yield until
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
            os.close(ours)

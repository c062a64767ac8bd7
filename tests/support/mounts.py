"""Real mounts for tests: servers as processes, driven from the test, ended and looked after.

A server is ended as an honest program ends: without a lazy unmount, which would hide handles that
are left open. It must then have ended with status 0, with nothing mounted and nothing on stderr.
Only after a failure is it killed and its mount detached.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mount_server import Answer, Call, World

__all__ = [
    "NOBODY",
    "ROOT",
    "RemoteError",
    "Server",
    "as_nobody",
    "children",
    "detach",
    "directory_for_a_mount",
    "exists",
    "forget",
    "inside",
    "is_mounted",
    "one_cpu",
    "run",
    "serving",
    "shell",
    "sweep_dead_mounts",
]

P = ParamSpec("P")
T = TypeVar("T")

ROOT = Path(__file__).parent.parent.parent
NOBODY = 65534
_PREFIX = "statsfs-test"
# A test that hangs in a system call on a mount can only be freed by the end of the server.
_LIFETIME = 100.0  # seconds
# MS_REMOUNT, and the flags that each of our mounts has: MS_NOSUID, MS_NODEV, MS_NOEXEC.
_REMOUNT = 32 | 2 | 4 | 8
# Not as __main__: what is pickled here and there must be of one module.
_PYTHON = (sys.executable, "-c", "from tests.support.mount_server import main; main()")


class RemoteError(Exception):
    """A call failed in the server; the message is the error there, the notes its traceback."""


def _mountinfo(pid: int | None = None) -> list[list[str]]:
    with open(
        f"/proc/{pid or 'self'}/mountinfo", encoding="utf-8", errors="surrogateescape"
    ) as table:
        return [line.split() for line in table]


def exists(path: Path) -> bool:
    """Tell whether one stat finds something."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def is_mounted(path: str | os.PathLike[str], pid: int | None = None) -> bool:
    """Tell whether something is mounted on a path, dead or alive; without asking it.

    Args:
        path: where.
        pid: a process in whose namespace to look; by default in ours.
    """
    return os.fspath(path) in (fields[4] for fields in _mountinfo(pid))


def children(pid: int) -> list[int]:
    """The processes that any thread of a process has started."""
    found: list[int] = []
    for started in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, started.read_text().split())
    return found


def detach(path: str | os.PathLike[str]) -> None:
    """Detach a mount of which nobody expects anything any more."""
    while is_mounted(path):
        subprocess.run(["fusermount3", "-uz", path], check=False, capture_output=True)


def sweep_dead_mounts() -> None:
    """Detach what a run that was killed left behind; other runs may be under way."""
    for fields in _mountinfo():
        path = Path(fields[4])
        left = re.fullmatch(rf"{_PREFIX}-(\d+)-.*", path.name)
        if left and "fuse.statsfs" in fields and not os.path.exists(f"/proc/{left[1]}"):
            detach(path)
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def directory_for_a_mount() -> Iterator[Path]:
    """Make a directory that others may enter too; at the end it must be empty and unmounted."""
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}-{os.getpid()}-"))
    path.chmod(0o755)
    try:
        yield path
        assert not is_mounted(path), f"{path} is mounted still"
    finally:
        detach(path)
        if path.exists():
            path.rmdir()


class Server:
    """A server process with a mount, which does what it is told.

    Args:
        mountpoint: a directory.
        mode: how it mounts; "thread" or "trio", or "later" by a call.
        options: those of `mount`.
        env: variables of its environment, besides the test's.
        wrapper: a command that is put before its own.
        measured: whether coverage follows it; not where it ends as a user who may not write here.
        lifetime: seconds after which it is killed.
    """

    def __init__(
        self,
        mountpoint: Path,
        mode: str = "thread",
        *,
        options: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
        measured: bool = True,
        lifetime: float = _LIFETIME,
    ) -> None:
        self.mountpoint = mountpoint
        self.ended = False
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in `clean_up`
        self._connection, theirs = Pipe()
        own = {k: v for k, v in os.environ.items() if measured or not k.startswith("COVERAGE_")}
        with theirs:
            self.process = subprocess.Popen(
                [
                    *wrapper,
                    *_PYTHON,
                    str(theirs.fileno()),
                    mode,
                    mountpoint,
                    json.dumps(options or {}),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                process_group=0,
                env={**own, **(env or {})},
            )
        self._reaper = threading.Timer(lifetime, self.process.kill)
        self._reaper.daemon = True
        self._reaper.start()

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def stderr(self) -> str:
        """What it wrote to stderr until now."""
        self._errors.seek(0)
        return self._errors.read()

    def __truediv__(self, path: str) -> Path:
        return self.mountpoint / path

    def wait_until_mounted(self) -> None:
        """Wait until it serves, or is dead."""
        wait_until(
            lambda: self.process.poll() is not None or is_mounted(self.mountpoint, self.pid),
            "the mount",
        )
        assert self.process.poll() is None, self.stderr

    def call(
        self, function: Callable[Concatenate[World, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Have a function called in the server, and return what it returned.

        Raises:
            RemoteError: it raised.
        """
        self.send(function, *args, **kwargs)
        if not self._connection.poll(DEADLINE):
            self._fail(f"no answer from {function.__name__}")
        try:
            answer: Answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.wait(DEADLINE)
            raise AssertionError(f"it is dead ({self.process.returncode}): {self.stderr}") from None
        if answer.error is not None:
            error = RemoteError(answer.error)
            error.add_note(answer.traceback)
            raise error
        result: T = answer.value
        return result

    def send(
        self, function: Callable[Concatenate[World, P], object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Have a function called in the server that is not waited for, as it ends the server."""
        self._connection.send(Call(function, args, kwargs))

    def _fail(self, what: str) -> None:
        # With the stacks of its threads, which tell where it hangs.
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "Current thread" in self.stderr or self.process.poll() is not None)
        raise AssertionError(f"{what}; the server's stderr:\n{self.stderr}")

    def end(self) -> None:
        """Tell it to end; see that it ends well and leaves nothing behind."""
        self.ended = True
        self._connection.send(None)
        self.expect_end()

    def end_closed(self, *lines: str) -> None:
        """End one whose mount is closed, or another's; see that it said lines like these alone.

        Args:
            lines: regular expressions.
        """
        self.ended = True
        self._connection.send(None)
        assert self.process.wait(DEADLINE) == 0
        found = self.stderr.splitlines()
        assert len(found) == len(lines), found
        for text, line in zip(found, lines, strict=True):
            assert re.fullmatch(line, text), text

    def expect_end(self, status: int = 0) -> None:
        """Wait for its end; see that it ended well and left nothing behind."""
        self.ended = True
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._fail("it does not end")
        assert self.process.returncode == status, (self.process.returncode, self.stderr)
        assert self.stderr == "", self.stderr
        assert not is_mounted(self.mountpoint), "it is mounted still"

    def kill(self) -> None:
        """Kill it, as the kernel does when memory is short; the test then looks after its mount."""
        self.ended = True
        self.process.kill()
        self.process.wait()

    def clean_up(self) -> None:
        """Leave no process, whatever happened."""
        self._reaper.cancel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._connection.close()
        self._errors.close()


@contextlib.contextmanager
def serving(mode: str = "thread", **arguments: Any) -> Iterator[Server]:
    """Run a server; at the end it must end well, unless the test saw to its end."""
    with directory_for_a_mount() as mountpoint:
        server = Server(mountpoint, mode, **arguments)
        try:
            if mode != "later":
                server.wait_until_mounted()
            yield server
            if not server.ended:
                server.end()
        finally:
            server.clean_up()


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """Keep this thread, and what it starts, on one CPU.

    On a machine that is otherwise idle, and a virtual one more than others, waking another CPU for
    each of thousands of calls takes most of the time.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# Clients


def run(
    *command: str | os.PathLike[str], status: int | None = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a client and return what it printed.

    Args:
        command: the program and its arguments.
        status: what it must end with; None for anything.
        options: those of `subprocess.run`.
    """
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
        **options,
    )
    if status is not None:
        assert done.returncode == status, (command, done.returncode, done.stdout, done.stderr)
    return done


def shell(script: str, *arguments: str | os.PathLike[str], **options: Any) -> str:
    """Run a script of sh with its arguments; return what it printed, on stderr too."""
    done = run("sh", "-c", script, "sh", *arguments, **options)
    return done.stdout + done.stderr


def inside(server: Server, *command: str | os.PathLike[str], **options: Any) -> str:
    """Run a client in the mount namespace of a server; return what it printed, on stderr too."""
    done = run("nsenter", f"--mount=/proc/{server.pid}/ns/mnt", *command, **options)
    return done.stdout + done.stderr


def forget(server: Server) -> None:
    """Have the kernel forget all names of this one mount; only root may."""
    # To drop all caches of the machine, as /proc/sys/vm/drop_caches does, would disturb others.
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(server.mountpoint)
    if libc.mount(b"statsfs", path, None, _REMOUNT, None):
        raise OSError(ctypes.get_errno(), "remounting", server.mountpoint)


def as_nobody(*command: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a client as a user who has no rights at all."""
    return run(
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command, **options
    )

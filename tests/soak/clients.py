"""Clients of a mount, as processes: started by tens, ended whatever happens."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT

__all__ = [
    "Client",
    "client",
    "collect",
    "shell_client",
    "stop",
    "wait_until_called",
    "wait_until_stopped",
]

Client = subprocess.Popen[str]

# Without the packages of the environment, which they do not use: a tenth of the time to start.
_PYTHON = (sys.executable, "-S", "-c")


@contextlib.contextmanager
def _running(command: tuple[str | os.PathLike[str], ...], **options: Any) -> Iterator[Client]:
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def client(function: Callable[..., None], *arguments: object) -> Iterator[Client]:
    """Run a function in a process of its own until the end of the block, or its own.

    Args:
        function: of a module that needs nothing but the standard library; `collect` returns what it
            prints, as JSON.
        arguments: it gets them as strings.
    """
    code = f"import sys; from {function.__module__} import {function.__name__} as f; "
    command = (*_PYTHON, code + "f(*sys.argv[1:])", *map(str, arguments))
    with _running(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if not name.startswith("COVERAGE_")},
    ) as process:
        yield process


@contextlib.contextmanager
def shell_client(script: str, *arguments: str | os.PathLike[str]) -> Iterator[Client]:
    """Run a script of sh, and what it starts, until the end of the block; nobody looks at it."""
    with _running(
        ("sh", "-c", script, "sh", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        yield process


def collect(process: Client, deadline: float = DEADLINE) -> Any:
    """Wait for a client's end, which must be a good one; return what it printed."""
    output, errors = process.communicate(timeout=deadline)
    assert process.returncode == 0, (process.returncode, output, errors)
    assert errors == "", errors
    return json.loads(output) if output else None


def wait_until_stopped(pid: int) -> None:
    """Wait until a process stands still."""
    status = Path(f"/proc/{pid}/stat")
    wait_until(lambda: status.read_text().rpartition(") ")[2][0] == "T", "the stop")


def wait_until_called(process: Client, name: str) -> None:
    """Wait until a client has become a program of this name."""
    comm = Path(f"/proc/{process.pid}/comm")
    wait_until(lambda: comm.read_text() == f"{name}\n", name)


def stop(pid: int) -> None:
    """Stop a process, and wait until it stands."""
    os.kill(pid, signal.SIGSTOP)
    wait_until_stopped(pid)

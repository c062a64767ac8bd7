"""Programs of all kinds, from their mount to their end: sync, threaded, asyncio, trio."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import mount_programs
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT, is_mounted, run

pytestmark = pytest.mark.mount

LOOK = "['kvm', '0']"


@contextmanager
def running(
    program: Callable[[str], object], mountpoint: Path, measured: bool = True
) -> Iterator["subprocess.Popen[str]"]:
    """Run a program until it ended by itself, or the block did.

    Where an exception may strike at any moment it is not to be measured: coverage takes a lock when
    it meets a file, and an exception right behind that leaves it taken.
    """
    own = {key: text for key, text in os.environ.items() if not key.startswith("COVERAGE_")}
    code = (
        f"from tests.support import mount_programs as p; p.{program.__name__}({str(mountpoint)!r})"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=None if measured else own,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: "subprocess.Popen[str]", status: int = 0) -> tuple[list[str], str]:
    """Wait for a program's end; return what it printed, and on stderr."""
    output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == status, (process.returncode, output, errors)
    return output.splitlines(), errors


def result(program: Callable[[str], object], mountpoint: Path) -> list[str]:
    """Run a program that ends well and leaves nothing mounted; return what it printed."""
    with running(program, mountpoint) as process:
        output, errors = ended(process)
    assert errors == ""
    assert not is_mounted(mountpoint)
    return output


def wait_for_mount(process: "subprocess.Popen[str]", mountpoint: Path) -> None:
    """Wait until a program has mounted."""
    wait_until(lambda: is_mounted(mountpoint) or process.poll() is not None, "the mount")
    assert run("ls", mountpoint).stdout == "kvm\n"


@pytest.mark.parametrize(
    ("program", "output"),
    [
        (mount_programs.plain, ["['kvm', '1000']", "False"]),
        (mount_programs.with_asyncio, [LOOK, LOOK, "0", "False"]),
        (mount_programs.with_threads, ["12", "False"]),
        (mount_programs.sync_mount_in_trio, [LOOK, "False"]),
        (mount_programs.trio_error, ["KeyError('mine') False"]),
        (mount_programs.trio_cancelled, ["True False", "after the end", "False False"]),
        (mount_programs.trio_close, ["True", LOOK, "True False", "True"]),
        (mount_programs.trio_unmounted, ["goes on", "False"]),
        (mount_programs.trio_busy, ["False"]),
        (mount_programs.forgetful, [LOOK]),
        (mount_programs.forgetful_in_a_thread, [LOOK]),
    ],
    ids=lambda part: part.__name__ if callable(part) else "",
)
def test_programs(program: Callable[[str], object], output: list[str], mountpoint: Path) -> None:
    """Each does its work, ends with status 0 and leaves nothing mounted."""
    assert sorted(result(program, mountpoint)) == sorted(output)


def test_a_trio_program(mountpoint: Path) -> None:
    """It mounts, changes its tree from the serving thread, and mounts once more."""
    live = f"{LOOK} <Mount '{mountpoint}'>"
    assert result(mount_programs.with_trio, mountpoint) == [live, LOOK, "True False", LOOK, "False"]


@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        (mount_programs.exits, 3, ""),
        (mount_programs.raises, 1, "ValueError: not caught\n"),
        (mount_programs.raises_inside, 1, "ValueError: not caught\n"),
    ],
)
def test_ends_that_are_no_success(
    program: Callable[[str], object], status: int, words: str, mountpoint: Path
) -> None:
    """The status is the program's own, the traceback too, and nothing is mounted."""
    with running(program, mountpoint) as process:
        _, errors = ended(process, status)
    assert not is_mounted(mountpoint)
    assert errors.endswith(words)
    assert errors.count("Traceback") == bool(words)


def test_an_end_without_clean_up(mountpoint: Path) -> None:
    """The watcher unmounts."""
    with running(mount_programs.dies, mountpoint) as process:
        assert ended(process, 4) == ([], "")
        wait_until(lambda: not is_mounted(mountpoint), "the watcher")


def test_a_program_that_becomes_another(mountpoint: Path) -> None:
    """The other has nothing of the mount, which the watcher clears."""
    with running(mount_programs.becomes_another, mountpoint) as process:
        comm = Path(f"/proc/{process.pid}/comm")
        wait_until(lambda: comm.read_text() == "sleep\n", "the other program")
        wait_until(lambda: not is_mounted(mountpoint), "the watcher")
        assert process.poll() is None


def test_waiting_for_the_end(mountpoint: Path) -> None:
    """`wait` returns when somebody else unmounts."""
    with running(mount_programs.waits, mountpoint) as process:
        wait_for_mount(process, mountpoint)
        run("fusermount3", "-u", mountpoint)
        assert ended(process) == (["True", "False"], "")


@pytest.mark.parametrize("program", [mount_programs.sleeps, mount_programs.trio_sleeps])
def test_ctrl_c(program: Callable[[str], object], mountpoint: Path) -> None:
    """KeyboardInterrupt unwinds the program, and unmounts on its way."""
    with running(program, mountpoint, measured=False) as process:
        wait_for_mount(process, mountpoint)
        process.send_signal(signal.SIGINT)
        _, errors = ended(process, -signal.SIGINT)
    assert not is_mounted(mountpoint)
    assert errors.count("Traceback") == 1
    assert errors.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGSEGV])
def test_signals_that_end_a_program(number: signal.Signals, mountpoint: Path) -> None:
    """It has no time to unmount; the watcher does."""
    with running(mount_programs.sleeps, mountpoint) as process:
        wait_for_mount(process, mountpoint)
        process.send_signal(number)
        ended(process, -number)
        wait_until(lambda: not is_mounted(mountpoint), "the watcher")


@pytest.mark.parametrize(
    "program", [mount_programs.handles_a_signal, mount_programs.exits_in_a_handler]
)
def test_a_handler_of_a_signal(program: Callable[[str], object], mountpoint: Path) -> None:
    """It may close the mount, or leave the program, whatever it interrupts."""
    with running(program, mountpoint, measured=False) as process:
        wait_for_mount(process, mountpoint)
        process.send_signal(signal.SIGTERM)
        _, errors = ended(process)
    assert errors == ""
    assert not is_mounted(mountpoint)

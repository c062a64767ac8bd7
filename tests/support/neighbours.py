"""Neighbours: the host's daemon, a service whose user is measured, and another user who attacks.

`neighbours` starts the daemon; `Neighbours.measure` runs the service beside an attack and says how
long its reads, its new segments and its scrapes took.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support import service
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT, directory_for_a_mount, is_mounted
from tests.support.service import NAME, USER

__all__ = ["ATTACKER", "Measured", "Neighbours", "neighbours"]

ATTACKER = 1234  # the user of the directory `web`


@dataclass(frozen=True)
class Measured:
    """What one user had of the service while another did something.

    Attributes:
        reads, births, scrapes: the seconds that each took, sorted: reading a total; a new segment,
            until a file of it is there; an HTTP scrape.
        echoes: what two other processes took to answer each other.
        wrong: numbers that were not what was counted, and errors.
        memory: the most that the daemon had, in bytes.
    """

    reads: list[float]
    births: list[float]
    scrapes: list[float]
    echoes: list[float]
    wrong: list[str]
    memory: int

    @classmethod
    def of(cls, answers: list[dict[str, Any]], memory: int) -> Self:
        """Put together what the three roles said."""
        reads, births, scrapes, echoes = (sorted(one["taken"]) for one in answers)
        return cls(
            reads, births, scrapes, echoes, [s for one in answers for s in one["wrong"]], memory
        )

    def __str__(self) -> str:
        parts = []
        for what, taken in (
            ("reads", self.reads),
            ("births", self.births),
            ("scrapes", self.scrapes),
            ("echoes", self.echoes),
        ):
            shown = (f"{1000 * at(taken, part):.1f}" for part in (0.5, 0.99, 1))
            parts.append(f"{len(taken)} {what}: {' / '.join(shown)} ms (median, 99 %, all)")
        return "; ".join([*parts, f"{self.memory >> 20} MiB", *self.wrong])


def at(taken: list[float], part: float) -> float:
    """Return the quantile of a sorted list, or what no deadline has if it is empty."""
    return taken[min(len(taken) - 1, int(part * len(taken)))] if taken else float("inf")


class Neighbours:
    """A running daemon.

    Attributes:
        process: the daemon.
        mountpoint, directory, url: where it mounts, has its segments, answers scrapes.
        theirs: the attacker's directory in `directory`.
    """

    def __init__(self, process: "subprocess.Popen[str]", mountpoint: Path, directory: Path) -> None:
        self.process = process
        self.mountpoint = mountpoint
        self.directory = directory
        self.theirs = directory / "web"
        self.url = ""
        self.said: list[str] = []

    def wait(self) -> None:
        """Wait until it has mounted and listens."""
        assert self.process.stdout is not None
        while not self.url:
            line = self.process.stdout.readline()
            assert line, "the daemon has ended"
            found = re.search(r"http://\S+/metrics", line)
            self.url = found[0] if found else ""
        assert is_mounted(self.mountpoint)

    @contextlib.contextmanager
    def attacking(
        self, program: str, *arguments: str, imports: str = ""
    ) -> Iterator["subprocess.Popen[str]"]:
        """Run a program in Python as the attacker, until the end; what it prints is left to it.

        It finds `MOUNT`, `DIRECTORY` (the attacker's own) and `URL`. What it imports of this tree,
        which the attacker may not enter, is imported before.
        """
        head = (
            "import encodings.idna, sys\n"
            f"from tests.support.collecting import *\nfrom statsfs import *\n{imports}\n"
            f"MOUNT, DIRECTORY, URL = sys.argv[1:4]\nbecome({ATTACKER})\n"
        )
        paths = (str(self.mountpoint), str(self.theirs), self.url)
        with _running("-c", head + program, *paths, *arguments) as process:
            yield process

    @contextlib.contextmanager
    def measuring(self) -> Iterator[list[Measured]]:
        """Run the service; what it measured is in the list at the end."""
        measured: list[Measured] = []
        mount, directory = str(self.mountpoint), str(self.directory / NAME)
        roles = {
            "read": (mount, directory),
            "publish": (mount, directory),
            "scrape": (self.url,),
            "echo": (),
        }
        with contextlib.ExitStack() as stack:
            processes = []
            for role, paths in roles.items():  # the first publishes what the others look for
                process = stack.enter_context(_running("-m", service.__name__, role, *paths))
                assert process.stdout is not None
                assert process.stdout.readline() == "begun\n"
                processes.append(process)
            # The peak is counted anew from here.
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
            yield measured
            answers = [json.loads(process.communicate(timeout=90)[0]) for process in processes]
            measured.append(Measured.of(answers, self.memory("VmHWM")))

    def memory(self, name: str = "VmRSS") -> int:
        """Return what the daemon has in memory, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10


def _environment() -> dict[str, str]:
    return {key: text for key, text in os.environ.items() if not key.startswith("COVERAGE_")}


@contextlib.contextmanager
def _running(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    # A process of Python that one talks to, until the end.
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def neighbours(*options: str) -> Iterator[Neighbours]:
    """Run the daemon over two users' directories; at the end it must end as it should."""
    directory = Path(tempfile.mkdtemp(prefix="statsfs-neighbours-"))
    directory.chmod(0o755)
    for name, user in ((NAME, USER), ("web", ATTACKER)):
        (directory / name).mkdir()
        os.chown(directory / name, user, user)
    command = (sys.executable, "-m", "statsfs", "mount")
    with directory_for_a_mount() as mountpoint, tempfile.TemporaryFile("w+") as errors:
        where = (str(mountpoint), "--segments", str(directory), "--listen", "127.0.0.1:0")
        with subprocess.Popen(
            [*command, *where, *options],
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            scene = Neighbours(process, mountpoint, directory)
            try:
                scene.wait()
                yield scene
                process.terminate()
                assert process.wait(DEADLINE) == 0
                wait_until(lambda: not is_mounted(mountpoint), "the unmount")
            finally:
                process.kill()
                errors.seek(0)
                scene.said += errors.read().splitlines()
                shutil.rmtree(directory)

"""The host's daemon, to be killed as often as one likes: `statsfs mount --segments`, forked.

A process that has imported all that the command needs forks it, for an import takes longer than
most of them live. It adopts what they leave behind, so that one sees whether all of that ends.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT, is_mounted

__all__ = ["Daemons", "daemons", "fork_daemons"]

_PDEATHSIG, _SUBREAPER = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
_CODE = "import sys; from tests.soak.daemons import fork_daemons as f; f(*sys.argv[1:])"


def fork_daemons(mountpoint: str, directory: str) -> None:
    """Fork a daemon for each line `start` with options; for one with a pid, say how it ended.

    Args:
        mountpoint: where they mount.
        directory: the segments'.
    """
    import inotify_simple  # type: ignore[import-untyped]  # noqa: F401  # it says nothing of types

    from statsfs.cli.commands import run

    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1)
    for line in sys.stdin:
        word, *options = line.split()
        if word == "start":
            pid = os.fork()
            if not pid:
                libc.prctl(_PDEATHSIG, signal.SIGKILL)
                os.dup2(os.open(os.devnull, os.O_RDWR), 0)
                os.dup2(0, 1)
                status = 1
                try:
                    status = run(["mount", mountpoint, "--segments", directory, *options])
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(int(line), 0)[1])
        print(json.dumps(answer), flush=True)
    # What the watchers of their mounts had to do takes a moment.
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


class Daemons:
    """One daemon at a time.

    Args:
        process: what forks them.
        mountpoint: where they mount.
    """

    def __init__(self, process: "subprocess.Popen[str]", mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self.pid = 0
        self.kills = 0
        self._process = process

    def _ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *options: str) -> None:
        """Start one with more options; it is not mounted yet."""
        self.pid = self._ask(" ".join(("start", *options)))

    def replace(self, *options: str) -> None:
        """Have another one take over; wait for the old one's end, which must be a good one."""
        old = self.pid
        self.start("--replace", *options)
        self._expect(0, old)

    def kill(self) -> None:
        """Kill it, whatever it is about; it must not have ended by itself."""
        os.kill(self.pid, signal.SIGKILL)
        self._expect(-signal.SIGKILL)
        self.kills += 1

    def kill_later(self, seconds: float) -> threading.Timer:
        """Have it killed at a moment; who asks for that has to join, and to call `kill`."""
        timer = threading.Timer(seconds, os.kill, (self.pid, signal.SIGKILL))
        timer.start()
        return timer

    def end(self) -> None:
        """End it as systemd does; it must end well, and unmount."""
        os.kill(self.pid, signal.SIGTERM)
        self._expect(0)
        assert not is_mounted(self.mountpoint)

    def _expect(self, status: int, pid: int = 0) -> None:
        ended = self._ask(str(pid or self.pid))
        if not pid:
            self.pid = 0
        assert ended == status, f"a daemon ended with {ended}, not {status}"

    def wait_for(self, path: str) -> None:
        """Wait until it serves a file."""
        wait_until(lambda: self._is_served(path), path)

    def _is_served(self, path: str) -> bool:
        # Of a dead mount, names are known for a while.
        try:
            return bool((self.mountpoint / path).read_bytes())
        except OSError:
            return False


@contextlib.contextmanager
def daemons(mountpoint: Path, directory: Path, errors: IO[str]) -> Iterator[Daemons]:
    """Daemons, until the end of the block; by then the last one must have ended, or been killed.

    Args:
        mountpoint: where they mount.
        directory: the segments'.
        errors: what they say.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _CODE, mountpoint, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if not name.startswith("COVERAGE_")},
    ) as process:
        try:
            yield Daemons(process, mountpoint)
            assert process.stdin is not None
            process.stdin.close()
            # It has waited for all that they left behind.
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()

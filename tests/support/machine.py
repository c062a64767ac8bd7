"""A machine of one's own, as far as mounts go: tests of mount(8) leave the real one alone.

It is a mount namespace in which `/run`, `/sbin`, `/dev` and `/etc/fstab` are others. All that was
started in it, daemons too, can be found and ended, whatever happened.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.deadlines import wait_until
from tests.support.mounts import run

__all__ = ["Machine", "private_machine"]

# The console is left out, or a message that finds no system log would be printed on the real one.
_SETUP = """
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/dev /run/stats
mount --rbind /dev /run/dev
mount -t tmpfs -o mode=755 tmpfs /dev
for device in fuse null tty urandom; do
    touch /dev/$device
    mount --bind /run/dev/$device /dev/$device
done
ln -s /proc/self/fd /dev/fd
ln -s /run/dev/shm /dev/shm
ln -s /run/system-log /dev/log
mount -t tmpfs -o mode=755 tmpfs "$(readlink -f /sbin)"
: > /run/fstab
mount --bind /run/fstab /etc/fstab
echo ready
read -r line
"""


_PATIENCE = 10.0  # seconds


class Machine:
    """A mount namespace with nothing mounted at `/run/stats`, and an empty `/run`, `/sbin`, fstab.

    Attributes:
        root: where its files are, seen from outside.
        namespace: the file that stands for it.
    """

    def __init__(self, holder: "subprocess.Popen[bytes]") -> None:
        self._holder = holder.pid
        self.namespace = f"/proc/{holder.pid}/ns/mnt"
        self.root = Path(f"/proc/{holder.pid}/root")

    def run(self, *command: str | os.PathLike[str], **options: Any) -> str:
        """Run a command in it; return what it printed, on stderr too."""
        # Its directory is as it was outside: nsenter would make it the root.
        enter = ("nsenter", f"--mount={self.namespace}", f"--wdns={os.getcwd()}", "--")
        done = run(*enter, *command, **options)
        return done.stdout + done.stderr

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start a command in it, with pipes; the caller ends it."""
        enter = ("nsenter", f"--mount={self.namespace}", f"--wdns={os.getcwd()}", "--")
        return subprocess.Popen([*enter, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def processes(self, word: str = "") -> list[int]:
        """Return the processes that live in it, those whose command has a word in it."""
        found = []
        for entry in os.listdir("/proc"):
            # One that has just ended has no files any more.
            with contextlib.suppress(OSError):
                if not entry.isdecimal() or int(entry) == self._holder:
                    continue
                said = Path(f"/proc/{entry}/cmdline").read_bytes()
                if word.encode() in said and self._is_home_of(entry):
                    found.append(int(entry))
        return found

    def _is_home_of(self, process: str) -> bool:
        return os.readlink(f"/proc/{process}/ns/mnt") == os.readlink(self.namespace)

    def wait_until_quiet(self) -> None:
        """Wait until nothing lives in it any more; what does not end is killed, and a failure."""
        try:
            wait_until(lambda: not self.processes(), "the end of what was started", _PATIENCE)
        except AssertionError:
            self.clean_up()
            raise

    def clean_up(self) -> None:
        """Kill what lives in it, and detach what it leaves."""
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        wait_until(lambda: not self.processes(), "the end of what was killed")
        self.run("umount", "-a", "-l", "-t", "fuse.statsfs", status=None)


@contextlib.contextmanager
def private_machine() -> Iterator[Machine]:
    """Make a machine; at the end nothing may live in it."""
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _SETUP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        made = Machine(holder)
        try:
            yield made
            made.wait_until_quiet()
        finally:
            made.clean_up()
            holder.kill()

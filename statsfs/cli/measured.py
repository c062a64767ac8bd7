"""What `statsfs stat` and `statsfs record` share: places, and a COMMAND that runs meanwhile.

Threading: main thread only.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

import click

from statsfs.cli.paths import PATH
from statsfs.eyes.places import Place, open_place
from statsfs.filesystem.mountpoints import find_mounts

__all__ = ["Command", "find_places", "path_option"]

_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

path_option: Final = click.option(
    "-p",
    "--path",
    "paths",
    type=PATH,
    multiple=True,
    metavar="PATH",
    help="A directory of a mounted statsfs, or http://HOST:PORT, where --listen of a daemon is; "
    "may be given several times. Without it, all mounts.",
)


def find_places(paths: Sequence[str]) -> list[Place]:
    """Return the places that a user names; without any, all mounts of statsfs."""
    # Messages name a missing file as the user wrote it; the error may suggest a correction.
    names = [
        name if "://" in name or not os.path.exists(name) else os.path.realpath(name)
        for name in paths
    ]
    names = names or find_mounts("fuse.statsfs")
    if not names:
        raise click.UsageError("no statsfs is mounted; give a PATH or http://HOST:PORT with -p")
    for name in names:
        for other in names:
            if other != name and other.startswith(f"{name.rstrip('/')}/"):
                raise click.UsageError(f"{other} is in {name}; give one of them")
    return [open_place(name) for name in dict.fromkeys(names)]


class _NotRun(click.ClickException):
    # A command that cannot be run, with the status that a shell has for it.
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return self.status


class Command:
    """A program that runs while something is measured.

    SIGINT, SIGTERM and SIGHUP do not end this process while it is used: they are noted. SIGINT
    reaches the program by itself, from the terminal; the others are passed on.

    Attributes:
        told: the signal that this process was told to end with, or None.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._child: subprocess.Popen[bytes] | None = None
        self.told: signal.Signals | None = None
        for number in _STOPS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def run(self, tick: Callable[[], float | None] | None = None) -> tuple[int, float]:
        """Run it to its end.

        Args:
            tick: is called again and again, and returns how many seconds later it is due next.

        Returns:
            its exit status as a shell has it, and the seconds that it took.
        """
        begun = time.monotonic()
        try:
            self._child = subprocess.Popen(self._words)
        except OSError as error:
            status = 126 if isinstance(error, PermissionError) else 127
            raise _NotRun(f"{self._words[0]}: {error.strerror}", status) from None
        if self.told is not None and self.told != signal.SIGINT:
            self._child.send_signal(self.told)  # it came while the program was started
        with self._child as child:
            while child.returncode is None:
                try:
                    child.wait(None if tick is None else tick())
                except subprocess.TimeoutExpired:
                    pass
        took = time.monotonic() - begun
        status = child.returncode
        self._child = None
        return (status if status >= 0 else 128 - status), took

    def end(self, status: int) -> int:
        """Return the exit status; or end this process by the signal that it was told to end by."""
        if self.told is not None:
            signal.signal(self.told, signal.SIG_DFL)
            os.kill(os.getpid(), self.told)
        return status

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.told = signal.Signals(number)
        if number != signal.SIGINT and self._child is not None:
            self._child.send_signal(number)

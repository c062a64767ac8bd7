"""Options of a mount: which there are, and which are valid.

Owns the arguments that `mount` and `mounted` share, and the defaults that depend on the process.

Threading: options are immutable; all threads share one switch interval.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from statsfs.exceptions import MountError
from statsfs.tree.access import Owner

__all__ = ["MountOptions", "switch_interval"]

_LONGEST: Final = 100.0  # seconds of a switch interval; Python takes up to 4295


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a registry is mounted; what each option means stands at `mount`."""

    uid: int | None = None
    gid: int | None = None
    allow_other: bool | None = None
    create: bool = False
    switch_interval: float | None = None
    root: str | None = None
    read_only: bool = False
    replace: bool = False

    def check(self, mountpoint: str) -> None:
        """Raise MountError, which names the mount point, if an option is invalid."""
        for what, number in (("uid", self.uid), ("gid", self.gid)):
            if number is not None and not _is_id(number):
                raise MountError(f"{mountpoint}: invalid {what} {number!r}", mountpoint)
        seconds = self.switch_interval
        if not isinstance(seconds, int | float | None):
            raise MountError(f"{mountpoint}: invalid switch_interval {seconds!r}", mountpoint)
        # Python rounds down to microseconds, and 0 is invalid.
        if seconds is not None and not 1e-6 <= seconds <= _LONGEST:
            raise MountError(
                f"{mountpoint}: invalid switch interval {seconds!r} s: it must be between 1 "
                f"microsecond and {_LONGEST:g} s",
                mountpoint,
            )

    @property
    def owner(self) -> Owner:
        """The user and the group of all that has no other owner."""
        return (
            os.geteuid() if self.uid is None else self.uid,
            os.getegid() if self.gid is None else self.gid,
        )

    @property
    def lets_others_in(self) -> bool:
        """Whether other users may use the mount."""
        return os.geteuid() == 0 if self.allow_other is None else self.allow_other


def _is_id(number: object) -> bool:
    # The kernel uses the highest number for "none".
    return isinstance(number, int) and 0 <= number < 0xFFFFFFFF


@contextlib.contextmanager
def switch_interval(seconds: float | None) -> Iterator[None]:
    """Have another switch interval of the interpreter for a while; None leaves it as it is."""
    before = sys.getswitchinterval()
    if seconds is not None:
        sys.setswitchinterval(seconds)
    ours = sys.getswitchinterval()  # rounded
    try:
        yield
    finally:
        # The program may have set another meanwhile.
        if seconds is not None and sys.getswitchinterval() == ours:
            sys.setswitchinterval(before)

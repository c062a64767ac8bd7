"""Clears of VMs, which wait while another process takes over.

Owns whether this process clears: a number that was handed over must not be cleared here any more.
Threading: any thread. The lock is held while something is cleared, so that what is handed over has
the whole clear or nothing of it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from statsfs.exceptions import SegmentError
from statsfs.model.locking import Flag, locked
from statsfs.tree.index import Part

__all__ = ["Clears"]

_PATIENCE: Final = 30.0  # seconds that a clear waits for the end of a takeover


class Clears:
    """Who clears; `clear` is the recorder of the sources of VMs.

    Attributes:
        cleared: called after each clear, with its parts.
    """

    def __init__(self) -> None:
        # Reentrant: a signal handler may clear in the middle of a clear.
        self._lock = threading.RLock()
        self._decided = Flag()  # set when it is decided which process clears
        self._decided.set()
        self._given_up = False
        self.cleared: Callable[[Sequence[Part]], object] | None = None

    def clear(self, parts: Sequence[Part], clear: Callable[[], object]) -> None:
        """Make a clear as soon as this process may; SegmentError if another one has taken over."""
        deadline = time.monotonic() + _PATIENCE
        while not self._clear(parts, clear):
            if not self._decided.wait(deadline - time.monotonic()):
                raise SegmentError("nothing was cleared: another process is taking over", self)

    @locked
    def _clear(self, parts: Sequence[Part], clear: Callable[[], object]) -> bool:
        if self._given_up:
            raise SegmentError("nothing was cleared: another process has taken over", self)
        if not self._decided.is_set():
            return False
        clear()
        if self.cleared is not None:
            self.cleared(parts)
        return True

    @locked
    def hold(self) -> None:
        """Have all clears wait until `go_on` or `give_up`."""
        self._decided = Flag()

    def go_on(self) -> None:
        """Clear again."""
        self._decided.set()

    @locked
    def give_up(self) -> None:
        """Never clear again: another process does."""
        self._given_up = True
        self._decided.set()

"""The thread that reads a place once a tick, clears values, and tells the app.

A mount or a server that does not answer holds up this thread alone. It is a daemon: the app ends
without it. Where reading costs much, ticks are rarer, so that top takes little of a CPU.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Path
from statsfs.eyes.places import Place
from statsfs.eyes.samples import Sample
from statsfs.top.known import Known

__all__ = ["Feed"]

_SHARE: Final = 0.06  # of a CPU, for reading

Tell = Callable[[Sample | None, SampleError | None], object]
Refuse = Callable[[SampleError], object]


class Feed:
    """Samples of a place, one a tick.

    Args:
        place: where they are read.
        known: what is read of its schema.
        interval: seconds between two of them.
        tell: is called with each sample, or None at the end of a recording, or with what went
            wrong; from the thread.
        refuse: is called with why a value could not be cleared; from the thread.

    Attributes:
        pace: the seconds between two samples as they are now.
    """

    def __init__(
        self, place: Place, known: Known, interval: float, tell: Tell, refuse: Refuse
    ) -> None:
        self.pace = interval
        self.held = False
        self._place = place
        self._known = known
        self._interval = interval
        self._tell = tell
        self._refuse = refuse
        self._woken = threading.Event()
        self._ended = False
        self._asked: float | None = None  # when the read began that is under way
        self._clears: deque[tuple[Path, str]] = deque()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="statsfs-top", daemon=True).start()

    def stop(self) -> None:
        """End the thread, once it has an answer."""
        self._ended = True
        self._woken.set()

    def clear(self, path: Path, name: str) -> None:
        """Write 0 to a file, and then read."""
        self._clears.append((path, name))
        self._woken.set()

    @property
    def waited(self) -> float:
        """For how long there is no answer, in seconds."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def wake(self) -> None:
        """Read now."""
        self._woken.set()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended:
            if not self.held or self._clears:
                self._asked = time.monotonic()
                cost = self._read()
                self._asked = None
                self.pace = max(self._interval, cost / _SHARE)
            now = time.monotonic()
            # A read that was asked for comes before it is due: it must not put off the next one.
            due = min(max(due + self.pace, now), now + self.pace)
            self._woken.wait(due - now)
            self._woken.clear()  # before what was asked for is looked at, so that none is lost

    def _read(self) -> float:
        # Returns the seconds of CPU that it took; what the schema takes is spent once.
        begun = time.thread_time()
        spent = 0.0
        while self._clears:
            try:
                self._place.clear(*self._clears.popleft())
            except SampleError as error:
                self._refuse(error)
        try:
            sample = self._place.read_sample()
            spent = time.thread_time() - begun
            self._known.read(time.monotonic())
        except SampleError as error:
            self._tell(None, error)
            return 0.0
        self._tell(sample, None)
        return spent

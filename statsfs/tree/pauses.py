"""Pauses: how long work that nobody waits for may go on before other threads have their turn.

Owns that one length of time. Renderers call `pause` every few hundred lines; what that does is up
to whoever has them render.

Threading: each rendering has a pause of its own.
"""

import time
from collections.abc import Callable
from typing import Final

__all__ = ["make_pause"]

_TURN: Final = 0.001  # seconds
# Real sleep: after `sleep(0)` this thread has the interpreter again before one that waits for it is
# awake. It takes some 60 us.
_NAP: Final = 1e-6  # seconds


def make_pause(turn: float = _TURN) -> Callable[[], None]:
    """Return a function that lets other threads run, if it is long since it did.

    Not each time that it is called: to be heard again beside a thread that computes takes the
    interpreter's switch interval, 5 ms, and a view of 300,000 values has a thousand pauses.

    Args:
        turn: how long, in seconds.
    """
    since = time.perf_counter()

    def pause() -> None:
        nonlocal since
        if time.perf_counter() - since >= turn:
            time.sleep(_NAP)
            since = time.perf_counter()

    return pause

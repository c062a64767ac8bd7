"""Pauses: a thread that renders a large view lets other threads run now and then.

A shorter switch interval of the interpreter does not do the same: beside a view of 329,000 values a
read took 0.19 ms at the median with these pauses, 0.75 with an interval of 0.5 ms and 0.36 with one
of 0.1 ms, which costs the program's own threads more besides.

Threading: each thread has its own turns.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

__all__ = ["make_pause", "pause", "pausing", "take_chunks", "take_slowly"]

_T = TypeVar("_T")

_TURN: Final = 0.001  # seconds
# A real sleep: after `sleep(0)` this thread has the interpreter again before one that waits for it
# is awake. It takes some 60 us.
_NAP: Final = 1e-6  # seconds
_CHUNK: Final = 256  # items between two pauses: well below a millisecond


class _Calling(threading.local):
    rest: Callable[[], object] | None = None  # what `pause` calls in this thread


_calling: Final = _Calling()


@contextlib.contextmanager
def pausing(rest: Callable[[], object] | None = None) -> Iterator[None]:
    """Have `pause` let other threads run, in this thread and in this block.

    It calls `rest`, by default one of `make_pause`; in a block inside of another the outer one's.
    """
    outer = _calling.rest
    _calling.rest = outer or rest or make_pause()
    try:
        yield
    finally:
        _calling.rest = outer


def pause() -> None:
    """Let other threads run, if this thread is in a block of `pausing`."""
    rest = _calling.rest
    if rest is not None:
        rest()


def make_pause(turn: float = _TURN) -> Callable[[], None]:
    """Return a function that lets other threads run, if it has not for `turn` seconds."""
    # Not at each call: beside a thread that computes, this one waits a switch interval, 5 ms, until
    # it runs again, and a view of 300,000 values has a thousand pauses.
    since = time.perf_counter()

    def rest() -> None:
        nonlocal since
        if time.perf_counter() - since >= turn:
            time.sleep(_NAP)
            since = time.perf_counter()

    return rest


def take_chunks(items: Sequence[_T], size: int = _CHUNK) -> Iterator[Sequence[_T]]:
    """Return some items at a time, with a pause after each."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
        pause()


def take_slowly(items: Sequence[_T]) -> Iterator[_T]:
    """Return the items one by one, with a pause every few hundred and at the end."""
    for chunk in take_chunks(items):
        yield from chunk

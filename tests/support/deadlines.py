"""Waiting with a deadline: no test sleeps for a fixed time, none waits for ever."""

import time
from collections.abc import Callable, Iterator

__all__ = ["DEADLINE", "until", "wait_until"]

DEADLINE = 20.0  # seconds; far more than anything takes


def wait_until(
    condition: Callable[[], object], what: str = "it", deadline: float = DEADLINE
) -> None:
    """Wait until a condition holds.

    Args:
        condition: asked again and again.
        what: what is waited for, for the message.
        deadline: in seconds; then the test fails.
    """
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline} s"
        time.sleep(0.002)


def until(seconds: float, turns: int = 1) -> Iterator[None]:
    """Go round for so long, and so many times at least."""
    end = time.monotonic() + seconds
    for _ in range(turns):
        yield
    while time.monotonic() < end:
        yield

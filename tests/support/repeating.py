"""A function that a thread calls all the time, while a test does something."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["repeating"]


@contextmanager
def repeating(call: Callable[[], object], pause: float) -> Iterator[None]:
    """Call a function in a thread, again and again, until the context ends.

    Args:
        call: the function.
        pause: seconds before each call.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(pause):
            call()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

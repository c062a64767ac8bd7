"""Foreign code: what programs' properties, functions and numbers may raise, and what is caught.

Owns the line between a failure of foreign code, which costs the reader one number, and an interrupt
of the program, which must arrive. `sys.exit()` in a `show` is the former: `except foreign()` takes
it like any other error, as nothing that a file shows may end a mount. Ctrl-C, and what a signal
handler of the program raises, may come while foreign code runs, and pass.

Threading: any thread. Python calls signal handlers in the main thread only.
"""

import signal
import sys
import threading
import traceback
from collections.abc import Callable

__all__ = ["call_foreign", "describe_error", "foreign", "is_interrupt"]


def foreign() -> type[BaseException]:
    """Return what to catch around foreign code; to be called in an `except`."""
    error = sys.exception()
    plain = error is None or isinstance(error, Exception) or is_interrupt(error)
    return Exception if plain else BaseException


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an exception was raised by a signal handler of the program."""
    if threading.current_thread() is not threading.main_thread():
        return False
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    # Python's own handler of Ctrl-C leaves no trace. In a trio program that is trio's, which does
    # not raise while a mount serves.
    if isinstance(error, KeyboardInterrupt) and signal.default_int_handler in handlers:
        return True
    codes = {getattr(getattr(one, "func", one), "__code__", None) for one in handlers} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def call_foreign(function: Callable[[], object]) -> None:
    """Call a function; what it raises that is no `Exception` becomes a RuntimeError."""
    try:
        function()
    except Exception:
        raise
    except foreign() as error:
        raise RuntimeError(f"foreign code raised {type(error).__name__}") from error


def describe_error(error: BaseException) -> str:
    """Return the text of an error, or its type's name: its own methods are foreign code, too."""
    try:
        # That of `sys.exit(1)` would be "1".
        text = str(error) if isinstance(error, Exception) else repr(error)
        return text or type(error).__name__
    except foreign():
        return type(error).__name__

"""Calls of refresh functions: plain ones, and async ones, which trio awaits.

An async function is called in a thread, as any other that may take long, and that thread waits for
the loop of the trio program that reads. The loop is known to a reader in a thread of
`trio.to_thread`, as are all that may take long in a mount, or in a server of metrics.

Threading: any thread; an `Awaited` is called by one at a time.
"""

import inspect
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from statsfs.exceptions import UnavailableError
from statsfs.model.foreign import foreign

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = [
    "Awaited",
    "Awaiter",
    "Read",
    "check_result",
    "current_reads",
    "enter_refresh",
    "find_awaiter",
    "is_refreshing",
    "wrap_async",
]

Read = tuple["Source", str | None]
"""What is read: a source, and one of its names, or None for all in its subtree."""

Awaiter = Callable[[Callable[[], Awaitable[object]]], object]
"""Has an async function awaited, and waits for it."""


_Reads = frozenset[Read] | None

# Of the refresh that runs, in a thread or in the coroutine of an async one.
_inside: Final[ContextVar[tuple[_Reads] | None]] = ContextVar("statsfs_refresh", default=None)


def enter_refresh(reads: _Reads) -> Callable[[], None]:
    """Note that a refresh runs in this thread, for some reads; return what ends that."""
    return partial(_inside.reset, _inside.set((reads,)))


def is_refreshing() -> bool:
    """Tell whether a refresh runs in this thread."""
    return _inside.get() is not None


def current_reads() -> frozenset[Read] | None:
    """Return what is read by those who wait for the refresh that runs in this thread.

    None is everything, as outside a refresh.
    """
    inside = _inside.get()
    return None if inside is None else inside[0]


class Awaited:
    """An async function as a plain one; `awaiter` is set before each call."""

    __slots__ = ("_function", "awaiter")

    def __init__(self, function: Callable[[], Awaitable[object]]) -> None:
        self._function = function
        self.awaiter: Awaiter | None = None

    def __call__(self) -> None:
        awaiter, self.awaiter = self.awaiter, None
        assert awaiter is not None
        awaiter(self._function)


def wrap_async(function: Callable[[], Any]) -> Awaited | None:
    """Return what awaits an async function, or None for a plain one."""
    call = getattr(type(function), "__call__", None)  # noqa: B004  # the method, if it is one
    asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
    return Awaited(function) if asynchronous else None


def check_result(result: object) -> None:
    """Raise TypeError if a plain function returned what it should have been awaited for."""
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(f"refresh returned a coroutine, {result.__qualname__}: pass an async def")


def find_awaiter(source: "Source") -> Awaiter:
    """Return what awaits in the loop for which this thread works.

    Args:
        source: one with an async refresh.

    Raises:
        UnavailableError: this thread works for none.
    """
    # Not imported: whoever has a loop has imported it, and the core needs no other package.
    trio: Any = sys.modules.get("trio")
    try:
        token = trio.from_thread.run_sync(trio.lowlevel.current_trio_token)
    except foreign():  # no trio, another thread, or the end of the loop
        text = "its refresh is async: read it in a mount, or by await trio.to_thread.run_sync(…)"
        raise UnavailableError(f"{source.path}: {text}", source) from None
    return partial(trio.from_thread.run, trio_token=token)

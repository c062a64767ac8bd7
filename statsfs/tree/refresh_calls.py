"""Calls of refresh functions: plain ones, and async ones, which trio awaits.

An async function is called in a thread, as any other that may take long, and that thread waits for
the loop of the trio program that reads. A thread of `trio.to_thread` knows its loop; the reads of
mounts and of metrics servers that may take long run in such threads.

Threading: any thread.
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
_inside: Final[ContextVar[tuple[_Reads, Awaiter | None] | None]] = ContextVar(
    "statsfs_refresh", default=None
)


def enter_refresh(reads: _Reads, awaiter: Awaiter | None = None) -> Callable[[], None]:
    """Note that a refresh runs in this thread; return a function that ends that.

    Args:
        reads: what it is for.
        awaiter: for an async function.
    """
    return partial(_inside.reset, _inside.set((reads, awaiter)))


def is_refreshing() -> bool:
    """Tell whether a refresh runs in this thread."""
    return _inside.get() is not None


def current_reads() -> frozenset[Read] | None:
    """Return what is read by those who wait for the refresh that runs in this thread.

    None is everything, as outside a refresh.
    """
    inside = _inside.get()
    return None if inside is None else inside[0]


def wrap_async(function: Callable[[], Any]) -> Callable[[], object] | None:
    """Return a plain function that has an async one awaited; None for a plain one."""
    call = getattr(type(function), "__call__", None)  # noqa: B004  # the method, if it is one
    asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
    return partial(_await, function) if asynchronous else None


def _await(function: Callable[[], Awaitable[object]]) -> object:
    inside = _inside.get()
    assert inside is not None
    _, awaiter = inside
    assert awaiter is not None
    return awaiter(function)


def check_result(result: object) -> None:
    """Raise TypeError if a plain function returned a coroutine, which nothing awaits."""
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(f"refresh returned a coroutine, {result.__qualname__}: pass an async def")


def find_awaiter(source: "Source") -> Awaiter:
    """Return the awaiter of the trio loop that this thread works for.

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

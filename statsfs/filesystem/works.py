"""Works: what must run before a handler answers, and may take long.

Owns how works are shared: requests for the same join one work until it begins. Its result is then
as new as that of a work of their own.

Threading: a work runs in any thread; all else is for the serving thread.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Generic, TypeVar

from statsfs.model.foreign import foreign
from statsfs.tree.pauses import pausing

__all__ = ["Work", "Works"]

_T = TypeVar("_T")


class Work(Generic[_T]):
    """A function that must run before a handler answers.

    Args:
        function: the function.
        user: the user who asked.
        quick: whether it takes so little time that it may run on the serving thread.
        large: whether it takes so much memory that no other such work may run meanwhile.

    Attributes:
        begun: whether it has begun.
        error: the exception that the function raised.
    """

    def __init__(
        self, function: Callable[[], _T], user: int, *, quick: bool = False, large: bool = False
    ) -> None:
        self.user = user
        self.quick = quick
        self.large = large
        self.begun = False
        self.error: BaseException | None = None
        self._function = function
        self._result: list[_T] = []

    def run(self) -> None:
        """Call the function; unless it is quick, pauses in it let other threads run."""
        self.begun = True
        try:
            with nullcontext() if self.quick else pausing():
                self._result.append(self._function())
        except foreign() as error:
            self.error = error
            raise

    @property
    def result(self) -> _T:
        """What the function returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self._result[0]


class Works(Generic[_T]):
    """The works that may be shared, by key."""

    def __init__(self) -> None:
        self._works: dict[Hashable, Work[_T]] = {}

    @contextmanager
    def share(self, key: Hashable, make: Callable[[], Work[_T]]) -> Iterator[Work[_T]]:
        """Return the work of this key that has not begun, or else a new one."""
        work = self._works.get(key)
        if work is None or work.begun:
            work = self._works[key] = make()
        try:
            yield work
        finally:
            if self._works.get(key) is work:
                del self._works[key]

"""Works: what has to be done before a handler answers, where that may take long.

Owns that those who ask for the same share one work, as long as it has not begun: what begins after
they asked is as new as if it were their own.

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
    """Something to be done before a handler answers.

    Args:
        function: what to do.
        user: who asks for it.
        quick: whether it takes so little time that it may run on the serving thread.
        large: whether it takes so much memory that no other such work may run meanwhile.

    Attributes:
        begun: whether it has begun.
        error: what it raised.
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
        """Do it; in a thread it lets others have the interpreter now and then."""
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
    """Works that may be shared, by what they are to do."""

    def __init__(self) -> None:
        self._works: dict[Hashable, Work[_T]] = {}

    @contextmanager
    def share(self, key: Hashable, make: Callable[[], Work[_T]]) -> Iterator[Work[_T]]:
        """Return the work that is to do the same and has not begun, or else a new one."""
        work = self._works.get(key)
        if work is None or work.begun:
            work = self._works[key] = make()
        try:
            yield work
        finally:
            if self._works.get(key) is work:
                del self._works[key]

"""References: how long a source lives.

Owns the counts and the release at zero. The creator and whoever calls `get` have references that
`put` gives back; the tree and open files have holds, which no `put` can take from them.

Threading: the counts change under the tree's lock.
"""

from types import TracebackType
from typing import Self

from statsfs.exceptions import ReleasedError
from statsfs.tree.directory import Directory
from statsfs.tree.lock import Operation, apply_change, tree_lock

__all__ = ["Counted"]


class Counted(Directory):
    """A directory with references; `Source` is the one subclass.

    As a context manager it puts the creator's reference at the end.
    """

    __slots__ = ("_holds", "_references", "_released")

    def __init__(self) -> None:
        super().__init__()
        self._references = 1
        self._holds = 0
        self._released = False

    def __enter__(self) -> Self:
        self.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.put()

    def check(self) -> None:
        """Raise ReleasedError if the source was released."""
        if self._released:
            raise ReleasedError(f"source {self.path!r} was released", self)

    @property
    def refcount(self) -> int:
        """How many references there are: the creator's, the tree's, those of open files."""
        return self._references + self._holds

    # References

    def get(self) -> Self:
        """Take a reference; return the source.

        Raises:
            ReleasedError: it was released.
        """

        def take(operation: Operation) -> None:
            self.check()
            self._references += 1

        apply_change(take)
        return self

    def put(self) -> None:
        """Give a reference back; with the last one the source is released.

        Its subordinates are then removed, its bases dropped, and every later use raises.

        Raises:
            ReleasedError: it was released, or what references are left are not the caller's but
                the tree's or an open file's.
        """

        def give(operation: Operation) -> None:
            self.check()
            if not self._references:
                raise ReleasedError(f"source {self.path!r}: one put() more than get()s", self)
            self._references -= 1
            self._release_unused(operation)

        apply_change(give)

    def hold(self) -> None:
        """Take a reference for an open file; `put` does not give it back, `unhold` does.

        Raises:
            ReleasedError: it was released.
        """
        # Not a change, and no call under the lock: each opening of a file comes here.
        with tree_lock:
            if self._released:
                self.check()
            self._holds += 1

    def unhold(self) -> None:
        """Give a reference of `hold` back."""
        with tree_lock:
            # With other references left, nothing is released.
            if self._references + self._holds > 1:
                self._holds -= 1
                return
        apply_change(self._drop_hold)

    def _drop_hold(self, operation: Operation) -> None:
        self._holds -= 1
        self._release_unused(operation)

    def _release_unused(self, operation: Operation) -> None:
        unused: list[Counted] = [self]
        while unused:
            counted = unused.pop()
            if counted._released or counted.refcount:
                continue
            counted._released = True
            for held in counted._release(operation):
                held._holds -= 1
                unused.append(held)

    def _release(self, operation: Operation) -> list["Counted"]:
        # Drops everything; returns what was held by it, once for each hold.
        raise NotImplementedError

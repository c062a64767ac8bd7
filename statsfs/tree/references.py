"""References: how long a source lives.

`put` gives back the references of the creator and of `get`. The tree and open files have holds,
which no `put` takes from them. At zero the source is released.

A source at zero is not left to Python's garbage collection, whoever has the object: it would keep
its bases, in cycles, until the collector runs. So a program that removed a source may close the
memory of its numbers at once, as the proposal's kernel code may free it.

Threading: the counts change under the tree's lock.
"""

from functools import partial
from typing import TYPE_CHECKING

from statsfs.exceptions import ReleasedError
from statsfs.model.locking import call_locked
from statsfs.tree.lock import TreeChange, is_changing, tree_change, tree_lock

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = ["check", "drop_hold", "get", "hold", "put", "unhold"]


def check(source: "Source") -> None:
    """Raise ReleasedError if a source was released."""
    if source._released:
        why = "put(), or the end of `with`, gave back the last reference"
        raise ReleasedError(
            f"source {source.path!r} was released: {why}; get() one before, to go on using it",
            source,
        )


@tree_change
def get(source: "Source", change: TreeChange) -> None:
    """Take a reference."""
    check(source)
    change.set(source, "_taken", source._taken + 1)


def put(source: "Source") -> None:
    """Give a reference back."""
    if not call_locked(tree_lock, partial(_put, source)):
        _put_last(source)


def _put(source: "Source") -> bool:
    # Where there are others, nothing is released. Not beside a change that a signal handler met.
    if is_changing() or not source._taken or source._taken + source._holds == 1:
        return False
    source._taken -= 1
    return True


@tree_change
def _put_last(source: "Source", change: TreeChange) -> None:
    check(source)
    if not source._taken:
        raise ReleasedError(f"source {source.path!r}: one put() more than get()s", source)
    change.set(source, "_taken", source._taken - 1)
    _release_unused(source, change)


def hold(source: "Source") -> None:
    """Take a reference for an open file, or raise ReleasedError; `unhold` gives it back."""
    # Not a change: each opening of a file comes here.
    call_locked(tree_lock, partial(_hold, source))


def _hold(source: "Source") -> None:
    if source._released:
        check(source)
    source._holds += 1


def unhold(source: "Source") -> None:
    """Give a reference of `hold` back."""
    if not call_locked(tree_lock, partial(_unhold, source)):
        _drop_last_hold(source)


def _unhold(source: "Source") -> bool:
    # Where there are others, nothing is released.
    if source._taken + source._holds == 1:
        return False
    source._holds -= 1
    return True


def drop_hold(source: "Source", change: TreeChange) -> None:
    """Give a hold back, inside a change."""
    change.set(source, "_holds", source._holds - 1)
    _release_unused(source, change)


_drop_last_hold = tree_change(drop_hold)


def _release_unused(source: "Source", change: TreeChange) -> None:
    # The source, and what is in it, if the reference that it is about to lose is its last.
    losing = [source]
    while losing:
        source = losing.pop()
        if source._released or source._taken + source._holds > 1:
            continue
        change.set(source, "_released", True)
        for subordinate in source._directory.subordinates.values():
            change.drop(subordinate._directory, "parent")
            change.set(subordinate._directory, "place", 0)
            change.set(subordinate, "_holds", subordinate._holds - 1)
            losing.append(subordinate)
        source._directory.drop(change)

"""A source that a program has made already gets a refresh.

Threading: any thread; it is one change of the tree, under its lock.
"""

from collections.abc import Callable

from statsfs.exceptions import TreeError
from statsfs.tree import references
from statsfs.tree.arguments import check_age
from statsfs.tree.lineage import find_lineage
from statsfs.tree.lock import TreeChange, tree_change
from statsfs.tree.refresh import Refresher
from statsfs.tree.source import Source, directory_of

__all__ = ["list_at_once", "set_refresh"]


def set_refresh(source: Source, function: Callable[[], object], max_age: float = 0) -> None:
    """Have a function called before anything in a source's subtree is read, as `refresh` is.

    Args:
        source: the source.
        function: it is called in a thread of its own.
        max_age: seconds after it was called for which it is not called again.

    Raises:
        TypeError: `max_age` is not a number.
        ValueError: it is negative, or not finite.
        TreeError: the source has a refresh.
        ReleasedError: it was released.
    """
    _set_refresh(source, Refresher(source, function, True, check_age(max_age)))


def list_at_once(source: Source) -> None:
    """Have directories listed without a source's refresh, as it makes no sources."""
    refresher = directory_of(source).refresher
    assert refresher is not None
    refresher.names = False


@tree_change
def _set_refresh(source: Source, change: TreeChange, refresher: Refresher) -> None:
    references.check(source)
    if directory_of(source).refresher is not None:
        raise TreeError(f"{source.path}: it has a refresh already", source)
    change.set(directory_of(source), "refresher", refresher)
    for one in find_lineage(source):
        directory_of(one).exchange_refreshers(change, {refresher: None})

"""Asking for names: a refresh may make sources, so it runs before these are listed or looked up.

Threading: any thread, without the tree's lock.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from statsfs.tree.arguments import check_age, check_path
from statsfs.tree.refresh import Refresher, Refreshing, is_refreshing

if TYPE_CHECKING:
    from statsfs.tree.directory import Directory
    from statsfs.tree.source import Source

__all__ = ["ask_names", "find_asking", "find_source", "make_refresher"]


def make_refresher(
    source: "Source",
    refresh: Callable[[], object] | None,
    blocking: bool,
    max_age: float,
    baseline: bool,
) -> None:
    """Give a new source its refresh, if it has one.

    Raises:
        TypeError, ValueError: the age is wrong, or there is no refresh for a baseline.
    """
    age = check_age(max_age)
    if refresh is not None:
        refresher = Refresher(source, refresh, blocking, age, baseline)
        source._directory.refresher = refresher
        source._directory.refreshers = {refresher: None}
    elif baseline:
        raise ValueError(
            f"baseline=True is for a source with a refresh, and {source.name!r} has none"
        )


def find_asking(directory: "Directory") -> Refreshing | None:
    """Return what to run before a directory is listed, or a name that it lacks is looked up.

    These are the refreshes of the source and of those above it, which may make its subordinates.
    None if there is nothing to run, as inside a refresh.
    """
    if not Refresher.made or is_refreshing():
        return None
    found = [one.refresher for one in directory.lineage()]
    asked = [one for one in found if one is not None and one.names and not one.resting]
    if not asked:
        return None
    reads = [(one.source, None) for one in asked]
    return Refreshing(asked, reads, patient=any(_makes_sources(one.source) for one in asked))


def _makes_sources(source: "Source") -> bool:
    # A guess at whether its refresh does. Where a source has values and no subordinates, most
    # refreshes do not, and its directory can be listed before they answer.
    return bool(source._directory.subordinates) or not source._directory.entries


def ask_names(directory: "Directory") -> bool:
    """Bring the names of a directory up to date; return whether a refresh was asked."""
    asking = find_asking(directory)
    if asking is not None:
        asking.run()
    return asking is not None


def find_source(source: "Source", path: str) -> "Source | None":
    """Return a source in another one's subtree by its path; ask for names that are missing."""
    check_path(path)
    for name in path.split("/"):
        found = _find_subordinate(source._directory, name)
        if found is None:
            return None
        source = found
    return source


def _find_subordinate(directory: "Directory", name: str) -> "Source | None":
    found = directory.subordinates.get(name)
    if found is None and ask_names(directory):
        found = directory.subordinates.get(name)
    return found

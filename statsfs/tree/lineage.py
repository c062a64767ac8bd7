"""Lineages: a source and all sources above it, whose totals a change concerns.

Threading: under the tree's lock; elsewhere a lineage may be that of a moment ago.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from statsfs.tree.lock import Listening, TreeChange

if TYPE_CHECKING:
    from statsfs.tree.directory import Directory
    from statsfs.tree.source import Source

__all__ = ["find_lineage", "note_files"]


def find_lineage(source: "Source") -> "list[Source]":
    """Return a source, its parent, and so on to the top."""
    lineage = [source]
    while (parent := source._directory.parent) is not None and not isinstance(parent, Listening):
        source = parent
        lineage.append(source)
    return lineage


def note_files(
    change: TreeChange, lineage: "Sequence[Source]", stale: "Sequence[Directory]"
) -> None:
    """Note the directories of a lineage that do not show the files that they did."""
    for directory in stale:
        change.set(directory, "changed", time.time_ns())
        change.touch(lineage[-1].parent, directory.place)

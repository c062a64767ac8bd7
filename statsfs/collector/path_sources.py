"""Branches: the part of the tree that a collector keeps.

Owns the sources for the components of the segments' paths, which share the totals and retain what
leaves. A path is a segment or a directory of segments, never both. A branch without anything on it
leaves and folds into the one it is on; a top-level branch that retains something stays.

Threading: changes come from the collector's thread alone. Whoever clears a value, in any thread,
walks the branches under `lock`; so each change of theirs is made under it, but none of the tree: a
listener of the tree may wait for a reader who is waiting for the lock. A leaf is on its branch here
before it is in the tree, and leaves the tree before it leaves here: none is ever missed.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final

from statsfs.collector.live_segment import Leaf
from statsfs.exceptions import ReleasedError, StatsfsError
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["Branch", "Branches", "Node"]

log = logging.getLogger(__name__)


class Branch:
    """One component of a path, and what is below.

    Attributes:
        source: the directory, which retains.
        parent: the branch it is on; None for a top-level one.
        children: branches and leaves, by name.
    """

    __slots__ = ("children", "parent", "source", "warned")

    def __init__(self, source: Source, parent: "Branch | None") -> None:
        self.source = source
        self.parent = parent
        self.children: dict[str, Node] = {}
        self.warned = False

    @property
    def name(self) -> str:
        """Its component."""
        return self.source.name

    @property
    def path(self) -> str:
        """Where it is in the tree."""
        return self.source.path


Node = Branch | Leaf


class Branches:
    """All branches of a collector.

    Args:
        registry: where they are registered.
        cleared: told of what was cleared.
        find_owner: returns the user and the group whose a top-level name is.

    Attributes:
        lock: held while they change, and by whoever walks them in another thread.
        tops: by name.
    """

    def __init__(
        self,
        registry: Registry,
        cleared: Callable[[], object],
        find_owner: Callable[[str], tuple[int, int]],
    ) -> None:
        self.lock = threading.RLock()
        self.tops: Final[dict[str, Node]] = {}
        self._registry = registry
        self._cleared = cleared
        self._find_owner = find_owner

    def renew_lock(self) -> None:
        """Make the lock free, in a forked child: who held it may not be in that process."""
        self.lock = threading.RLock()

    # Looking

    def find_holder(self, components: tuple[str, ...]) -> "Node | str | None":
        """Return what has a path, so that no segment can; a text for what is not ours."""
        node = self.tops.get(components[0])
        if node is None:
            return components[0] if components[0] in self._registry.by_name else None
        for name in components[1:]:
            if isinstance(node, Leaf):
                return node
            if (below := node.children.get(name)) is None:
                return None
            node = below
        return node

    def find_branch(self, components: tuple[str, ...]) -> "tuple[Branch | None, int]":
        """Return the branch that has most of a path, and how much of it."""
        branch: Branch | None = None
        node = self.tops.get(components[0])
        depth = 0
        while isinstance(node, Branch) and depth < len(components) - 1:
            branch, depth = node, depth + 1
            node = node.children.get(components[depth])
        return branch, depth

    @staticmethod
    def walk(
        top: Node, wanted: Callable[[Leaf], object] | None = None
    ) -> "Iterator[tuple[tuple[str, ...], Node]]":
        """Yield a node and all below it, each before what is on it, with their paths.

        What has left the tree is left out, with all that is below: it is folded already.

        Args:
            top: the node.
            wanted: tells which leaves are; by default all.
        """
        found: list[tuple[tuple[str, ...], Node]] = [((top.name,), top)]
        for path, node in found:
            if node.source.parent is None:
                continue
            yield path, node
            if isinstance(node, Branch):
                below = node.children.items()
                found += (
                    ((*path, name), child)
                    for name, child in below
                    if wanted is None or isinstance(child, Branch) or wanted(child)
                )

    # Growing

    def make_source(self, name: str, label: str | None, top: str) -> Source:
        """Return a source for a component of a path that begins with `top`."""
        owner = self._find_owner(top)
        return Source(name, label=label, retain=True, cleared=self._cleared, owner=owner)

    def grow(self, components: tuple[str, ...], labels: tuple[str | None, ...]) -> Branch:
        """Return the branch of a path, made if need be, in the tree or not yet.

        What is made is in the tree when `settle` is called with it, or with a leaf on it.
        """
        branch, depth = self.find_branch((*components, ""))
        self._compare_labels(branch, labels)
        for name, label in zip(components[depth:], labels[depth:], strict=True):
            below = Branch(self.make_source(name, label, components[0]), branch)
            if branch is not None:
                with self.lock:
                    branch.children[name] = below
            branch = below
            depth += 1
        assert branch is not None
        return branch

    def _compare_labels(self, branch: Branch | None, labels: tuple[str | None, ...]) -> None:
        found = []
        while branch is not None:
            found.append(branch)
            branch = branch.parent
        for known, label in zip(reversed(found), labels, strict=False):
            if known.source.label != label and not known.warned:
                known.warned = True
                log.warning(
                    "%s: the label stays %r: the first segment there says so, another one says %r",
                    known.path, known.source.label, label,
                )  # fmt: skip

    def add(self, leaf: Leaf) -> None:
        """Put a leaf where its path says, with the branches that it needs, in one change.

        Raises:
            StatsfsError: somebody else took the top-level name; nothing changed.
        """
        if len(leaf.components) > 1:
            leaf.parent = self.grow(leaf.components[:-1], leaf.head.labels[:-1])
            with self.lock:
                leaf.parent.children[leaf.name] = leaf
        try:
            self.settle(leaf)
        except StatsfsError:
            self._cut(leaf)
            raise

    def settle(self, node: Node) -> None:
        """Put a node into the tree, with the branches that it is on."""
        while node.parent is not None:
            placed = node.parent.source.parent is not None
            node.parent.source.add_subordinate(node.source)
            node.source.put()
            if placed:
                return
            node = node.parent
        with self.lock:
            self.tops[node.name] = node
        try:
            self._registry.register(node.source)
        except StatsfsError:
            with self.lock:
                del self.tops[node.name]
            raise
        node.source.put()

    def _cut(self, node: Node) -> None:
        # What is not in the tree.
        while node.parent is not None:
            with self.lock:
                node.parent.children.pop(node.name, None)
            if node.parent.children or node.parent.source.parent is not None:
                return
            node = node.parent

    # Falling

    def remove(self, node: Node) -> None:
        """Take a node out of the tree, with branches that then have nothing on them.

        What it counted is folded into the branch that stays, in one change.
        """
        last: Node = node
        parent: Branch | None = node.parent
        while parent is not None and parent.parent is not None and len(parent.children) == 1:
            last, parent = parent, parent.parent
        if parent is None:
            self._unregister(last)
            return
        try:
            parent.source.remove_subordinate(last.source)
        except StatsfsError as error:
            log.error("somebody else changed what is a collector's: %s", error)
        with self.lock:
            del parent.children[last.name]
        if not parent.children and parent.parent is None and not _retains(parent):
            self._unregister(parent)

    def _unregister(self, top: Node) -> None:
        try:
            self._registry.unregister(top.source)
        except StatsfsError as error:
            log.error("somebody else changed what is a collector's: %s", error)
        with self.lock:
            del self.tops[top.name]

    def prune(self) -> None:
        """Take branches away that have nothing on them, but those at the top, which retain."""
        for top in list(self.tops.values()):
            bare = [n for _, n in self.walk(top) if isinstance(n, Branch) and not n.children]
            for branch in bare:
                if branch.parent is not None:
                    self.remove(branch)

    def clear(self) -> None:
        """Take all of it out of the tree."""
        for top in list(self.tops.values()):
            self._unregister(top)


def _retains(branch: Branch) -> bool:
    try:
        return bool(branch.source.retained)
    except ReleasedError:
        return False

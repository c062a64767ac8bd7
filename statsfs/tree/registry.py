"""The registry: the top-level sources, and who is told of changes below them.

Owns what a mount shows as its root. There is no global registry: a program makes its own.

Threading: as the tree's, in `sources`. Listeners run in the thread that made the change, after the
lock is released and before the change returns.
"""

import logging
from collections.abc import Callable
from types import MappingProxyType

from statsfs.exceptions import TreeError
from statsfs.tree.lock import Change, Operation, apply_change, lock_tree
from statsfs.tree.refresh import refresh_all
from statsfs.tree.snapshot import Snapshot, sample_tree
from statsfs.tree.source import Parent, Source, check_sibling, check_source

__all__ = ["Registry"]

log = logging.getLogger(__name__)


class Registry(Parent):
    """The top-level sources of a tree; what `mount` shows."""

    def __init__(self) -> None:
        self._sources: dict[str, Source] = {}
        self._listeners: tuple[Callable[[Change], None], ...] = ()

    def __repr__(self) -> str:
        return f"<Registry {list(self._sources)}>"

    @property
    def sources(self) -> tuple[Source, ...]:
        """The top-level sources, hidden ones too, in the order they were registered."""
        return tuple(self._sources.values())

    @property
    def by_name(self) -> MappingProxyType[str, Source]:
        """The top-level sources by name; a live view."""
        return MappingProxyType(self._sources)

    def register(self, source: Source) -> None:
        """Make a source a top-level directory; the registry takes a reference to it.

        Raises:
            TreeError: it has a parent, or is registered already.
            DuplicateNameError: another top-level source has its name.
            ReleasedError: it was released.
            TypeError: it is no source.
        """
        check_source(source)

        def add(operation: Operation) -> None:
            source.check_orphan()
            check_sibling(self._sources, source, self)
            self._sources[source.name] = source
            source.settle(self)
            operation.touch(self, 0, None if source.hidden else source.name)

        apply_change(add)

    def unregister(self, source: Source) -> None:
        """Take a top-level source, and with it all that is below, away.

        When this returns, the names are gone from every mount; open files go on reading.

        Raises:
            TreeError: it is not registered here.
            ReleasedError: it was released.
            TypeError: it is no source.
        """
        check_source(source)

        def remove(operation: Operation) -> None:
            source.check()
            if source.parent is not self:
                raise TreeError(f"{source.path!r} is not registered here", source)
            del self._sources[source.name]
            operation.leave(self, source.place)
            operation.touch(self, 0, None if source.hidden else source.name)
            source.leave(operation)

        apply_change(remove)

    def snapshot(self) -> Snapshot:
        """Sample all that is registered in one uninterrupted pass, as `Source.snapshot` does."""
        refresh_all(self.sources)
        return self.sample()

    def sample(self) -> Snapshot:
        """Sample all that is registered as `snapshot` does, but ask nobody."""
        return lock_tree(lambda: sample_tree(self, (), self.sources)).finish()

    def add_listener(self, listener: Callable[[Change], None]) -> None:
        """Have a function called after each change below this registry.

        Args:
            listener: called with a `Change`, in the thread that made it, under no lock. What it
                raises is logged.
        """
        self._listeners = (*self._listeners, listener)

    def remove_listener(self, listener: Callable[[Change], None]) -> None:
        """Take a listener away; nothing happens if it is none."""
        self._listeners = tuple(known for known in self._listeners if known != listener)

    def notify(self, change: Change) -> None:
        """Call the listeners."""
        for listener in self._listeners:
            try:
                listener(change)
            except Exception:
                log.exception("a listener failed")

"""The registry: the top-level sources, and the listeners to changes below them.

Threading: as the tree's. Listeners run in the thread that made the change, after the lock is
released and before the change returns.
"""

import logging
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from statsfs.exceptions import TreeError, UnknownValueError
from statsfs.model.foreign import foreign
from statsfs.tree import arguments, placement, references
from statsfs.tree.events import ADDED, REMOVED
from statsfs.tree.lock import ChangeNotice, Listening, TreeChange, tree_change
from statsfs.tree.refresh import refresh_all
from statsfs.tree.snapshot import Snapshot, take_snapshot
from statsfs.tree.source import Source, check_source, directory_of

__all__ = ["Registry", "check_registry"]

log = logging.getLogger(__name__)


class Registry(Listening):
    """The top-level sources of a tree; what `mount` shows.

    >>> registry = Registry()
    >>> app = registry.register(Source("app"))
    >>> app.add_values([Value("jobs")], {"jobs": 5})
    >>> registry["app/jobs"]  # the path of the file in a mount
    5

    Args:
        prefix: the start of the names of all metrics in Prometheus's formats, before the name of
            the top-level source: with "myapp", `rss` of `host` is `myapp_host_rss`. A top-level
            source that is called "myapp", or "myapp_…", has it already.

    Raises:
        InvalidNameError: the prefix cannot begin a metric's name as it is.
        TypeError: it is not a str.
    """

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__(arguments.check_prefix(prefix))
        self._sources: dict[str, Source] = {}
        self._listeners: tuple[Callable[[ChangeNotice], None], ...] = ()

    def __repr__(self) -> str:
        return f"<Registry {list(self._sources)}>"

    @property
    def sources(self) -> tuple[Source, ...]:
        """The top-level sources, hidden ones too, in the order they were registered.

        >>> registry = Registry()
        >>> app = registry.register(Source("app"))
        >>> registry.sources
        (<Source 'app' references=2>,)
        """
        return tuple(self._sources.values())

    @property
    def by_name(self) -> MappingProxyType[str, Source]:
        """The top-level sources by name; a live view.

        >>> registry = Registry()
        >>> app = registry.register(Source("app"))
        >>> registry.by_name["app"] is app
        True
        """
        return MappingProxyType(self._sources)

    def register(self, source: Source) -> Source:
        """Make a source a top-level directory, and return it; the registry takes a reference to it.

        >>> registry = Registry()
        >>> app = registry.register(Source("app"))
        >>> registry
        <Registry ['app']>

        Raises:
            TreeError: it has a parent, or is registered already.
            DuplicateNameError: another top-level source has its name.
            ReleasedError: it was released.
            TypeError: it is not a source.
        """
        check_source(source)
        self._register(source)
        return source

    @tree_change
    def _register(self, change: TreeChange, source: Source) -> None:
        placement.check_orphan(source)
        placement.check_sibling(self._sources, source, "the registry")
        change.do(self._sources.__setitem__, source.name, source)
        placement.note_events(change, ADDED, self, (), [source])
        placement.settle(source, self, change)
        change.touch(self, 0, None if source.hidden else source.name)

    def unregister(self, source: Source) -> None:
        """Remove a top-level source, with its subtree.

        When this returns, the names are gone from every mount; open files go on reading.

        >>> registry = Registry()
        >>> app = registry.register(Source("app"))
        >>> registry.unregister(app)
        >>> registry
        <Registry []>

        Raises:
            TreeError: it is not registered here.
            ReleasedError: it was released.
            TypeError: it is not a source.
        """
        check_source(source)
        self._unregister(source)

    @tree_change
    def _unregister(self, change: TreeChange, source: Source) -> None:
        references.check(source)
        if source.parent is not self:
            raise TreeError(f"{source.path!r} is not registered here", source)
        placement.note_events(change, REMOVED, self, (), [source])
        change.do(self._sources.pop, source.name)
        change.leave(self, directory_of(source).place)
        change.touch(self, 0, None if source.hidden else source.name)
        placement.leave(source, change)

    def find(self, path: str) -> Source | None:
        """Return a source, hidden or not, or None.

        >>> registry = Registry()
        >>> app = registry.register(Source("app"))
        >>> app.add_subordinate(Source("worker3"))
        >>> registry.find("app/worker3")
        <Source 'app/worker3' references=2>
        >>> registry.find("app/worker4") is None
        True

        Args:
            path: the names from a top-level source on, joined by "/".

        Raises:
            TypeError: it is not a str.
        """
        arguments.check_path(path)
        name, slash, rest = path.partition("/")
        top = self._sources.get(name)
        return top.find(rest) if top is not None and slash else top

    def __getitem__(self, path: str) -> Any:
        """Read a value or an aggregate now, as `Source.get_value` does.

        Args:
            path: that of the file in a mount: `registry["http/requests"]`.

        Raises:
            UnknownValueError: there is no such source, or no such value in it.
            TypeError: it is not a str.
        """
        arguments.check_path(path)
        above, _, name = path.rpartition("/")
        source = self.find(above)
        if source is not None:
            try:
                return source.get_value(name)
            except UnknownValueError:
                # That has asked for the name.
                if name not in directory_of(source).subordinates:
                    raise
        raise UnknownValueError(self._explain(path, source), path)

    def _explain(self, path: str, above: Source | None) -> str:
        # Why there is no value.
        if above is not None or path in self._sources:
            return f"no value {path!r}: it is a source"
        if "/" not in path or not all(path.split("/")):
            return f'no value {path!r}: a path is names joined by "/", "http/requests"'
        return f"no source {path.rpartition('/')[0]!r}"

    def snapshot(self) -> Snapshot:
        """Sample all that is registered in one uninterrupted pass, as `Source.snapshot` does.

        >>> registry = Registry()
        >>> app = registry.register(Source("app"))
        >>> app.add_values([Value("jobs")], {"jobs": 5})
        >>> registry.snapshot().to_dict()["subordinates"]["app"]["values"]
        {'jobs': 5}
        """
        refresh_all(self.sources)
        return take_snapshot(self)

    def add_listener(self, listener: Callable[[ChangeNotice], None]) -> None:
        """Have a function called after each change below this registry.

        Args:
            listener: called with a `ChangeNotice`, in the thread that made the change, under no
                lock. What it raises is logged.
        """
        self._listeners = (*self._listeners, listener)

    def remove_listener(self, listener: Callable[[ChangeNotice], None]) -> None:
        """Remove a listener; without effect if it is not one."""
        self._listeners = tuple(known for known in self._listeners if known != listener)

    def notify(self, notice: ChangeNotice) -> None:
        """Call the listeners."""
        for listener in self._listeners:
            try:
                listener(notice)
            except foreign():
                log.exception("a listener failed")


def check_registry(registry: object) -> None:
    """Raise TypeError if something is not a registry."""
    if not isinstance(registry, Registry):
        raise TypeError(f"registry is not a Registry: {registry!r}")

"""Top-level sources: those of the registry, and those that are not shown yet.

Owns which top-level sources are *withheld*: not all files of their names were looked at. Their
totals would be too small, and fall across a restart; so the names are absent until then.

Threading: changed by the collector's thread; any thread may look. A source is in the registry
before it is withheld no longer, so that one is never missed.
"""

import logging
from collections.abc import Callable
from typing import Final

from statsfs.exceptions import DuplicateNameError
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["TopSources", "top_of"]

log = logging.getLogger(__name__)


class TopSources:
    """The top-level sources of a registry, and those that are withheld from it.

    Attributes:
        is_pending: tells whether a name is to be withheld, if it is not in the registry.
    """

    def __init__(self, registry: Registry) -> None:
        self.is_pending: Callable[[str], bool] = lambda _: False
        self._registry: Final = registry
        self._withheld: Final[dict[str, Source]] = {}
        self._logged: Final[set[str]] = set()

    def find(self, name: str) -> Source | None:
        """Return the source of that name, which may be other code's."""
        return self._withheld.get(name) or self._registry.by_name.get(name)

    @property
    def all(self) -> list[Source]:
        """All of them, of other code too."""
        return [*self._withheld.copy().values(), *self._registry.sources]

    def is_withheld(self, name: str) -> bool:
        """Tell whether there is a source of that name, and it is not shown."""
        return name in self._withheld

    def add(self, source: Source) -> None:
        """Register a source, or withhold it; the errors are those of `Registry.register`."""
        if self.is_pending(source.name):
            source.get()
            self._withheld[source.name] = source
        else:
            self._registry.register(source)

    def remove(self, source: Source) -> None:
        """Take a source out; the errors are those of `Registry.unregister`."""
        if self._withheld.get(source.name) is source:
            del self._withheld[source.name]
            source.put()
        else:
            self._registry.unregister(source)

    def show(self) -> None:
        """Register the sources that need not be withheld any more, if their names are free."""
        for name, source in list(self._withheld.items()):
            if self.is_pending(name):
                continue
            try:
                self._registry.register(source)
            except DuplicateNameError:
                if name not in self._logged:
                    log.warning("%s is there already: what was published is not shown", name)
                self._logged.add(name)
                continue
            self._logged.discard(name)
            del self._withheld[name]
            source.put()


def top_of(source: Source) -> str:
    """Return the top-level name of a source's path."""
    return source.path.partition("/")[0]

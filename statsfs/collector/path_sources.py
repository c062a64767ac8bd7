"""Path sources: the sources that a collector makes for the components of segments' paths.

Owns which sources of the tree are a collector's: those of segments, and path sources above them,
which share the totals and retain what leaves. A path is a segment or a directory of segments, never
both. A path source without subordinates leaves, and its parent retains what it had; one at the top
stays as long as it retains something.

Threading: the tree says where each source is. It is changed by the collector's thread alone, under
the tree's own lock and no other, as the listeners of a change may wait for a reader. Any thread may
`find_top`, or `look` under the tree's lock: a source is noted here before it is in the tree, and
forgotten after it left, so that one is never missed.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

from statsfs.collector.journal_file import RetainedSource
from statsfs.collector.live_segment import LiveSegment
from statsfs.exceptions import StatsfsError
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["PathSources"]

log = logging.getLogger(__name__)


class PathSources:
    """All sources of a collector; of path sources, `cleared` is called after clears.

    Attributes:
        find_owner: returns the user and the group of a top-level name; set before the first.
    """

    def __init__(self, registry: Registry, cleared: Callable[[], object]) -> None:
        self.find_owner: Callable[[str], tuple[int, int]]
        self._registry = registry
        self._cleared = cleared
        self._known: Final[dict[Source, LiveSegment | None]] = {}  # None: a path source
        self._warned: Final[set[Source]] = set()

    def find_top(self, name: str) -> Source | None:
        """Return the top-level source of that name, if it is the collector's."""
        top = self._registry.by_name.get(name)
        return top if top in self._known else None

    @property
    def tops(self) -> list[Source]:
        """The top-level sources that are the collector's."""
        return [source for source in self._registry.sources if source in self._known]

    def find_segment(self, source: Source) -> LiveSegment | None:
        """Return the segment that a source shows; None for all others."""
        return self._known.get(source)

    def find_holder(self, components: Sequence[str]) -> Source | None:
        """Return the source that keeps a segment from a path; it may be another's at the top."""
        lineage = self._find_lineage(components)
        if not lineage:
            return self._registry.by_name.get(components[0])
        held = len(lineage) == len(components) or self._known[lineage[-1]] is not None
        return lineage[-1] if held else None

    def _find_lineage(self, components: Sequence[str]) -> list[Source]:
        # The sources of a path that are there, from the top; a segment is the last.
        found: list[Source] = []
        source = self.find_top(components[0]) if components else None
        while source is not None and source in self._known:
            found.append(source)
            if len(found) == len(components) or self._known[source] is not None:
                break
            source = source.find(components[len(found)])
        return found

    def look(
        self, name: str, wanted: Callable[[LiveSegment], object]
    ) -> tuple[list[RetainedSource], list[LiveSegment]]:
        """Return the path sources of a top-level name, each before those below it, and segments.

        To be called under the tree's lock; `wanted` tells which segments are returned.
        """
        top = self.find_top(name)
        found = [] if top is None else [top]
        segments, retained = [], []
        for source in found:
            if (segment := self._known.get(source)) is not None:
                if wanted(segment):
                    segments.append(segment)
            elif source in self._known:
                path = tuple(source.path.split("/"))
                retained.append(
                    RetainedSource(path, source.label, source.retained, source.collapse)
                )
                found += source.subordinates
        return retained, segments

    def make(self, name: str, label: str | None, top: str, collapse: bool) -> Source:
        """Return a path source, to be placed, for a component of a path of a top-level name."""
        owner, cleared = self.find_owner(top), self._cleared
        source = Source(
            name, label=label, retain=True, collapse=collapse, cleared=cleared, owner=owner
        )
        self._known[source] = None
        return source

    def add(self, segment: LiveSegment) -> None:
        """Put a segment where its path says, with the path sources that are missing.

        A StatsfsError says that another source has a name; nothing changed.
        """
        components, labels = segment.metadata.components, segment.metadata.labels
        for source, label in zip(self._find_lineage(components), labels, strict=False):
            if source.label != label and source not in self._warned:
                self._warned.add(source)
                text = "%s: the label stays %r, of its first segment; another segment has %r"
                log.warning(text, source.path, source.label, label)
        self._known[segment.source] = segment
        self.place(segment.source, components, labels)

    def place(
        self, source: Source, components: Sequence[str], labels: Sequence[str | None]
    ) -> None:
        """Put a source of ours where its path says, as `add` does; the tree alone refers to it."""
        lineage = self._find_lineage(components[:-1])
        placed = [source]
        for index in range(len(components) - 2, len(lineage) - 1, -1):
            # Prometheus gets a series for each of what has labels, else one for all of them.
            collapse = labels[index + 1] is None
            above = self.make(components[index], labels[index], components[0], collapse)
            above.add_subordinate(source)
            source.put()
            placed.append(source := above)
        try:
            if lineage:
                lineage[-1].add_subordinate(source)
            else:
                self._registry.register(source)
        except BaseException:
            for one in placed:
                del self._known[one]
            raise
        finally:
            source.put()

    def remove(self, source: Source) -> None:
        """Take a source out of the tree, with path sources that are then without subordinates.

        What it counted is retained by its nearest parent that stays, in one change.
        """
        leaving, above = [source], source.parent
        try:
            while isinstance(above, Source) and isinstance(above.parent, Source):
                if len(above.subordinates) > 1:
                    break
                leaving.append(above)
                above = above.parent
            self._take_out(leaving, above)
        except StatsfsError as error:
            log.error("other code changed the sources of a collector: %s", error)
        for one in leaving:
            del self._known[one]
            self._warned.discard(one)

    def _take_out(self, leaving: list[Source], above: object) -> None:
        if isinstance(above, Source):
            above.remove_subordinate(leaving[-1])
            if above.parent is not self._registry or above.subordinates or above.retained:
                return
            leaving.append(above)
        self._registry.unregister(leaving[-1])

    def prune(self) -> None:
        """Take out all path sources without subordinates but those at the top, which retain."""
        for source in [source for source, segment in self._known.items() if segment is None]:
            if isinstance(source.parent, Source) and not source.subordinates:
                self.remove(source)

    def clear(self) -> None:
        """Take all out of the tree."""
        for top in self.tops:
            with contextlib.suppress(StatsfsError):  # another thread did
                self._registry.unregister(top)
        self._known.clear()
        self._warned.clear()

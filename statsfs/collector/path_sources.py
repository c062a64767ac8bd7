"""Path sources: the sources that a collector makes for the components of segments' paths.

Owns which sources of the tree are a collector's: those of segments, and path sources above them,
which share the totals and retain what leaves. A path is a segment or a directory of segments, never
both. A path source is *empty* if no segment is in its subtree. It stays if it retains something,
until its directory is removed in a mount, a segment takes its path, or its user has too many of
them; its parent then retains what it had.

Threading: the tree says where each source is. It is changed by the collector's thread, under the
tree's own lock and no other, as the listeners of a change may wait for a reader; and by any thread
in `remove_directory`, whose lock keeps the two apart. Any thread may `find_top`, or `look` under
the tree's lock: a source is noted here before it is in the tree, and forgotten after it left, so
that one is never missed.
"""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Final

from statsfs.collector.journal_file import RetainedSource
from statsfs.collector.live_segment import LiveSegment
from statsfs.collector.top_sources import TopSources
from statsfs.exceptions import StatsfsError
from statsfs.model.arrays import Array
from statsfs.model.values import Value
from statsfs.tree.registry import Registry
from statsfs.tree.retained import fill_row
from statsfs.tree.retention import forget_row
from statsfs.tree.source import Source, directory_of

__all__ = ["EMPTY_MAX", "NUMBERS_MAX", "PathSources"]

log = logging.getLogger(__name__)

# Empty path sources of one user, and the numbers that they retain together. A name's record has all
# of them, and is written at each fold: that takes 0.25 s for 1,000 with 47 values.
EMPTY_MAX: Final = 1_000
NUMBERS_MAX: Final = 100_000


class PathSources:
    """All sources of a collector; `cleared` is called after what path sources retain was cleared.

    Attributes:
        find_owner: returns the user and the group of a top-level name; set before the first.
        top_sources: where the sources at the top are.
    """

    def __init__(self, registry: Registry, cleared: Callable[[], object]) -> None:
        self.find_owner: Callable[[str], tuple[int, int]]
        self.top_sources: Final = TopSources(registry)
        self._budget = registry.log_budget
        self._cleared = cleared
        self._known: Final[dict[Source, LiveSegment | None]] = {}  # None: a path source
        self._warned: Final[set[Source]] = set()
        # The longest empty first, with how many numbers each retains.
        self._empty: Final[dict[Source, int]] = {}
        self._touched: dict[Source, None] = {}  # where segments came or went since `tidy`
        self._touched_later: Final[dict[Source, None]] = {}  # of what is withheld
        # Held while `remove_directory` changes the tree, and to say which sources the collector's
        # thread uses; never while that thread changes the tree, which may wait for an rmdir.
        self._lock = threading.Lock()
        self._used: Sequence[Source] = ()

    def find_top(self, name: str) -> Source | None:
        """Return the top-level source of that name, if it is the collector's."""
        top = self.top_sources.find(name)
        return top if top in self._known else None

    @property
    def tops(self) -> list[Source]:
        """The top-level sources that are the collector's."""
        return [source for source in self.top_sources.all if source in self._known]

    def find_segment(self, source: Source) -> LiveSegment | None:
        """Return the segment that a source shows; None for all others."""
        return self._known.get(source)

    def find_holder(self, components: Sequence[str]) -> Source | None:
        """Return the source that keeps a segment from a path; it may be another's at the top.

        An empty path source does not, but at the top, where nothing would retain what it has.
        """
        lineage = self._find_lineage(components)
        if not lineage:
            return self.top_sources.find(components[0])
        last = lineage[-1]
        if len(lineage) < len(components):
            held = self._known.get(last) is not None
        else:
            held = len(lineage) == 1 or not self._is_empty(last)
        return last if held else None

    def _is_path_source(self, source: Source) -> bool:
        return self._known.get(source, source) is None

    def _is_empty(self, source: Source) -> bool:
        # Sources that are not ours are something, too.
        return self._is_path_source(source) and all(map(self._is_empty, _below(source)))

    def _find_lineage(self, components: Sequence[str]) -> list[Source]:
        # The sources of a path that are there, from the top; a segment is the last.
        found: list[Source] = []
        source = self.find_top(components[0]) if components else None
        while source is not None and source in self._known:
            found.append(source)
            if len(found) == len(components) or self._known.get(source) is not None:
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
        source = Source(
            name,
            label=label,
            retain=True,
            collapse=collapse,
            cleared=self._cleared,
            rmdir=self.remove_directory,
            owner=self.find_owner(top),
        )
        self._known[source] = self._touched[source] = None
        return source

    def add(self, segment: LiveSegment) -> None:
        """Put a segment where its path says, with the path sources that are missing.

        An empty path source there gives way. A StatsfsError says that another source has a name;
        nothing else changed.
        """
        components, labels = segment.metadata.components, segment.metadata.labels
        with self._using(components) as lineage:
            for source, label in zip(lineage, labels, strict=False):
                if source.label != label and source not in self._warned:
                    self._warned.add(source)
                    text = "%s: the label stays %r, of its first segment; another segment has %r"
                    self._budget.log(_user_of(source), log, text, source.path, source.label, label)
            if 1 < len(lineage) == len(components) and self._is_empty(lineage[-1]):
                self._take_out(lineage[-1])
            self._known[segment.source] = segment
            self.place(segment.source, components, labels)
            for source in lineage:
                self._empty.pop(source, None)
                self._touched[source] = None

    @contextlib.contextmanager
    def _using(self, components: Sequence[str]) -> Iterator[list[Source]]:
        # The sources of a path that are there, none of which is removed meanwhile.
        with self._lock:
            self._used = lineage = self._find_lineage(components)
        try:
            yield lineage
        finally:
            self._used = ()

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
                self.top_sources.add(source)
        except BaseException:
            for one in placed:
                del self._known[one]
            raise
        finally:
            source.put()

    def remove(self, source: Source) -> None:
        """Take a segment's source out of the tree; its parent retains what it counted."""
        above = source.parent
        self.note_change(source)
        self._take_out(source)
        self._settle(above)

    def note_change(self, source: Source) -> None:
        """Note that a segment's values are others now."""
        above = source.parent
        if isinstance(above, Source):
            self._touched[above] = None

    def _take_out(self, source: Source) -> None:
        leaving, parent = [source], source.parent
        for one in leaving:
            leaving += filter(self._is_path_source, _below(one))
        try:
            if isinstance(parent, Source):
                parent.remove_subordinate(source)
            else:
                self.top_sources.remove(source)
        except StatsfsError as error:
            log.error("other code changed the sources of a collector: %s", error)
        for one in leaving:
            self._known.pop(one, None)
            self._warned.discard(one)
            self._empty.pop(one, None)
            self._touched.pop(one, None)
            self._touched_later.pop(one, None)

    def _settle(self, source: object) -> None:
        # Notes that a path source is empty, and so on upwards; one that retains nothing leaves.
        while isinstance(source, Source):
            above, used = source.parent, self._used
            with self._lock:
                below = _below(source)
                if not self._is_path_source(source) or not self._empty.keys() >= {*below}:
                    return
                retained = _count_retained(source)
                stays = below or retained
                if stays:
                    self._empty[source] = retained
                else:
                    self._used = [source, *used]
            if not stays:
                self._take_out(source)
                self._used = used
            source = above

    def remove_directory(self, source: Source) -> bool:
        """Take a path source out of the tree, in any thread; return False if it is in use."""
        with self._lock:
            if source in self._used or _below(source):
                return False
            if source in self._known:
                self._take_out(source)
        self._cleared()
        return True

    def fold_surplus(self) -> bool:
        """Fold the longest empty path sources of users who have too many; return whether one has.

        One at the top is forgotten.
        """
        with self._lock:
            left, numbers = Counter[int](), Counter[int]()
            for source, retained in self._empty.items():
                left[_user_of(source)] += 1
                numbers[_user_of(source)] += retained
            surplus = []
            for source, retained in self._empty.items():
                user = _user_of(source)
                if left[user] > EMPTY_MAX or numbers[user] > NUMBERS_MAX:
                    left[user] -= 1
                    numbers[user] -= retained
                    surplus.append(source)
            self._used = surplus
        for source in surplus:
            above = source.parent
            if not isinstance(above, Source):
                text = "%s: what it retains is forgotten: user %d has too many empty directories"
                self._budget.log(_user_of(source), log, text, source.name, _user_of(source))
            self._take_out(source)
            self._settle(above)
        self._used = ()
        return bool(surplus)

    def show(self) -> None:
        """Show what need not be withheld any more."""
        self.top_sources.show()
        self._touched.update(self._touched_later)
        self._touched_later.clear()

    def tidy(self) -> bool:
        """Work off what follows from segments that came or went; return whether records change.

        To be called when all segments that there are were added, and the dead removed: sources
        that are withheld are left for later.
        """
        if not self._touched:
            return False
        touched, self._touched = self._touched, {}
        paths = {source: source.path.split("/") for source in list(touched)}
        for source, path in list(paths.items()):
            if self.top_sources.is_withheld(path[0]):
                self._touched_later[source] = None
                del paths[source]
        lineages = [*map(self._find_lineage, paths.values())]
        for lineage in filter(None, lineages):
            self._settle(lineage[-1])
        changed = [
            self._forget_replaced(source)
            for source in dict.fromkeys(chain.from_iterable(lineages))
            if self._is_path_source(source)
        ]
        if any(changed):
            for source in list(self._empty):
                self._settle(source)
        return self.fold_surplus() or any(changed)

    def _forget_replaced(self, source: Source) -> bool:
        # While segments elsewhere in a directory above have such a value, it is retained there.
        replaced, above = list(_find_replaced(source)), source.parent
        for array, value, by, living in replaced:
            if not isinstance(above, Source) and _may_follow(array, living):
                _move_rows(source, array, living)
                continue
            forget_row(source, array)
            fate = f"left to {above.path}" if isinstance(above, Source) else "dropped"
            text = "%s: what is retained of %r is %s: its %s"
            difference = value.describe_difference(by)
            self._budget.log(_user_of(source), log, text, source.path, value.name, fate, difference)
        return bool(replaced)

    def clear(self) -> None:
        """Take all out of the tree."""
        for top in self.tops:
            with contextlib.suppress(StatsfsError):  # another thread did
                self.top_sources.remove(top)
        for noted in (
            self._known, self._warned, self._empty, self._touched, self._touched_later
        ):  # fmt: skip
            noted.clear()


def _below(source: Source) -> list[Source]:
    # Also of one that was released by now.
    return list(directory_of(source).subordinates.values())


def _count_retained(source: Source) -> int:
    # What it retains itself, which is what is in the records.
    found = directory_of(source).index.copy().items()
    return sum(array.size for array, index in found if index.own is not None)


def _user_of(source: Source) -> int:
    assert source.owner is not None
    return source.owner[0]


def _find_replaced(source: Source) -> Iterator[tuple[Array, Value, Value, Array]]:
    # The arrays that are only retained, where a segment has another value of the same name: that of
    # the array, and the other with its array.
    indexes = directory_of(source).index.copy()
    dead = [array for array, index in indexes.items() if index.records and not index.groups]
    living: dict[str, dict[object, tuple[Value, Array]]] = {}
    for array, index in indexes.items():
        for name, value in _names_in(array) if dead and index.groups else ():
            living.setdefault(name, {})[value.identity] = value, array
    known = set().union(*living.values())
    for array in dead:
        differences = [
            (array, value, *found)
            for name, value in _names_in(array)
            for identity, found in living.get(name, {}).items()
            if identity != value.identity and array.values[0].identity not in known
        ]
        yield from differences[:1]


def _may_follow(array: Array, living: Array) -> bool:
    # Whether two arrays mean the same, and only other users may read them.
    pairs = list(zip_longest(array.values, living.values))
    return all(
        one and other and replace(one, mode=other.mode).identity == other.identity
        for one, other in pairs
    )


def _move_rows(source: Source, array: Array, living: Array) -> None:
    # First to where they go: what was read of both is too much for a moment, and never too little.
    for record in list(directory_of(source).index[array].records or ()):
        record.source.restore(living.values, fill_row(array, record.row))
    forget_row(source, array)


def _names_in(array: Array) -> Iterator[tuple[str, Value]]:
    # The names that a directory above shows, and whose they are.
    for value in array.values:
        for _, name in value.aggregate_names:
            yield name, value

"""Path sources: the sources that a collector makes for the components of segments' paths.

Owns which sources of the tree are a collector's: those of segments, and path sources above them,
which share the totals and retain what leaves. A path is a segment or a directory of segments, never
both. A path source is *empty* if no segment is in its subtree. It stays if it retains something,
until its directory is removed in a mount, a segment takes its path, or its user has too many of
them, or needs room; its parent then retains what it had. `shares` says what they weigh.

Threading: the tree says where each source is. It is changed by the collector's thread, under the
tree's own lock and no other, as the listeners of a change may wait for a reader; and by any thread
in `remove_directory`, whose lock keeps the two apart. Any thread may `find_top`, or `look` under
the tree's lock: a source is noted here before it is in the tree, and forgotten after it left.
"""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from itertools import chain
from typing import Final

from statsfs.collector import shares
from statsfs.collector.journal_file import RetainedSource
from statsfs.collector.live_segment import LiveSegment
from statsfs.collector.replaced_values import forget_replaced
from statsfs.collector.retained_sources import RetainedSources, forget_zeros, retains
from statsfs.collector.shares import Shares, user_of, weigh_addition
from statsfs.collector.top_sources import TopSources, top_of
from statsfs.exceptions import SegmentError, StatsfsError
from statsfs.model.arrays import Array
from statsfs.model.counts import count_of
from statsfs.tree.index import ClearRecorder
from statsfs.tree.lineage import find_lineage
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

__all__ = ["EMPTY_MAX", "PathSources"]

log = logging.getLogger(__name__)

EMPTY_MAX: Final = 1_000  # path sources of one user
_ADVICE: Final = "in the mount, rmdir empty directories, or write 0 to values that no segment has"


class PathSources:
    """All sources of a collector.

    Args:
        registry: where paths begin.
        recorder: of clears of what path sources retain.
        record: called with a top-level name before a directory in it, which is `leaving`, is
            removed; it may raise, and then it is not.

    Attributes:
        find_owner: returns the user and the group of a top-level name; set before the first.
        leaving: the path source that is being removed by `remove_directory`, if there is one.
        cleared: whether something was cleared since `make_room` looked for zeros.
        top_sources: where the sources at the top are.
    """

    def __init__(
        self, registry: Registry, recorder: ClearRecorder, record: Callable[[str], object]
    ) -> None:
        self.find_owner: Callable[[str], tuple[int, int]]
        self.leaving: Source | None = None
        self.cleared = True
        self.top_sources: Final = TopSources(registry)
        self._budget = registry.log_budget
        self._recorder = recorder
        self._record = record
        self._shares: Final = Shares()
        self._known: Final[dict[Source, LiveSegment | None]] = {}  # None: a path source
        self._warned: Final[set[Source]] = set()
        self._empty: Final[dict[Source, None]] = {}  # the longest empty first
        self._heavy: Set[int] = set()  # users whose path sources weigh too much, which was logged
        self._touched: dict[Source, None] = {}  # where segments came or went since `tidy`
        self._changed: Final[dict[str, None]] = {}  # top-level names, since `take_changed`
        self._retained: Final = RetainedSources()
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

    def is_in_tree(self, segment: LiveSegment) -> bool:
        """Tell whether a segment's source is where its path says; under the tree's lock."""
        return self._find_lineage(segment.metadata.components)[-1:] == [segment.source]

    def look(self, name: str) -> list[RetainedSource]:
        """Return the path sources of a top-level name, each before those below it.

        To be called under the tree's lock and that of the journal.
        """
        return list(map(self._retained.look, self._list([self.find_top(name)])))

    def _list(self, tops: Iterable[Source | None]) -> list[Source]:
        # Returns the path sources in these subtrees, each before those below it.
        found = [top for top in tops if top is not None and self._is_path_source(top)]
        for source in found:
            found += filter(self._is_path_source, _below(source))
        return found

    def make(self, name: str, label: str | None, top: str, collapse: bool) -> Source:
        """Return a path source, to be placed, for a component of a path of a top-level name."""
        source = Source(
            "%s",  # a path is no format, and may have a "%"
            name,
            label=label,
            retain=True,
            collapse=collapse,
            recorder=self._recorder,
            rmdir=self.remove_directory,
            owner=self.find_owner(top),
        )
        self._known[source] = self._touched[source] = None
        self._shares.add(source)
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
                    self._budget.log(user_of(source), log, text, source.path, source.label, label)
            if 1 < len(lineage) == len(components) and self._is_empty(lineage[-1]):
                self._take_out(lineage[-1])
            self._known[segment.source] = segment
            self.place(segment.source, components, labels)
            for source in lineage:
                self._empty.pop(source, None)
                self._touched[source] = None
            self._shares.touch(lineage)

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
                self._shares.forget(one)
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
            self._shares.touch(find_lineage(above))

    def _take_out(self, source: Source) -> None:
        leaving, parent = [source], source.parent
        if self._is_path_source(source) or not isinstance(parent, Source):
            self._changed[top_of(source)] = None
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
            self._retained.forget(one)
            self._shares.forget(one)
            self._touched_later.pop(one, None)

    def _settle(self, source: object) -> None:
        # Notes that a path source is empty, and so on upwards; one that retains nothing leaves.
        while isinstance(source, Source):
            above, used = source.parent, self._used
            with self._lock:
                below = _below(source)
                if not self._is_path_source(source) or not self._empty.keys() >= {*below}:
                    return
                stays = below or retains(source)
                if stays:
                    self._empty[source] = None
                else:
                    self._used = [source, *used]
            if not stays:
                self._take_out(source)
                self._used = used
            source = above

    def change_owner(self, name: str, owner: tuple[int, int]) -> None:
        """Give the path sources of a top-level name to the owner of its directory."""
        with self._lock:
            self._used = self._list([self.find_top(name)])
        for source in self._used:
            if source.owner != owner:
                self._shares.give(source, owner)
        self._used = ()

    def remove_directory(self, source: Source) -> bool:
        """Take a path source out of the tree, in any thread; return False if it is in use."""
        with self._lock:
            if source in self._used or _below(source):
                return False
            if source in self._known:
                self.leaving = source
                try:
                    self._record(top_of(source))
                    self._take_out(source)
                finally:
                    self.leaving = None
        return True

    def make_room(self, components: Sequence[str], arrays: Collection[Array]) -> None:
        """Make room for a segment with such arrays in the share of its path's owner.

        First retained zeros that no segment counts are forgotten, then the longest empty path
        sources are folded. If that is not enough, it is a SegmentError, and nothing is folded.
        """
        user = self._find_user(components)
        more, _ = self._weigh_addition(components, arrays)
        if not more or self._shares.weigh_user(user) + more <= shares.NUMBERS_MAX:
            return
        self._forget_zeros(user)
        for source in list(self._touched):
            self._settle(source)
        more, lineage = self._weigh_addition(components, arrays)
        weight = self._shares.weigh_user(user)
        surplus = weight + more - shares.NUMBERS_MAX
        empty = [one for one in list(self._empty) if user_of(one) == user and one not in lineage]
        below = [one for one in empty if isinstance(one.parent, Source)]
        if surplus > sum(map(self._shares.weigh, below)):
            raise SegmentError(
                f"the directories of user {user} have {count_of(weight, 'number')}, and it needs "
                f"{more} more; no more than {shares.NUMBERS_MAX}: {_ADVICE}",
                components,
            )
        self._fold_empty({user: surplus}, lineage)

    def _find_user(self, components: Sequence[str]) -> int:
        # The owner of the numbers that a path retains.
        top = self.find_top(components[0])
        return self.find_owner(components[0])[0] if top is None else user_of(top)

    def _weigh_addition(
        self, components: Sequence[str], arrays: Collection[Array]
    ) -> tuple[int, list[Source]]:
        # How much more path sources would weigh with a segment, and those that are there.
        lineage = list(filter(self._is_path_source, self._find_lineage(components[:-1])))
        return weigh_addition(lineage, len(components) - 1 - len(lineage), arrays), lineage

    def fold_surplus(self) -> None:
        """Fold the longest empty path sources of users who have too many, or too large ones.

        One at the top is forgotten if there are too many.
        """
        heavy = self._shares.find_heavy()
        self._fold_empty({user: heavy[user] - shares.NUMBERS_MAX for user in heavy}, ())
        heavy = self._shares.find_heavy()
        for user in heavy.keys() - self._heavy:
            text = "the directories of user %d have %d numbers, more than %d; nothing that needs "
            text += "more is admitted: %s"
            self._budget.log(user, log, text, user, heavy[user], shares.NUMBERS_MAX, _ADVICE)
        self._heavy = heavy.keys()

    def _fold_empty(self, surplus: dict[int, int], used: Sequence[Source]) -> None:
        # By user, how much less path sources are to weigh; those that are used stay.
        with self._lock:
            left, chosen = Counter(map(user_of, self._empty)), []
            for source in self._empty:
                user = user_of(source)
                heavy = surplus.get(user, 0) > 0 and isinstance(source.parent, Source)
                if source not in used and (heavy or left[user] > EMPTY_MAX):
                    left[user] -= 1
                    surplus[user] = surplus.get(user, 0) - self._shares.weigh(source)
                    chosen.append(source)
            self._used = [*used, *chosen]
        for source in chosen:
            above = source.parent
            if not isinstance(above, Source):
                text = "%s: what it retains is forgotten: user %d has too many empty directories"
                self._budget.log(user_of(source), log, text, source.name, user_of(source))
            self._take_out(source)
            self._settle(above)
        self._used = ()

    def show(self) -> None:
        """Show what need not be withheld any more."""
        self.top_sources.show()
        self._touched.update(self._touched_later)
        self._touched_later.clear()

    def _forget_zeros(self, user: int) -> None:
        # Forgets retained zeros that no segment counts.
        if not self.cleared:
            return
        self.cleared = False
        found = self._list(top for top in self.tops if user_of(top) == user)
        for source in found:
            if forget_zeros(source):
                self._changed[top_of(source)] = None
        self._shares.touch(found)
        for source in list(self._empty):
            self._settle(source)

    def tidy(self) -> None:
        """Work off what follows from segments that came or went.

        To be called when all segments that there are were added, and the dead removed: sources
        that are withheld are left for later.
        """
        if not self._touched:
            return
        touched, self._touched = self._touched, {}
        lineages = []
        for source in list(touched):
            components = source.path.split("/")
            if self.top_sources.is_withheld(components[0]):
                self._touched_later[source] = None
            else:
                lineages.append(self._find_lineage(components))
        for lineage in filter(None, lineages):
            self._settle(lineage[-1])
        changed = [
            source
            for source in dict.fromkeys(chain.from_iterable(lineages))
            if self._is_path_source(source) and forget_replaced(source, self._budget)
        ]
        for source in changed:
            self._changed[top_of(source)] = None
            self._shares.touch(find_lineage(source))
        if changed:
            for source in list(self._empty):
                self._settle(source)
        self.fold_surplus()

    def count_users(self) -> tuple[dict[int, int], Counter[int]]:
        """Return the path sources' weight and the number of empty ones, by user; in any thread."""
        return self._shares.weigh_users(), Counter(map(user_of, list(self._empty)))

    def take_changed(self) -> list[str]:
        """Return the top-level names of which the path sources changed since the last time."""
        changed = list(self._changed)
        for name in changed:
            del self._changed[name]
        return changed

    def clear(self) -> None:
        """Take all out of the tree."""
        for top in self.tops:
            with contextlib.suppress(StatsfsError):  # another thread did
                self.top_sources.remove(top)
        for source in list(self._known):
            self._shares.forget(source)
        self._retained.clear()
        for noted in (self._known, self._warned, self._empty, self._touched, self._touched_later):
            noted.clear()


def _below(source: Source) -> list[Source]:
    # Also of one that was released by now.
    return list(directory_of(source).subordinates.values())

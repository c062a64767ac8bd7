"""Scanning: which files are looked at, and when.

Owns whose turn it is to be looked at. A *scan* lists directories and looks at all files in them;
that of the collector's own directory comes first, and asks for those of all top-level names, as its
files may have any path. A scan of a name looks at the files of its directory, and at those of the
collector's that have a path there. Dead segments come first: at the path of a living one they would
wait for its end. Living ones follow, the oldest file first: it had its path first. A dead copy of a
living segment has all its numbers, and waits. Until its first scan is over a name is *pending*: its
sources are in the tree, and not shown.

Names in events are looked at in turns as well. A directory with too many events is not watched for
a second, and then scanned.

Threading: for the collector's thread alone.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from statsfs.collector.admission import SEGMENTS_MAX, Admission
from statsfs.collector.directories import Directories
from statsfs.collector.folding import SegmentFolding
from statsfs.collector.liveness import Liveness
from statsfs.collector.path_sources import PathSources
from statsfs.collector.timers import Timers
from statsfs.collector.trusted_directory import (
    Location,
    Look,
    TrustedDirectory,
    identify,
    may_be_directory,
)
from statsfs.collector.turns import Turns
from statsfs.segments.places import SUFFIX

__all__ = ["Scanning"]

_NAMES_MAX: Final = 10_000  # of one directory, to be looked at; of more it is scanned
_LINKED_MAX: Final = 10_000  # files of one directory that have several names
_LIVING_MAX: Final = 2 * SEGMENTS_MAX  # of one directory, that are sorted
# So many times as long as a scan took, none of the same name follows it.
_REST: Final = 5


@dataclass(slots=True)
class _Found:
    # Of files that are not in the tree.
    living: list[tuple[Location, Look]] = field(default_factory=list)
    dead: list[tuple[Location, Look]] = field(default_factory=list)
    more: bool = False  # whether there are others


class Scanning:
    """Scans, and names to be looked at, of the directories of a collector."""

    def __init__(
        self,
        admission: Admission,
        liveness: Liveness,
        folding: SegmentFolding,
        path_sources: PathSources,
        timers: Timers,
        turns: Turns,
    ) -> None:
        self._path_sources = path_sources
        self._admission = admission
        self._liveness = liveness
        self._folding = folding
        self._timers = timers
        self._turns = turns
        self._directories: Directories | None = None
        # The names of pending scans; None: all, before the collector's directory was listed.
        self._pending: set[str] | None = None
        # The prefixes of directories of which the living segments are not known yet.
        self._unsorted: Final[set[str]] = set()
        self._names: Final[dict[str, dict[str, bool]]] = {}
        self._again: Final[set[str]] = set()
        self._next: Final[dict[str, float]] = {}
        # Files of the collector's directory, by the first component of their paths.
        self._from_top: Final[dict[str, list[tuple[Location, Look]]]] = {}

    def begin(self, directories: Directories) -> None:
        """Scan some directories for the first time."""
        self.end()
        self._directories = directories
        self._pending = None
        self.scan("")

    def end(self) -> None:
        """Look at nothing any more: the directories are closed."""
        self._directories = None
        for noted in (self._names, self._again, self._next, self._from_top, self._unsorted):
            noted.clear()
        self._admission.living.clear()

    def is_pending(self, name: str) -> bool:
        """Tell whether the first scan of a top-level name is not over, or files wait for the name.

        These are admitted one after the other, once it is free.
        """
        if self._pending is None or name in self._pending:
            return True
        return name in self._admission.vacant or ("wait", name) in self._turns

    @property
    def pending(self) -> list[TrustedDirectory]:
        """The directories of which the first scan is not over."""
        by_prefix = {} if self._directories is None else self._directories.by_prefix
        names = [""] if self._pending is None else self._pending
        found = [by_prefix.get(f"{name}/") or by_prefix.get("") for name in names]
        return [one for one in dict.fromkeys(found) if one is not None]

    # Names

    def look_later(self, prefix: str, name: str, created: bool = False) -> None:
        """Look at a name in a directory when it is its turn.

        One that was only `created` is looked at when it is closed or renamed, if it has no other.
        """
        if name.startswith(".") or (prefix and not name.endswith(SUFFIX)):
            return
        names = self._names.setdefault(prefix, {})
        names[name] = created and names.get(name, True)
        if len(names) > _NAMES_MAX:
            del self._names[prefix]
            self.scan(prefix[:-1])
        else:
            self._begin_names(prefix)

    def _begin_names(self, prefix: str) -> None:
        # Otherwise a scan is to come, or under way, and finds them: a matter of moments.
        if self._pending is not None and prefix not in self._unsorted:  # pragma: no branch
            self._turns.add(("names", prefix), partial(self._look_at_names, prefix))

    def _look_at_names(self, prefix: str) -> Iterator[None]:
        while names := self._names.get(prefix):
            name = next(iter(names))
            created = names.pop(name)
            # An earlier one may have closed the directory.
            directories = self._directories
            directory = directories.by_prefix.get(prefix) if directories is not None else None
            if directory is not None:
                self._look(Location(directory, name), created)
            yield
        self._names.pop(prefix, None)

    def _look(self, location: Location, created: bool) -> None:
        status = location.find()
        directories = self._directories
        assert directories is not None
        if not location.directory.prefix:
            known = f"{location.name}/" in directories.by_prefix
            if known or (status is not None and may_be_directory(location.name, status)):
                self.look_at_directory(location.name)
                return
        if created and not (
            status and (status.st_nlink > 1 or self._liveness.find_file(status) is not None)
        ):
            return
        if location.name.endswith(SUFFIX):
            self._admission.look(location)

    def look_at_directory(self, name: str) -> None:
        """Look whether a directory in the collector's came, went or changed."""
        if self._directories is not None:
            self._directories.look(name)
            self._take_note(self._directories)

    def leave(self, directories: Directories) -> None:
        """Leave the directories that are read no longer."""
        for directory in directories.left:
            self._admission.leave(directory.prefix)
            self._turns.add(directory, partial(self._liveness.leave, directory))
        directories.left.clear()

    def _take_note(self, directories: Directories) -> None:
        self.leave(directories)
        for directory in directories.came:
            name = directory.prefix[:-1]
            self._path_sources.change_owner(name, directory.owner)
            self._unsorted.add(directory.prefix)
            self._next.pop(name, None)
            if self._pending is not None:
                self._pending.add(name)
                self.scan(name)
        directories.came.clear()

    # Scans

    def scan(self, name: str = "") -> None:
        """Scan the directory of a top-level name, or the collector's and then all."""
        rest = self._next.get(name, 0.0) - time.monotonic()
        if ("scan", name) in self._turns:
            self._again.add(name)
        elif rest > 0:
            self._scan_later(name, rest)
        else:
            self._turns.add(("scan", name), partial(self._scan, name))

    def _scan_later(self, name: str, seconds: float) -> None:
        if name not in self._again:
            self._again.add(name)
            self._timers.add(seconds, partial(self._scan_again, name))

    def _scan_again(self, name: str) -> None:
        if name in self._again:
            self._again.discard(name)
            self.scan(name)

    def _scan(self, name: str) -> Iterator[None]:
        began, directories = time.monotonic(), self._directories
        assert directories is not None
        try:
            yield from self._scan_name(directories, name) if name else self._scan_all(directories)
        finally:
            rest = _REST * (time.monotonic() - began)
            self._next[name] = time.monotonic() + rest
            if name in self._again:
                self._again.discard(name)
                self._scan_later(name, rest)

    def _scan_all(self, directories: Directories) -> Iterator[None]:
        directories.look_around()
        self._take_note(directories)
        found = _Found()
        yield from self._sort(directories, directories.top, found)
        for location, look in (*found.dead, *found.living):
            self._from_top.setdefault(look.path.partition("/")[0], []).append((location, look))
        yield from self._look_at_refused("")
        names = {*self._from_top, *(prefix[:-1] for prefix in directories.by_prefix if prefix)}
        if self._pending is None:
            self._pending = set(names)
            self._path_sources.show()
        for prefix in list(self._names):
            self._begin_names(prefix)
        for name in names:
            self.scan(name)

    def _scan_name(self, directories: Directories, name: str) -> Iterator[None]:
        prefix = f"{name}/"
        directory = directories.by_prefix.get(prefix)
        found = _Found()
        for location, look in self._from_top.pop(name, ()):
            (found.living if look.alive else found.dead).append((location, look))
        if directory is not None:
            yield from self._sort(directories, directory, found)
        self._admission.living[name] = {look.id for _, look in found.living}
        self._unsorted.discard(prefix)
        self._begin_names(prefix)
        for location, _ in found.dead:
            yield from self._admit_dead(name, location)
        if directory is not None and found.more:
            living = {location.key for location, _ in found.living}
            for listed in self._list(directories, directory):
                if listed is not None and not self._is_known(listed, living):
                    yield from self._admit_dead(name, listed)
                yield
        for location, _ in sorted(found.living, key=lambda one: (one[1].changed, one[0].name)):
            self._admission.look(location)
            yield
        del self._admission.living[name]
        yield from self._look_at_refused(prefix)
        # Copies that wait for what was not admitted are all that there is of it.
        yield from self._admission.admit_waiting(name)
        yield from self._folding.fold(name)
        if self._pending is not None and name in self._pending:
            self._pending.discard(name)
            self._path_sources.show()

    def _sort(
        self, directories: Directories, directory: TrustedDirectory, found: "_Found"
    ) -> Iterator[None]:
        # Looks at what is known, and finds out which of the other files live.
        for name in self._liveness.files_in(directory):
            self._admission.look(Location(directory, name))
            yield
        links = Counter[tuple[int, int]]()
        for location in self._list(directories, directory, unfinished=True):
            if location is not None and location.key not in self._liveness.by_key:
                status = location.find()
                if status is not None and status.st_nlink > 1 and len(links) < _LINKED_MAX:
                    links[identify(status)] += 1
                if not self._admission.refusals.is_known(location):
                    self._sort_file(location, found)
            yield
        self._admission.links[directory.prefix] = links

    def _is_known(self, location: Location, living: Set[str]) -> bool:
        key = location.key
        known = key in self._liveness.by_key or key in living
        return known or self._admission.refusals.is_known(location)

    def _sort_file(self, location: Location, found: "_Found") -> None:
        # To tell whether a file lives is far cheaper than to decode it, but its path is not known.
        in_top, look = not location.directory.prefix, None
        with contextlib.suppress(OSError):  # logged when the file is refused
            full = len(found.living) >= _LIVING_MAX
            if not in_top and (full or not location.directory.probe(location.name)[0]):
                found.more = True
                return
            look = location.look()
        if look is None:
            self._admission.look(location)
        elif look.alive:
            found.living.append((location, look))
        else:
            found.dead.append((location, look))

    def _admit_dead(self, name: str, location: Location) -> Iterator[None]:
        self._admission.look(location)
        if self._admission.is_waiting(location) and name in self._liveness.dead:
            # The path is another dead one's.
            yield from self._folding.fold(name)
            self._admission.retry(location)
        self._folding.fold_full_batch(name)
        yield

    def _look_at_refused(self, prefix: str) -> Iterator[None]:
        # Also those that are gone, which are forgotten.
        for location in self._admission.find_refused(prefix):
            self._admission.look(location)
            yield

    def _list(
        self, directories: Directories, directory: TrustedDirectory, unfinished: bool = False
    ) -> Iterator[Location | None]:
        # The locations of possible segments, and None for all else, so that there are turns.
        try:
            for entry in directory.entries():
                name = entry.name
                if name.startswith("."):
                    if unfinished:
                        directory.remove_unfinished(name)
                    yield None
                elif name.endswith(SUFFIX) and not entry.is_dir(follow_symlinks=False):
                    yield Location(directory, name)
                else:
                    yield None
                if directory.fd < 0:
                    return  # it is read no longer
        except OSError as error:
            directories.log_error(directory.prefix[:-1] or ".", error, directory.owner[0])

"""Admission: which segments are let into the tree, and which wait for a path.

Owns the limits of one user, and the checks of a file after those of its owner and its format.

Threading: for the collector's thread alone, but for `vacant`.
"""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Final

from statsfs.collector.file_ids import find_id
from statsfs.collector.journal import Journal
from statsfs.collector.known_values import KnownValues
from statsfs.collector.live_segment import LiveSegment, SegmentNumbers, find_rights, weigh
from statsfs.collector.liveness import Liveness
from statsfs.collector.refusals import Refusals
from statsfs.collector.timers import Timers
from statsfs.collector.trusted_directory import Location, identify
from statsfs.exceptions import SegmentError
from statsfs.model.arrays import intern_array, split_array
from statsfs.model.counts import count_of
from statsfs.segments.file_format import SegmentMetadata, decode
from statsfs.segments.locks import is_alive
from statsfs.tree.log_budget import LogBudget
from statsfs.tree.rights import change_rights
from statsfs.tree.source import directory_of

__all__ = ["SEGMENTS_MAX", "WEIGHT_MAX", "Admission"]

SEGMENTS_MAX: Final = 10_000  # of one user
WEIGHT_MAX: Final = 1 << 22  # what the segments of one user weigh together
_WAITING_MAX: Final = 10_000  # of one directory; the others are looked at again once a minute
_SPARE: Final = 64  # descriptors that segments leave to the rest of the process


class _PathTakenError(SegmentError):
    # Not for long, it may be.
    pass


class Admission:
    """The files that may be segments.

    Args:
        look_later: called with the location of a file that is to be looked at when it is its turn.

    Attributes:
        waiting: by the prefixes of directories, and by key, the files that wait for a path that
            another source has.
        vacant: the top-level names for which `admit_waiting` is to be called, as a path may have
            become free.
        links: by the prefixes of directories, how many names there each file of several has.
        look_later: has a file looked at when it is its turn.
        living: by top-level name, the ids of living segments that are about to be admitted. What is
            dead and has such an id is a copy, and waits.
    """

    def __init__(
        self,
        journal: Journal,
        known_values: KnownValues,
        liveness: Liveness,
        timers: Timers,
        budget: LogBudget,
        look_later: Callable[[Location], object],
    ) -> None:
        self._journal = journal
        self._known_values = known_values
        self._liveness = liveness
        self.refusals: Final = Refusals(timers, budget)
        self.look_later = look_later
        self.waiting: Final[dict[str, dict[str, tuple[Location, Sequence[str]]]]] = {}
        self.vacant: Final[set[str]] = set()
        self.links: Final[dict[str, Mapping[tuple[int, int], int]]] = {}
        self.living: Final[dict[str, Set[str]]] = {}

    def look(self, location: Location) -> None:
        """Handle a file that may have changed: admit it, drop it, or leave it."""
        status = location.find()
        former = self._liveness.by_key.get(location.key)
        if former is not None and former is not self._liveness.find_file(status):
            self._liveness.make_orphan(former)
        if self._is_known(location, status):
            return
        if status is None or self.refusals.is_due(location, status, self.look_later):
            self._try(location, status)

    def _is_known(self, location: Location, status: os.stat_result | None) -> bool:
        # Whether the file is a segment's in the tree, which may have been moved here.
        segment = self._liveness.find_file(status)
        if status is None or segment is None:
            return False
        here = not segment.removed and segment.location.key == location.key
        if segment.removed or not (here or self._liveness.is_in_place(segment)):
            self._forget(location)
            self._liveness.move(segment, location)
        elif not here:
            # Another name of it, which is removed after the segment was folded.
            self._wait(location, segment.metadata.components)
        self._take_rights(segment, status)
        self._liveness.probe(segment)
        return True

    def _forget(self, location: Location) -> None:
        self.refusals.forget(location)
        self.waiting.get(location.directory.prefix, {}).pop(location.key, None)

    def leave(self, prefix: str) -> None:
        """Forget the files in a directory that is read no longer."""
        self.refusals.leave(prefix)
        self.waiting.pop(prefix, None)
        self.links.pop(prefix, None)

    def is_waiting(self, location: Location) -> bool:
        """Tell whether a file waits for a path."""
        return location.key in self.waiting.get(location.directory.prefix, ())

    def find_refused(self, prefix: str) -> list[Location]:
        """Return the files in a directory that were refused, or wait."""
        waiting = (location for location, _ in self.waiting.get(prefix, {}).values())
        return list(dict.fromkeys([*self.refusals.find(prefix), *waiting]))

    def retry(self, location: Location) -> None:
        """Admit a file, if that is possible by now."""
        status = location.find()
        if not self._is_known(location, status):
            self._try(location, status)

    def _try(self, location: Location, status: os.stat_result | None) -> None:
        if status is None:
            self._forget(location)
            return
        try:
            if self._admit(location):
                self._forget(location)
            else:
                self.refusals.note(location, status, None)
        except FileNotFoundError:
            self._forget(location)
        except Exception as error:
            # A broken file, which any user may write, must not end the collector.
            verb = "is not shown yet" if isinstance(error, _PathTakenError) else "is refused"
            self.refusals.note(location, status, error, verb)

    def _take_rights(self, segment: LiveSegment, status: os.stat_result) -> None:
        # After a chmod or chown; in a directory that nobody may publish in, segments go on.
        numbers = segment.numbers
        directory, name = segment.location
        if numbers.rights == find_rights(status) or numbers.final or not directory.users:
            return
        try:
            directory.check_user(name, status)
            values = segment.metadata.values
            adopted = self._known_values.adopt(values, status.st_mode, status.st_uid)
            arrays = [*map(intern_array, split_array(list(adopted.values())))]
            self._journal.make_room(segment, arrays)
        except SegmentError as error:
            self.refusals.note(segment.location, status, error)
            segment.refused = True
            self._liveness.note_dead(segment)
            return
        numbers.rights = find_rights(status)
        numbers.change_values(adopted)
        owner = (status.st_uid, status.st_gid)
        change_rights(segment.source, numbers.arrays, numbers, owner)
        self._liveness.give(segment, owner)
        # At once: until then a total has what is retained alone.
        self._journal.path_sources.note_change(segment.source)
        self._journal.tidy()

    def _admit(self, location: Location) -> bool:
        # False, with nothing to log, if its path is free in a moment.
        fd, status = location.directory.open(location.name)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            metadata = decode(os.pread(fd, status.st_size, 0))
            name, id = metadata.components[0], find_id(metadata, fd)
            if self._check(location, metadata, id, fd, status):
                return False
            values = self._known_values.adopt(metadata.values, status.st_mode, status.st_uid)
            numbers = SegmentNumbers(values, metadata, id, location, fd, status)
            undo.pop_all()
            undo.callback(numbers.close)
            numbers.restore(self._journal.find_baselines(name, id))
            numbers.refresh()
            owner = (status.st_uid, status.st_gid)
            source = numbers.make_source(owner, self._journal.clear)
            segment = LiveSegment(metadata, numbers, source, owner)
            self._journal.make_room(segment, directory_of(source).index)
            alive = numbers.probe()
            self._journal.expect(segment)
            undo.callback(self._journal.forget, segment)
            if self._journal.path_sources.find_top(name) is None and self._is_awaited(name):
                self.vacant.add(name)
            self._journal.path_sources.add(segment)
            undo.pop_all()
        self._journal.forget_baselines(name, id)
        self._liveness.add(segment, alive)
        return True

    def _check(
        self,
        location: Location,
        metadata: SegmentMetadata,
        id: str,
        fd: int,
        status: os.stat_result,
    ) -> bool:
        # Whether it is removed, or waits for a path that is free in a moment.
        directory, file = location
        if file != file.encode(errors="replace").decode():
            raise SegmentError("its name is not UTF-8", file)
        if not metadata.path.startswith(directory.prefix):
            raise SegmentError(f"its path is {metadata.path!r}, not below {directory.prefix}", file)
        if self._journal.is_counted(metadata.components[0], id):
            self._remove_counted(location, metadata.components[0], id, fd)
            return True
        if id in self.living.get(metadata.components[0], ()) and not is_alive(fd):
            self._wait(location, metadata.components)
            return True
        if status.st_nlink > 1 and status.st_nlink > self._count_names(status):
            raise SegmentError(f"it has {status.st_nlink} links", file)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY and fd >= limit - _SPARE:
            raise SegmentError(f"{limit} open files are too few: raise LimitNOFILE", file)
        user = status.st_uid
        count, weight = self._liveness.counts[user], self._liveness.weights[user]
        if count >= SEGMENTS_MAX or weight + weigh(metadata) > WEIGHT_MAX:
            has = f"user {user} has {count_of(count, 'segment')} of {count_of(weight, 'integer')}"
            raise SegmentError(f"{has}; no more than {SEGMENTS_MAX} of {WEIGHT_MAX}", file)
        return self._check_path(location, metadata)

    def _count_names(self, status: os.stat_result) -> int:
        return sum(links.get(identify(status), 0) for links in self.links.values())

    def _remove_counted(self, location: Location, name: str, id: str, fd: int) -> None:
        # It came back, or it is a copy.
        if is_alive(fd):
            raise SegmentError("it is counted already, as another file with its id", location.name)
        if self._journal.held or self._journal.failed:
            return  # until a record has its id
        if location.remove():
            raise SegmentError("it is counted already, and cannot be removed", location.name)
        if not os.fstat(fd).st_nlink:
            self._journal.note_removed(name, id)

    def _check_path(self, location: Location, metadata: SegmentMetadata) -> bool:
        components = metadata.components
        paths = self._journal.path_sources
        self._journal.restore(components[0])
        holder = paths.find_holder(components)
        if holder is None:
            return False
        self._wait(location, components)
        segment = paths.find_segment(holder)
        if segment is not None:
            self._liveness.probe(segment)
            if self._liveness.is_dead(segment):
                return True
        ours = segment is None and paths.find_top(components[0]) is not None
        what = "a directory of segments" if ours else "there already"
        why = f"{metadata.path}: {holder.path} is {what}; waiting for it"
        raise _PathTakenError(why, location)

    def _wait(self, location: Location, components: Sequence[str]) -> None:
        here = self.waiting.setdefault(location.directory.prefix, {})
        if len(here) < _WAITING_MAX:
            here[location.key] = (location, components)

    def _is_awaited(self, name: str) -> bool:
        # Whether files wait for a path of a top-level name.
        found = (self.waiting.get(prefix, {}).values() for prefix in ("", f"{name}/"))
        return any(components[0] == name for _, components in chain.from_iterable(found))

    def admit_waiting(self, name: str) -> Iterator[None]:
        """Admit the segments that waited for a path of a top-level name, if it is free."""
        for prefix in ("", f"{name}/"):
            for location, components in list(self.waiting.get(prefix, {}).values()):
                if components[0] == name and self._is_free(components):
                    self.retry(location)
                yield

    def _is_free(self, components: Sequence[str]) -> bool:
        return self._journal.path_sources.find_holder(components) is None

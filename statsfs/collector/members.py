"""Members: the segments that a collector has let in, and those that it has not.

Owns who is let in, how much one user may bring, who waits for a path that another has, and what is
done about the dead. What a file says is the business of `blocks`, whose it is that of `directory`,
what is said of those refused that of `refusals`, what outlives a segment that of `ledger`.

Threading: for the collector's thread alone.
"""

import contextlib
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from statsfs.collector.journal import Ledger
from statsfs.collector.known_values import KnownValues
from statsfs.collector.live_segment import Leaf, SegmentNumbers, identify, weigh
from statsfs.collector.path_sources import Branch
from statsfs.collector.refusals import Refusals
from statsfs.collector.trusted_directory import SegmentDirectory
from statsfs.exceptions import SegmentError
from statsfs.segments.file_format import FILE_MAX, SegmentMetadata, decode
from statsfs.segments.locks import is_alive

__all__ = ["SEGMENTS_MAX", "WEIGHT_MAX", "Members"]

log = logging.getLogger(__name__)

SEGMENTS_MAX: Final = 10_000
"""Segments of one user."""
WEIGHT_MAX: Final = 1 << 22
"""Integers of one user in all segments together, of which each value takes four more."""

# The kernel tells of a death just before it drops the lock.
_PROBES: Final = (0.001, 0.01, 0.1)
_PATIENCE: Final = 1.0  # seconds between two tries to fold
_BATCH: Final = 256  # of the dead that are folded together
_WAITING_MAX: Final = 10_000  # who are looked at as soon as a path is free
_SPARE: Final = 64  # descriptors that segments leave to the rest of the process


class _SoonError(Exception):
    # The path of a segment is that of one who is dead, and will be free in a moment.
    pass


class Members:
    """The segments of a collector.

    Args:
        ledger: what outlives them, with the branches.
        vocabulary: what stands for their values.
        later: has a function called once, so many seconds from now.

    Attributes:
        leaves: the segments in the tree, by key.
        orphans: those in the tree whose files somebody removed.
    """

    def __init__(
        self,
        ledger: Ledger,
        vocabulary: KnownValues,
        later: Callable[[float, Callable[[], object]], object],
    ) -> None:
        self.leaves: Final[dict[str, Leaf]] = {}
        self.orphans: Final[set[Leaf]] = set()
        self._ledger = ledger
        self._vocabulary = vocabulary
        self._later = later
        # While a file is open no other has its inode.
        self._by_identity: Final[dict[tuple[int, int], Leaf]] = {}
        self._refusals: Final = Refusals(later)
        self._waiting: Final[dict[str, tuple[SegmentDirectory, str, tuple[str, ...]]]] = {}
        self._dead: Final[dict[Leaf, None]] = {}
        self._counts: Final[Counter[int]] = Counter()
        self._weights: Final[Counter[int]] = Counter()
        self._vacant = False
        self._probing = False

    @property
    def waiting(self) -> bool:
        """Whether some wait for a path that another has."""
        return bool(self._waiting)

    def leaves_in(self, prefix: str) -> list[Leaf]:
        """Return the segments in the tree whose files are in one directory."""
        return [leaf for leaf in self.leaves.values() if leaf.directory.prefix == prefix]

    def files_in(self, prefix: str) -> list[str]:
        """Return the names of those files."""
        return [leaf.file for leaf in self.leaves_in(prefix)]

    # Looking

    def look(self, directory: SegmentDirectory, file: str) -> None:
        """Find out what is to be done about a file to which something may have happened."""
        key = directory.prefix + file
        status = directory.find(file)
        leaf = self.leaves.get(key)
        if leaf is not None and not self._is_same(leaf, status):
            leaf = None
        if leaf is not None:
            self.probe(leaf)
        elif status is None:
            self._forget(key)
        elif self._refusals.is_news(key, status, lambda: self.look(directory, file)):
            self._try(directory, file, status)

    def _is_same(self, leaf: Leaf, status: os.stat_result | None) -> bool:
        if status is not None and identify(status) == leaf.identity:
            return True
        # It may be alive for long. Its death is told by the directory, if that is still there.
        self.leave_orphan(leaf)
        return False

    def leave_orphan(self, leaf: Leaf) -> None:
        """Note that the file of a segment is there no more, though its producer may live."""
        leaf.removed = True
        self.leaves.pop(leaf.key, None)
        self.orphans.add(leaf)
        self._probe_orphans_later()
        self.probe(leaf)

    def _probe_orphans_later(self) -> None:
        if self.orphans and not self._probing:
            self._probing = True
            self._later(_PATIENCE, self._probe_orphans)

    def _probe_orphans(self) -> None:
        self._probing = False
        self._probe_orphans_later()
        for leaf in list(self.orphans):
            self.probe(leaf, ())

    def probe(self, leaf: Leaf, delays: Sequence[float] = _PROBES) -> None:
        """Find out whether a producer lives; ask again after each of the delays, in seconds."""
        leaf.probes += 1
        self._ask(leaf, leaf.probes, delays)

    def _ask(self, leaf: Leaf, probe: int, delays: Sequence[float]) -> None:
        if probe != leaf.probes or leaf.numbers.final:
            return  # there was news, which had it asked again
        if not leaf.numbers.probe():
            if not self._is_on_its_way(leaf):
                self._dead[leaf] = None
        elif delays:
            self._later(delays[0], lambda: self._ask(leaf, probe, delays[1:]))

    def _is_on_its_way(self, leaf: Leaf) -> bool:
        # Moved, and perhaps to where it will be found: folded before that, it would count again.
        if not leaf.removed or not leaf.numbers.exists():
            return False
        leaf.missed = leaf.missed or time.monotonic()
        return time.monotonic() < leaf.missed + _PATIENCE

    def _forget(self, key: str) -> None:
        self._refusals.forget(key)
        self._waiting.pop(key, None)
        self._ledger.forget_baselines(key)

    def forget_all_but(self, prefix: str, files: Collection[str]) -> None:
        """Forget what was refused, or is waited for, but of these files of one directory."""
        keys = {prefix + file for file in files}
        known = [*self._refusals.keys, *self._ledger.known_baselines]
        for key in known:
            if key[: key.rfind("/") + 1] == prefix and key not in keys:
                self._forget(key)

    # Letting in

    def _try(self, directory: SegmentDirectory, file: str, status: os.stat_result) -> None:
        if self._find_again(directory, file, status):
            return
        key = directory.prefix + file
        try:
            if self._let_in(directory, file):
                self._refusals.forget(key)
                self._waiting.pop(key, None)
            else:
                self._refusals.note(key, status, None)
        except FileNotFoundError:
            self._forget(key)
        except _SoonError:
            self._refusals.note(key, status, None)
        except Exception as error:
            # Whatever a stranger's file can do, it must not end the collector.
            self._refusals.note(key, status, error, f"{directory.path}/{ascii(file)[1:-1]}")

    def _find_again(self, directory: SegmentDirectory, file: str, status: os.stat_result) -> bool:
        # One in the tree that was moved; counted as another it would be counted twice.
        leaf = self._by_identity.get(identify(status))
        if leaf is None or (not leaf.removed and self._is_same(leaf, leaf.find())):
            return False
        self.orphans.discard(leaf)
        leaf.move(directory, file)
        self.leaves[leaf.key] = leaf
        self._ledger.retry()
        self.probe(leaf)
        return True

    def _let_in(self, directory: SegmentDirectory, file: str) -> bool:
        # False for what is no segment.
        fd, status = directory.open(file)
        try:
            head = decode(os.pread(fd, FILE_MAX + 1, 0))
            if head is None:
                os.close(fd)
                return False
            self._check(directory, file, head, fd, status)
            values = self._vocabulary.adopt(head.values, status.st_mode, status.st_uid)
            numbers = SegmentNumbers(values, head, directory, file, fd, status)
        except BaseException:
            os.close(fd)
            raise
        try:
            key = directory.prefix + file
            self._ledger.disown(key)
            numbers.restore(self._ledger.find_baselines(key))
            numbers.refresh()
            cleared = self._ledger.note_clear
            self._add(Leaf(directory, file, head, values, numbers, status, cleared))
        except BaseException:
            numbers.close()
            raise
        return True

    def _add(self, leaf: Leaf) -> None:
        alive = leaf.numbers.probe()
        self._ledger.branches.add(leaf)
        self._ledger.forget_baselines(leaf.key)
        self.leaves[leaf.key] = leaf
        self._by_identity[leaf.identity] = leaf
        self._counts[leaf.owner[0]] += 1
        self._weights[leaf.owner[0]] += leaf.weight
        if not alive:
            self._dead[leaf] = None

    def _check(
        self,
        directory: SegmentDirectory,
        file: str,
        head: SegmentMetadata,
        fd: int,
        status: os.stat_result,
    ) -> None:
        if file != file.encode(errors="replace").decode():
            raise SegmentError("its name is no UTF-8", file)
        if not head.path.startswith(directory.prefix):
            raise SegmentError(f"its path is {head.path!r}, not below {directory.prefix}", file)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY and fd >= limit - _SPARE:
            raise SegmentError(f"{limit} open files are too few: raise LimitNOFILE", file)
        user = status.st_uid
        if self._counts[user] >= SEGMENTS_MAX or (self._weights[user] + weigh(head) > WEIGHT_MAX):
            raise SegmentError(
                f"user {user} has {self._counts[user]} segments of {self._weights[user]} integers; "
                f"no more than {SEGMENTS_MAX} of {WEIGHT_MAX}",
                file,
            )
        if self._ledger.is_folded(directory.prefix + file) and not is_alive(fd):
            raise SegmentError("it is counted already, and cannot be removed", file)
        self._check_path(directory, file, head.components)

    def _check_path(
        self, directory: SegmentDirectory, file: str, components: tuple[str, ...]
    ) -> None:
        self._ledger.restore(components[0])
        holder = self._ledger.branches.find_holder(components)
        if holder is None:
            return
        # The others are looked at again once a minute.
        if len(self._waiting) < _WAITING_MAX:
            self._waiting[directory.prefix + file] = (directory, file, components)
        if isinstance(holder, Leaf):
            self.probe(holder)
            if holder in self._dead:
                raise _SoonError
        held = holder if isinstance(holder, str) else holder.path
        what = "a directory of segments" if isinstance(holder, Branch) else "there already"
        raise SegmentError(f"{'/'.join(components)}: {held} is {what}; waiting for it", file)

    # Folding

    def settle(self) -> None:
        """Fold the dead, and let in who waited for a path of theirs."""
        while self._dead or self._vacant:
            for name, leaves in self._take_batch().items():
                self._fold(name, leaves)
            if not self._dead and self._vacant:
                self._vacant = False
                self._let_in_waiting()

    def _take_batch(self) -> dict[str, list[Leaf]]:
        by_top: dict[str, list[Leaf]] = {}
        for leaf in list(self._dead)[:_BATCH]:
            del self._dead[leaf]
            # Moved a moment ago, it is found where it is now, or given a second for that.
            if leaf.removed or leaf.numbers.final or self._is_same(leaf, leaf.find()):
                by_top.setdefault(leaf.components[0], []).append(leaf)
        return by_top

    def note_vacancy(self) -> None:
        """Note that a path may be free which another had; `settle` looks at who waits."""
        self._vacant = bool(self._waiting)

    def _let_in_waiting(self) -> None:
        for key, (directory, file, components) in list(self._waiting.items()):
            if self._ledger.branches.find_holder(components) is None:
                status = directory.find(file)
                if status is None:
                    self._forget(key)
                else:
                    self._try(directory, file, status)

    def _fold(self, name: str, leaves: list[Leaf]) -> None:
        # The order is that of `ledger`.
        for leaf in leaves:
            if not leaf.numbers.finish():
                log.warning("%s: its last numbers cannot be read; those before count", leaf.path)
        try:
            self._ledger.begin_fold(name, leaves)
        except OSError as error:
            self._ledger.complain(name, error)
            self._later(_PATIENCE, lambda: self._dead.update(dict.fromkeys(leaves)))
            return
        for leaf in leaves:
            self._remove_file(name, leaf)
        for leaf in leaves:
            self._ledger.branches.remove(leaf)
            self._drop(leaf)
        self._ledger.end_fold(name, leaves)
        self.note_vacancy()

    def _remove_file(self, name: str, leaf: Leaf) -> None:
        if leaf.removed or not self._is_same(leaf, leaf.find()):
            self._ledger.note_removed(name, leaf.key)
            return
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leaf.file, dir_fd=leaf.directory.fd)
        except OSError as error:
            log.error("%s/%s: %s", leaf.directory.path, leaf.file, error.strerror)
            return
        self._ledger.note_removed(name, leaf.key)

    def remove_folded(self, directories: Mapping[str, SegmentDirectory]) -> None:
        """Remove the files that the records name, before anything in them is counted again.

        Args:
            directories: all there are, by the beginning of their keys.
        """
        for name, keys in list(self._ledger.folded.items()):
            for key in sorted(keys):
                prefix, file = key[: key.rfind("/") + 1], key[key.rfind("/") + 1 :]
                directory = directories.get(prefix)
                if directory is not None and self._remove_folded(directory, file):
                    self._ledger.note_removed(name, key)

    @staticmethod
    def _remove_folded(directory: SegmentDirectory, file: str) -> bool:
        try:
            fd, _ = directory.open(file)
        except (FileNotFoundError, SegmentError):
            return True  # nothing, or nothing that was ever folded
        except OSError:
            return False
        try:
            # One that lives has the name of one that was removed.
            if not is_alive(fd):
                os.unlink(file, dir_fd=directory.fd)
        except OSError as error:
            log.error("%s/%s: %s", directory.path, ascii(file)[1:-1], error.strerror)
            return False
        finally:
            os.close(fd)
        return True

    def _drop(self, leaf: Leaf) -> None:
        leaf.numbers.close()
        self.orphans.discard(leaf)
        del self._by_identity[leaf.identity]
        if self.leaves.get(leaf.key) is leaf:
            del self.leaves[leaf.key]
        self._counts[leaf.owner[0]] -= 1
        self._weights[leaf.owner[0]] -= leaf.weight

    def close(self) -> None:
        """Close all files; the tree is somebody else's."""
        for leaf in (*self.leaves.values(), *self.orphans):
            leaf.numbers.close()
        self.leaves.clear()
        self.orphans.clear()

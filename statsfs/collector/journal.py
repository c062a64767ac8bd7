"""The ledger: what must outlive the collector, and is written down before it may be forgotten.

Owns the order of a fold, and what a record has at any moment: what the branches retain, what the
dead that are just being folded add to it, what was cleared of the living. A collector may be killed
between any two steps and counts nothing twice and loses nothing. A fold is made in this order::

    1   nobody holds the segment's lock
    2   its numbers are read for the last time, from the open descriptor
    3   the record is renamed over the old one: with what it counted, and with its name
    4   its file is removed
        in the tree, its source leaves and is folded into the branch, in one change

and what a record names is removed before anything else at the next start. Clearing only writes the
records: what was cleared of the living is a baseline, for thousands of them one rename.

Threading: `note_clear` comes from any thread, all else from the collector's. The lock is that of
the branches, held while a record is made and written, so that the last one written is that of the
last moment. Under it the tree is looked at, and never changed.
"""

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final

from statsfs.collector.journal_file import JournalFiles, JournalRecord, RetainedSource
from statsfs.collector.known_values import KnownValues
from statsfs.collector.live_segment import Leaf
from statsfs.collector.path_sources import Branch, Branches, Node
from statsfs.model.values import Kind, Value
from statsfs.tree.lock import lock_tree
from statsfs.tree.registry import Registry
from statsfs.tree.retention import add_numbers

__all__ = ["Ledger"]

log = logging.getLogger(__name__)


class Ledger:
    """The records of a collector's branches, and those branches.

    Args:
        registry: where the branches are registered.
        vocabulary: what stands for the values of earlier lives.
        find_owner: returns the user and the group whose a top-level name is.
        wake: called, in any thread, when a record could not be written and `retry` is wanted.

    Attributes:
        branches: what the records are of.
        records: where they are; None while there is no directory, and nothing outlives.
        folded: by top-level name the keys of the files that are counted in its record and may still
            be there.
        failed: whether a record is not as it should be.
    """

    def __init__(
        self,
        registry: Registry,
        vocabulary: KnownValues,
        find_owner: Callable[[str], tuple[int, int]],
        wake: Callable[[], object],
    ) -> None:
        self.branches: Final = Branches(registry, self.note_clear, find_owner)
        self.records: JournalFiles | None = None
        self.folded: Final[dict[str, set[str]]] = {}
        self.failed = False
        self._complained: Final[set[str]] = set()
        self._vocabulary = vocabulary
        self._wake = wake
        self._written: Final[dict[str, JournalRecord]] = {}
        self._folding: Final[set[Leaf]] = set()
        self._waiting: Final[dict[str, JournalRecord]] = {}
        self._baselines: Final[dict[str, tuple[str, dict[str, Any]]]] = {}

    # Earlier lives

    def load(self, records: JournalFiles) -> None:
        """Take what earlier collectors wrote down; what is in the tree already stays as it is."""
        self.records = records
        for name, record in records.load().items():
            if name in self.branches.tops:
                continue
            self.folded[name] = set(record.folded)
            self._written[name] = record
            self._baselines.update((key, (name, one)) for key, one in record.baselines.items())
            if record.sources:
                self._waiting[name] = record
                self.restore(name)
        self.retry()

    def restore(self, name: str) -> None:
        """Put what a record retains into the tree, if it is not; where nobody else has the name."""
        record = self._waiting.get(name)
        if record is None or self.branches.find_holder((name,)) is not None:
            return
        labels: dict[tuple[str, ...], str | None] = {}
        for part in record.sources:
            labels[part.path] = part.label
            above = tuple(labels[part.path[:depth]] for depth in range(1, len(part.path) + 1))
            branch = self.branches.grow(part.path, above)
            for value, held in part.rows.items():
                array = (self._vocabulary.restore(value),)
                branch.source.restore(array, (held,))
            self.branches.settle(branch)
        del self._waiting[name]

    def find_baselines(self, key: str) -> dict[str, Any]:
        """Return what was cleared of a segment, in an earlier life."""
        return self._baselines.get(key, ("", {}))[1]

    def forget_baselines(self, key: str) -> None:
        """Forget that, for the segment is in the tree, or no more."""
        with self.branches.lock:
            self._baselines.pop(key, None)

    @property
    def known_baselines(self) -> list[str]:
        """The keys of segments of which something was cleared in an earlier life."""
        return list(self._baselines)

    def lose(self) -> None:
        """Note that the directory is gone; nothing outlives until there is another."""
        with self.branches.lock:
            if self.records is not None:
                self.records.close()
            self.records = None
            self._written.clear()

    def leave_to_parent(self) -> None:
        """Write nothing any more: what is written is another process's, which forked this one."""
        self.branches.renew_lock()
        self.records = None

    # Writing

    def write(self, name: str) -> None:
        """Bring the record of a top-level name up to date.

        Raises:
            OSError: there is no room, say; the old one is as it was.
        """
        with self.branches.lock:
            if self.records is None or name in self._waiting:
                return
            record = self._make(name)
            if record == self._written.get(name):
                return
            if record.empty:
                self.records.remove(name)
                self._written.pop(name, None)
                self.folded.pop(name, None)
            else:
                self.records.write(name, record)
                self._written[name] = record
            self._complained.discard(name)

    def note_clear(self) -> None:
        """Write down what was cleared; called by whoever clears, when it is done."""
        self.retry()
        if self.failed:
            self._wake()

    def retry(self) -> None:
        """Bring all records up to date; where that fails, say so once."""
        failed = False
        with self.branches.lock:
            for name in {*self.branches.tops, *self._written}:
                try:
                    self.write(name)
                except OSError as error:
                    failed = True
                    self.complain(name, error)
            self.failed = failed

    def complain(self, name: str, error: OSError) -> None:
        """Say, once until it works again, that a record cannot be written."""
        if name not in self._complained:
            self._complained.add(name)
            log.error("the record of %r cannot be written: %s; trying again", name, error.strerror)

    def _make(self, name: str) -> JournalRecord:
        top = self.branches.tops.get(name)
        folded = set(self.folded.get(name, ()))
        baselines = {key: one for key, (owner, one) in self._baselines.items() if owner == name}
        parts: list[RetainedSource] = []
        if top is not None:
            # A fold in the tree, which may be made at this moment, is seen done or not begun.
            found = lock_tree(partial(self._look, top))
            parts = _thin(_add_up(found))
            for leaf in (node for _, node, _ in found if isinstance(node, Leaf)):
                if leaf.removed:
                    continue  # nobody will find it again, but perhaps another of that name
                baselines.pop(leaf.key, None)
                if leaf in self._folding:
                    folded.add(leaf.key)
                elif leaf.numbers.baselines:
                    baselines[leaf.key] = dict(leaf.numbers.baselines)
        return JournalRecord(parts, baselines, sorted(folded))

    def _look(self, top: Node) -> "list[_Seen]":
        found = Branches.walk(top, self._matters)
        return [(path, node, self._find_rows(node)) for path, node in found]

    def _matters(self, leaf: Leaf) -> bool:
        # Of thousands that live, few have anything to be written down; to look at each of 8,000
        # made a death 30 ms long.
        return bool(leaf.numbers.baselines or leaf in self._folding or leaf.key in self._baselines)

    def _find_rows(self, node: Node) -> dict[Value, Any]:
        if isinstance(node, Branch):
            return {array[0]: row[0] for array, row in node.source.retained.items()}
        return node.retains() if node in self._folding else {}

    # Folding

    def begin_fold(self, name: str, leaves: Collection[Leaf]) -> None:
        """Write down what the dead counted, step 3; their files may then be removed.

        Args:
            name: the top-level name.
            leaves: what is dead, and read for the last time.

        Raises:
            OSError: the record cannot be written; nothing changed.
        """
        with self.branches.lock:
            self._folding.update(leaves)
            # What a segment at the top counted goes with it.
            if isinstance(self.branches.tops.get(name), Leaf) and name not in self._written:
                return
            try:
                self.write(name)
            except OSError:
                self._folding.difference_update(leaves)
                raise
            self.folded.setdefault(name, set()).update(
                leaf.key for leaf in leaves if not leaf.removed
            )

    def note_removed(self, name: str, key: str) -> None:
        """Note that a folded file is there no more."""
        with self.branches.lock:
            self.folded.get(name, set()).discard(key)

    def is_folded(self, key: str) -> bool:
        """Tell whether a file is one that was folded and could not be removed."""
        return any(key in keys for keys in self.folded.values())

    def disown(self, key: str) -> None:
        """Make sure that no record names a file as folded, for a new one has its name.

        Raises:
            OSError: a record cannot be written.
        """
        for name, record in list(self._written.items()):
            if key in record.folded:
                self.note_removed(name, key)
                self.write(name)

    def end_fold(self, name: str, leaves: Collection[Leaf]) -> None:
        """Note that the dead have left the tree."""
        with self.branches.lock:
            self._folding.difference_update(leaves)
            gone = name not in self.branches.tops
        if gone:
            self.retry()


_Seen = tuple[tuple[str, ...], Node, dict[Value, Any]]


def _add_up(found: list[_Seen]) -> list[RetainedSource]:
    # What the branches retain, and what the leaves that are being folded add to it.
    parts = {
        path: RetainedSource(path, node.source.label, rows)
        for path, node, rows in found
        if isinstance(node, Branch)
    }
    for path, node, rows in found:
        if isinstance(node, Leaf) and path[:-1] in parts:
            kept = parts[path[:-1]].rows
            for value, number in rows.items():
                before = kept.get(value)
                # Of a peak, 0 is what is shown where none is retained.
                bare = before is None or (value.kind is Kind.PEAK and not before)
                kept[value] = number if bare else add_numbers(value, [before, number])
    return list(parts.values())


def _thin(parts: list[RetainedSource]) -> list[RetainedSource]:
    # Without branches that retain nothing, nor does anything on them.
    needed: set[tuple[str, ...]] = set()
    for part in reversed(parts):
        if part.rows or part.path in needed:
            needed.update((part.path, part.path[:-1]))
    return [part for part in parts if part.path in needed]

"""Directories: the arrays that one source has, and the files that they make.

Owns which files a directory shows, and reading and clearing them. The tree, its references and its
changes are the business of `sources`.

Threading: what is here changes under the tree's lock only, and is read without it.
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from statsfs.exceptions import BaseMismatchError, ReadOnlyValueError
from statsfs.model.arrays import Array, Entry, File, Key, Layout, make_layout
from statsfs.model.readers import convert_number, describe_number
from statsfs.tree.index import Flat
from statsfs.tree.lock import lock_tree
from statsfs.tree.refresh import Refresher

__all__ = ["Directory"]

log = logging.getLogger(__name__)


class Directory:
    """The arrays of a source over their bases, and those of all that is below.

    This is what a filesystem needs of a source besides the tree; `Source` is the one subclass.

    Attributes:
        version: changes when the files may not be as they were.
        cached: the layout of a version, if it was worked out.
    """

    __slots__ = (
        "__weakref__",
        "_complaints",
        "_entries",
        "_flats",
        "_revoked",
        "cached",
        "version",
    )

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._revoked = 0
        self._flats: dict[Array, Flat] = {}
        self.version = 0
        self.cached: tuple[int, Layout] | None = None
        self._complaints: set[object] | None = None

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        raise NotImplementedError

    @property
    def files(self) -> Mapping[str, File]:
        """The files that the directory shows, by name."""
        return self._current_layout().files

    def _current_layout(self) -> Layout:
        cached = self.cached
        # The version is read before the tree is looked at, so that a layout made of what changes
        # at the same moment is made again.
        version = self.version
        if cached is not None and cached[0] == version:
            return cached[1]
        layout = self._make_layout()
        self.cached = (version, layout)
        self._complain_of_losses(layout)
        return layout

    def layout_at(self, version: int) -> Layout | None:
        """Return which files the directory showed in a version, or None if that has passed."""

        def make() -> Layout | None:
            if self.version != version:
                return None
            layout = self._make_layout()
            self.cached = (version, layout)
            return layout

        layout = lock_tree(make)
        if layout is not None:
            self._complain_of_losses(layout)
        return layout

    def _make_layout(self) -> Layout:
        entries = [entry for entry in list(self._entries.values()) if not entry.hidden]
        return make_layout(
            [entry.array for entry in entries if not entry.declared],
            [entry.array for entry in entries if entry.declared],
            [array for array, flat in self._flats.copy().items() if flat.below],
            self.shows_directory,
        )

    def _complain_of_losses(self, layout: Layout) -> None:
        for loss in layout.losses:
            taken_by = "a subdirectory" if loss.winner is None else "another array"
            name = loss.files[0].value.name
            self.complain(
                (loss.files, loss.winner), f"{name!r} is not shown: {taken_by} has {loss.name!r}"
            )

    def shows_directory(self, name: str) -> bool:
        """Tell whether a name is that of a visible subordinate."""
        raise NotImplementedError

    def check_answers(self) -> None:
        """Raise UnavailableError if who must be asked for the numbers here does not answer."""
        raise NotImplementedError

    def weigh(self) -> int:
        """Return how many numbers the subtree has, or very many if reading some runs foreign code.

        Histograms count as often as they have buckets.
        """
        weight = 0
        for array, flat in self._flats.copy().items():
            if not all(reader.plain for reader in flat.groups.copy()):
                return sys.maxsize
            weight += len(flat) * array.size
        return weight

    def complain(self, key: object, message: str) -> None:
        """Log a warning about this source, once for each `key`."""
        if self._complaints is None:
            self._complaints = set()
        if key not in self._complaints:
            self._complaints.add(key)
            log.warning("%s: %s", self.path, message)

    def entry_of(self, file: File) -> Entry | None:
        """Return the entry that an own value of this source is read from; None for an aggregate."""
        return self._entries.get((file.array, "own")) if file.kind is None else None

    def read_file(self, file: File, entry: Entry | None) -> Any:
        """Read a file of this source, even one that it shows no longer: an integer or buckets.

        Args:
            file: one of `files`.
            entry: `entry_of(file)` at the time it was found.

        Raises:
            UnavailableError: who must be asked does not answer.
            BaseMismatchError: the base holds no integer for an own value.
        """
        if Refresher.made:
            self.check_answers()
        if file.kind is None:
            return self._read_own(file, entry)
        flat = self._flats.get(file.array)
        if flat is None:
            return file.value.zero
        number, broken = flat.reduce(file)
        if broken is not None:
            # The broken source keeps what was said of it: it may be the first to go.
            name = file.value.name
            broken.source.complain(
                ("left out", broken, name),
                f"left out of aggregates: {name!r} holds no {describe_number(file.value)}",
            )
        return number

    def _read_own(self, file: File, entry: Entry | None) -> Any:
        base = entry and entry.base
        if entry is None or base is None or entry.reader is None:
            return file.value.zero
        try:
            return convert_number(file.value, entry.reader.read(base, file.index))
        except Exception as error:
            raise BaseMismatchError(
                f"{self.path}: {file.name!r} holds no {describe_number(file.value)}: {error}", base
            ) from error

    def clear_file(self, file: File, entry: Entry | None) -> None:
        """Write 0 into a file of this source, whatever its mode; the arguments as for `read_file`.

        Raises:
            UnavailableError: who must be asked does not answer.
            ReadOnlyValueError: the base of an own value refuses.
        """
        if Refresher.made:
            self.check_answers()
        if file.kind is None:
            base = entry and entry.base
            if entry is not None and base is not None and entry.reader is not None:
                try:
                    entry.reader.clear(base, file.index)
                except ReadOnlyValueError as error:
                    raise ReadOnlyValueError(f"{self.path}: {error}", error.offender) from error
                if entry.source.cleared is not None:
                    entry.source.cleared()
            return
        flat = self._flats.get(file.array)
        if flat is None:
            return
        refused, told = flat.clear(file.index)
        for cleared in told:
            cleared()
        if refused:
            first, reason = refused[0]
            log.warning(
                "%s: clearing %r: %d bases refused, first that of %s: %s",
                self.path, file.name, len(refused), first.source.path, reason,
            )  # fmt: skip

"""Directories: the arrays that one source has, and the files that they make.

Owns which files a directory shows, and reading and clearing them. The tree, its references and its
changes are the business of `sources`.

Threading: what is here changes under the tree's lock only, and is read without it.
"""

import logging
import operator
from collections.abc import Mapping

from statsfs.arrays import Array, Entry, File, Key, Layout, make_layout
from statsfs.exceptions import BaseMismatchError, ReadOnlyValueError
from statsfs.flats import Flat

__all__ = ["Directory"]

log = logging.getLogger(__name__)


class Directory:
    """The arrays of a source over their bases, and those of all that is below.

    This is what a filesystem needs of a source besides the tree; `Source` is the one subclass.
    """

    __slots__ = (
        "__weakref__",
        "_complaints",
        "_entries",
        "_flats",
        "_layout",
        "_revoked",
        "_version",
    )

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._revoked = 0
        self._flats: dict[Array, Flat] = {}
        self._version = 0
        self._layout: tuple[int, Layout] | None = None
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
        cached = self._layout
        # The version is read before the tree is looked at, so that a layout made of what changes
        # at the same moment is made again.
        version = self._version
        if cached is not None and cached[0] == version:
            return cached[1]
        entries = [entry for entry in list(self._entries.values()) if not entry.hidden]
        layout = make_layout(
            [entry.array for entry in entries if not entry.declared],
            [entry.array for entry in entries if entry.declared],
            [array for array, flat in self._flats.copy().items() if flat.below],
            self.shows_directory,
        )
        self._layout = (version, layout)
        for loss in layout.losses:
            taken_by = "a subdirectory" if loss.winner is None else "another array"
            name = loss.files[0].value.name
            self.complain(
                (loss.files, loss.winner), f"{name!r} is not shown: {taken_by} has {loss.name!r}"
            )
        return layout

    def shows_directory(self, name: str) -> bool:
        """Tell whether a name is that of a visible subordinate."""
        raise NotImplementedError

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

    def read_file(self, file: File, entry: Entry | None) -> int:
        """Read a file of this source, even one that it shows no longer.

        Args:
            file: one of `files`.
            entry: `entry_of(file)` at the time it was found.
        """
        if file.kind is None:
            return self._read_own(file, entry)
        flat = self._flats.get(file.array)
        if flat is None:
            return 0
        number, broken = flat.reduce(file)
        if broken is not None:
            # The broken source keeps what was said of it: it may be the first to go.
            name = file.value.name
            broken.source.complain(
                ("left out", broken, name), f"left out of aggregates: {name!r} holds no integer"
            )
        return number

    def _read_own(self, file: File, entry: Entry | None) -> int:
        base = entry and entry.base
        if entry is None or base is None or entry.reader is None:
            return 0
        try:
            number = operator.index(entry.reader.read(base, file.index))  # type: ignore[arg-type]
        except Exception as error:
            raise BaseMismatchError(
                f"{self.path}: {file.name!r} holds no integer: {error}", base
            ) from error
        return int(file.value.type.convert(number))

    def clear_file(self, file: File, entry: Entry | None) -> None:
        """Write 0 into a file of this source, whatever its mode; the arguments as for `read_file`.

        Raises:
            ReadOnlyValueError: the base of an own value refuses.
        """
        if file.kind is None:
            base = entry and entry.base
            if entry is not None and base is not None and entry.reader is not None:
                try:
                    entry.reader.clear(base, file.index)
                except ReadOnlyValueError as error:
                    raise ReadOnlyValueError(f"{self.path}: {error}", error.offender) from error
            return
        flat = self._flats.get(file.array)
        refused = flat.clear(file.index) if flat is not None else []
        if refused:
            first, reason = refused[0]
            log.warning(
                "%s: clearing %r: %d bases refused, first that of %s: %s",
                self.path, file.name, len(refused), first.source.path, reason,
            )  # fmt: skip

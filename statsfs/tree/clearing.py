"""Clearing: which files may be cleared, and how.

A value is *asked* if its source or one above it has a refresh: the next refresh would overwrite a
0 in its base. Such values are read-only, unless the source of the refresh has `baseline`: then a
clear subtracts. Bases that keep baselines of their own, as `Numbers`, are cleared as ever.

Threading: any thread. Bases and functions of sources are called without the tree's lock.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from statsfs.exceptions import ReadOnlyValueError
from statsfs.model.arrays import File
from statsfs.model.baselines import Baselined, BaselineReader
from statsfs.model.values import Value
from statsfs.tree.index import Entry, Part, list_entries, make_index, record_clear
from statsfs.tree.lock import TreeChange, apply_change
from statsfs.tree.refresh import Refresher

if TYPE_CHECKING:
    from statsfs.tree.directory import Directory
    from statsfs.tree.source import Source

__all__ = ["check_writable", "clear_file", "find_mode", "is_told_of_clears", "list_read_only"]

log = logging.getLogger(__name__)


def _refuse(directory: "Directory", name: str, why: str = "") -> NoReturn:
    raise ReadOnlyValueError(f"{directory.path}: {name!r} cannot be cleared{why}", name)


# Which may be cleared


def _is_kept(refresher: Refresher | None, value: Value) -> bool:
    # Whether a refresh brings a value that a clear must leave alone.
    return refresher is not None and not (refresher.baseline and value.cumulative)


class _AskedError(ReadOnlyValueError):
    """A refresh would bring the value back; it is raised as a plain ReadOnlyValueError."""


def _check_asked(value: Value, entry: Entry) -> None:
    # Raises if a value of an entry must not be cleared, as a refresh brings it.
    if Refresher.made and entry.reader is not None and not entry.reader.subtracts:
        directory = entry.source._directory
        if _is_kept(directory.find_refresher(), value):
            text = f"{directory.path}: {value.name!r} is brought by a refresh"
            raise _AskedError(text, value.name)


def _is_writable(directory: "Directory", file: File) -> bool:
    # Whether a file with a write bit can be cleared. A total may cover values that are not asked,
    # too: only the clear finds out whether it covers one.
    refresher = directory.find_refresher()
    if not _is_kept(refresher, file.value):
        return True
    if file.kind is None:
        entry = directory.entry_of(file)
        readers = [] if entry is None or entry.reader is None else [entry.reader]
    else:
        readers = [one for index, _ in directory.parts(file) for one in list(index.groups)]
        if not all(_is_kept(one, file.value) for one in list(directory.refreshers or ())):
            return True
    return not readers or any(reader.subtracts for reader in readers)


def find_mode(directory: "Directory", file: File) -> int:
    """Return the mode of a directory's file: without write bits if it cannot be cleared."""
    mode = file.value.mode
    if Refresher.made and file.value.writable and not _is_writable(directory, file):
        return mode & 0o444
    return mode


def list_read_only(directory: "Directory", files: Iterable[File]) -> frozenset[File]:
    """Return those of a directory's files that have write bits, but cannot be cleared."""
    if not Refresher.made:
        return frozenset()
    return frozenset(file for file in files if find_mode(directory, file) != file.value.mode)


def check_writable(directory: "Directory", file: File) -> None:
    """Raise ReadOnlyValueError if a directory's file has no write bit."""
    if not find_mode(directory, file) & 0o222:
        _refuse(directory, file.name)


# Clearing


def is_told_of_clears(source: "Source") -> bool:
    """Tell whether a function of the source records a clear, or is called after it."""
    return source._recorder is not None or source._cleared is not None


def clear_file(directory: "Directory", file: File, entry: Entry | None) -> None:
    """Write 0 into a file, whatever its mode; the arguments as for `Directory.read`.

    Raises:
        UnavailableError: a refresh of this source or one above it failed, or the number of an
            own value is unknown.
        ReadOnlyValueError: the base of an own value refuses, or all that an aggregate covers are
            read-only, as a refresh brings them.
        SegmentError: the clear cannot be recorded; then nothing is cleared.
    """
    if Refresher.made:
        directory.check_refreshed()
    if file.kind is not None:
        parts = directory.parts(file)
        if Refresher.made:
            _keep_baselines(parts, file.value)
        record_clear(parts, partial(_clear_parts, directory, file, parts))
        return
    # Another entry may be in its place since the file was opened.
    if entry is not None and entry.base is None:
        entry = directory.entries.get(entry.key)
    if entry is None or entry.reader is None or entry.base is None:
        return
    entry.check_known(file)
    try:
        _check_asked(file.value, entry)
    except _AskedError as error:
        _refuse(directory, file.name, f": {error}")
    if Refresher.made:
        _keep_baselines([(make_index(entry), file.index)], file.value)
        entry = directory.entries.get(entry.key, entry)
    record_clear([(make_index(entry), file.index)], partial(_clear_own, directory, entry, file))


def _clear_parts(directory: "Directory", file: File, parts: Sequence[Part]) -> None:
    refused: list[tuple[Entry, ReadOnlyValueError]] = []
    told: dict[Callable[[], object] | None, None] = {}
    for index, place in parts:
        refused += index.clear(place, told, partial(_check_asked, file.value))
    for cleared in told:
        if cleared is not None:
            cleared()
    asked = [error for _, error in refused if isinstance(error, _AskedError)]
    if asked and not told:  # nothing was cleared
        _refuse(directory, file.name, f": {asked[0]}")
    if refused:
        text = "clearing %r: %d bases refused, first that of %s: %s"
        entry, error = refused[0]
        directory.warn(log, text, file.name, len(refused), entry.source.path, error)


def _clear_own(directory: "Directory", entry: Entry, file: File) -> None:
    assert entry.reader is not None
    try:
        entry.reader.clear(entry.base, file.index)
    except ReadOnlyValueError as error:
        raise ReadOnlyValueError(f"{directory.path}: {error}", error.offender) from error
    if entry.source._cleared is not None:
        entry.source._cleared()


def _keep_baselines(parts: Sequence[Part], value: Value) -> None:
    # From now on the bases of asked values are read less their baselines.
    found = [
        entry
        for reader, entry, _, _ in list_entries(parts)
        if not (reader.subtracts or isinstance(reader, BaselineReader))
        and (refresher := entry.source._directory.find_refresher()) is not None
        and not _is_kept(refresher, value)
    ]
    for entry in found:
        apply_change(partial(_replace_entry, entry))


def _replace_entry(entry: Entry, change: TreeChange) -> None:
    directory = entry.source._directory
    if entry.reader is None or directory.entries.get(entry.key) is not entry:
        return  # another clear was first, or it has left
    reader = entry.array.binder.subtract_baselines(entry.reader)
    directory.replace_entry(
        change, entry, replace(entry, reader=reader, base=Baselined(entry.base))
    )

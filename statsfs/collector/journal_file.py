"""Journal files: what outlives a collector, on disk.

Owns the files in `.retained/`, one for each top-level name, and their format. What a record has,
and when it is written, is decided in `journal`. A file is JSON in ASCII::

    {"version": 3, "name": "app",
     "values": [{"name": "requests", "type": "u64", ...}],      all fields of each value
     "sources": [{"path": ["app"], "label": null, "collapse": true,
                  "retained": [[[0, 17]]]}],    arrays, each of values by index with their numbers
     "baselines": {"0123456789abcdef": {"requests": 5}},    by the ids of files
     "folded": ["123456789abcdef0"],
     "removed": ["23456789abcdef01"]}

A number is an integer, or the list of a histogram's buckets. A file is renamed over the old one, so
that it is never there in part. It is not synchronised to the disk: a collector's death loses
nothing that the kernel has, and /run, where segments belong, ends with the kernel. A file of
version 2, which names files in place of their ids, or of version 1, in the segments' format, is
read, and replaced by the next write.

Threading: no lock; the caller has that of `journal`.
"""

import contextlib
import errno
import json
import logging
import os
import stat
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Final

from statsfs.collector.known_values import is_integer, is_number_of
from statsfs.collector.trusted_directory import Location, TrustedDirectory, identify
from statsfs.exceptions import FormatError, SegmentError
from statsfs.formats import binary
from statsfs.formats.binary import Number
from statsfs.formats.described_values import describe_whole, make_value
from statsfs.formats.metric_names import make_label
from statsfs.model.arrays import split_array
from statsfs.model.values import Type, Value, check_name
from statsfs.segments.file_format import MAGIC

__all__ = [
    "RETAINED",
    "Baselines",
    "JournalFiles",
    "JournalRecord",
    "KeptBaselines",
    "RetainedRows",
    "RetainedSource",
    "ValueTable",
    "count_integers",
    "decode_record",
    "encode_record",
]

RETAINED: Final = ".retained"

log = logging.getLogger(__name__)

# Bytes; 10,000 segments of which 47 values were cleared take 14 million.
_RECORD_MAX: Final = 1 << 28
_VERSION: Final = 3
_BUFFER_SIZE: Final = 1 << 16  # bytes; larger parts are written without being copied
_TEMPORARY: Final = ".new"  # the names of sources do not start with "."

_SEPARATORS: Final = (",", ":")

Baselines = dict[str, Number]


class KeptBaselines(Baselines):
    """Baselines that do not change any more, with their text in a record."""

    __slots__ = ("size", "text")

    def __init__(self, baselines: Baselines) -> None:
        super().__init__(baselines)
        self.size: Final = count_integers(baselines)
        self.text: Final = _dump(baselines)


def count_integers(baselines: Baselines) -> int:
    """Return how many integers some baselines are."""
    return sum(len(one) if isinstance(one, list) else 1 for one in baselines.values())


RetainedRows = dict[tuple[Value, ...], tuple[Number, ...]]
"""By array, for each value a sum, a peak or buckets; the arrays are those of `split_array`."""


@dataclass(slots=True)
class RetainedSource:
    """What one path source retains.

    Attributes:
        text: all of it, if that was encoded and is short.
        texts: else rows as they were encoded last, and their texts; shared by copies. Both are for
            one `ValueTable`.
    """

    path: tuple[str, ...]
    label: str | None
    rows: RetainedRows
    collapse: bool = True
    text: bytes | None = field(default=None, compare=False, repr=False)
    texts: dict[tuple[Value, ...], tuple[tuple[Number, ...], bytes]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def copy(self, rows: RetainedRows) -> "RetainedSource":
        """Return a copy with other rows."""
        for array in self.texts.keys() - rows.keys():
            del self.texts[array]
        return replace(self, rows=rows, text=None)


class ValueTable:
    """The values in records of one top-level name, which rows have by their indices.

    It only grows, so that texts of rows stay valid.
    """

    def __init__(self) -> None:
        self.texts: Final[list[bytes]] = []
        self._indices: Final[dict[Value, int]] = {}

    def encode_row(self, array: tuple[Value, ...], row: tuple[Number, ...]) -> bytes:
        """Return the text of a row."""
        return _dump(list(zip(map(self._find, array), row, strict=True)))

    def _find(self, value: Value) -> int:
        index = self._indices.setdefault(value, len(self.texts))
        if index == len(self.texts):
            self.texts.append(_dump(describe_whole(value)))
        return index


@dataclass(slots=True)
class JournalRecord:
    """What outlives a collector of one top-level name.

    Attributes:
        sources: the path sources, each before those below it.
        baselines: what was cleared of living segments, by the ids of their files; in a file of an
            older version by their keys, which end in ".stats".
        folded: the ids, or keys, of files that `sources` count already and that may exist.
        removed: the ids of those that were removed, of which copies may exist.
        table: the values in the texts of `sources`.
    """

    sources: list[RetainedSource] = field(default_factory=list)
    baselines: dict[str, Baselines] = field(default_factory=dict)
    folded: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    table: ValueTable = field(default_factory=ValueTable, compare=False, repr=False)

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost without it."""
        return not (self.baselines or self.folded or any(one.rows for one in self.sources))


def encode_record(name: str, record: JournalRecord) -> bytes:
    """Return the contents of a record's file."""
    return b"".join(_encode(name, record))


def _encode(name: str, record: JournalRecord) -> list[bytes]:
    # In parts, most of which were encoded before: a record of a million numbers takes 0.3 s, and
    # is written whenever somebody dies.
    sources = _join(_encode_source(one, record.table) for one in record.sources)
    baselines = _join(
        [_dump(key), b":", one.text if isinstance(one, KeptBaselines) else _dump(one)]
        for key, one in record.baselines.items()
    )
    head = b'{"version":%d,"name":%s,"values":[' % (_VERSION, _dump(name))
    end = _dump({"folded": record.folded, "removed": record.removed})
    values = _join([one] for one in record.table.texts)
    middle = [b'],"sources":[', *sources, b'],"baselines":{', *baselines, b"},", end[1:]]
    return [head, *values, *middle]


def _encode_source(one: RetainedSource, table: ValueTable) -> list[bytes]:
    if one.text is not None:
        return [one.text]
    texts = []
    for array, row in one.rows.items():
        before, text = one.texts.get(array, ((), b""))
        if before != row:
            text = table.encode_row(array, row)
            one.texts[array] = row, text
        texts.append(text)
    what = _dump({"path": one.path, "label": one.label, "collapse": one.collapse})
    parts = [what[:-1], b',"retained":[', *_join([text] for text in texts), b"]}"]
    if sum(map(len, texts)) < _BUFFER_SIZE:
        one.texts.clear()
        one.text = b"".join(parts)
        parts = [one.text]
    return parts


def _join(parts: Iterable[list[bytes]]) -> list[bytes]:
    # The parts, with commas between them.
    joined = list(chain.from_iterable((b",", *part) for part in parts))
    return joined[1:]


def _dump(described: object) -> bytes:
    return json.dumps(described, separators=_SEPARATORS).encode()


def decode_record(name: str, encoded: bytes) -> JournalRecord:
    """Return the record in a file; or raise FormatError, with a message of one line."""
    try:
        described = json.loads(encoded) if encoded[:1] == b"{" else _convert_version_1(encoded)
        if described["version"] not in (2, _VERSION) or described["name"] != name:
            raise ValueError(f"not version 2 or {_VERSION}, or not a record of that name")
        values = [make_value(one) for one in described["values"]]
        sources = _make_sources(name, described["sources"], values)
        baselines = {key: _check_baselines(one) for key, one in described["baselines"].items()}
        folded, removed = described["folded"], described.get("removed", ())
        return JournalRecord(sources, baselines, [*map(str, folded)], [*map(str, removed)])
    except (
        ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError
    ) as error:  # fmt: skip
        raise FormatError(f"a broken record: {ascii(str(error))[1:-1][:200]}", name) from None


def _check_baselines(described: dict[str, Any]) -> Baselines:
    # Whether they fit a value is known when the segment is.
    for number in described.values():
        if not all(map(is_integer, number if isinstance(number, list) else [number])):
            raise ValueError("a baseline is not an integer")
    return described


def _make_sources(name: str, described: list[Any], values: list[Value]) -> list[RetainedSource]:
    sources: dict[tuple[str, ...], RetainedSource] = {}
    for one in described:
        path = tuple(check_name(component, "a component") for component in one["path"])
        label = None if one["label"] is None else make_label(check_name(one["label"], "a label"))
        if path in sources or not (path == (name,) or path[:-1] in sources):
            raise ValueError(f"misplaced source {path}")
        rows: RetainedRows = {}
        for row in one["retained"]:
            array = tuple(values[index] for index, _ in row)
            numbers = tuple(number for _, number in row)
            if split_array(array) != [array] or not all(map(is_number_of, array, numbers)):
                raise ValueError(f"{path} retains what is not a number of its value")
            rows[array] = numbers
        sources[path] = RetainedSource(path, label, rows, one.get("collapse", True) is True)
    return list(sources.values())


def _convert_version_1(encoded: bytes) -> dict[str, Any]:
    # All numbers were the data, in chunks, in the order of the indices in `parts`.
    found = binary.decode(encoded)
    start = found.layout.desc_end + len(MAGIC) + 8
    size = int.from_bytes(encoded[start - 8 : start - 4], sys.byteorder)
    described = json.loads(encoded[start : start + size])["retained"]
    values = [make_value(one) for one in described["values"]]
    numbers = chain.from_iterable(n if isinstance(n, list) else (n,) for n in found.numbers)

    def take(value: Value) -> Number:
        taken = list(islice(numbers, value.size))
        if value.histogram:
            return taken
        # Negative ones as two's complement. A sum has 64 bits, whatever its value's type.
        return Type.S64.convert(taken[0]) if value.type.signed else taken[0]

    described["sources"] = [
        {"path": path, "label": label, "retained": [[(i, take(values[i]))] for i in some]}
        for path, label, some in described["parts"]
    ]
    return {**described, "version": _VERSION, "name": found.id}


class JournalFiles:
    """The files in `.retained/` of a collector's directory, if no other user may write there.

    The directory is made if it is missing. If it is refused, that is a SegmentError of one line.

    Attributes:
        path: the directory, for messages.
    """

    def __init__(self, directory: TrustedDirectory) -> None:
        self._directory: Final = directory
        self.path: Final = f"{directory.path}/{RETAINED}"
        self._fd = -1
        self._open()

    def _open(self) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(RETAINED, 0o700, dir_fd=self._directory.fd)
            self._fd = os.open(RETAINED, flags, dir_fd=self._directory.fd)
        except OSError as error:
            raise SegmentError(f"{self.path}: {error.strerror}", self.path, error.errno) from None
        self._check_owner()

    def _check_owner(self) -> None:
        status = os.fstat(self._fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            found = f"user {status.st_uid}'s with mode {status.st_mode & 0o777:o}"
            why = f"{self.path} is {found}, not user {os.geteuid()}'s with 700"
            self.close()
            raise SegmentError(why, self.path)

    def close(self) -> None:
        """Close the directory, if it is open."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def check(self) -> bool:
        """Open the directory anew if another one, or none, is in its place; return whether so.

        If it is refused, that is a SegmentError; nothing is written then.
        """
        here = Location(self._directory, RETAINED).find()
        if self._fd >= 0 and here is not None and identify(here) == identify(os.fstat(self._fd)):
            self._check_owner()
            return False
        self.close()
        self._open()
        log.warning("%s is another directory now: all records are written again", self.path)
        return True

    def find_missing(self, names: Iterable[str]) -> set[str]:
        """Return the names of which there is no record, if the directory can be read."""
        with contextlib.suppress(OSError):
            return {*names}.difference(os.listdir(self._fd))
        return set()

    def load(self) -> dict[str, JournalRecord]:
        """Return all records by their names; one that cannot be used is put aside, and logged."""
        found = {}
        for name in sorted(os.listdir(self._fd)):
            if name.startswith("."):
                continue
            try:
                found[name] = self._read(name)
            except FormatError as error:
                self._put_aside(name, error)
            except OSError as error:
                self._put_aside(name, error.strerror)
            except Exception as error:
                # Whatever is in it, the others are needed.
                self._put_aside(name, ascii(error)[:200])
        return found

    def _read(self, name: str) -> JournalRecord:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=self._fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError("not a regular file", name)
            if status.st_size > _RECORD_MAX:
                raise FormatError(f"{status.st_size} bytes, not at most {_RECORD_MAX}", name)
            with open(fd, "rb", closefd=False) as file:
                return decode_record(name, file.read())
        finally:
            os.close(fd)

    def _put_aside(self, name: str, why: object) -> None:
        aside = f".broken-{time.time_ns()}"
        try:
            os.rename(name, aside, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError as error:
            aside = f"it is, as it cannot be renamed: {error.strerror}"
        shown = ascii(name)[1:-1]
        log.error("%s/%s: %s; it is kept as %s", self.path, shown, why, aside)

    def write(self, name: str, record: JournalRecord) -> None:
        """Replace the record of a name, or raise OSError; an empty one has no file."""
        encoded = [] if record.empty else _encode(name, record)
        size = sum(map(len, encoded))
        if size > _RECORD_MAX:
            raise OSError(errno.EFBIG, f"{size} bytes, not at most {_RECORD_MAX}")
        for way in (name, _TEMPORARY):
            self._clear_way(way)
        if not encoded:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)
            return
        # Not that of a write which a signal handler's clear met: that one fails, and is repeated.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_TEMPORARY, dir_fd=self._fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(_TEMPORARY, flags, 0o600, dir_fd=self._fd)
            with open(fd, "wb", _BUFFER_SIZE) as file:
                file.writelines(encoded)
            os.replace(_TEMPORARY, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(_TEMPORARY, dir_fd=self._fd)
            raise

    def _clear_way(self, name: str) -> None:
        # No file is renamed over a directory, and opening a pipe waits for its other end.
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                self._put_aside(name, "not a regular file")

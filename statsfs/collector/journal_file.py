"""Journal files: what outlives a collector, on disk.

Owns the files in `.retained/`, one for each top-level name, and their format. What a record has,
and when it is written, is decided in `journal`. A file is JSON in ASCII::

    {"version": 2, "name": "app",
     "values": [{"name": "requests", "type": "u64", ...}],      all fields of each value
     "sources": [{"path": ["app"], "label": null, "collapse": true,
                  "retained": [[[0, 17]]]}],    arrays, each of values by index with their numbers
     "baselines": {"a-01.stats": {"requests": 5}},
     "folded": ["b-02.stats"]}

A number is an integer, or the list of a histogram's buckets. A file is renamed over the old one, so
that it is never there in part. It is not synchronised to the disk: a collector's death loses
nothing that the kernel has, and /run, where segments belong, ends with the kernel. A file of
version 1, in the segments' format, is read, and replaced by the next write.

Threading: no lock; the caller has that of `journal`.
"""

import contextlib
import errno
import json
import logging
import os
import sys
import time
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain, islice
from typing import Any, Final

from statsfs.collector.known_values import is_number_of
from statsfs.collector.trusted_directory import TrustedDirectory
from statsfs.exceptions import FormatError, SegmentError
from statsfs.formats import binary
from statsfs.formats.binary import Number
from statsfs.formats.schema import describe_value
from statsfs.model.arrays import split_array
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value, check_name
from statsfs.segments.file_format import MAGIC

__all__ = [
    "Baselines",
    "JournalFiles",
    "JournalRecord",
    "RetainedRows",
    "RetainedSource",
    "decode_record",
    "encode_record",
]

log = logging.getLogger(__name__)

# Bytes; 10,000 segments of which 47 values were cleared take 14 million.
_RECORD_MAX: Final = 1 << 28
_RETAINED: Final = ".retained"
_VERSION: Final = 2
_TEMPORARY: Final = ".new"  # the names of sources do not start with "."

Baselines = dict[str, Number]

RetainedRows = dict[tuple[Value, ...], tuple[Number, ...]]
"""By array, for each value a sum, a peak or buckets; the arrays are those of `split_array`."""


@dataclass(slots=True)
class RetainedSource:
    """What one path source retains."""

    path: tuple[str, ...]
    label: str | None
    rows: RetainedRows
    collapse: bool = True


@dataclass(slots=True)
class JournalRecord:
    """What outlives a collector of one top-level name.

    Attributes:
        sources: the path sources, each before those below it.
        baselines: what was cleared of living segments, by the keys of their files.
        folded: the keys of files that `sources` count already, whether the files exist or not.
    """

    sources: list[RetainedSource] = field(default_factory=list)
    baselines: dict[str, Baselines] = field(default_factory=dict)
    folded: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost without it."""
        return not (self.baselines or self.folded or any(one.rows for one in self.sources))


def encode_record(name: str, record: JournalRecord) -> bytes:
    """Return the contents of a record's file."""
    indices: dict[Value, int] = {}
    sources = []
    for one in record.sources:
        retained = []
        for array, row in one.rows.items():
            places = [indices.setdefault(value, len(indices)) for value in array]
            retained.append(list(zip(places, row, strict=True)))
        what = {"path": one.path, "label": one.label, "collapse": one.collapse}
        sources.append({**what, "retained": retained})
    described = {
        "version": _VERSION,
        "name": name,
        "values": [_describe(value) for value in indices],
        "sources": sources,
        "baselines": record.baselines,
        "folded": record.folded,
    }
    return json.dumps(described, separators=(",", ":")).encode()


def _describe(value: Value) -> dict[str, Any]:
    rest = {"name": value.name, "mode": value.mode, "hidden": value.hidden}
    return {**rest, "size": value.size, "bucket_size": value.bucket_size, **describe_value(value)}


def decode_record(name: str, encoded: bytes) -> JournalRecord:
    """Return the record in a file; or raise FormatError, with a message of one line."""
    try:
        described = json.loads(encoded) if encoded[:1] == b"{" else _convert_version_1(encoded)
        if (described["version"], described["name"]) != (_VERSION, name):
            raise ValueError(f"not version {_VERSION}, or not a record of that name")
        values = [_make_value(one) for one in described["values"]]
        sources = _make_sources(name, described["sources"], values)
        baselines = {str(key): dict(found) for key, found in described["baselines"].items()}
        return JournalRecord(sources, baselines, [str(key) for key in described["folded"]])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise FormatError(f"a broken record: {ascii(str(error))[1:-1][:200]}", name) from None


def _make_value(described: dict[str, Any]) -> Value:
    kinds = (Aggregate[kind.upper()] for kind in described["aggregate"])
    aggregate = reduce(Aggregate.__or__, kinds, Aggregate.NONE)
    enums = {"type": Type, "kind": Kind, "unit": Unit}
    members: dict[str, Any] = {key: enum[described[key].upper()] for key, enum in enums.items()}
    return Value(**{**described, **members, "aggregate": aggregate})


def _make_sources(name: str, described: list[Any], values: list[Value]) -> list[RetainedSource]:
    sources: dict[tuple[str, ...], RetainedSource] = {}
    for one in described:
        path = tuple(check_name(component, "a component") for component in one["path"])
        label = None if one["label"] is None else check_name(one["label"], "a label")
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
    values = [_make_value(one) for one in described["values"]]
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
    """The files in `.retained/` of a collector's directory, if no other user may write there."""

    def __init__(self, directory: TrustedDirectory) -> None:
        self._path: Final = f"{directory.path}/{_RETAINED}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(_RETAINED, 0o700, dir_fd=directory.fd)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(_RETAINED, flags, dir_fd=directory.fd)
        status = os.fstat(self._fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            self.close()
            found = f"user {status.st_uid}'s with mode {status.st_mode & 0o777:o}"
            why = f"{self._path} is {found}, not user {os.geteuid()}'s with 700"
            raise SegmentError(why, self._path)

    def close(self) -> None:
        """Close the directory, if it is open."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def load(self) -> dict[str, JournalRecord]:
        """Return all records by their names; a broken one is renamed, and logged."""
        found = {}
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        for name in sorted(os.listdir(self._fd)):
            if name.startswith("."):
                continue
            try:
                with open(os.open(name, flags, dir_fd=self._fd), "rb") as file:
                    found[name] = decode_record(name, file.read(_RECORD_MAX))
            except (FormatError, OSError) as error:
                aside = f".broken-{time.time_ns()}"
                log.error("%s/%s: %s; it is kept as %s", self._path, name, error, aside)
                os.rename(name, aside, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        return found

    def write(self, name: str, record: JournalRecord) -> None:
        """Replace the record of a name, or raise OSError; an empty one has no file."""
        if record.empty:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._fd)
            return
        encoded = encode_record(name, record)
        if len(encoded) > _RECORD_MAX:
            raise OSError(errno.EFBIG, f"{len(encoded)} bytes, not at most {_RECORD_MAX}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(_TEMPORARY, flags, 0o600, dir_fd=self._fd), "wb") as file:
                file.write(encoded)
            os.replace(_TEMPORARY, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(_TEMPORARY, dir_fd=self._fd)
            raise

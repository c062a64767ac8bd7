"""Records: what outlives a collector.

Owns the files in `.retained/` of its directory, one for each top-level name, and what is in them:
what each branch retains, what was cleared of living segments, and which files are folded into it
already. What goes into a record, and when, is the business of `ledger`.

A record is an object of the format of segments (`blocks`), with the top-level name as its path. Its
data are all integers in the order in which `retained` in the JSON lists them; that is what a plain
decoder sees of it, as histograms named `numbers`, since one name may stand for many values.

A record is written whole, under a temporary name, and renamed over the old one: it is there as it
was or as it is to be. It is not synchronised to the disk: what the death of a collector leaves is
in the kernel's hands, and in /run, where segments belong, nothing outlives the kernel.

Threading: none of its own; whoever writes holds the lock of `ledger`.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from statsfs.collector.trusted_directory import SegmentDirectory
from statsfs.exceptions import FormatError, SegmentError, StatsfsError
from statsfs.formats.schema import describe_value
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.segments.file_format import decode, decode_extra, encode

__all__ = ["RECORD_MAX", "RETAINED", "Part", "Record", "Records", "decode_record", "encode_record"]

log = logging.getLogger(__name__)

RETAINED: Final = ".retained"
RECORD_MAX: Final = 1 << 28
"""Bytes of a record; 10,000 segments of which 47 values were cleared take 14 million."""

_CHUNK: Final = 0xFFFF  # integers of one histogram
_TEMPORARY: Final = ".new"  # no name of a source begins so

Baselines = dict[str, Any]


@dataclass(slots=True)
class Part:
    """What one branch retains.

    Attributes:
        path: its components.
        label: its label, or None.
        rows: for each value a sum, a peak or buckets.
    """

    path: tuple[str, ...]
    label: str | None
    rows: dict[Value, Any]


@dataclass(slots=True)
class Record:
    """What outlives a collector of one top-level name.

    Attributes:
        parts: one for each branch, each before what is on it; none where the name is a segment's.
        baselines: by the key of a living segment, what was cleared of its values, by name.
        folded: the keys of files that are counted in the parts, whether they are there or not.
    """

    parts: list[Part] = field(default_factory=list)
    baselines: dict[str, Baselines] = field(default_factory=dict)
    folded: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost without it."""
        return not (self.baselines or self.folded or any(part.rows for part in self.parts))


# The format


def encode_record(name: str, record: Record) -> bytes:
    """Return the file of a record."""
    described: dict[Value, int] = {}
    numbers: list[int] = []

    def index(value: Value, held: Any) -> int:
        numbers.extend(held if isinstance(held, list) else (held,))
        return described.setdefault(value, len(described))

    parts = [
        [list(part.path), part.label, [index(value, held) for value, held in part.rows.items()]]
        for part in record.parts
    ]
    said = {
        "values": [_describe(value) for value in described],
        "parts": parts,
        "baselines": record.baselines,
        "folded": record.folded,
    }
    chunks = [numbers[i : i + _CHUNK] for i in range(0, len(numbers), _CHUNK)] or [[0]]
    values = [
        Value(f"numbers.{place}", kind=Kind.LINEAR_HIST, size=len(chunk), bucket_size=1)
        for place, chunk in enumerate(chunks)
    ]
    extra = {"retained": said}
    return encode(name, values, numbers=chunks, extra=extra, most=RECORD_MAX)


def _describe(value: Value) -> dict[str, Any]:
    return {
        "name": value.name,
        "mode": value.mode,
        "hidden": value.hidden,
        "size": value.size,
        "bucket_size": value.bucket_size,
        **describe_value(value),
    }


def decode_record(name: str, encoded: bytes) -> Record:
    """Return the record in a file.

    Raises:
        FormatError: it is none, or another name's.
    """
    head = decode(encoded, RECORD_MAX)
    said = decode_extra(encoded).get("retained") if head is not None else None
    if head is None or head.path != name or not isinstance(said, dict):
        raise FormatError("no record of that name", name)
    numbers: list[int] = []
    for chunk in head.layout.numbers(encoded[head.data_offset :]):
        numbers.extend(chunk if isinstance(chunk, list) else (chunk,))
    try:
        values = [_make_value(described) for described in said["values"]]
        record = Record(
            list(_make_parts(said["parts"], values, iter(numbers))),
            {str(key): dict(found) for key, found in said["baselines"].items()},
            [str(key) for key in said["folded"]],
        )
        _check(name, record)
    except (ValueError, TypeError, LookupError, AttributeError, StatsfsError) as error:
        raise FormatError(f"a broken record: {ascii(str(error))[1:-1][:200]}", name) from None
    return record


def _make_value(described: dict[str, Any]) -> Value:
    aggregate = Aggregate.NONE
    for kind in described["aggregate"]:
        aggregate |= Aggregate[kind.upper()]
    return Value(
        described["name"],
        Type[described["type"].upper()],
        aggregate,
        described["mode"],
        kind=Kind[described["kind"].upper()],
        unit=Unit[described["unit"].upper()],
        base=described["base"],
        exponent=described["exponent"],
        description=described["description"],
        hidden=described["hidden"],
        size=described["size"],
        bucket_size=described["bucket_size"],
    )


def _make_parts(
    parts: list[Any], values: Sequence[Value], numbers: Iterator[int]
) -> Iterator[Part]:
    for path, label, indices in parts:
        rows = {values[index]: _take(values[index], numbers) for index in indices}
        yield Part(tuple(path), label, rows)


def _take(value: Value, numbers: Iterator[int]) -> Any:
    taken = [next(numbers, None) for _ in range(value.size)]
    if None in taken:
        raise ValueError("there are not as many numbers")
    if value.histogram:
        return taken
    # A sum is as wide as 64 bits, whatever its value's type.
    return (Type.S64 if value.type.signed else Type.U64).convert(taken[0] or 0)


def _check(name: str, record: Record) -> None:
    known: set[tuple[str, ...]] = set()
    for part in record.parts:
        top = part.path == (name,)
        if not top and (part.path[:1] != (name,) or part.path[:-1] not in known):
            raise ValueError(f"a part for {part.path}")
        known.add(part.path)


# The files


class Records:
    """The files of the records in a directory.

    Args:
        directory: the collector's.

    Raises:
        SegmentError: somebody else could put records there.
        OSError: the place for them cannot be made.
    """

    def __init__(self, directory: SegmentDirectory) -> None:
        self._path: Final = f"{directory.path}/{RETAINED}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(RETAINED, 0o700, dir_fd=directory.fd)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(RETAINED, flags, dir_fd=directory.fd)
        status = os.fstat(self._fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            self.close()
            raise SegmentError(
                f"{self._path} is user {status.st_uid}'s with mode {status.st_mode & 0o777:o}, "
                f"not user {os.geteuid()}'s with 700",
                self._path,
            )

    def close(self) -> None:
        """Close the directory; twice does no harm."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def load(self) -> dict[str, Record]:
        """Return all records by their names; a broken one is put aside, and logged."""
        found = {}
        for name in sorted(os.listdir(self._fd)):
            if name.startswith("."):
                continue
            try:
                found[name] = decode_record(name, self._read(name))
            except (FormatError, OSError) as error:
                aside = f".broken-{time.time_ns()}"
                log.error("%s/%s: %s; it is kept as %s", self._path, name, error, aside)
                os.rename(name, aside, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        return found

    def _read(self, name: str) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=self._fd), "rb") as file:
            return file.read(RECORD_MAX + 1)

    def write(self, name: str, record: Record) -> None:
        """Put a record in the place of the old one, whole or not at all.

        Raises:
            OSError: there is no room, say; the old one is as it was.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            encoded = encode_record(name, record)
        except FormatError as error:
            raise OSError(errno.EFBIG, str(error)) from error
        try:
            with open(os.open(_TEMPORARY, flags, 0o600, dir_fd=self._fd), "wb", 0) as file:
                left = memoryview(encoded)
                while left:
                    left = left[file.write(left) :]
            os.replace(_TEMPORARY, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(_TEMPORARY, dir_fd=self._fd)
            raise

    def remove(self, name: str) -> None:
        """Remove a record that nobody needs any more, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

"""Value files: the text of a value's file, and what may be written into it.

Owns the form of numbers, histograms and extended attributes, and the one text that is accepted.

Threading: pure, but for `render_file`, which reads a value as `Source.get_value` does.
"""

import re
from functools import lru_cache
from itertools import chain, compress, islice
from typing import Final

from statsfs.exceptions import BaseMismatchError, StatsfsError
from statsfs.formats.schema import describe_value
from statsfs.model.arrays import File
from statsfs.model.foreign import describe_error, foreign
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree.directory import Directory
from statsfs.tree.index import Entry
from statsfs.tree.pauses import pause

__all__ = [
    "FILE_SIZE",
    "BrokenValueError",
    "NotZeroError",
    "check_zero",
    "describe_file",
    "find_size",
    "is_integer",
    "render_file",
]

FILE_SIZE: Final = 4096  # as in sysfs; with 0, tar and diff would never read

_ZERO: Final = re.compile(rb"[ \t\n\v\f\r]*[+-]?(?:0[xX])?0+[ \t\n\v\f\r]*")
_LINES: Final = 256  # of a histogram between two pauses
_SHOWN: Final = (None, Aggregate.MIN, Aggregate.MAX)


class NotZeroError(StatsfsError, ValueError):
    """Something other than 0 was written."""


class BrokenValueError(StatsfsError, ValueError):
    """A value has no text: its base does not hold an integer, or its `show` fails."""


def render_file(directory: Directory, file: File, entry: Entry | None) -> bytes:
    """Return the text of a file now; the arguments are those of `Directory.read`.

    Raises:
        BrokenValueError: there is no number, or no text for it; logged once for each file.
    """
    try:
        number = directory.read(file, entry)
    except BaseMismatchError as error:
        directory.complain(("broken", file), str(error))
        raise BrokenValueError(str(error), file.name) from error
    if file.value.histogram:
        return _format_histogram(file.value, number)
    show = file.value.show
    if show is None or file.kind not in _SHOWN:
        return b"%d\n" % number
    try:
        # Whatever `show` returns: this is text, or raises.
        return b"%b\n" % str.encode(show(number))
    except foreign() as error:
        why = f"{type(error).__name__}: {describe_error(error)}"
        message = f"{file.name!r}: show({number}) failed: {why}"
        directory.complain(("show", file), message)
        raise BrokenValueError(message, file.name) from error


def is_integer(file: File) -> bool:
    """Tell whether the text of a file is one integer: not a histogram, nor a `show`'s text."""
    value = file.value
    return not value.histogram and (value.show is None or file.kind not in _SHOWN)


def _format_histogram(value: Value, buckets: list[int]) -> bytes:
    # A line for each bucket that is not empty: its lower bound and its count.
    pairs = compress(zip(value.starts, buckets, strict=True), buckets)
    lines = []
    while some := list(islice(pairs, _LINES)):
        lines.append(b"%d %d\n" * len(some) % tuple(chain.from_iterable(some)))
        pause()
    return b"".join(lines)


def check_zero(file: File, data: bytes) -> None:
    """Raise NotZeroError unless the written text is 0."""
    if not _ZERO.fullmatch(data):
        raise NotZeroError(f"only 0 can be written into {file.name!r}", file.name)


def find_size(value: Value) -> int:
    """Return the size of a histogram for stat(2): that of its longest text, in whole pages."""
    # Each lookup asks, and there may be 65,535 buckets.
    linear = value.kind is Kind.LINEAR_HIST
    last = (value.size - 1) * value.bucket_size if linear else value.starts[-1]
    longest = value.size * (len(str(last)) + len(" 18446744073709551615\n"))
    return -(-longest // FILE_SIZE) * FILE_SIZE


# `ls -l` of newer coreutils lists the attributes of each file.
@lru_cache(maxsize=256)
def describe_file(value: Value) -> dict[bytes, bytes]:
    """Return the extended attributes of a value's files."""
    described = describe_value(value)
    described["aggregate"] = ",".join(described["aggregate"]) or "none"
    if value.bounds:
        described["bounds"] = ",".join(map(str, value.bounds))
    return {f"user.statsfs.{key}".encode(): str(item).encode() for key, item in described.items()}

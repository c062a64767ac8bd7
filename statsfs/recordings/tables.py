"""The rows of a recording, as tables: its columns, and how they are encoded.

A row is a number that is another one than before, of one file (`value`) of one directory
(`source`); README, "Records and pictures", has the schema. Rows of many intervals are sorted by
value and source, so that what changes alike is side by side.

Threading: pure.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = [
    "FORMAT",
    "GONE",
    "METADATA_KEY",
    "NUMBER",
    "SCHEMA",
    "UNSIGNED",
    "Announcement",
    "Interval",
    "Names",
    "encode",
    "make_schema",
    "make_table",
    "wrap",
]

FORMAT: Final = 1
METADATA_KEY: Final = b"statsfs"
NUMBER, UNSIGNED, GONE = 0, 1, 2  # what a row has: an int64; an uint64 above those; no number
_WRAP: Final = 1 << 64

_TEXTS: Final = pa.dictionary(pa.int32(), pa.string())
SCHEMA: Final = pa.schema(
    [
        pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
        ("source", _TEXTS),
        ("value", _TEXTS),
        ("bucket", pa.int32()),
        ("number", pa.int64()),
        ("unsigned", pa.uint64()),
        ("labels", pa.string()),
        ("schema", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Announcement:
    """A source that came, or left; or whose files became others."""

    source: int
    labels: str | None
    schema: str | None


@dataclass(slots=True)
class Interval:
    """What changed between two samples; each row is the item at one index of the four lists."""

    time: int  # microseconds since 1970
    announcements: list[Announcement] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    buckets: list[int] = field(default_factory=list)  # -1 where the value is no histogram
    numbers: list[int | None] = field(default_factory=list)

    def add(self, source: int, value: int, number: int | None, bucket: int = -1) -> None:
        """Add a number."""
        self.sources.append(source)
        self.values.append(value)
        self.buckets.append(bucket)
        self.numbers.append(number)

    def pack(self) -> "Packed":
        """Return the same in a tenth of the memory."""
        numbers, states = wrap(self.numbers)
        return Packed(
            self.time,
            self.announcements,
            np.array(self.sources, np.int32),
            np.array(self.values, np.int32),
            np.array(self.buckets, np.int32),
            numbers,
            states,
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """An interval as arrays."""

    time: int
    announcements: Sequence[Announcement]
    sources: npt.NDArray[np.int32]
    values: npt.NDArray[np.int32]
    buckets: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.int64]
    states: npt.NDArray[np.uint8] | None


class Names(dict[str, int]):
    """Texts that were given numbers, from 0 up."""

    def __missing__(self, name: str) -> int:
        number = self[name] = len(self)
        return number


def wrap(
    numbers: Sequence[int | None],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8] | None]:
    """Return integers modulo 2^64, and what each is; None if all are of 64 bits with a sign."""
    try:
        return np.array(numbers, np.int64), None
    except (OverflowError, TypeError):
        pass
    states = [GONE if n is None else UNSIGNED if n >= 1 << 63 else NUMBER for n in numbers]
    pairs = zip(numbers, states, strict=True)
    wrapped = [(n or 0) - (_WRAP if state == UNSIGNED else 0) for n, state in pairs]
    return np.array(wrapped, np.int64), np.array(states, np.uint8)


def make_schema(about: Mapping[str, Any]) -> pa.Schema:
    """Return the schema, with what is known of a recording as its metadata."""
    return SCHEMA.with_metadata({METADATA_KEY: json.dumps({"format": FORMAT, **about})})


def make_table(
    intervals: Sequence[Packed], sources: Sequence[str], values: Sequence[str], schema: pa.Schema
) -> pa.Table:
    """Return the rows of intervals: first those without a number, then sorted."""
    head = _make_head(intervals, sources)
    counts = [len(one.numbers) for one in intervals]
    times = np.repeat(np.array([one.time for one in intervals], np.int64), counts)
    source = np.concatenate([one.sources for one in intervals])
    value = np.concatenate([one.values for one in intervals])
    bucket = np.concatenate([one.buckets for one in intervals])
    number = np.concatenate([one.numbers for one in intervals])
    state = np.concatenate(
        [
            np.zeros(len(one.numbers), np.uint8) if one.states is None else one.states
            for one in intervals
        ]
    )
    if len(intervals) > 1:
        # They are in the order of time already, which a stable sort keeps.
        key = value.astype(np.int64) << 44 | source.astype(np.int64) << 20 | (bucket + 1)
        order = np.argsort(key, kind="stable")
        times, source, value, bucket, number, state = (
            column[order] for column in (times, source, value, bucket, number, state)
        )
    rows = len(number)
    body = pa.Table.from_arrays(
        [
            pa.array(times, pa.int64()).cast(SCHEMA.field("time").type),
            _look_up(source, sources),
            _look_up(value, values),
            pa.array(bucket, mask=bucket < 0),
            pa.array(number, mask=state != NUMBER),
            pa.array(number.view(np.uint64), mask=state != UNSIGNED),
            pa.nulls(rows, pa.string()),
            pa.nulls(rows, pa.string()),
        ],
        schema=SCHEMA,
    )
    whole = pa.concat_tables([head, body]).unify_dictionaries()
    return whole.replace_schema_metadata(schema.metadata)


def _make_head(intervals: Sequence[Packed], sources: Sequence[str]) -> pa.Table:
    # A row for each moment, then those of sources that came and left.
    rows: list[tuple[int, str | None, str | None, str | None]]
    rows = [(one.time, None, None, None) for one in intervals]
    for one in intervals:
        rows += [(one.time, sources[a.source], a.labels, a.schema) for a in one.announcements]
    times, source, labels, schemas = zip(*rows, strict=True)
    none = pa.nulls(len(rows))
    return pa.Table.from_arrays(
        [
            pa.array(times, pa.int64()).cast(SCHEMA.field("time").type),
            pa.array(source, pa.string()).dictionary_encode(),
            none.cast(pa.string()).dictionary_encode(),
            none.cast(pa.int32()),
            none.cast(pa.int64()),
            none.cast(pa.uint64()),
            pa.array(labels, pa.string()),
            pa.array(schemas, pa.string()),
        ],
        schema=SCHEMA,
    )


def _look_up(indices: npt.NDArray[np.int32], names: Sequence[str]) -> pa.DictionaryArray:
    # With a dictionary of only those that are there: it is written with each row group.
    used, inverse = np.unique(indices, return_inverse=True)
    texts = pa.array([names[index] for index in used], pa.string())
    return pa.DictionaryArray.from_arrays(inverse.astype(np.int32), texts)


def encode(table: pa.Table) -> memoryview:
    """Return a Parquet file of one row group, or of none."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=["time", "source", "value", "labels", "schema"],
        dictionary_pagesize_limit=1 << 26,
        column_encoding={
            "bucket": "DELTA_BINARY_PACKED",
            "number": "BYTE_STREAM_SPLIT",
            "unsigned": "PLAIN",
        },
        write_statistics=["time", "source", "value"],
    ) as writer:
        if table.num_rows:
            writer.write_table(table, row_group_size=table.num_rows)
    return memoryview(sink.getvalue())

"""The rows of a recording, as tables: its columns, and how they are encoded.

A row is by how much a number differs from the one before, of one file (`value`) of one directory
(`source`); the manual, "Records and pictures", has the schema. Differences are small, where numbers
are not: that makes a recording a third as large. Rows of many intervals are sorted by source and
value, so that what changes alike is side by side.

Threading: pure.
"""

import inspect
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = [
    "FORMAT",
    "METADATA_KEY",
    "SCHEMA",
    "Announcement",
    "Interval",
    "Names",
    "Packed",
    "encode",
    "make_schema",
    "make_tables",
    "split",
]

FORMAT: Final = 1
METADATA_KEY: Final = b"statsfs"
_LOW, _HIGH = -(1 << 63), (1 << 63) - 1
_PART_ROWS: Final = 1_000_000  # sorted and encoded at once: 100 MB in memory
_RUN: Final = 4  # equal changes in a row from which on they are encoded as runs

_TEXTS: Final = pa.dictionary(pa.int32(), pa.string())
SCHEMA: Final = pa.schema(
    [
        pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
        ("source", _TEXTS),
        ("value", _TEXTS),
        ("bucket", pa.int32()),
        ("change", pa.int64()),
        ("labels", pa.string()),
        ("schema", pa.string()),
    ]
)

# A page is what is compressed at once. In small ones the names of 10,000 sources, which each value
# has again in the same order, are never found again: 430 in place of 13 MB in an hour.
_PAGES: Final[dict[str, Any]] = {
    "data_page_size": 1 << 26,
    "dictionary_pagesize_limit": 1 << 26,
    "max_rows_per_page": 1 << 40,  # only newer pyarrows have this, with a small bound
}

_Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Announcement:
    """A source that came, or left; or whose files became others."""

    source: int
    labels: str | None
    schema: str | None


@dataclass(slots=True)
class Interval:
    """What changed between two samples."""

    time: int  # microseconds since 1970
    announcements: list[Announcement] = field(default_factory=list)
    _sources: list[int] = field(default_factory=list)
    _values: list[Sequence[int]] = field(default_factory=list)  # of each of these sources
    _buckets: list[Sequence[int]] = field(default_factory=list)
    _first: list[bool] = field(default_factory=list)
    _changes: list[int | None] = field(default_factory=list)

    def add(
        self,
        source: int,
        values: Sequence[int],
        changes: Iterable[int | None],
        buckets: Sequence[int],
        *,
        first: bool = False,
    ) -> None:
        """Add changes of a source: as many as there are values and buckets.

        Args:
            source: its number.
            values: the number of the value of each change.
            changes: None where a number is gone. Those of 0 are left out later.
            buckets: of each; -1 where the value is no histogram.
            first: whether there was no number before; then a change of 0 stays.
        """
        self._changes += changes
        self._sources.append(source)
        self._values.append(values)
        self._buckets.append(buckets)
        self._first.append(first)

    def pack(self, before: "Packed | None" = None) -> "Packed":
        """Return the same in a tenth of the memory.

        Args:
            before: the interval before, whose arrays are shared if its rows are of the same files.
        """
        counts = [len(values) for values in self._values]
        sources = np.repeat(np.array(self._sources, np.int32), counts)
        values, buckets = (
            np.fromiter(itertools.chain.from_iterable(found), np.int32, len(sources))
            for found in (self._values, self._buckets)
        )
        first = np.repeat(np.array(self._first, np.bool_), counts)
        gone = None
        try:
            changes = np.array(self._changes, np.int64)
            kept = first | (changes != 0)
        except (OverflowError, TypeError):
            parts = [split(change) for change in self._changes]
            again = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            sources, values, buckets = sources[again], values[again], buckets[again]
            flat = list(itertools.chain.from_iterable(parts))
            gone = np.array([change is None for change in flat])
            changes = np.array([change or 0 for change in flat], np.int64)
            kept = first[again] | gone | (changes != 0)
            gone = gone[kept]
        rows = Rows(sources[kept], values[kept], buckets[kept])
        if before is not None and rows.same(before.rows):
            rows = before.rows
        return Packed(self.time, self.announcements, rows, _shrink(changes[kept]), gone)


@dataclass(frozen=True, slots=True)
class Rows:
    """Which files the rows of an interval are of."""

    sources: _Numbers
    values: _Numbers
    buckets: _Numbers  # -1 where the value is no histogram

    def same(self, other: "Rows") -> bool:
        """Tell whether they are of the same files in the same order."""
        pairs = zip(self.arrays, other.arrays, strict=True)
        return all(np.array_equal(one, two) for one, two in pairs)

    @property
    def arrays(self) -> tuple[_Numbers, _Numbers, _Numbers]:
        """All three."""
        return self.sources, self.values, self.buckets


@dataclass(frozen=True, slots=True)
class Packed:
    """An interval as arrays.

    Attributes:
        rows: may be those of other intervals too.
        gone: which of the numbers are gone; None for none.
    """

    time: int
    announcements: Sequence[Announcement]
    rows: Rows
    changes: npt.NDArray[np.signedinteger[Any]]
    gone: npt.NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.changes)

    def size(self, before: "Packed | None") -> int:
        """Return the bytes in memory, besides those of the interval before."""
        shared = before is not None and before.rows is self.rows
        return self.changes.nbytes + (0 if shared else 12 * len(self))


class Names(dict[str, int]):
    """Texts that were given numbers, from 0 up."""

    def __missing__(self, name: str) -> int:
        number = self[name] = len(self)
        return number


def split(change: int | None) -> list[int | None]:
    """Return parts of a change that fit into 64 bits with a sign: mostly itself."""
    parts: list[int | None] = []
    while change is not None and not _LOW <= change <= _HIGH:
        parts.append(part := _LOW if change < 0 else _HIGH)
        change -= part
    return [*parts, change]


def _shrink(changes: npt.NDArray[np.int64]) -> npt.NDArray[np.signedinteger[Any]]:
    # In the smallest type in which all have room.
    low, high = (int(changes.min()), int(changes.max())) if len(changes) else (0, 0)
    kinds: tuple[type[np.signedinteger[Any]], ...] = (np.int8, np.int16, np.int32)
    for kind in kinds:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return changes.astype(kind)
    return changes


def make_schema(about: Mapping[str, Any]) -> pa.Schema:
    """Return the schema, with what is known of a recording as its metadata."""
    return SCHEMA.with_metadata({METADATA_KEY: json.dumps({"format": FORMAT, **about})})


def make_tables(
    intervals: Sequence[Packed], sources: list[str], values: list[str], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield the rows of intervals: first those without a change, then sorted ones.

    Each table has other sources, and its number of rows is bounded.
    """
    head = _make_head(intervals, sources)
    rows = sum(len(one) for one in intervals)
    edges = _find_edges(intervals, -(-rows // _PART_ROWS), len(sources))
    for low, high in itertools.pairwise(edges):
        body = _make_body(intervals, low, high, sources, values)
        whole = pa.concat_tables([head, body]).unify_dictionaries()
        yield whole.replace_schema_metadata(schema.metadata)
        head = head.slice(0, 0)


def _find_edges(intervals: Sequence[Packed], parts: int, sources: int) -> list[int]:
    # The numbers of sources at which tables end, so that all have about as many rows.
    if parts < 2:
        return [0, sources]
    counts = sum(np.bincount(one.rows.sources, minlength=sources) for one in intervals)
    ends = np.cumsum(counts)
    inner = {
        int(edge) + 1 for edge in np.searchsorted(ends, ends[-1] * np.arange(1, parts) // parts)
    }
    return [0, *sorted(edge for edge in inner if ends[edge - 1] < ends[-1]), sources]


def _make_body(
    intervals: Sequence[Packed], low: int, high: int, sources: list[str], values: list[str]
) -> pa.Table:
    chosen = [(one.rows.sources >= low) & (one.rows.sources < high) for one in intervals]
    times = np.repeat(
        np.array([one.time for one in intervals], np.int64), [part.sum() for part in chosen]
    )
    source, value, bucket = (
        np.concatenate(
            [one.rows.arrays[index][part] for one, part in zip(intervals, chosen, strict=True)]
        )
        for index in range(3)
    )
    change = np.concatenate(
        [one.changes[part] for one, part in zip(intervals, chosen, strict=True)]
    ).astype(np.int64)
    gone = np.concatenate(
        [
            np.zeros(part.sum(), np.bool_) if one.gone is None else one.gone[part]
            for one, part in zip(intervals, chosen, strict=True)
        ]
    )
    if len(intervals) > 1:
        # They are in the order of time already, which a stable sort keeps.
        key = source.astype(np.int64) << 39 | value.astype(np.int64) << 20 | (bucket + 1)
        order = np.argsort(key, kind="stable")
        times, source, value, bucket, change, gone = (
            column[order] for column in (times, source, value, bucket, change, gone)
        )
    none = pa.nulls(len(change), pa.string())
    return pa.Table.from_arrays(
        [
            pa.array(times, pa.int64()).cast(SCHEMA.field("time").type),
            _look_up(source, sources),
            _look_up(value, values),
            pa.array(bucket, mask=bucket < 0),
            pa.array(change, mask=gone),
            none,
            none,
        ],
        schema=SCHEMA,
    )


def _make_head(intervals: Sequence[Packed], sources: list[str]) -> pa.Table:
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
            pa.array(labels, pa.string()),
            pa.array(schemas, pa.string()),
        ],
        schema=SCHEMA,
    )


def _look_up(indices: _Numbers, names: list[str]) -> pa.DictionaryArray:
    # With a dictionary of only those that are there: it is written with each row group.
    used = np.flatnonzero(np.bincount(indices, minlength=len(names)))
    places = np.zeros(len(names), np.int32)
    places[used] = np.arange(len(used))
    texts = pa.array([names[index] for index in used], pa.string())
    return pa.DictionaryArray.from_arrays(places[indices], texts)


def encode(table: pa.Table) -> memoryview:
    """Return a Parquet file of one row group, or of none."""
    sink = pa.BufferOutputStream()
    known = inspect.signature(pq.write_table).parameters
    pages = {name: size for name, size in _PAGES.items() if name in known}
    names = ["time", "source", "value", "labels", "schema"]
    encodings = {"bucket": "DELTA_BINARY_PACKED"}
    if _is_even(table):
        names.append("change")
    else:
        encodings["change"] = "BYTE_STREAM_SPLIT"
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=names,
        column_encoding=encodings,
        write_statistics=["time", "source", "value"],
        write_page_checksum=True,
        **pages,
    ) as writer:
        if table.num_rows:
            writer.write_table(table, row_group_size=table.num_rows)
    return memoryview(sink.getvalue())


def _is_even(table: pa.Table) -> bool:
    # Whether most changes are the same as the one before: then runs of them are encoded.
    changes = pc.fill_null(table["change"], 0).to_numpy()
    return bool(np.count_nonzero(changes[1:] != changes[:-1]) * _RUN < len(changes))

"""Journal files: what outlives a collector, written and read, whole or not at all."""

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statsfs.collector.journal_file import (
    JournalFiles,
    JournalRecord,
    RetainedRows,
    RetainedSource,
    decode_record,
    encode_record,
)
from statsfs.collector.trusted_directory import open_directory
from statsfs.exceptions import FormatError
from statsfs.model.histograms import make_sum
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.segments.file_format import encode

SUM = Value("sum", aggregate=Aggregate.SUM, description="All of them")
TIME = Value("time_ns", aggregate=Aggregate.SUM, unit=Unit.SECONDS, exponent=-9, mode=0o600)
DRIFT = Value("drift", Type.S32, Aggregate.SUM, hidden=True)
DEEPEST = Value("deepest", aggregate=Aggregate.MAX | Aggregate.MIN, kind=Kind.PEAK)
WAITS = Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)
SIZES = Value(
    "sizes", aggregate=Aggregate.SUM, kind=Kind.LINEAR_HIST, size=70, bucket_size=10, base=2
)

# `RECORD` in the form of version 1, with its 78 integers in two chunks.
VERSION_1 = Path(__file__).parent.parent / "data" / "retained_app_1.bin"

RECORD = JournalRecord(
    [
        RetainedSource(
            ("app",), "app", {(SUM,): ((1 << 64) - 1,), (DRIFT,): (-5,), (WAITS,): ([1, 2, 3],)}
        ),
        RetainedSource(
            ("app", "web"), None, {(DEEPEST,): (7,), (SIZES,): (list(range(70)),), (TIME,): (0,)}
        ),
        RetainedSource(("app", "web", "deep"), "x", {(SUM,): (3,)}),
    ],
    {"a.stats": {"sum": 5, "waits": [0, 1, 0]}, "www/b.stats": {"sum": 1 << 63}},
    ["www/c.stats", "ünïcode.stats"],
)

NEWEST = replace(
    RECORD,
    baselines={"0123456789abcdef": {"sum": 5}, "64:12:1700000000:5": {"waits": [0, 1, 0]}},
    folded=["5" * 16, "64:13:1700000000:5"],
    removed=["a-b", "6" * 16],
)


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        NEWEST,
        JournalRecord([RetainedSource(("app",), None, {(SUM,): (3,)}, collapse=False)]),
        JournalRecord([], {"a.stats": {"sum": 5}}, []),
        JournalRecord(),
    ],
)
def test_what_is_written_is_read(record: JournalRecord) -> None:
    """Every field of every value, numbers of every size, and what was cleared."""
    assert decode_record("app", encode_record("app", record)) == record


def test_a_record_is_json() -> None:
    """Its integers are in the JSON as they are, each beside the index of its value."""
    described = json.loads(encode_record("app", NEWEST))
    assert (described["version"], described["name"]) == (3, "app")
    assert [value["name"] for value in described["values"][:3]] == ["sum", "drift", "waits"]
    assert described["sources"][0] == {
        "path": ["app"],
        "label": "app",
        "collapse": True,
        "retained": [[[0, (1 << 64) - 1]], [[1, -5]], [[2, [1, 2, 3]]]],
    }
    for key in ("baselines", "folded", "removed"):
        assert described[key] == getattr(NEWEST, key)


def test_a_histogram_and_its_sum() -> None:
    """They are one array; another array may have the histogram alone, without a sum."""
    times = Value("times", aggregate=Aggregate.SUM, kind=Kind.HIST, bounds=[100, 300])
    rows: RetainedRows = {(times, make_sum(times)): ([1, 2, 3], 1234), (times,): ([4, 5, 6],)}
    record = JournalRecord([RetainedSource(("app",), None, rows)])
    encoded = encode_record("app", record)
    assert decode_record("app", encoded) == record
    (described,) = json.loads(encoded)["sources"]
    assert described["retained"] == [[[0, [1, 2, 3]], [1, 1234]], [[0, [4, 5, 6]]]]


def test_a_record_of_version_2() -> None:
    """It has files by their names, nothing of those that were removed, and may not collapse."""
    described = json.loads(encode_record("app", RECORD)) | {"version": 2}
    del described["removed"]
    for one in described["sources"]:
        del one["collapse"]
    assert decode_record("app", json.dumps(described).encode()) == RECORD


def test_a_record_of_version_1() -> None:
    """Is read as it was written: an upgrade loses nothing."""
    assert decode_record("app", VERSION_1.read_bytes()) == RECORD


def test_what_is_empty() -> None:
    """A record of which nothing would be lost; branches alone are nothing."""
    assert JournalRecord().empty
    assert JournalRecord([RetainedSource(("app",), None, {})]).empty
    assert not RECORD.empty
    assert not JournalRecord(folded=["x"]).empty
    assert JournalRecord(removed=["x"]).empty
    assert not JournalRecord(baselines={"x.stats": {"a": 1}}).empty


def broken(**changed: Any) -> bytes:
    """A record with other things in it."""
    return json.dumps(json.loads(encode_record("app", JournalRecord())) | changed).encode()


def described(value: Value) -> dict[str, Any]:
    """A value as a record describes it."""
    record = JournalRecord([RetainedSource(("app",), None, {(value,): (value.zero,)})])
    found: list[dict[str, Any]] = json.loads(encode_record("app", record))["values"]
    return found[0]


def holding(value: Value, number: object) -> bytes:
    """A record of one source that retains one number."""
    return broken(values=[described(value)], sources=[source("app", retained=[[[0, number]]])])


def source(*path: object, label: object = None, retained: object = ()) -> dict[str, Any]:
    """A source as a record describes it."""
    return {"path": path, "label": label, "retained": retained}


def version_1(**changed: Any) -> bytes:
    """A record of version 1 with another text of the same length in it."""
    encoded = VERSION_1.read_bytes()
    for before, after in changed.items():
        encoded = encoded.replace(f'"{before}"'.encode(), after.encode().ljust(len(before) + 2))
    return encoded


BROKEN = {
    "empty": b"",
    "no object": b"x" * 100,
    "no JSON": b"{",
    "cut off": encode_record("app", RECORD)[:-8],
    "as deep as it goes": b"{" + b'"a":{' * 100_000,
    "a segment": encode("app", [SUM]),
    "a kernel's": (VERSION_1.parent / "kvm_vm.stats.bin").read_bytes(),
    "another version": broken(version=4),
    "a version of the future": broken(version=1 << 70),
    "a version that is none": broken(version="3"),
    "no list": broken(sources=5),
    "an unknown value": broken(sources=[source("app", retained=[[[0, 5]]])]),
    "no array": broken(sources=[source("app", retained=[[]])]),
    "not the smallest array": broken(
        values=[described(SUM), described(TIME)],
        sources=[source("app", retained=[[[0, 5], [1, 5]]])]),
    "half a value": broken(values=[{"name": "x"}]),
    "too few buckets": holding(WAITS, [1, 2]),
    "no buckets": holding(WAITS, 3),
    "buckets of a sum": holding(SUM, [3]),
    "a text": holding(SUM, "3"),
    "a fraction": holding(SUM, 3.0),
    "no number": holding(SUM, True),
    "a number out of range": holding(SUM, 1 << 64),
    "a number too small": holding(DRIFT, -(1 << 63) - 1),
    "a bucket out of range": holding(WAITS, [1, 1 << 64, 0]),
    "infinite": holding(SUM, math.inf),
    "a number of many digits": holding(SUM, 5).replace(b"[0, 5]", b"[0, " + b"5" * 5000 + b"]"),
    "a size out of range": broken(values=[described(WAITS) | {"size": 1 << 70}]),
    "a baseline out of range": broken(baselines={"x": {"sum": 1 << 64}}),
    "a baseline that is none": broken(baselines={"x": {"sum": None}}),
    "a bucket of a baseline out of range": broken(baselines={"x": {"waits": [0, 1 << 64]}}),
    "another name's source": broken(sources=[source("other")]),
    "a source on nothing": broken(sources=[source("app", "x")]),
    "a source without a path": broken(sources=[source()]),
    "a source twice": broken(sources=[source("app"), source("app")]),
    "a path of no names": broken(sources=[source("app"), source("app", 3)]),
    "a label that is none": broken(sources=[source("app", label=3)]),
    "baselines of another sort": broken(baselines={"x": 5}),
    "folded of another sort": broken(folded=5),
    "version 1, no values": version_1(values='"valves"'),
    "version 1, cut off": VERSION_1.read_bytes()[:-64],
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken(what: str) -> None:
    """Is a FormatError of one line."""
    with pytest.raises(FormatError) as caught:
        decode_record("app", BROKEN[what])
    assert "\n" not in str(caught.value)


def test_a_record_of_another_name() -> None:
    """A file that was renamed is refused."""
    with pytest.raises(FormatError, match="of that name"):
        decode_record("other", encode_record("app", RECORD))
    with pytest.raises(FormatError, match="of that name"):
        decode_record("other", VERSION_1.read_bytes())


@pytest.fixture
def files(tmp_path: Path) -> JournalFiles:
    """The files of a directory."""
    tmp_path.chmod(0o755)
    return JournalFiles(open_directory(str(tmp_path)))


def test_files(files: JournalFiles, tmp_path: Path) -> None:
    """They are there, or not; what has another sort of name is not looked at."""
    files.write("app", RECORD)
    files.write("other", JournalRecord([], {}, ["x.stats"]))
    (tmp_path / ".retained" / ".unrelated").write_text("x")
    assert files.load() == {"app": RECORD, "other": JournalRecord([], {}, ["x.stats"])}
    files.write("other", JournalRecord())
    files.write("other", JournalRecord())
    assert list(files.load()) == ["app"]
    assert (tmp_path / ".retained").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".retained" / "app").stat().st_mode & 0o777 == 0o600
    files.close()
    files.close()


def test_a_record_is_written_whole_or_not(
    files: JournalFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where renaming fails the old one stays, and nothing else."""
    files.write("app", RECORD)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Read-only"):
        files.write("app", JournalRecord(folded=["x.stats"]))
    assert os.listdir(tmp_path / ".retained") == ["app"]
    assert files.load() == {"app": RECORD}

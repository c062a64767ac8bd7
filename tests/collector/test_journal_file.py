"""Records: what outlives a collector, written and read, whole or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from statsfs.collector.journal_file import Part, Record, Records, decode_record, encode_record
from statsfs.collector.trusted_directory import open_directory
from statsfs.exceptions import FormatError
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.segments.file_format import decode, encode

SUM = Value("sum", aggregate=Aggregate.SUM, description="All of them")
TIME = Value("time_ns", aggregate=Aggregate.SUM, unit=Unit.SECONDS, exponent=-9, mode=0o600)
DRIFT = Value("drift", Type.S32, Aggregate.SUM, hidden=True)
DEEPEST = Value("deepest", aggregate=Aggregate.MAX | Aggregate.MIN, kind=Kind.PEAK)
WAITS = Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)
SIZES = Value(
    "sizes", aggregate=Aggregate.SUM, kind=Kind.LINEAR_HIST, size=70, bucket_size=10, base=2
)

RECORD = Record(
    [
        Part(("app",), "app", {SUM: (1 << 64) - 1, DRIFT: -5, WAITS: [1, 2, 3]}),
        Part(("app", "web"), None, {DEEPEST: 7, SIZES: list(range(70)), TIME: 0}),
        Part(("app", "web", "deep"), "x", {SUM: 3}),
    ],
    {"a.stats": {"sum": 5, "waits": [0, 1, 0]}, "www/b.stats": {"sum": 1 << 63}},
    ["www/c.stats", "ünïcode.stats"],
)


@pytest.mark.parametrize("record", [RECORD, Record([], {"a.stats": {"sum": 5}}, []), Record()])
def test_what_is_written_is_read(record: Record) -> None:
    """Every field of every value, numbers of every size, and what was cleared."""
    assert decode_record("app", encode_record("app", record)) == record


def test_what_is_empty() -> None:
    """A record of which nothing would be lost; branches alone are nothing."""
    assert Record().empty
    assert Record([Part(("app",), None, {})]).empty
    assert not RECORD.empty
    assert not Record(folded=["x.stats"]).empty
    assert not Record(baselines={"x.stats": {"a": 1}}).empty


def test_it_is_an_object_of_the_format() -> None:
    """A decoder of segments reads it, with its integers as histograms of no more than fit."""
    many = [Part(("app",), None, {})]
    many += [Part(("app", f"b{n}"), None, {SIZES: [n] * 70}) for n in range(1000)]
    encoded = encode_record("app", Record(many))
    head = decode(encoded)
    assert head is not None
    assert (head.path, [value.name for value in head.values]) == ("app", ["numbers.0", "numbers.1"])
    assert [value.size for value in head.values] == [65535, 70000 - 65535]
    assert decode_record("app", encoded).parts[1000].rows == {SIZES: [999] * 70}


def broken(**changed: Any) -> bytes:
    """A record with other things in it."""
    said: dict[str, Any] = {"values": [], "parts": [], "baselines": {}, "folded": []} | changed
    value = Value("numbers.0", kind=Kind.LINEAR_HIST, size=1, bucket_size=1)
    return encode("app", [value], extra={"retained": said})


BROKEN = {
    "empty": b"",
    "no object": b"x" * 100,
    "a segment": encode("app", [SUM]),
    "no list": broken(parts=5),
    "an unknown value": broken(parts=[[["app"], None, [0]]]),
    "half a value": broken(values=[{"name": "x"}]),
    "too few numbers": broken(
        values=[{"name": "x", "type": "u64", "aggregate": ["sum"], "mode": 0o644,
                 "kind": "log_hist", "unit": "none", "base": 10, "exponent": 0, "hidden": False,
                 "description": "", "size": 3, "bucket_size": 0}],
        parts=[[["app"], None, [0]]],
    ),
    "another name's part": broken(parts=[[["other"], None, []]]),
    "a part on nothing": broken(parts=[[["app", "x"], None, []]]),
    "a part without a path": broken(parts=[[[], None, []]]),
    "baselines of another sort": broken(baselines={"x": 5}),
    "folded of another sort": broken(folded=5),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken(what: str) -> None:
    """Is a FormatError of one line."""
    with pytest.raises(FormatError) as caught:
        decode_record("app", BROKEN[what])
    assert "\n" not in str(caught.value)


def test_a_record_of_another_name() -> None:
    """A file that was renamed is none."""
    with pytest.raises(FormatError, match="of that name"):
        decode_record("other", encode_record("app", RECORD))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """The records of a directory."""
    tmp_path.chmod(0o755)
    return Records(open_directory(str(tmp_path)))


def test_files(records: Records, tmp_path: Path) -> None:
    """They are there, or not; what has another sort of name is not looked at."""
    records.write("app", RECORD)
    records.write("other", Record([], {}, ["x.stats"]))
    (tmp_path / ".retained" / ".unrelated").write_text("x")
    assert records.load() == {"app": RECORD, "other": Record([], {}, ["x.stats"])}
    records.remove("other")
    records.remove("other")
    assert list(records.load()) == ["app"]
    assert (tmp_path / ".retained").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".retained" / "app").stat().st_mode & 0o777 == 0o600
    records.close()
    records.close()


def test_a_record_is_written_whole_or_not(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where renaming fails the old one stays, and nothing else."""
    records.write("app", RECORD)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Read-only"):
        records.write("app", Record())
    assert os.listdir(tmp_path / ".retained") == ["app"]
    assert records.load() == {"app": RECORD}

"""A file that grows: readable after each step, and after a kill in any of them."""

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from statsfs.exceptions import SampleError
from statsfs.recordings.footers import MAGIC, parse_footer
from statsfs.recordings.growing_file import GrowingFile, create_file, mend
from statsfs.recordings.tables import Interval, Packed, encode, make_schema, make_tables

SCHEMA = make_schema({"places": ["/x"], "interval": 1})
EMPTY = encode(SCHEMA.empty_table())


def interval(number: int) -> Packed:
    made = Interval(1_800_000_000_000_000 + number)
    for source in range(20):
        made.add(source % 2, [source // 2], [number * 7919 % 1000 + 1], [-1])
    return made.pack()


def table(*numbers: int) -> list[memoryview]:
    names = [f"value{number}" for number in range(10)]
    tables = make_tables([interval(n) for n in numbers], ["a", "b/c"], names, SCHEMA)
    return [encode(one) for one in tables]


def rows(file: Path) -> list[Any]:
    read = pq.read_table(file)
    keys = [read[name].to_pylist() for name in ("time", "source", "value", "change")]
    return sorted(zip(*keys, strict=True), key=repr)


def test_the_file_can_be_read_after_each_step(tmp_path: Path) -> None:
    """Settling keeps the rows, leaves one row group of many, and makes the file smaller."""
    name = tmp_path / "r.parquet"
    file = create_file(str(name), EMPTY)
    assert rows(name) == []
    for begin in (0, 5):
        for number in range(begin, begin + 5):
            file.append(table(number))
            assert len(rows(name)) == 21 * (number + 1)
            assert file.size == name.stat().st_size
        before = rows(name), file.size
        file.settle(table(*range(begin, begin + 5)))
        assert rows(name) == before[0]
        assert file.size == name.stat().st_size < before[1]
    file.close()
    assert pq.ParquetFile(name).num_row_groups == 2
    assert mend(str(name)) is False


def test_what_is_not_smaller_is_not_written(tmp_path: Path) -> None:
    """The row groups stay as they are, and what comes behind them is replaced the next time."""
    name = tmp_path / "r.parquet"
    file = create_file(str(name), EMPTY)
    file.append(table(0))
    file.append(table(50))
    size = file.size
    file.settle(table(0) * 9, table(50))
    assert file.size == size == name.stat().st_size
    for number in range(51, 60):
        file.append(table(number))
    before = rows(name)
    file.settle(table(*range(50, 59)), table(59))
    file.close()
    assert rows(name) == before
    assert len(before) == 21 * 11
    assert pq.ParquetFile(name).num_row_groups == 3


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("settling", [False, True])
def test_a_kill_between_any_two_writes_loses_one_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settling: bool
) -> None:
    """Whatever was written of the next interval, all before it is there once it is mended."""
    real = os.pwrite
    step = 0
    while True:
        name = tmp_path / f"{step}.parquet"
        file = create_file(str(name), EMPTY)
        for number in range(4):
            file.append(table(number))
        before = rows(name)
        left = step * 397

        def write(descriptor: int, data: memoryview, at: int) -> int:
            nonlocal left
            if not left:
                raise _Killed
            count = min(left, len(data), 397)
            left -= count
            return real(descriptor, data[:count], at)

        monkeypatch.setattr(os, "pwrite", write)
        try:
            if settling:
                file.settle(table(*range(3)), table(3))
            else:
                file.append(table(4))
            done = True
        except _Killed:
            done = False
        monkeypatch.setattr(os, "pwrite", real)
        file.close()
        if done:
            return
        mend(str(name))
        assert mend(str(name)) is False
        assert rows(name) == before
        name.unlink()
        step += 1


def test_a_recorder_keeps_others_away(tmp_path: Path) -> None:
    """No other may write its file; what it has not finished is not cut off."""
    name = str(tmp_path / "r.parquet")
    file = create_file(name, EMPTY)
    with pytest.raises(SampleError, match="another recorder writes it"):
        create_file(name, EMPTY)
    with open(name, "ab") as more:
        more.write(b"unfinished")
    assert mend(name) is False
    file.close()
    assert mend(name) is True
    with pytest.raises(SampleError, match="it exists; remove it"):
        create_file(name, EMPTY)


def test_a_recorder_may_end_while_its_file_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote last was cut off: the file had an unfinished interval when it was looked at."""
    name = tmp_path / "r.parquet"
    file = create_file(str(name), EMPTY)
    with open(name, "ab") as more:
        more.write(b"unfinished")
    real = fcntl.flock

    def lock(descriptor: int, how: int) -> None:
        file.append(table(0))
        file.close()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    assert mend(str(name)) is False
    monkeypatch.undo()
    assert len(rows(name)) == 21
    assert mend(str(name)) is False


def test_a_recorder_may_cut_its_file_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was mapped into memory: that ended the process by SIGBUS."""
    name = tmp_path / "r.parquet"
    file = create_file(str(name), EMPTY)
    size = name.stat().st_size
    real = os.fstat

    def look(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        os.truncate(name, size)
        return status

    with open(name, "ab") as more:
        more.write(bytes(1 << 20))
    monkeypatch.setattr(os, "fstat", look)
    assert mend(str(name)) is False
    monkeypatch.undo()
    file.close()
    assert mend(str(name)) is False


@pytest.mark.parametrize("after", ["data", "half of the data", "cut"])
def test_sorted_rows_that_cannot_be_written_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """An OSError escaped, and what was added then was behind a footer of overwritten rows."""
    name = tmp_path / "r.parquet"
    file = create_file(str(name), EMPTY)
    for number in range(5):
        file.append(table(number))
    before = rows(name)
    pwrite = os.pwrite
    calls = 0

    def write(descriptor: int, data: Any, at: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1 or after == "cut":
            return pwrite(descriptor, data, at)
        if calls == 2 and after == "half of the data":
            return pwrite(descriptor, data[: len(data) // 2], at)
        raise OSError(28, "No space left on device")

    def cut(_descriptor: int, _size: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "ftruncate", cut)
    with pytest.raises(SampleError, match=r"r\.parquet: "):
        file.settle(table(*range(5)))
    monkeypatch.undo()
    assert rows(name) == before
    file.settle(table(*range(5)))
    file.append(table(5))
    assert len(rows(name)) == len(before) + 21
    file.close()
    assert mend(str(name)) is False


def test_a_filesystem_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError escaped, and the descriptor stayed open."""

    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SampleError, match="r: No locks available"):
        create_file(str(tmp_path / "r"), EMPTY)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/r", "No such file or directory"), (".", "Is a directory"), ("fifo", "not a file")],
)
def test_what_cannot_be_created_is_said(tmp_path: Path, name: str, reason: str) -> None:
    """In one line."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SampleError, match=reason):
        create_file(str(tmp_path / name), EMPTY)


LIMITED = """
import resource, signal, sys
from tests.recordings.test_growing_file import EMPTY, rows, table
from statsfs.exceptions import SampleError
from statsfs.recordings.growing_file import create_file
from pathlib import Path

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[2])
before_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before_limits[1]))
try:
    file = create_file(sys.argv[1], EMPTY)
    number = 0
    while True:
        file.append(table(number))
        number += 1
        if number % 4 == 0:
            before = len(rows(Path(sys.argv[1])))
            file.settle(table(*range(number - 4, number)))
except SampleError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, before_limits)  # coverage writes a file too
    print(error)
    if "file" in globals() and file.size > 2000:
        assert len(rows(Path(sys.argv[1]))) == 21 * number
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 9_000, 13_000, 20_000, 30_000])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, limit: int) -> None:
    """The error is one line, and the file is as it was before."""
    name = tmp_path / "r.parquet"
    command = [sys.executable, "-c", LIMITED, str(name), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{name}: File too large\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not a recording"),
        (b"hello, this is a text", "not a recording"),
        (MAGIC, "it has no footer"),
        (MAGIC + struct.pack("<I", 1 << 30) + MAGIC, "it has no footer"),
        (MAGIC + b"\xff" * 30 + struct.pack("<I", 30) + MAGIC, "it has no footer"),
        (MAGIC + b"\x00" + struct.pack("<I", 1) + MAGIC, "it has no footer"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: bytes, reason: str) -> None:
    """Nothing of them is cut off."""
    name = tmp_path / "r.parquet"
    name.write_bytes(text)
    with pytest.raises(SampleError, match=reason):
        mend(str(name))
    assert name.read_bytes() == text
    with pytest.raises(SampleError, match="No such file"):
        mend(str(tmp_path / "none"))
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(SampleError, match="not a recording"):
            mend(str(other))


@pytest.mark.root
def test_what_cannot_be_cut_off_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file on a read-only filesystem, for instance."""
    name = tmp_path / "r.parquet"
    GrowingFile(str(name), os.open(name, os.O_RDWR | os.O_CREAT), EMPTY).close()
    with name.open("ab") as more:
        more.write(b"unfinished")

    def refuse(_name: str, _size: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "truncate", refuse)
    with pytest.raises(SampleError, match="cannot be cut off: Read-only file system"):
        mend(str(name))


def test_a_footer_survives_being_read_and_written() -> None:
    """Also one with fields of types that ours do not have."""
    data = pa.table({"a": [1.5, 2.5, None], "b": [[1], [2, 3], []], "c": [b"x", b"y", b"z"]})
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, row_group_size=1)
    whole = bytes(sink.getvalue())
    (length,) = struct.unpack("<I", whole[-8:-4])
    footer, groups = parse_footer(whole[-8 - length : -8])
    assert len(groups) == 3
    again = whole[: -8 - length] + footer.render(groups)
    assert pq.read_table(pa.BufferReader(again)).equals(data)
    two = whole[: -8 - length] + footer.render(groups[:2] * 10)
    assert pq.read_table(pa.BufferReader(two)).num_rows == 20


@pytest.mark.parametrize("library", ["duckdb", "polars", "pyarrow"])
def test_footers_of_others_are_read(tmp_path: Path, library: str) -> None:
    """A file of another program is told from what is no Parquet file at all."""
    name = tmp_path / "x.parquet"
    if library == "duckdb":
        duckdb.sql(f"COPY (SELECT 1::UTINYINT AS a, [2] AS b) TO '{name}'")
    elif library == "polars":
        polars.DataFrame({"a": [1], "b": [[2]]}).write_parquet(name)
    else:
        pq.write_table(pa.table({"a": pa.array([1], pa.uint8())}), name)
    assert mend(str(name)) is False


def test_what_follows_a_footer_is_refused() -> None:
    """Its length is known."""
    (length,) = struct.unpack("<I", EMPTY[-8:-4])
    text = bytes(EMPTY[-8 - length : -8])
    parse_footer(text)
    with pytest.raises(ValueError, match="footer"):
        parse_footer(text + b"x")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x1c" * 40 + b"\0",  # a struct in a struct in a struct …
        b"\x1b\0",  # a map
        b"\x18\x7f",  # a text that is too short
        b"\x15\x02\0",  # no row groups
        b"\x15\x02\0more",
    ],
)
def test_what_is_no_footer_is_refused(text: bytes) -> None:
    """As ValueError, whatever it is."""
    with pytest.raises(ValueError, match="footer"):
        parse_footer(text)

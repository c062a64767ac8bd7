"""What changed becomes rows, and is read back as it was."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from statsfs import Registry
from statsfs.exceptions import SampleError
from statsfs.recordings import recorder
from statsfs.recordings.reading import open_recording
from statsfs.recordings.recorder import Recorder, join
from statsfs.recordings.tables import METADATA_KEY
from tests.support.deadlines import DEADLINE
from tests.support.registry_place import BEGUN, Place, Tree

APP, WORKER = "/run/stats/app", "/run/stats/app/worker0"


def query(text: str) -> list[Any]:
    """What DuckDB answers."""
    answer = duckdb.sql(text)
    assert answer is not None
    return answer.fetchall()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "r.parquet")


def numbers(tree: Tree, source: str, value: str, bucket: int = -1) -> list[float]:
    """What a value was at each moment."""
    recording = tree.read()
    series = recording.read({(source, value)})[source, value, bucket]
    sampled: list[float] = series.sample(recording.moments).numbers.tolist()
    return sampled


def test_numbers_are_read_back(tree: Tree) -> None:
    """Also where nothing changed, of totals, and of histograms; all moments are there."""
    for add in (3, 0, 4):
        tree.workers[0].requests += add
        tree.workers[0].latency.observe(5)
        tree.tick()
    tree.recorder.close()
    assert numbers(tree, WORKER, "requests") == numbers(tree, APP, "requests") == [3, 3, 7]
    assert numbers(tree, APP, "latency", 3) == [1, 2, 3]
    assert tree.read().moments.tolist() == [BEGUN, BEGUN + 1, BEGUN + 2]
    wanted = {(WORKER, "requests"), (APP, "memory")}
    assert tree.read().read(wanted).keys() == {(*one, -1) for one in wanted}
    # What did not change has no row.
    frame = pandas.read_parquet(tree.file, dtype_backend="pyarrow")
    rows = frame[(frame.source == WORKER) & (frame.value == "requests")]
    assert rows.change.tolist() == [3, 4]


def test_sources_have_labels_and_descriptions(tree: Tree) -> None:
    """As the schema has them; only what is not as usual is written."""
    tree.tick()
    source = tree.read().sources[WORKER]
    assert source.labels == {"worker": "worker0"}
    wait = source.values["wait_ns"]
    assert (wait.unit, wait.exponent, wait.kind) == ("seconds", -9, "cumulative")
    assert source.values["latency"].size == 8
    assert "size" not in json.loads(recorder.describe({"wait_ns": wait}))[0]


def test_sources_come_and_leave(tree: Tree) -> None:
    """Where a source is not there, there are no numbers, and no differences across it."""
    tree.workers[1].requests = 5
    tree.tick()
    tree.remove("worker1")
    tree.tick()
    stats = tree.add("worker1")
    stats.requests = 9
    tree.tick()
    stats.requests = 11
    tree.tick()
    recording = tree.read()
    series = recording.read({(join("/run/stats", ("app", "worker1")), "requests")})
    (found,) = series.values()
    sampled = found.sample(recording.moments)
    assert np.array_equal(sampled.numbers, [5, math.nan, 9, 11], equal_nan=True)
    assert np.array_equal(sampled.differences(), [math.nan, math.nan, 2], equal_nan=True)
    assert tree.place.asked == [(), ("app", "worker1")]


def test_all_integers_are_exact(tree: Tree) -> None:
    """From the lowest of 64 bits with a sign to the highest without one."""
    stats = tree.workers[0]
    for number in (0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1):
        stats.requests = number
        stats.memory = -(2**63) if number else 0
        tree.tick()
    rows = query(
        f"SELECT sum(sum(change)) OVER (ORDER BY time) FROM '{tree.file}' "
        f"WHERE source = '{WORKER}' AND value = 'requests' GROUP BY time ORDER BY time"
    )
    assert [n for (n,) in rows] == [0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
    recording = tree.read()
    (series,) = recording.read({(WORKER, "requests")}).values()
    assert series.differences()[2] == 1.0
    assert numbers(tree, WORKER, "memory")[-1] == -(2**63)


def test_a_number_that_is_gone_is_null(tree: Tree) -> None:
    """A file that cannot be read now has no number; nor has a histogram of another size its old."""
    tree.tick()
    sample = tree.place.read_sample()
    node: Any = sample.root["subordinates"]["app"]["subordinates"]["worker0"]["values"]
    del node["requests"]
    node["latency"] = [1, 2]
    tree.place.read_sample = lambda: sample  # type: ignore[method-assign]
    tree.tick()
    assert np.array_equal(numbers(tree, WORKER, "requests"), [0, math.nan], equal_nan=True)
    assert numbers(tree, WORKER, "latency", 1) == [0, 2]


def test_a_place_without_numbers_is_told(tree: Tree) -> None:
    """Its sources have left until it is back."""
    tree.tick()
    tree.place.error = "gone"
    assert [str(error) for error in tree.tick().values()] == ["/run/stats: gone"]
    tree.place.error = ""
    assert tree.tick() == {}
    assert np.array_equal(numbers(tree, WORKER, "requests"), [0, math.nan, 0], equal_nan=True)


def test_a_schema_that_cannot_be_read_is_asked_for_again(tree: Tree) -> None:
    """A source without descriptions has its numbers nevertheless."""
    tree.place.schemas = False
    tree.tick()
    assert tree.read().sources[WORKER].values == {}
    tree.place.schemas = True
    tree.tick()
    assert "requests" in tree.read().sources[WORKER].values


def test_a_source_without_a_schema_is_announced_once(tree: Tree) -> None:
    """Not at each sample until there is one."""
    tree.place.schemas = False
    for _ in range(3):
        tree.tick()
    (count,) = query(f"SELECT count(labels) FROM '{tree.file}'")
    assert count == (4,)


def test_a_source_that_left_before_its_schema_was_read(tree: Tree) -> None:
    """It has no descriptions."""
    tree.tick()
    tree.add("brief")
    real = tree.place.read_schema
    tree.place.read_schema = lambda path=(): real(())  # type: ignore[method-assign]
    tree.tick()
    assert tree.read().sources["/run/stats/app/brief"].values == {}


def test_a_histogram_that_is_gone_and_back(tree: Tree) -> None:
    """What it counted before is not counted again."""
    tree.workers[0].latency.observe(5)
    tree.tick()
    real = tree.place.read_sample
    sample = real()
    del sample.root["subordinates"]["app"]["subordinates"]["worker0"]["values"]["latency"]
    tree.place.read_sample = lambda: sample  # type: ignore[method-assign]
    tree.tick()
    tree.place.read_sample = real  # type: ignore[method-assign]
    tree.workers[0].latency.observe(5)
    tree.tick()
    tree.workers[0].latency.observe(5)
    tree.tick()
    assert np.array_equal(numbers(tree, WORKER, "latency", 3), [1, math.nan, 2, 3], equal_nan=True)


def test_a_recorder_at_work_is_waited_for(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read just now is read again; a file that never can be is refused."""
    tree.tick()
    real = pq.ParquetFile
    left = 2

    def read(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError("Corrupt snappy compressed data")
        return real(*arguments, **named)

    monkeypatch.setattr(pq, "ParquetFile", read)
    assert len(tree.read().moments) == 1
    left = 100
    with pytest.raises(SampleError, match="not a recording: Corrupt"):
        tree.read()


def test_a_recording_that_changes_while_it_is_read(tree: Tree) -> None:
    """Is one line."""
    for _ in range(40):
        tree.workers[0].requests += 1
        tree.tick()
    recording = tree.read()
    tree.recorder.close()
    with pytest.raises(SampleError, match="it changed while it was read; try again"):
        recording.read({(WORKER, "requests")})


def test_a_slow_sort_does_not_hold_up_samples(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded meanwhile is behind it; only when that is as much is it waited for."""
    monkeypatch.setattr(recorder, "_INTERVALS_MAX", 5)
    real = Recorder._encode
    going = threading.Event()

    def encode(self: Recorder, intervals: Any) -> Any:
        if len(intervals) > 1:
            assert going.wait(DEADLINE)
        return real(self, intervals)

    monkeypatch.setattr(Recorder, "_encode", encode)
    for tick in range(23):
        tree.workers[0].requests += 1
        if tick == 9:
            going.set()
        tree.tick()
    tree.recorder.close()
    assert numbers(tree, WORKER, "requests") == list(range(1, 24))


def test_the_schema_of_all_is_read_where_many_come(tree: Tree) -> None:
    """Not one by one."""
    tree.tick()
    for number in range(20):
        tree.add(f"more{number}")
    tree.tick()
    assert tree.place.asked == [(), ()]
    assert tree.read().sources["/run/stats/app/more19"].labels == {"worker": "more19"}


@pytest.mark.parametrize("bound", ["_WAITING_MAX", "_INTERVALS_MAX"])
def test_intervals_are_settled_in_time(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """After so many rows or intervals they are one row group; nothing is lost."""
    monkeypatch.setattr(recorder, bound, 7)
    for _ in range(30):
        tree.workers[0].requests += 1
        tree.tick()
    tree.recorder.close()
    assert numbers(tree, WORKER, "requests") == list(range(1, 31))
    assert tree.recorder.intervals == 30
    assert tree.recorder.size == tree.file.stat().st_size


def test_pandas_polars_and_duckdb_agree(tree: Tree) -> None:
    """The schema of the manual is what they find."""
    for number in range(5):
        tree.workers[0].requests += number
        tree.tick()
        last = pandas.read_parquet(tree.file)
        assert len(last) == tree.recorder.rows + tree.recorder.intervals + 4
    wanted = [0, 1, 3, 6, 10]
    duck = query(
        "SELECT sum(change) OVER (PARTITION BY source, value, bucket ORDER BY time) "
        f"FROM '{tree.file}' WHERE value = 'requests' AND source = '{WORKER}' ORDER BY time"
    )
    assert [number for (number,) in duck] == wanted
    table = polars.read_parquet(tree.file).filter(
        (polars.col("value") == "requests") & (polars.col("source") == WORKER)
    )
    summed = table.sort("time").with_columns(
        number=polars.col("change").cum_sum().over("source", "value", "bucket")
    )
    assert summed["number"].to_list() == wanted
    rows = last[(last.value == "requests") & (last.source == WORKER)]
    series = rows.groupby(["source", "value"], observed=True)
    assert series.change.cumsum().tolist() == wanted
    assert list(last.columns) == [
        "time", "source", "value", "bucket", "change", "labels", "schema",
    ]  # fmt: skip


def test_other_parquet_files_are_no_recordings(tmp_path: Path, tree: Tree) -> None:
    """Nor are those of a newer format, nor what pyarrow cannot read."""
    name = tmp_path / "other.parquet"
    pandas.DataFrame({"a": [1]}).to_parquet(name)
    with pytest.raises(SampleError, match="but not a recording"):
        open_recording(str(name))
    text = tree.file.read_bytes().replace(b'"format": 1', b'"format": 2')
    name.write_bytes(text)
    with pytest.raises(SampleError, match="format 2 is of a newer statsfs"):
        open_recording(str(name))
    for about in (b"no JSON", b"[]", b"{}"):
        table = pa.table({"a": [1]}).replace_schema_metadata({METADATA_KEY: about})
        pq.write_table(table, name)
        with pytest.raises(SampleError, match="its metadata are of something else"):
            open_recording(str(name))


def test_a_recording_of_an_empty_tree(tmp_path: Path) -> None:
    """It has moments, and nothing else."""
    made = Recorder(str(tmp_path / "r"), [Place(Registry())], 1.0)
    made.record(BEGUN)
    made.close()
    recording, mended = open_recording(str(tmp_path / "r"))
    assert (len(recording.moments), [*recording.sources], mended) == (1, ["/run/stats"], False)
    assert recording.read({("a", "b")}) == {}

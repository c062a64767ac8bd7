"""Optional segments: a counter never takes a request down, and says once that nobody sees it."""

import errno
import logging
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from statsfs import Segment, publish
from statsfs.exceptions import InvalidNameError, SegmentError
from statsfs.model.fields import log_hist, s64, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import places, publishing
from tests.support.segment_files import alive, read_segment, segments_in


class WorkerStats(Stats):
    """What a worker counts."""

    requests = u64(Aggregate.SUM)
    balance = s64(Aggregate.SUM)
    latency = log_hist(8)


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has said nothing yet."""
    monkeypatch.setattr(publishing, "_said", set())


def count(stats: WorkerStats) -> None:
    """Count in each value, and see that all of it is there."""
    stats.requests += 1
    stats.balance -= 2
    stats.latency.observe(5)
    stats.latency.observe(1)
    assert (stats.requests, stats.balance) == (1, -2)
    assert (list(stats.latency), stats.latency.sum) == ([0, 1, 0, 1, 0, 0, 0, 0], 6)
    with pytest.raises(AttributeError):
        stats.request = 1  # type: ignore[attr-defined]  # misspelt
    stats.requests += 1 << 64
    assert stats.requests == 1


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of the log; each is a warning."""
    assert {record.levelno for record in caplog.records} <= {logging.WARNING}
    return [record.getMessage() for record in caplog.records]


def test_without_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The host has none, and the environment names none."""
    monkeypatch.setattr(places, "HOST_DIRECTORY", tmp_path / "run")
    monkeypatch.delenv("STATSFS_DIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with publish("app/a", values=WorkerStats, labels=("app", None), optional=True) as segment:
        assert repr(segment) == f"<Segment 'app/a' private {str(segment.file)!r}>"
        count(segment.stats)
    assert not segment.file.exists()
    assert not (tmp_path / "run").exists()
    (line,) = said(caplog)
    assert line.startswith("no directory for segments: ")
    assert line.endswith("; it counts privately")
    with pytest.raises(SegmentError, match="no directory for segments"):
        publish("app/a", values=WorkerStats)


def test_a_directory_that_is_refused(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Missing, a file, one that others may write, or with a NUL; once for each of them."""
    (directory / "file").touch()
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    for name in ("missing", "file", "open", "a\0b"):
        for number in range(3):
            segment = publish(
                "app/%d", number, values=WorkerStats, directory=directory / name, optional=True
            )
            count(segment.stats)
            assert " private " in repr(segment)
            segment.close()
    lines = said(caplog)
    assert len(lines) == 4
    assert sum(line.startswith("segment 'app/0'") for line in lines) == 3
    assert all("\n" not in line and line.endswith("; it counts privately") for line in lines)
    assert segments_in(directory) == []


def test_the_processs_own_directory_is_gone(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So that a relative one is nowhere."""
    gone = directory / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    count(publish("a", values=WorkerStats, directory="here", optional=True).stats)
    assert said(caplog) == ["segment 'a' in here: No such file or directory; it counts privately"]


@pytest.mark.root
def test_a_full_disk(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that found room are published, the others count; nothing is left of these."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k,mode=755", "tmpfs", directory], check=True
    )
    try:
        made = [
            publish("a", values=WorkerStats, directory=directory, optional=True) for _ in range(9)
        ]
        for one in made:
            count(one.stats)
        published = [one for one in made if " private " not in repr(one)]
        assert 0 < len(published) < 9
        assert sorted(directory.iterdir()) == sorted(one.file for one in published)
        (line,) = said(caplog)
        assert os.strerror(errno.ENOSPC) in line
        for one in made:
            one.close()
    finally:
        subprocess.run(["umount", directory], check=True)


def test_before_uwsgi_forks(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What its workers would count in one segment, each counts privately."""
    uwsgi: Any = types.ModuleType("uwsgi")
    uwsgi.worker_id, uwsgi.mule_id, uwsgi.masterpid = (lambda: 0), (lambda: 0), os.getpid
    uwsgi.numproc = 2
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    count(publish("a", values=WorkerStats, directory=directory, optional=True).stats)
    (line,) = said(caplog)
    assert "--lazy-apps" in line
    assert list(directory.iterdir()) == []


def test_what_is_published_is_as_ever(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing is refused."""
    with publish("app", values=WorkerStats, directory=directory, optional=True) as segment:
        count(segment.stats)
        assert alive(segment.file)
        assert read_segment(segment.file).numbers["requests"] == 1
        assert " private " not in repr(segment)
    assert said(caplog) == []


def test_after_close(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From 0, with the same object; the file has what was counted before. Only a use is logged."""
    (directory / places.COLLECTOR).touch()
    segments: list[Segment[WorkerStats]] = [
        publish("app/%d", number, values=WorkerStats, directory=directory, optional=True)
        for number in range(2)
    ]
    for one in segments:
        one.stats.requests += 5
        one.stats.latency.observe(3)
        one.close()
        one.close()
    assert said(caplog) == []
    used, unused = segments
    stats, buckets = used.stats, used.stats.latency
    assert not hasattr(unused.stats, "__array__"), "what looks for protocols says nothing"
    assert list(buckets) == [0] * 8
    count(stats)
    assert used.stats is stats
    assert repr(used) == f"<Segment 'app/0' private {str(used.file)!r}>"
    assert said(caplog) == ["segment 'app/0' was closed: it counts privately"]
    for one in segments:
        numbers = read_segment(one.file).numbers
        assert (numbers["requests"], numbers["latency.sum"]) == (5, 3)
        assert not alive(one.file)


def test_a_use_after_close_may_be_any(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A store, a read, an observation, or a method."""
    values = (Value("n", aggregate=Aggregate.SUM), Value("h", kind=Kind.LOG_HIST, size=3))
    uses: list[Any] = [
        lambda stats: setattr(stats, "n", 7),
        lambda stats: stats.n,
        lambda stats: stats.h.observe(1),
        lambda stats: stats.h,
        lambda stats: stats.asdict() == {"n": 0, "h": [0, 0, 0]} or pytest.fail("it has values"),
        lambda stats: stats.adding(n=1).__exit__(None, None, None),
    ]
    for use in uses:
        segment = publish("app", values=values, directory=directory, optional=True)
        segment.close()
        use(segment.stats)
    assert said(caplog) == ["segment 'app' was closed: it counts privately"] * len(uses)


FORK = """
import logging, os, sys
from statsfs import Stats, log_hist, publish, u64

class WorkerStats(Stats):
    requests = u64()
    latency = log_hist(8)

logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
segment = publish("app", values=WorkerStats, directory=sys.argv[1], optional=True)
nobody = publish("app", values=WorkerStats, directory=sys.argv[1] + "/missing", optional=True)
nobody.stats.requests += 1
stats, buckets = segment.stats, segment.stats.latency
stats.requests += 5
for turn in range(2):
    sys.stdout.flush()
    if not os.fork():
        if turn:
            os._exit(0)                      # it never counts, and says nothing
        assert not buckets.sum
        for number in range(1, 4):
            stats.requests += 1
            segment.stats.latency.observe(1)
            assert (stats.requests, list(buckets)[1]) == (number, number)
        nobody.stats.requests += 1
        assert nobody.stats.requests == 2
        print(repr(segment))
        sys.stdout.flush()
        segment.close()
        stats.requests += 1
        os._exit(0)
    assert os.wait()[1] == 0
stats.requests += 1
os._exit(0)
"""


@pytest.mark.slow
def test_in_a_forked_child(directory: Path) -> None:
    """It counts privately from 0, and says so once; the parent's numbers are the parent's."""
    (directory / places.COLLECTOR).touch()
    done = subprocess.run(
        [sys.executable, "-c", FORK, directory], capture_output=True, text=True, timeout=60
    )
    (file,) = segments_in(directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"WARNING segment 'app': no directory {directory}/missing: make it; it counts privately",
        "WARNING segment 'app' belongs to the process that forked this one: it counts privately",
        f"<Segment 'app' private {str(file)!r}>",
    ]
    assert read_segment(file).numbers["requests"] == 6


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"labels": ("a",)}, SegmentError),
        ({"labels": "app"}, TypeError),
        ({"mode": 0o777}, SegmentError),
        ({"values": [Value("a", offset=0)]}, SegmentError),
        ({"values": []}, SegmentError),
        ({"values": [Value("_fields_")]}, InvalidNameError),
        ({"directory": 5}, TypeError),
    ],
    ids=str,
)
def test_what_is_wrong_in_the_program_is_an_error(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    """It is so in every run, and where the developer sees it."""
    with pytest.raises(error):
        publish(
            "app/a",
            **{"values": WorkerStats, "directory": tmp_path / "no", "optional": True, **arguments},
        )

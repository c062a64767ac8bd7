"""The collector in accidents: its own errors, forks of its program, strangers in the way."""

import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from statsfs.collector import Collector
from statsfs.collector.admission import Admission
from statsfs.collector.collector import _disown_in_child as disown_in_child
from statsfs.collector.journal import Journal
from statsfs.collector.live_segment import LiveSegment
from statsfs.collector.path_sources import PathSources
from statsfs.exceptions import SegmentError, TreeError
from statsfs.segments import locks, publish
from statsfs.segments.file_format import decode
from statsfs.segments.locks import hold
from statsfs.segments.places import COLLECTOR
from statsfs.tree.registry import Registry
from tests.support.collecting import (
    HandMade,
    Producer,
    WorkerStats,
    collecting,
    find,
    lose_events,
    remove,
    total,
    wait_for,
)
from tests.support.deadlines import wait_until
from tests.support.forking import run_forking
from tests.support.mounts import NOBODY, run

# Errors of its own


@pytest.mark.slow
def test_an_error_of_its_own_does_not_end_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and what was told meanwhile is found by looking."""
    with collecting(directory) as registry:
        publish("app/w1", values=WorkerStats, directory=directory)
        wait_for(registry, "app/w1")
        with monkeypatch.context() as patcher:
            patcher.setattr(Admission, "look", lambda *_: 1 // 0)
            segment = publish("app/w2", values=WorkerStats, directory=directory)
            segment.stats.requests = 5
            wait_until(lambda: "collecting failed" in caplog.text)
        wait_for(registry, "app/w2")
        assert total(registry) == 5
        assert "ZeroDivisionError" in caplog.text


@pytest.mark.slow
def test_an_error_of_its_own_while_its_directory_is_gone(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on waiting for it."""
    with collecting(directory) as registry:
        with monkeypatch.context() as patcher:
            patcher.setattr(Journal, "load", lambda *_: 1 // 0)
            remove(directory)
            wait_until(lambda: "is gone" in caplog.text)
            directory.mkdir(mode=0o755)
            wait_until(lambda: "collecting failed" in caplog.text)
        wait_until(lambda: "is there again" in caplog.text)
        with publish("app/w1", values=WorkerStats, directory=directory):
            wait_for(registry, "app/w1")


@pytest.mark.slow
def test_records_that_cannot_be_taken(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The tree refuses them: nothing of them is written over, and it is tried again."""
    with collecting(directory) as registry:
        with publish("app/w1", values=WorkerStats, directory=directory) as segment:
            segment.stats.requests = 3
            wait_for(registry, "app/w1")
        wait_until(lambda: find(registry, "app/w1") is None)
    record = (directory / ".retained" / "app").read_bytes()

    def refuse(*_: object) -> None:
        raise TreeError("no room in the tree", None)

    with monkeypatch.context() as patcher:
        patcher.setattr(PathSources, "place", refuse)
        with pytest.raises(TreeError, match="no room"):
            Collector(Registry(), directory).start()
        assert (directory / ".retained" / "app").read_bytes() == record
    with collecting(directory) as registry:
        registry.unregister(registry.by_name["app"])
        with monkeypatch.context() as patcher:
            patcher.setattr(Journal, "load", refuse)
            os.rename(directory, directory.with_name("away"))
            wait_until(lambda: "is gone" in caplog.text)
            os.rename(directory.with_name("away"), directory)
            wait_until(lambda: "no room in the tree" in caplog.text)
        wait_until(lambda: "is there again" in caplog.text)


def test_a_second_way_back_is_none(directory: Path) -> None:
    """A directory that is open already is not opened again."""
    with collecting(directory) as registry:
        pass
    collector = Collector(registry, directory)
    with collector:
        directories = collector._directories
        collector._reopen()
        assert collector._directories is directories


@pytest.mark.slow
def test_a_directory_that_went_unnoticed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The deaths of its producers are seen nevertheless, and their segments count once."""
    caplog.set_level(logging.ERROR)
    registry = Registry()
    with Collector(registry, directory) as collector:
        (directory / "www").mkdir()
        with Producer(directory / "www", "www/w1") as producer:
            wait_for(registry, "www/w1")
            producer.count(3)
            with monkeypatch.context() as patcher:
                lose_events(patcher)
                # At once, so that its file is never seen to go.
                os.rename(directory / "www", directory.with_name("elsewhere"))
                wait_until(lambda: len(collector._liveness.orphans) == 1)
            assert total(registry, path="www") == 3
        wait_until(lambda: find(registry, "www/w1") is None)
        assert total(registry, path="www") == 3


@pytest.mark.slow
def test_more_who_wait_than_are_remembered(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are found when all is looked at."""
    monkeypatch.setattr("statsfs.collector.admission._WAITING_MAX", 0)
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.5)
    with collecting(directory) as registry:
        first = HandMade.of(directory / "first.stats", "app/w1", [3])
        wait_for(registry, "app/w1")
        second = HandMade.of(directory / "second.stats", "app/w1", [4])
        wait_until(lambda: "waiting for it" in caplog.text)
        first.die()
        wait_until(lambda: total(registry, "a") == 7)
        second.die()


def test_a_clear_in_the_moment_in_which_a_segment_is_let_in(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cleared in an earlier life of what counts anew is not written down again."""
    made = HandMade.of(directory / "x.stats", "app/w1", [5])
    head = decode(made.file.read_bytes())
    assert head is not None
    with collecting(directory) as registry:
        registry.by_name["app"].clear_value("a")
    os.pwrite(made.fd, bytes([2]), head.data_offset)
    add = PathSources.add

    def add_and_write(self: PathSources, segment: LiveSegment) -> None:
        add(self, segment)
        self._record("app")

    with monkeypatch.context() as patcher:
        patcher.setattr(PathSources, "add", add_and_write)
        with collecting(directory) as registry:
            assert total(registry, "a") == 2
    os.pwrite(made.fd, bytes([9]), head.data_offset)
    with collecting(directory) as registry:
        assert total(registry, "a") == 9
    made.die()


# Forks


FORK = """
import os, sys
from statsfs import Collector, Registry, publish
from tests.support.collecting import WorkerStats, find, total, wait_for
from tests.support.deadlines import wait_until

directory = {directory!r}
registry = Registry()
collector = Collector(registry, directory).__enter__()
published = publish("app/w1", values=WorkerStats, directory=directory)
published.stats.requests = 3
wait_for(registry, "app/w1")
reading, writing = os.pipe()
child = os.fork()
if not child:
    os.close(writing)
    registry.by_name["app"].clear_value("requests")      # in the child's tree
    collector.close()
    os.read(reading, 1)
    sys.exit(0)
os.close(reading)
another = publish("app/w2", values=WorkerStats, directory=directory)
another.stats.requests = 4
wait_for(registry, "app/w2")
another.close()
wait_until(lambda: find(registry, "app/w2") is None)
assert total(registry) == 7, total(registry)
collector.close()
with Collector(Registry(), directory):      # the child, which lives, has no lock
    pass
os.close(writing)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_collects_nothing(directory: Path) -> None:
    """It has neither the lock nor the watches, and writes no records; nor is it stuck."""
    assert run_forking(FORK.format(directory=str(directory))) == (0, "")


@pytest.mark.parametrize("there", [True, False], ids=["there", "gone"])
def test_what_a_forked_child_gives_up(
    directory: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The lock and the watches; with or without a directory at that moment."""
    # As in a child, the thread is not there.
    with monkeypatch.context() as patcher:
        patcher.setattr(threading.Thread, "start", lambda self: None)
        collector = Collector(Registry(), directory)
        collector.start()
    if not there:
        collector._close_directories()
    disown_in_child()
    with collecting(directory):
        collector.close()
    if collector._directories is not None:
        collector._directories.top.close()


# Strangers in the way


@pytest.mark.root
def test_a_stranger_cannot_keep_collectors_out(directory: Path, tmp_path: Path) -> None:
    """A reader of the lock file could lock it, so only its owner may read it; an old one too."""
    lock = directory / COLLECTOR
    lock.touch(0o644)
    with collecting(directory):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    for above in (tmp_path, *tmp_path.parents[:-2]):
        above.chmod(above.stat().st_mode | 0o011)
    run("setpriv", f"--reuid={NOBODY}", "--clear-groups", "ls", directory)
    run("setpriv", f"--reuid={NOBODY}", "--clear-groups", "cat", lock, status=1)


def test_nobody_can_lock_a_segment_before_its_producer(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be read by others once it is locked, and not before."""
    modes = []

    def note(fd: int) -> bool:
        modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return hold(fd)

    monkeypatch.setattr(locks, "hold", note)
    with publish("app/w1", values=WorkerStats, directory=directory) as segment:
        assert modes == [0o600]
        assert stat.S_IMODE(segment.file.stat().st_mode) == 0o644
    with pytest.raises(SegmentError):
        segment.stats.requests = 1

"""What the dead leave: folded once, whatever ends the collector, and when."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statsfs.collector import Collector
from statsfs.collector.journal import Journal
from statsfs.collector.journal_file import JournalFiles, decode_record
from statsfs.collector.live_segment import SegmentNumbers
from statsfs.collector.path_sources import PathSources
from statsfs.collector.trusted_directory import TrustedDirectory
from statsfs.exceptions import SegmentError
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import publish
from statsfs.tree.registry import Registry
from tests.support.collecting import (
    Crash,
    HandMade,
    collecting,
    files_in,
    find,
    remove,
    total,
    wait_for,
)
from tests.support.deadlines import wait_until
from tests.support.mounts import ROOT, run

VERSION_1 = Path(__file__).parent.parent / "data" / "retained_app_1.bin"
PEAK = Value("peak", aggregate=Aggregate.MAX, kind=Kind.PEAK)
SUM = Value("sum", aggregate=Aggregate.SUM)


def leave(directory: Path, path: str, sum: int, peak: int = 0) -> None:
    """Leave the segment of a producer that died while no collector ran."""
    file = directory / f"{path.replace('/', '_')}-{os.urandom(8).hex()}.stats"
    HandMade.of(file, path, [sum, peak], [SUM, PEAK], alive=False)


def sums(registry: Registry, path: str = "app") -> tuple[int, int]:
    """The sum and the peak of a directory."""
    return total(registry, "sum", path), total(registry, "peak", path)


def crash_before(owner: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what makes a collector end before it calls a function for the first time."""

    def patch(patcher: pytest.MonkeyPatch) -> None:
        def crash(*_: object, **__: object) -> None:
            raise Crash

        patcher.setattr(owner, name, crash)

    return patch


def crash_after(owner: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Return what makes a collector end after it called a function for the first time."""

    def patch(patcher: pytest.MonkeyPatch) -> None:
        function = getattr(owner, name)

        def crash(*args: Any, **kwargs: Any) -> None:
            function(*args, **kwargs)
            raise Crash

        patcher.setattr(owner, name, crash)

    return patch


STEPS = {
    "the lock is free": crash_before(SegmentNumbers, "finish"),
    "the last numbers are read": crash_before(Journal, "begin_fold"),
    "the record is to be renamed": crash_before(os, "replace"),
    "the record is renamed": crash_after(os, "replace"),
    "one file is removed": crash_after(os, "unlink"),
    "all files are removed": crash_before(PathSources, "remove"),
    "one has left the tree": crash_after(PathSources, "remove"),
    "all have left the tree": crash_before(Journal, "end_fold"),
    "it is done": crash_after(Journal, "end_fold"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_each_step_of_a_fold(
    directory: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Nothing is lost and nothing counted twice, however often it happens."""
    for round in range(1, 4):
        for worker in range(3):
            leave(directory, f"app/group{worker % 2}/w{worker}", 10**worker, round)
        leave(directory, "app/group0/w0", 1000)
        with monkeypatch.context() as patcher:
            STEPS[step](patcher)
            with pytest.raises(Crash):
                Collector(Registry(), directory).start()
        if round != 2:  # or it happens twice in a row
            with collecting(directory) as registry:
                assert sums(registry) == (1111 * round, round)
                assert files_in(directory) == []
                for group, count in (("group0", 1101), ("group1", 10)):
                    assert sums(registry, f"app/{group}") == (count * round, round)


def test_a_crash_while_others_live(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lives goes on counting, and stands where it was."""
    with publish("app/group/w1", values=[SUM, PEAK], directory=directory) as segment:
        segment.stats.sum = 5
        leave(directory, "app/group/w2", 10, 7)
        with monkeypatch.context() as patcher:
            STEPS["the record is renamed"](patcher)
            with pytest.raises(Crash):
                Collector(Registry(), directory).start()
        segment.stats.sum += 1
        with collecting(directory) as registry:
            assert sums(registry) == sums(registry, "app/group") == (16, 7)
            assert find(registry, "app/group/w2") is None
            segment.close()
            wait_until(lambda: find(registry, "app/group/w1") is None)
            assert sums(registry) == sums(registry, "app/group") == (16, 7)


DAEMON = """
import os, signal, sys, time
from statsfs import Collector, Registry
from statsfs.collector.journal import Journal

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

registry = Registry()
with Collector(registry, sys.argv[1]):
    if len(sys.argv) > 2:
        registry.by_name["app"].clear_value("sum")
        assert registry.by_name["app"].get_value("sum") == 0
        die()
    Journal.note_removed = die
    print("ready", flush=True)
    time.sleep(60)
"""


def daemon(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Run a collector as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(directory), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_a_daemon_killed_in_the_middle_of_a_fold(directory: Path) -> None:
    """By SIGKILL, as soon as it removed the first of what died at once."""
    segments = [publish("app/w%d", i, values=[SUM, PEAK], directory=directory) for i in range(4)]
    for number, segment in enumerate(segments):
        segment.stats.sum = 10**number
    with daemon(directory) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for segment in segments:
            segment.close()
        assert process.wait(20) == -signal.SIGKILL
    assert len(files_in(directory)) < 4
    with collecting(directory) as registry:
        assert sums(registry) == (1111, 0)
        assert files_in(directory) == []


def test_cleared_stays_cleared(directory: Path) -> None:
    """The daemon is killed right after a clear: of the living, and of what the dead left."""
    leave(directory, "app/w1", 100)
    with publish("app/w2", values=[SUM, PEAK], directory=directory) as segment:
        segment.stats.sum = 7
        with daemon(directory, "clear") as process:
            assert process.wait(20) == -signal.SIGKILL
        with collecting(directory) as registry:
            assert sums(registry) == (0, 0)
            segment.stats.sum += 2
            assert sums(registry) == (2, 0)
        segment.stats.sum += 1
    with collecting(directory) as registry:
        assert sums(registry) == (3, 0)


def test_what_was_cleared_of_one_that_is_gone(directory: Path) -> None:
    """It is remembered, as the file may come back; the others are cleared as before."""
    segments = [publish("app/w%d", i, values=[SUM, PEAK], directory=directory) for i in (1, 2)]
    with collecting(directory) as registry:
        for number, segment in enumerate(segments):
            segment.stats.sum = 5 + number
        registry.by_name["app"].clear_value("sum")
    record = directory / ".retained" / "app"
    ids = [segment.file.stem.rpartition("-")[2] for segment in segments]
    baselines = {id: {"sum": 5 + n} for n, id in enumerate(ids)}
    assert decode_record("app", record.read_bytes()).baselines == baselines
    away = segments[0].file.rename(directory.with_name("away"))
    with collecting(directory) as registry:
        segments[1].stats.sum += 3
        assert sums(registry) == (3, 0)
        registry.by_name["app"].clear_value("sum")
        baselines[ids[1]] = {"sum": 9}
        assert decode_record("app", record.read_bytes()).baselines == baselines
        segments[0].stats.sum += 4
        away.rename(segments[0].file)
        wait_for(registry, "app/w1")
        assert sums(registry) == (4, 0)
    for segment in segments:
        segment.close()


def test_many_lives_of_one_path(directory: Path) -> None:
    """Of which all died while no daemon ran."""
    for life in range(5):
        leave(directory, "app/w1", 10**life)
    with collecting(directory) as registry:
        assert sums(registry) == (11111, 0)
        assert files_in(directory) == []


def test_more_dead_than_are_folded_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are folded in batches, of one record each."""
    monkeypatch.setattr("statsfs.collector.folding._BATCH", 3)
    for worker in range(10):
        leave(directory, f"app/w{worker}", 1, worker)
    with collecting(directory) as registry:
        assert sums(registry) == (10, 9)


def test_clearing_what_was_restored(directory: Path) -> None:
    """The sums of earlier lives are cleared with those of this one, peaks too."""
    leave(directory, "app/w1", 5, 6)
    with collecting(directory) as registry:
        pass
    with collecting(directory) as registry:
        app = registry.by_name["app"]
        app.clear_value("sum")
        app.clear_value("peak")
        assert sums(registry) == (0, 0)
    leave(directory, "app/w1", 1, 2)
    with collecting(directory) as registry:
        assert sums(registry) == (1, 2)


def test_clearing_while_the_dead_are_folded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the record, before the tree: what is written down is what was cleared."""
    remove = PathSources.remove

    def clear_first(self: PathSources, source: Any) -> None:
        registry.by_name["app"].clear_value("sum")
        registry.by_name["app"].clear_value("peak")
        remove(self, source)

    segment = publish("app/w1", values=[SUM, PEAK], directory=directory)
    leave(directory, "app/w2", 100)
    with collecting(directory) as registry:
        segment.stats.sum, segment.stats.peak = 5, 6
        monkeypatch.setattr(PathSources, "remove", clear_first)
        segment.close()
        wait_until(lambda: find(registry, "app/w1") is None)
        assert sums(registry) == (0, 0)
    with collecting(directory) as registry:
        assert sums(registry) == (0, 0)


def test_clearing_while_segments_come_and_go(directory: Path) -> None:
    """In several threads: each count is shown once or cleared, and so in the next life."""
    ended = threading.Event()
    errors: list[BaseException] = []

    def clear(registry: Registry) -> None:
        try:
            while True:
                registry.by_name["app"].clear_value("sum")
                if ended.is_set():
                    break
        except BaseException as error:
            errors.append(error)

    leave(directory, "app/w0", 1)
    with collecting(directory) as registry:
        threads = [threading.Thread(target=clear, args=(registry,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for number in range(60):
                path = f"app/group{number % 3}/w{number % 7}"
                HandMade.of(directory / f"{number}.stats", path, [10, 0], [SUM, PEAK]).die()
            wait_until(lambda: files_in(directory) == [])
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert errors == []
        groups = registry.by_name["app"].subordinates
        wait_until(lambda: not any(group.subordinates for group in groups))
        left = sums(registry)
        assert left[0] % 10 == 0
    with collecting(directory) as registry:
        assert sums(registry) == left


def test_clearing_while_records_are_taken_over(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clear does not write over a record that is not in the tree yet."""
    leave(directory, "app/w1", 5)
    leave(directory, "other/w1", 7)
    with collecting(directory):
        pass
    restore = Journal.restore

    def restore_late(self: Journal, name: str) -> None:
        clear = threading.Thread(target=self.record, args=[name])
        clear.start()
        clear.join()
        restore(self, name)

    monkeypatch.setattr(Journal, "restore", restore_late)
    for _ in range(2):
        with collecting(directory) as registry:
            assert (sums(registry), sums(registry, "other")) == ((5, 0), (7, 0))


def test_a_negative_peak(directory: Path) -> None:
    """It is retained: a value without a retained peak does not count as 0."""
    peak = Value("peak", type=SUM.type.S64, aggregate=Aggregate.MAX, kind=Kind.PEAK)
    HandMade.of(directory / "x.stats", "app/w1", [-5], [peak], alive=False)
    with collecting(directory) as registry:
        assert total(registry, "peak") == -5
    with collecting(directory) as registry:
        assert total(registry, "peak") == -5


# Files that do not go


def test_a_file_that_cannot_be_removed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Is counted once: the record goes on naming it, and it is removed when that can be."""
    unlink = os.unlink

    def refuse(path: Any, **options: Any) -> None:
        if str(path).endswith(".stats"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, **options)

    leave(directory, "app/w1", 5)
    with monkeypatch.context() as patcher:
        patcher.setattr(os, "unlink", refuse)
        for _ in range(2):
            with collecting(directory) as registry:
                assert sums(registry) == (5, 0)
                assert len(files_in(directory)) == 1
    assert "Operation not permitted" in caplog.text
    assert "counted already" in caplog.text
    with collecting(directory) as registry:
        assert sums(registry) == (5, 0)
        assert files_in(directory) == []


def test_a_new_segment_with_the_name_of_a_folded_one(directory: Path) -> None:
    """Is not taken for that one, neither at once nor at the next start."""
    file = directory / "counter.stats"
    HandMade.of(file, "app/w1", [5, 0], [SUM, PEAK], alive=False)
    with collecting(directory) as registry:
        assert sums(registry) == (5, 0)
    living = HandMade.of(file, "app/w1", [10, 0], [SUM, PEAK])
    for _ in range(2):
        with collecting(directory) as registry:
            assert sums(registry) == (15, 0)
    living.die()
    with collecting(directory) as registry:
        assert sums(registry) == (15, 0)
        assert files_in(directory) == []


def test_a_new_segment_beside_a_record_that_cannot_be_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts, whatever the name of its file: the next collector does not take it for another."""
    file = directory / "counter.stats"
    HandMade.of(file, "app/w1", [5, 0], [SUM, PEAK], alive=False)
    with collecting(directory):
        pass
    living = HandMade.of(file, "app/w1", [10, 0], [SUM, PEAK])

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patcher:
        patcher.setattr(JournalFiles, "write", refuse)
        with collecting(directory) as registry:
            assert sums(registry) == (15, 0)
    with collecting(directory) as registry:
        assert sums(registry) == (15, 0)
    living.die()


def test_what_lies_where_a_folded_file_was(directory: Path) -> None:
    """Another thing, such as a link, is left there."""
    leave(directory, "app/w1", 5)
    (directory / "sub").mkdir()
    HandMade.of(directory / "sub" / "x.stats", "sub/w1", [6, 0], [SUM, PEAK], alive=False)
    with collecting(directory) as registry:
        assert (sums(registry), sums(registry, "sub")) == ((5, 0), (6, 0))
    (id,) = decode_record("app", (directory / ".retained" / "app").read_bytes()).folded
    name = f"app_w1-{id}.stats"
    (directory / name).symlink_to("elsewhere")
    (directory / "sub").rmdir()
    with collecting(directory) as registry:
        assert (sums(registry), sums(registry, "sub")) == ((5, 0), (6, 0))
    assert files_in(directory) == [name]


def test_what_somebody_removed_is_counted(directory: Path) -> None:
    """From the open descriptor, when its lock drops."""
    with collecting(directory) as registry:
        segment = publish("app/w1", values=[SUM, PEAK], directory=directory)
        wait_for(registry, "app/w1")
        segment.file.unlink()
        segment.stats.sum = 5
        assert sums(registry, "app/w1") == (5, 0)
        registry.by_name["app"].clear_value("sum")
        segment.stats.sum = 7
        segment.close()
        wait_until(lambda: find(registry, "app/w1") is None)
        assert sums(registry) == (2, 0)
    with collecting(directory) as registry:
        assert sums(registry) == (2, 0)


def test_what_somebody_moved_is_the_same(directory: Path) -> None:
    """It is not counted twice, wherever it goes."""
    with collecting(directory) as registry:
        segment = publish("app/w1", values=[SUM, PEAK], directory=directory)
        source = wait_for(registry, "app/w1")
        source.clear_value("sum")
        segment.stats.sum = 5
        for name in ("a.stats", "b.stats", "elsewhere.txt", "c.stats"):
            (directory / files_in(directory)[0]).rename(directory / name)
        segment.close()
        wait_until(lambda: files_in(directory) == [])
        wait_until(lambda: find(registry, "app/w1") is None)
        assert sums(registry) == (5, 0)


def test_another_file_in_the_place_of_one(directory: Path) -> None:
    """Each counts once: the old one from its descriptor, the new one when the path is free."""
    with collecting(directory) as registry:
        old = HandMade.of(directory / "x.stats", "app/w1", [5, 0], [SUM, PEAK])
        wait_for(registry, "app/w1")
        new = HandMade.of(directory / "x.stats", "app/w1", [10, 0], [SUM, PEAK])
        old.die()
        wait_until(lambda: total(registry, "sum", "app/w1") == 10)
        assert sums(registry) == (15, 0)
        new.die()
        wait_until(lambda: files_in(directory) == [])
        assert sums(registry) == (15, 0)


def test_files_that_go_while_they_are_looked_at(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes may remove them at any moment: before they are opened, or removed."""
    leave(directory, "app/w1", 5)
    (name,) = files_in(directory)
    unlink, open_ = os.unlink, TrustedDirectory.open
    opened: list[str] = []

    def unlink_first(path: Any, **options: Any) -> None:
        unlink(path, **options)
        unlink(path, **options)

    def open_late(self: TrustedDirectory, file: str, *how: int) -> Any:
        # At first it is opened to find the order.
        opened.append(file)
        if file != name and opened.count(file) == 2:
            unlink(directory / file)
        return open_(self, file, *how)

    monkeypatch.setattr(TrustedDirectory, "open", open_late)
    monkeypatch.setattr(os, "unlink", unlink_first)
    leave(directory, "app/w2", 100)
    with collecting(directory) as registry:
        assert sums(registry) == (5, 0)
        assert files_in(directory) == []


def test_a_folded_file_that_cannot_be_opened(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stays named by the record until it can."""
    leave(directory, "app/w1", 5)
    with monkeypatch.context() as patcher, contextlib.suppress(Crash):
        STEPS["the record is renamed"](patcher)
        Collector(Registry(), directory).start()
    open_ = TrustedDirectory.open
    for fails in (True, False):

        def refuse(self: TrustedDirectory, file: str, fails: bool = fails) -> Any:
            if fails:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return open_(self, file)

        monkeypatch.setattr(TrustedDirectory, "open", refuse)
        with collecting(directory) as registry:
            assert sums(registry) == (5, 0)
        assert len(files_in(directory)) == fails


def test_a_peak_that_was_cleared_is_0(directory: Path) -> None:
    """Now and at the next start, where its file still is."""
    HandMade.of(directory / "x.stats", "app/w1", [5], [PEAK], alive=False)
    with collecting(directory) as registry:
        registry.by_name["app"].clear_value("peak")
        assert total(registry, "peak") == 0
    with collecting(directory) as registry:
        assert total(registry, "peak") == 0


@pytest.mark.slow
def test_what_was_moved_out_is_counted_in_the_end(directory: Path) -> None:
    """A second after its producer's death, if it is not found anywhere by then."""
    with collecting(directory) as registry:
        segment = publish("app/w1", values=[SUM, PEAK], directory=directory)
        wait_for(registry, "app/w1")
        segment.stats.sum = 5
        segment.file.rename(directory.with_name("elsewhere.stats"))
        segment.close()
        wait_until(lambda: find(registry, "app/w1") is None)
        assert sums(registry) == (5, 0)


def test_removed_segments_are_watched_one_by_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the directory is gone too, nothing tells of their producers' deaths."""
    monkeypatch.setattr("statsfs.collector.liveness._PATIENCE", 0.02)
    with collecting(directory) as registry:
        segments = [publish("app/w%d", i, values=[SUM, PEAK], directory=directory) for i in (1, 2)]
        wait_for(registry, "app/w1")
        wait_for(registry, "app/w2")
        remove(directory)
        for number, segment in enumerate(segments, 1):
            segment.stats.sum = number
            segment.close()
            wait_until(lambda: find(registry, f"app/w{number}") is None)  # noqa: B023  # at once
        assert sums(registry) == (3, 0)


@pytest.mark.slow
def test_another_record_in_a_directory_that_came_back(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is in the tree stays as it is; names that are not there are taken from the records."""
    leave(directory, "app/w1", 5)
    leave(directory, "other/w1", 7)
    with collecting(directory):
        pass
    away = directory.with_name("away")
    directory.rename(away)
    directory.mkdir()
    leave(directory, "app/w1", 100)
    with collecting(directory) as registry:
        directory.rename(directory.with_name("elsewhere"))
        wait_until(lambda: "is gone" in caplog.text)
        away.rename(directory)
        wait_until(lambda: "is there again" in caplog.text)
        assert sums(registry) == (100, 0)
        assert sums(registry, "other") == (7, 0)
    with collecting(directory) as registry:
        assert (sums(registry), sums(registry, "other")) == ((100, 0), (7, 0))


# Records


def test_a_record_of_version_1_is_taken_over(directory: Path) -> None:
    """What an older collector retained and cleared counts on, and outlives the next one too."""
    record = directory / ".retained" / "app"
    record.parent.mkdir(mode=0o700)
    record.write_bytes(VERSION_1.read_bytes())
    waits = Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)
    living = HandMade.of(directory / "a.stats", "app/x", [7, [2, 2, 2]], [SUM, waits])
    for _ in range(2):
        with collecting(directory) as registry:
            # (1 << 64) - 1 and 3 were retained, 5 of the living 7 cleared.
            assert total(registry, "sum") == 4
            assert total(registry, "waits") == [3, 3, 5]
            assert total(registry, "deepest.max") == 7
            assert total(registry, "sizes") == list(range(70))
            assert registry.by_name["app"].label == "app"
            registry.by_name["app"].clear_value("time_ns")
        assert record.read_bytes()[:1] == b"{"
    living.die()


@pytest.mark.parametrize("damage", [b"", b"no record", None])
def test_a_broken_record_is_kept_aside(
    directory: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    """One line says so, and the collector goes on."""
    leave(directory, "app/w1", 5)
    leave(directory, "other/w1", 6)
    with collecting(directory):
        pass
    record = directory / ".retained" / "app"
    record.write_bytes(record.read_bytes()[:-8] if damage is None else damage)
    with collecting(directory) as registry:
        assert find(registry, "app") is None
        assert sums(registry, "other") == (6, 0)
    (aside,) = (path for path in record.parent.iterdir() if "broken" in path.name)
    assert len([line for line in caplog.messages if aside.name in line]) == 1
    with collecting(directory):
        pass
    assert len([line for line in caplog.messages if aside.name in line]) == 1


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A directory on a filesystem of 128 KiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=128k,mode=755", "tiny", path)
    try:
        yield path
    finally:
        run("umount", path)


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), ballast.open("wb", 0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.root
def test_a_full_disk(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is folded before it can be written down; then it is, and once."""
    monkeypatch.setattr("statsfs.collector.folding._PAUSE", 0.02)
    monkeypatch.setattr("statsfs.collector.collector._PAUSE", 0.02)
    tries, begin = [], Journal.begin_fold

    def count(self: Journal, name: str, segments: Any) -> bool | None:
        tries.append(name)
        return begin(self, name, segments)

    monkeypatch.setattr(Journal, "begin_fold", count)
    with collecting(tiny) as registry:
        segment = publish("app/w1", values=[SUM, PEAK], directory=tiny)
        wait_for(registry, "app/w1")
        segment.stats.sum = 5
        ballast = tiny / ".ballast"
        fill(ballast)
        segment.close()
        wait_until(lambda: len(tries) > 3)
        assert f"{tiny}/.retained: No space left on device; trying again" in caplog.text
        registry.by_name["app"].clear_value("peak")
        assert sums(registry) == sums(registry, "app/w1") == (5, 0)
        assert len(files_in(tiny)) == 1
        ballast.unlink()
        wait_until(lambda: files_in(tiny) == [])
        wait_until(lambda: find(registry, "app/w1") is None)
        assert sums(registry) == (5, 0)
    assert len([line for line in caplog.messages if "trying again" in line]) == 1
    with collecting(tiny) as registry:
        assert sums(registry) == (5, 0)


@pytest.mark.root
def test_clearing_on_a_full_disk(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Is refused, and nothing is cleared: neither now nor, to come undone, after a restart."""
    segment = publish("app/w1", values=[SUM, PEAK], directory=tiny)
    segment.stats.sum = 5
    with collecting(tiny) as registry:
        ballast = tiny / ".ballast"
        fill(ballast)
        for source in (registry.by_name["app"], registry.by_name["app"].subordinates[0]):
            with pytest.raises(SegmentError, match="No space left on device"):
                source.clear_value("sum")
        assert sums(registry) == sums(registry, "app/w1") == (5, 0)
        segment.stats.sum += 1
        assert sums(registry) == (6, 0)
        ballast.unlink()
        registry.by_name["app"].clear_value("sum")
        segment.stats.sum += 1
        assert sums(registry) == sums(registry, "app/w1") == (1, 0)
    assert len([line for line in caplog.messages if "nothing was changed" in line]) == 1
    with collecting(tiny) as registry:
        assert sums(registry) == (1, 0)
    segment.close()


def test_a_record_that_is_too_large(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Is one that cannot be written: nothing is folded."""
    monkeypatch.setattr("statsfs.collector.journal_file._RECORD_MAX", 256)
    leave(directory, "app/w1", 5)
    with collecting(directory) as registry:
        assert sums(registry, "app/w1") == (5, 0)
        assert "not at most 256" in caplog.text
    assert len(files_in(directory)) == 1


def test_sources_that_somebody_else_removed(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The collector says so and goes on, with the others."""
    with collecting(directory) as registry:
        segments = [
            publish(path, values=[SUM, PEAK], directory=directory)
            for path in ("app/w1", "single", "other/w1")
        ]
        for segment in segments:
            wait_for(registry, segment.path)
        registry.unregister(registry.by_name["app"])
        registry.unregister(registry.by_name["single"])
        for segment in segments:
            segment.close()
        wait_until(lambda: files_in(directory) == [])
        wait_until(lambda: find(registry, "other/w1") is None)
        assert "other code changed the sources of a collector" in caplog.text


def test_a_file_that_goes_as_its_producer_dies(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes it after it was seen to be dead, and before it is folded."""
    probe = SegmentNumbers.probe

    def remove_the_dead(self: SegmentNumbers) -> bool:
        alive = probe(self)
        if not alive:
            for name in files_in(directory):
                (directory / name).unlink()
        return alive

    monkeypatch.setattr(SegmentNumbers, "probe", remove_the_dead)
    with collecting(directory) as registry:
        with publish("app/w1", values=[SUM, PEAK], directory=directory) as segment:
            wait_for(registry, "app/w1")
            segment.stats.sum = 5
        wait_until(lambda: find(registry, "app/w1") is None)
        assert sums(registry) == (5, 0)


def test_a_directory_that_is_missing_for_a_while(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is looked for again and again."""
    isdir, looks = os.path.isdir, []

    def look(path: Any) -> bool:
        looks.append(isdir(path))
        return looks[-1]

    monkeypatch.setattr(os.path, "isdir", look)
    monkeypatch.setattr("statsfs.collector.collector._PAUSE", 0.01)
    with collecting(directory):
        directory.rename(directory.with_name("elsewhere"))  # all at once, as `rm -r` would not
        wait_until(lambda: looks.count(False) > 1)
        directory.mkdir(mode=0o755)
        wait_until(lambda: "is there again" in caplog.text)

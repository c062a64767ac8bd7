"""Clears, and removals of directories: recorded first, or refused and not made."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statsfs.collector import Collector, counted_files
from statsfs.collector.journal_file import JournalFiles, decode_record
from statsfs.collector.live_segment import LiveSegment, SegmentNumbers
from statsfs.collector.path_sources import PathSources
from statsfs.exceptions import DuplicateNameError, SegmentError
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import publish
from statsfs.tree import clearing
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.collecting import (
    Crash,
    HandMade,
    collect,
    collecting,
    files_in,
    find,
    total,
    wait_for,
)
from tests.support.deadlines import wait_until
from tests.support.mount_server import World
from tests.support.mounts import Server, exists, run, serving

SUM = Value("sum", aggregate=Aggregate.SUM)
WAITS = Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)
WAITS_SUM = Value("waits.sum", aggregate=Aggregate.SUM, mode=0o444)
PEAK = Value("peak", aggregate=Aggregate.MAX, kind=Kind.PEAK)
ALL = [SUM, WAITS, WAITS_SUM, PEAK]


def put(directory: Path, path: str, alive: bool = True) -> HandMade:
    """A segment that counted, and lives or not."""
    file = directory / f"{path.replace('/', '-')}.stats"
    return HandMade.of(file, path, [5, [1, 2, 3], 9, 7], ALL, alive)


def read(registry: Registry, path: str = "app") -> list[Any]:
    """What a directory shows."""
    return [total(registry, value.name, path) for value in ALL]


def refuse(*_: object, **__: object) -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def crash(*_: object, **__: object) -> None:
    """End, as by SIGKILL."""
    raise Crash


def crash_after(function: Callable[..., Any]) -> Callable[..., None]:
    """End after something was done."""

    def do(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)
        raise Crash

    return do


STEPS: dict[str, tuple[Any, str, Callable[..., None], bool]] = {
    "nothing is written": (JournalFiles, "write", crash, False),
    "the record is to be renamed": (os, "replace", crash, False),
    "the record is renamed": (os, "replace", crash_after(os.replace), True),
    "all is to be cleared": (clearing, "_clear_parts", crash, True),
    "all is cleared": (SegmentNumbers, "end_clear", crash, True),
}


@pytest.mark.parametrize("path", ["app", "app/group"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_each_step(
    directory: Path, monkeypatch: pytest.MonkeyPatch, step: str, path: str
) -> None:
    """The next collector has the numbers from before the clear, or has all of it cleared."""
    owner, name, instead, cleared = STEPS[step]
    put(directory, "app/group/w0", alive=False)
    living = put(directory, "app/group/w1")
    registry = Registry()
    # It is not closed as it should be: what it has in memory is lost.
    collector = Collector(registry, directory)
    collector.start()
    source = find(registry, path)
    assert source is not None
    with monkeypatch.context() as patcher:
        patcher.setattr(owner, name, instead)
        with pytest.raises(Crash):
            source.clear_value("waits")
    collector.close()
    with collecting(directory) as registry:
        expected = [10, [0, 0, 0], 0, 7] if cleared else [10, [2, 4, 6], 18, 7]
        assert read(registry) == read(registry, "app/group") == expected
    living.die()


def test_what_is_counted_while_a_clear_is_recorded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is counted after it, now and by the next collector: what is recorded is what is cleared."""
    write = JournalFiles.write
    with publish("app/w1", values=[SUM], directory=directory) as segment:
        segment.stats.sum = 5
        with collecting(directory) as registry:
            wait_for(registry, "app/w1")

            def count(self: JournalFiles, *args: Any) -> None:
                write(self, *args)
                segment.stats.sum += 10
                assert total(registry, "sum") == 15

            with monkeypatch.context() as patcher:
                patcher.setattr(JournalFiles, "write", count)
                registry.by_name["app"].clear_value("sum")
            assert total(registry, "sum") == total(registry, "sum", "app/w1") == 10
        with collecting(directory) as registry:
            assert total(registry, "sum") == 10


def test_who_dies_while_a_clear_is_recorded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cleared, and folded once."""
    write = JournalFiles.write
    living = put(directory, "app/w1")
    with collecting(directory) as registry:

        def die(self: JournalFiles, *args: Any) -> None:
            monkeypatch.undo()
            living.die()
            write(self, *args)

        monkeypatch.setattr(JournalFiles, "write", die)
        registry.by_name["app"].clear_value("sum")
        wait_until(lambda: files_in(directory) == [])
        wait_until(lambda: find(registry, "app/w1") is None)
        assert read(registry) == [0, [1, 2, 3], 9, 7]
    with collecting(directory) as registry:
        assert read(registry) == [0, [1, 2, 3], 9, 7]


def test_a_clear_in_the_middle_of_a_fold(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the record with the numbers of the dead, and before these are retained in the tree."""
    remove, found = PathSources.remove, []
    living = put(directory, "app/w1")
    with collecting(directory) as registry:

        def clear(self: PathSources, source: Source) -> None:
            for name in ("waits", "peak"):
                registry.by_name["app"].clear_value(name)
            encoded = (directory / ".retained" / "app").read_bytes()
            (one,) = decode_record("app", encoded).sources
            found.append([*one.rows.values()])
            remove(self, source)

        monkeypatch.setattr(PathSources, "remove", clear)
        living.die()
        wait_until(lambda: find(registry, "app/w1") is None)
        assert found == [[(5,), ([0, 0, 0], 0), (0,)]]
        assert read(registry) == [5, [0, 0, 0], 0, 0]
    with collecting(directory) as registry:
        assert read(registry) == [5, [0, 0, 0], 0, 0]


def test_a_segment_that_has_left(directory: Path) -> None:
    """Who still has it may clear it; that changes no record, and nothing in the tree."""
    living = put(directory, "app/w1")
    with collecting(directory) as registry:
        source = wait_for(registry, "app/w1").get()
        living.die()
        wait_until(lambda: find(registry, "app/w1") is None)
        source.clear_value("sum")
        assert source.get_value("sum") == 0
        source.put()
        assert total(registry, "sum") == 5
    with collecting(directory) as registry:
        assert total(registry, "sum") == 5


def test_what_was_cleared_of_a_segment_that_is_refused_at_first(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another source took its name at the last moment: it stays cleared."""
    living = put(directory, "app/w1")
    with collecting(directory) as registry:
        registry.by_name["app"].clear_value("sum")
    add, calls = PathSources.add, []

    def refuse_once(self: PathSources, segment: LiveSegment) -> None:
        calls.append(segment)
        if len(calls) == 1:
            raise DuplicateNameError("there is one already", "app")
        add(self, segment)

    monkeypatch.setattr(PathSources, "add", refuse_once)
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.05)
    with collecting(directory) as registry:
        wait_for(registry, "app/w1")
        assert read(registry) == [0, [1, 2, 3], 9, 7]
        registry.by_name["app"].clear_value("waits")
    record = decode_record("app", (directory / ".retained" / "app").read_bytes())
    assert [*record.baselines.values()] == [{"sum": 5, "waits": [1, 2, 3], "waits.sum": 9}]
    living.die()


def test_only_the_record_of_its_own_name_is_written(directory: Path) -> None:
    """However many others there are."""
    for name in ("app", "other"):
        put(directory, f"{name}/w0", alive=False)
    with collecting(directory) as registry:
        records = [directory / ".retained" / name for name in ("app", "other")]
        before = [record.stat().st_ino for record in records]
        registry.by_name["app"].clear_value("sum")
        after = [record.stat().st_ino for record in records]
        assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]


def test_more_than_can_be_recorded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was cleared of segments is refused, in one line, and not cleared."""
    monkeypatch.setattr(counted_files, "BASELINES_MAX", 3)
    first, second = put(directory, "app/w1"), put(directory, "app/w2")
    with collecting(directory) as registry:
        registry.by_name["app"].clear_value("sum")
        with pytest.raises(SegmentError, match=r"6 integers would .* no more than 3"):
            registry.by_name["app"].subordinates[0].clear_value("waits")
        assert read(registry) == [0, [2, 4, 6], 18, 7]
        registry.by_name["app"].clear_value("peak")
        assert total(registry, "peak") == 0
    # A record of another release has more, of files that are not there.
    monkeypatch.setattr(counted_files, "BASELINES_MAX", 1)
    aside = [one.file.rename(directory.with_name(one.file.name)) for one in (first, second)]
    with collecting(directory):
        pass
    for file in aside:
        file.rename(directory / file.name)
    with collecting(directory) as registry:
        assert total(registry, "sum") == 5
    first.die()
    second.die()


# In a mount


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    """A mount with a collector, of a live segment and of what a dead one left."""
    put(directory, "app/group/w0", alive=False)
    put(directory, "other/w0", alive=False)
    living = put(directory, "app/w1")
    with serving() as server:
        server.call(collect, str(directory))
        yield server
    living.die()


def fail_to_write(world: World, fails: bool) -> None:
    """Have the disk be full, or not any more."""
    write = world.kept.setdefault("write", JournalFiles.write)
    setattr(JournalFiles, "write", refuse if fails else write)  # noqa: B010  # mypy: a method


def hold_writing(world: World, pipe: str) -> None:
    """Have the next record wait until somebody opens a pipe."""
    write = JournalFiles.write

    def wait(self: JournalFiles, *args: Any) -> None:
        Path(pipe).read_bytes()
        write(self, *args)

    setattr(JournalFiles, "write", wait)  # noqa: B010  # mypy: a method


CLEAR = ("sh", "-c", 'echo 0 >"$1"', "sh")


@pytest.mark.mount
def test_a_clear_on_a_full_disk(server: Server, directory: Path) -> None:
    """Who writes 0 gets an error, of a total and of a segment's value; the numbers stay."""
    error = os.strerror(errno.EIO)
    server.call(fail_to_write, True)
    for path in ("app/sum", "app/w1/sum", "app/group/waits"):
        with (server / path).open("wb", 0) as file, pytest.raises(OSError, match=error):
            file.write(b"0\n")
    assert (server / "app/sum").read_text() == "10\n"
    for path in ("app/group", "other"):
        assert error in run("rmdir", server / path, status=1).stderr
    assert (server / "app/group/waits").read_text() == "0 1\n1 2\n2 3\n"
    server.call(fail_to_write, False)
    run(*CLEAR, server / "app/sum")
    run("rmdir", server / "app/group", server / "other")
    assert (server / "app/sum").read_text() == (server / "app/w1/sum").read_text() == "0\n"
    assert not exists(server / "other")
    record = decode_record("app", (directory / ".retained" / "app").read_bytes())
    assert [one.path for one in record.sources] == [("app",)]
    assert [*record.baselines.values()] == [{"sum": 5}]


@pytest.mark.mount
def test_reads_while_a_clear_is_recorded(server: Server, tmp_path: Path) -> None:
    """Others are answered meanwhile, however long the disk takes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    server.call(hold_writing, str(pipe))
    with subprocess.Popen([*CLEAR, server / "app/sum"]) as clear:
        fd = os.open(pipe, os.O_WRONLY)
        try:
            assert (server / "app/sum").read_text() == "10\n"
            assert (server / "other/sum").read_text() == "5\n"
            assert clear.poll() is None
        finally:
            os.close(fd)
    assert clear.returncode == 0
    assert (server / "app/sum").read_text() == "0\n"

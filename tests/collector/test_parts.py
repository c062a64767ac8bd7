"""The collector's smaller parts: directories, timers, refusals, numbers and path_sources."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.collector.directories import Directories
from statsfs.collector.live_segment import LiveSegment, SegmentNumbers
from statsfs.collector.path_sources import PathSources
from statsfs.collector.timers import Timers
from statsfs.collector.trusted_directory import Location, TrustedDirectory, open_directory
from statsfs.collector.watching import Watch
from statsfs.exceptions import DuplicateNameError, SegmentError
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import file_format
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.mounts import run

VALUES = (
    Value("sum", aggregate=Aggregate.SUM),
    Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3),
    Value("peak", aggregate=Aggregate.MAX, kind=Kind.PEAK),
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[TrustedDirectory]:
    """A directory of segments."""
    tmp_path.chmod(0o755)
    directory = open_directory(str(tmp_path))
    yield directory
    directory.close()
    directory.close()


def make_segment(directory: TrustedDirectory, path: str) -> LiveSegment:
    """A segment that is in no tree yet."""
    file = Path(directory.path, f"{path.replace('/', '_')}.stats")
    file.write_bytes(file_format.encode(path, VALUES, numbers=[5, [1, 2, 3], 7]))
    fd, status = directory.open(file.name)
    metadata = file_format.decode(file.read_bytes())
    assert metadata is not None
    by_name = {value.name: value for value in VALUES}
    numbers = SegmentNumbers(by_name, metadata, Location(directory, file.name), fd, status)
    source = numbers.make_source((0, 0), lambda: None)
    return LiveSegment(metadata, numbers, source, (0, 0))


# Directories


def test_a_file_that_is_replaced_while_it_is_opened(
    directory: TrustedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is refused, and closed."""
    for name in ("one.stats", "two.stats"):
        Path(directory.path, name).write_bytes(b"")
    open_ = os.open
    opened = []

    def swap(name: str, *args: int, dir_fd: int) -> int:
        opened.append(open_("two.stats", *args, dir_fd=dir_fd))
        return opened[0]

    with monkeypatch.context() as patcher:
        patcher.setattr(os, "open", swap)
        with pytest.raises(SegmentError, match="another file took its place"):
            directory.open("one.stats")
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened[0])


@pytest.mark.root
def test_a_file_of_another_device(directory: TrustedDirectory, tmp_path: Path) -> None:
    """Mounted in the place of one, it is refused."""
    Path(directory.path, "one.stats").write_bytes(b"")
    other = Path("/dev/shm", f"statsfs-test-{os.getpid()}")
    other.write_bytes(b"")
    run("mount", "--bind", other, tmp_path / "one.stats")
    try:
        with pytest.raises(SegmentError, match="another device"):
            directory.open("one.stats")
    finally:
        run("umount", tmp_path / "one.stats")
        other.unlink()


def test_where_a_directory_is(tmp_path: Path) -> None:
    """It is known by what it is, not by its name."""
    path = tmp_path / "segments"
    watch = Watch()
    with contextlib.closing(watch), contextlib.closing(Directories(str(path), watch)) as found:
        assert found.is_there()
        path.rename(tmp_path / "elsewhere")
        assert not found.is_there()
        path.mkdir()
        (path / ".collector").hardlink_to(tmp_path / "elsewhere" / ".collector")
        assert not found.is_there()


def test_a_directory_of_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither root's nor ours, it is none for a collector of ours."""
    tmp_path.chmod(0o755)
    if not os.geteuid():
        os.chown(tmp_path, 1234, 1234)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    owner = tmp_path.stat().st_uid
    with pytest.raises(SegmentError, match=f"user {owner}'s, neither root's nor ours"):
        open_directory(str(tmp_path))


def test_no_more_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a directory that cannot be watched nothing is read."""
    tmp_path.chmod(0o755)
    watch = Watch()
    with (
        contextlib.closing(watch),
        contextlib.closing(Directories(str(tmp_path), watch)) as directories,
    ):
        (tmp_path / "www").mkdir()

        def refuse(key: str, fd: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patcher:
            patcher.setattr(watch, "add", refuse)
            assert directories.look("www") is None
        assert directories.look("www") is not None
        assert directories.look("www") is None


# Watching


def test_waking_what_is_closed() -> None:
    """Is nobody's mistake: whoever wakes may be late."""
    watch = Watch()
    watch.wake()
    assert watch.wait(60).names == {}
    watch.close()
    watch.wake()


def test_events_of_what_is_watched_no_longer(tmp_path: Path) -> None:
    """Are not told; taking a watch away twice does no harm, nor when it went by itself."""
    watch = Watch()
    (tmp_path / "sub").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    below = os.open(tmp_path / "sub", os.O_RDONLY)
    with contextlib.closing(watch):
        watch.add("", fd)
        watch.add("sub/", below)
        os.close(below)
        (tmp_path / "sub").rmdir()
        (tmp_path / "x").write_text("")
        watch.remove("sub/")
        watch.remove("sub/")
        assert watch.wait(0).names == {"": {"sub": None, "x": None}}
        (tmp_path / "y").write_text("")
        watch.remove("")
        assert watch.wait(0).names == {}
    os.close(fd)


def test_more_than_the_kernel_keeps(tmp_path: Path) -> None:
    """It is told that something is missing, once."""
    kept = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    watch = Watch()
    fd = os.open(tmp_path, os.O_RDONLY)
    with contextlib.closing(watch):
        watch.add("", fd)
        for number in range(kept // 2 + 100):
            file = tmp_path / f"x{number % 10}"
            file.touch()
            file.unlink()
        assert watch.wait(0).lost
        assert not watch.wait(0).lost
    os.close(fd)


# Timers


def test_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is called once, in order, when it is due."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    timers, called = Timers(), []
    assert timers.seconds_left > 1000
    timers.run()
    timers.add(2, lambda: called.append("second"))
    timers.add(1, lambda: timers.add(0, lambda: called.append("first")))
    assert timers.seconds_left == 1
    timers.run()
    now = 101.5
    assert timers.seconds_left == 0
    timers.run()
    assert called == []
    timers.run()
    assert called == ["first"]
    now = 200.0
    timers.run()
    assert called == ["first", "second"]


def test_a_timer_that_raises() -> None:
    """What was due behind it still is."""
    timers, called = Timers(), []
    timers.add(-2, lambda: 1 // 0)
    timers.add(-1, lambda: called.append("second"))
    with pytest.raises(ZeroDivisionError):
        timers.run()
    assert timers.seconds_left == 0
    timers.run()
    assert called == ["second"]


# Numbers


def test_baselines_that_do_not_fit(directory: TrustedDirectory) -> None:
    """What an earlier life cleared is put back where it is of the same sort, and else left out."""
    numbers = make_segment(directory, "app/w1").numbers
    numbers.restore({"sum": 2, "waits": [1, 1, 1], "peak": 3, "gone": 4})
    assert numbers.baselines == {"sum": 2, "waits": [1, 1, 1]}
    numbers.refresh()
    assert dict(numbers) == {"sum": 3, "waits": [0, 1, 2], "peak": 7}
    numbers.close()
    other = make_segment(directory, "app/w2").numbers
    other.restore({"sum": [1], "waits": 1})
    other.restore({"waits": [1, 1]})
    assert other.baselines == {}
    other.refresh()
    other.close()
    other.close()
    other.refresh()
    other.clear_value("peak")
    assert dict(other) == {"sum": 5, "waits": [1, 2, 3], "peak": 0}


# Branches


@pytest.mark.parametrize("path", ["app", "app/w1", "app/a/b/w1"])
def test_a_name_that_is_taken_at_the_last_moment(directory: TrustedDirectory, path: str) -> None:
    """Is refused, and nothing is left; later it is let in."""
    registry = Registry()
    path_sources = PathSources(registry, lambda: None)
    path_sources.find_owner = lambda name: (0, 0)
    segment = make_segment(directory, path)
    with Source("app") as taken:
        registry.register(taken)
        with pytest.raises(DuplicateNameError):
            path_sources.add(segment)
        assert path_sources.tops == []
        registry.unregister(taken)
    segment = make_segment(directory, path)
    path_sources.add(segment)
    assert segment.source.path == path
    path_sources.clear()
    assert registry.sources == ()


def test_a_branch_that_is_taken_away_meanwhile(directory: TrustedDirectory) -> None:
    """By somebody else: what should be on it is refused, and it is not kept."""
    registry = Registry()
    path_sources = PathSources(registry, lambda: None)
    path_sources.find_owner = lambda name: (0, 0)
    path_sources.add(make_segment(directory, "app/w1"))
    with Source("w2") as other:
        registry.by_name["app"].add_subordinate(other)
    for path in ("app/w2", "app/w2/x"):
        with pytest.raises(DuplicateNameError):
            path_sources.add(make_segment(directory, path))
        assert path_sources.find_holder(("app", "w2")) is None
    assert path_sources.find_holder(("app", "w1")) is not None

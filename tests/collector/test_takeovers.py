"""A collector takes over from another one: which shows, folds, removes and records, and when."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsfs.collector import Collector
from statsfs.collector.journal_file import JournalFiles
from statsfs.exceptions import SegmentError
from statsfs.model.values import Aggregate, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import rmdir_of
from tests.support.collecting import HandMade, files_in, remove, total, wait_for
from tests.support.deadlines import DEADLINE, wait_until

SUM = Value("sum", aggregate=Aggregate.SUM)


def put(directory: Path, path: str, number: int = 5, alive: bool = True) -> HandMade:
    """A segment that counted, and lives or not."""
    file = directory / f"{path.replace('/', '-')}.stats"
    return HandMade.of(file, path, [number], [SUM], alive)


@contextmanager
def running(directory: Path) -> Iterator[tuple[Registry, Collector]]:
    """Run a collector."""
    registry = Registry()
    with Collector(registry, directory) as collector:
        yield registry, collector


@contextmanager
def succeeding(old: Collector, directory: Path) -> Iterator[tuple[Registry, Collector]]:
    """Run the successor of a collector that is held, over a copy of its lock."""
    registry = Registry()
    new = Collector(registry, directory)
    new.start_held(os.dup(old.hold()))
    try:
        yield registry, new
    finally:
        new.close()


def read(registry: Registry) -> int:
    """Read the total."""
    found = total(registry, "sum")
    return -1 if found is None else int(found)


def record(directory: Path) -> bytes:
    """The record of the one top-level name, or nothing."""
    file = directory / ".retained/app"
    return file.read_bytes() if file.exists() else b""


def wait_for_fold(segment: str, *registries: Registry) -> None:
    """Wait until a segment of the one top-level name is gone."""
    apps = [registry.by_name["app"] for registry in registries]
    wait_until(lambda: all(app.find(segment) is None for app in apps), "the fold")


def test_one_after_the_other(tmp_path: Path) -> None:
    """Both show what there is; the old one records until it is held, the new one from `go_on`."""
    with running(tmp_path) as (registry, old):
        put(tmp_path, "app/dead", 1, alive=False)
        wait_until(lambda: read(registry) == 1, "the fold")
        put(tmp_path, "app/one", 2)
        two = put(tmp_path, "app/two", 4)
        wait_until(lambda: read(registry) == 7, "both")
        with succeeding(old, tmp_path) as (other, new):
            before = record(tmp_path)
            assert read(other) == 7
            two.die()
            put(tmp_path, "app/three", 8)
            wait_until(lambda: (read(registry), read(other)) == (15, 15), "three")
            wait_for_fold("two", registry, other)
            # In the trees alone.
            assert record(tmp_path) == before
            assert files_in(tmp_path) == ["app-one.stats", "app-three.stats", "app-two.stats"]
            old.halt()
            put(tmp_path, "app/four", 16)
            new.settle(DEADLINE)
            assert (read(registry), read(other)) == (15, 31)
            old.follow()
            new.go_on()
            wait_until(lambda: read(registry) == 31, "what came meanwhile")
            wait_until(lambda: "app-two.stats" not in files_in(tmp_path), "its removal")
            assert record(tmp_path) != before
            assert (tmp_path / ".collector").read_text() == f"{os.getpid()}\n"
            old.close()
            assert read(other) == 31
    with running(tmp_path) as (registry, _):
        assert read(registry) == 31


def test_a_successor_that_fails(tmp_path: Path) -> None:
    """Nothing was written; the old one goes on, and writes what came meanwhile."""
    with running(tmp_path) as (registry, old):
        one = put(tmp_path, "app/one")
        wait_for(registry, "app/one")
        with succeeding(old, tmp_path):
            one.die()
            wait_for_fold("one", registry)
            old.halt()
        assert files_in(tmp_path) == ["app-one.stats"]
        old.go_on()
        wait_until(lambda: files_in(tmp_path) == [], "its removal")
        assert read(registry) == 5
    with running(tmp_path) as (registry, _):
        assert read(registry) == 5


def test_a_death_of_both(tmp_path: Path) -> None:
    """Whatever they folded in their trees, the next one finds all of it, once."""
    with running(tmp_path) as (registry, old):
        one = put(tmp_path, "app/one")
        wait_for(registry, "app/one")
        with succeeding(old, tmp_path) as (other, _):
            one.die()
            wait_for_fold("one", registry, other)
    with running(tmp_path) as (registry, _):
        assert read(registry) == 5
        wait_until(lambda: files_in(tmp_path) == [], "the fold")


def test_a_top_level_segment(tmp_path: Path) -> None:
    """It leaves the trees as it dies; its file is removed when a collector records again."""
    with running(tmp_path) as (registry, old):
        one = put(tmp_path, "app")
        wait_for(registry, "app")
        with succeeding(old, tmp_path) as (other, new):
            assert read(other) == 5
            one.die()
            wait_until(lambda: (read(registry), read(other)) == (-1, -1), "its end")
            assert files_in(tmp_path) == ["app.stats"]
            old.halt()
            new.settle(DEADLINE)
            assert read(other) == -1
            new.go_on()
            wait_until(lambda: files_in(tmp_path) == [], "its removal")


def test_clears_wait(tmp_path: Path) -> None:
    """Until it is decided which collector records; if that is another one, they are refused."""
    with running(tmp_path) as (registry, old):
        put(tmp_path, "app/one")
        wait_for(registry, "app/one")
        app = registry.by_name["app"]
        old.hold()
        thread = threading.Thread(target=app.clear_value, args=("sum",))
        thread.start()
        assert read(registry) == 5
        old.go_on()
        thread.join(DEADLINE)
        assert read(registry) == 0
        old.hold()
        old.halt()
        old.follow()
        with pytest.raises(SegmentError, match="as another process takes over"):
            app.clear_value("sum")


def test_removals_are_refused(tmp_path: Path) -> None:
    """An empty directory is not removed meanwhile."""
    with running(tmp_path) as (registry, old):
        put(tmp_path, "app/group/one", alive=False)
        wait_until(lambda: read(registry) == 5 and not files_in(tmp_path), "the fold")
        group = registry.by_name["app"].find("group")
        assert group is not None
        remove_directory = rmdir_of(group)
        assert remove_directory is not None
        old.hold()
        with pytest.raises(SegmentError, match="as another process takes over"):
            remove_directory(group)
        old.go_on()
        assert remove_directory(group)
        assert read(registry) == 5


def test_what_is_asked_of_others_than_running_collectors(tmp_path: Path) -> None:
    """A prepared one has no thread to halt; one without a directory follows without it."""
    prepared = Collector(Registry(), tmp_path / "prepared")
    prepared.prepare()
    prepared.halt()
    prepared.close()
    with running(tmp_path / "segments") as (registry, old):
        old.hold()
        old.halt()
        old._close_directories()
        old.follow()
        assert registry.sources == ()


def test_a_directory_that_was_refused_and_is_gone(tmp_path: Path) -> None:
    """It is not remembered."""
    (tmp_path / "segments").mkdir(0o755)
    (tmp_path / "segments/www").mkdir()
    (tmp_path / "segments/www").chmod(0o777)
    with running(tmp_path / "segments") as (_, collector):
        directories = collector._directories
        assert directories is not None
        wait_until(lambda: "www" in directories.refused, "the refusal")
        collector.halt()  # its thread would look at the same time
        (tmp_path / "segments/www").rmdir()
        directories.look_around()
        assert "www" not in directories.refused


def test_a_collector_that_cannot_be_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the directory is gone, or a record cannot be written, `hold` is refused; it goes on."""
    directory = tmp_path / "segments"
    with running(directory) as (registry, old):
        put(directory, "app/dead", alive=False)
        wait_until(lambda: read(registry) == 5 and record(directory) != b"", "the fold")
        with monkeypatch.context() as broken:
            broken.setattr(JournalFiles, "write", _refuse)
            (directory / ".retained/app").unlink()
            old._rescan()
            with pytest.raises(SegmentError, match="the records cannot be written"):
                old.hold()
        wait_until(lambda: record(directory), "the record")
        remove(directory)
        wait_until(lambda: old._directories is None, "the loss")
        with pytest.raises(SegmentError, match=f"{directory} is gone"):
            old.hold()


def _refuse(*_: object) -> None:
    raise OSError(28, os.strerror(28))


def test_a_directory_that_goes_away_meanwhile(tmp_path: Path) -> None:
    """One that is held opens no other; it does when it goes on."""
    directory = tmp_path / "segments"
    with running(directory) as (registry, old):
        put(directory, "app/dead", alive=False)
        wait_until(lambda: read(registry) == 5 and not files_in(directory), "the fold")
        old.hold()
        remove(directory)
        wait_until(lambda: old._directories is None, "the loss")
        directory.mkdir(0o755)
        old._journal.look_at_files()
        put(directory, "app/one", 7)
        old.go_on()
        wait_until(lambda: read(registry) == 12, "what is there")


def test_a_file_that_is_counted(tmp_path: Path) -> None:
    """It stays until a record has its id, and is not counted again."""
    with running(tmp_path) as (registry, old):
        one = put(tmp_path, "app/one")
        wait_for(registry, "app/one")
        with succeeding(old, tmp_path) as (other, new):
            one.die()
            wait_for_fold("one", registry, other)
            os.rename(tmp_path / "app-one.stats", tmp_path / "moved.stats")
            new.settle(DEADLINE)
            assert read(other) == 5
            assert files_in(tmp_path) == ["moved.stats"]
            old.halt()
            new.go_on()
            wait_until(lambda: files_in(tmp_path) == [], "its removal")
            assert read(other) == 5

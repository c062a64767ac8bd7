"""The directory of records in accidents: removed, replaced, and full of what is no record."""

import contextlib
import ctypes
import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from statsfs.collector import Collector
from statsfs.collector.journal_file import decode_record
from statsfs.exceptions import SegmentError
from statsfs.model.values import Aggregate, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.collecting import HandMade, collecting, files_in, lose_events, total, wait_for
from tests.support.deadlines import wait_until

SUM = Value("sum", aggregate=Aggregate.SUM)


def leave(directory: Path, path: str, number: int) -> None:
    """Leave a dead segment."""
    HandMade.of(directory / f"{path.replace('/', '-')}.stats", path, [number], [SUM], alive=False)


def retained(directory: Path, name: str = "app") -> int | None:
    """What a record has, if there is one."""
    try:
        record = decode_record(name, (directory / ".retained" / name).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    (source,) = record.sources
    ((number,),) = source.rows.values()
    assert isinstance(number, int)
    return number


@contextlib.contextmanager
def counted(directory: Path) -> Iterator[Registry]:
    """Run a collector over what the dead left."""
    leave(directory, "app/w1", 5)
    leave(directory, "other/w1", 7)
    with collecting(directory) as registry:
        assert (retained(directory), retained(directory, "other")) == (5, 7)
        yield registry


# Removed and replaced


@pytest.mark.parametrize("events", [True, False], ids=["told", "not told"])
def test_a_directory_that_was_removed(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    events: bool,
) -> None:
    """It is made again with all that it had, at once, or with the next event."""
    with counted(directory):
        if not events:
            lose_events(monkeypatch)
        shutil.rmtree(directory / ".retained")
        if not events:
            (directory / "anything").touch()
        wait_until(lambda: (retained(directory), retained(directory, "other")) == (5, 7))
        assert (directory / ".retained").stat().st_mode & 0o777 == 0o700
        assert len([line for line in caplog.messages if "is another directory now" in line]) == 1
        leave(directory, "app/w2", 10)
        wait_until(lambda: retained(directory) == 15)
    with collecting(directory) as registry:
        assert (total(registry, "sum"), total(registry, "sum", "other")) == (15, 7)


def test_a_directory_that_is_removed_in_the_middle_of_a_fold(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fold writes it again."""
    with counted(directory) as registry:
        monkeypatch.setattr("statsfs.collector.collector.RETAINED", ".other")  # nobody looks
        shutil.rmtree(directory / ".retained")
        leave(directory, "app/w2", 10)
        wait_until(lambda: (retained(directory), retained(directory, "other")) == (15, 7))
        assert total(registry, "sum") == 15


def test_records_that_were_removed_one_by_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written again when all is looked at."""
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.05)
    with counted(directory):
        (directory / ".retained" / "app").unlink()
        wait_until(lambda: retained(directory) == 5)


def make_foreign(path: Path) -> None:
    """Make a directory that is another user's."""
    path.mkdir(0o700)
    os.chown(path, 1234, 1234)


IN_ITS_PLACE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (Path.touch, "Not a directory"),
    "a link": (lambda path: path.symlink_to(path.with_name("elsewhere")), "Not a directory"),
    "a pipe": (os.mkfifo, "Not a directory"),
    "another mode": (lambda path: path.mkdir(0o755), "with mode 755, not"),
    "another user's": (make_foreign, "is user 1234's"),
}


@pytest.mark.root
@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_what_is_in_its_place(directory: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """One line says so. Nothing is lost or cleared, and all is written when the place is free."""
    make, why = IN_ITS_PLACE[what]
    path = directory / ".retained"
    with counted(directory) as registry:
        made = path.with_name(".made")
        make(made)
        exchange(made, path)
        shutil.rmtree(made)
        wait_until(lambda: "the records cannot be written" in caplog.text)
        leave(directory, "app/w2", 10)
        wait_for(registry, "app/w2")
        with pytest.raises(SegmentError, match=f"other: nothing was changed, .*{why}"):
            registry.by_name["other"].clear_value("sum")
        assert (total(registry, "sum"), total(registry, "sum", "other")) == (15, 7)
        lines = [line for line in caplog.messages if "the records cannot be written" in line]
        assert len(lines) == 1
        assert why in lines[0]
        assert files_in(directory) == ["app-w2.stats"]
        path.rename(directory.with_name("whatever"))
        wait_until(lambda: (retained(directory), retained(directory, "other")) == (15, 7))
        wait_until(lambda: files_in(directory) == [])
        registry.by_name["other"].clear_value("sum")
        assert retained(directory, "other") == 0
    with collecting(directory) as registry:
        assert (total(registry, "sum"), total(registry, "sum", "other")) == (15, 0)


def exchange(one: Path, other: Path) -> None:
    """Exchange two names: the collector never finds none, or it would make a directory."""
    libc, here, flag = ctypes.CDLL(None), -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    assert libc.renameat2(here, bytes(one), here, bytes(other), flag) == 0


@pytest.mark.root
def test_a_mode_that_changes_and_changes_back(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Others could read it meanwhile: nothing is written until they cannot."""
    with counted(directory) as registry:
        (directory / ".retained").chmod(0o755)
        wait_until(lambda: "with mode 755" in caplog.text)
        with pytest.raises(SegmentError, match="with mode 755"):
            registry.by_name["app"].clear_value("sum")
        assert (total(registry, "sum"), retained(directory)) == (5, 5)
        (directory / ".retained").chmod(0o700)
        registry.by_name["app"].clear_value("sum")
        assert (total(registry, "sum"), retained(directory)) == (0, 0)


def test_a_record_whose_name_is_taken(directory: Path) -> None:
    """It is not in the tree, and written again as it was read."""
    leave(directory, "app/w1", 5)
    with collecting(directory):
        pass
    registry = Registry()
    registry.register(Source("app"))
    with Collector(registry, directory):
        shutil.rmtree(directory / ".retained")
        wait_until(lambda: retained(directory) == 5)


# What is no record


def make_socket(file: Path) -> None:
    """Put a socket there."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(file))


def make_large(file: Path) -> None:
    """A file with a hole of a terabyte."""
    file.touch()
    os.truncate(file, 1 << 40)


NO_RECORDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "broken record"),
    "no JSON": (lambda path: path.write_text("{"), "broken record"),
    "another JSON": (lambda path: path.write_text('{"version": 3}'), "broken record"),
    "bytes": (lambda path: path.write_bytes(bytes(range(256))), "broken record"),
    "the future": (lambda path: path.write_text('{"version": 99, "name": "bad"}'), "not version"),
    "a directory": (Path.mkdir, "not a regular file"),
    "a full directory": (lambda path: (path / "x").mkdir(parents=True), "not a regular file"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a socket": (make_socket, "No such device"),
    "a link": (lambda path: path.symlink_to("app"), "symbolic links"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "symbolic links"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "too large": (make_large, "bytes, not at most"),
}


@pytest.mark.parametrize("fails", [False, True], ids=["aside", "in its place"])
@pytest.mark.parametrize("what", NO_RECORDS)
def test_what_is_no_record(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    fails: bool,
) -> None:
    """The collector starts without it, and says why in one line, though it cannot be renamed."""
    make, why = NO_RECORDS[what]
    with counted(directory):
        pass
    make(directory / ".retained" / "bad")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    caplog.clear()
    with monkeypatch.context() as patcher:
        if fails:
            patcher.setattr(os, "rename", refuse)
        with collecting(directory) as registry:
            assert (total(registry, "sum"), total(registry, "sum", "other")) == (5, 7)
            assert set(registry.by_name) == {"app", "other"}
    (line,) = caplog.messages
    assert why in line
    assert ".retained/bad" in line
    names = {name for name in os.listdir(directory / ".retained") if name not in ("app", "other")}
    assert (names == {"bad"}) is fails
    if fails:
        assert "Read-only file system" in line
        return
    # Its name is as good as any other.
    leave(directory, "bad/w1", 3)
    with collecting(directory) as registry:
        assert total(registry, "sum", "bad") == 3
    with collecting(directory) as registry:
        assert total(registry, "sum", "bad") == 3


def test_an_unexpected_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever happens with one record, the others are read."""
    with counted(directory):
        pass

    def fail(name: str, encoded: bytes) -> object:
        if name == "app":
            raise MemoryError
        return decode_record(name, encoded)

    caplog.clear()
    monkeypatch.setattr("statsfs.collector.journal_file.decode_record", fail)
    with collecting(directory) as registry:
        assert total(registry, "sum", "other") == 7
    (line,) = caplog.messages
    assert "MemoryError" in line


@pytest.mark.parametrize("name", ["app", ".new"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["a directory", "a pipe"])
def test_what_is_in_the_way_of_a_record(
    directory: Path, name: str, make: Callable[[Path], object]
) -> None:
    """It is put aside when a record is to be written."""
    with collecting(directory) as registry:
        make(directory / ".retained" / name)
        leave(directory, "app/w1", 5)
        wait_until(lambda: total(registry, "sum") == 5)
        wait_until(lambda: files_in(directory) == [])
        assert retained(directory) == 5

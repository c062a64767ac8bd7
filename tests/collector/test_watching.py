"""Watching: events, and what is not told."""

import contextlib
import os
from pathlib import Path

import pytest

from statsfs.collector.watching import Watch


def test_waking_what_is_closed() -> None:
    """It does nothing: another thread may wake it too late."""
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


@pytest.mark.slow
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


def test_too_many_events_of_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once; a calm watch tells of the end of a directory and no more.

    Of the first directory it tells all but attributes: any user may change those of his directory.
    """
    monkeypatch.setattr("statsfs.collector.watching.FLOOD", 4)
    watch = Watch()
    (tmp_path / "sub").mkdir()
    fds = {"": os.open(tmp_path, os.O_RDONLY), "sub/": os.open(tmp_path / "sub", os.O_RDONLY)}
    with contextlib.closing(watch):
        for key, fd in fds.items():
            watch.add(key, fd)
        for name in "abcde":
            (tmp_path / "sub" / name).mkdir()
        events = watch.wait(0)
        assert events.floods == {"sub/"}
        assert list(events.names["sub/"]) == list("abcde")
        for key, fd in fds.items():
            watch.add(key, fd, calm=True)
        (tmp_path / "sub" / "f").mkdir()
        (tmp_path / "sub").chmod(0o700)
        (tmp_path / "x").mkdir()
        assert watch.wait(0).names == {"": {"x": None}}
        watch.add("sub/", fds["sub/"])
        (tmp_path / "sub" / "g").mkdir()
        assert watch.wait(0).names == {"sub/": {"g": None}}
        watch.add("sub/", fds["sub/"], calm=True)
        os.rename(tmp_path / "sub", tmp_path / "away")
        assert watch.wait(0).gone == {"sub/"}
    for fd in fds.values():
        os.close(fd)


def test_attributes_of_a_directory_itself(tmp_path: Path) -> None:
    """The event has its name in the collector's directory, which may be a link; that has none."""
    watch = Watch()
    (tmp_path / "top").mkdir()
    (tmp_path / "other").mkdir()
    top = os.open(tmp_path / "top", os.O_RDONLY)
    other = os.open(tmp_path / "other", os.O_RDONLY)
    with contextlib.closing(watch):
        watch.add("", top)
        watch.add("app/", other)
        (tmp_path / "top").chmod(0o700)
        assert watch.wait(0).names == {}
        (tmp_path / "other").chmod(0o700)
        assert watch.wait(0).names == {"": {"app": None}}
    os.close(top)
    os.close(other)

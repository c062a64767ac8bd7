"""The directories of a collector: made, watched, and known by what they are."""

import contextlib
import os
import stat
from pathlib import Path

import pytest

from statsfs.collector.directories import Directories
from statsfs.collector.watching import Watch


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


def test_a_directory_that_is_replaced_as_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a link in its place leads to keeps its rights."""
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    mkdir = os.mkdir

    def swap(path: str, mode: int) -> None:
        mkdir(path, mode)
        os.rmdir(path)
        os.symlink(secret, path)

    watch = Watch()
    with monkeypatch.context() as patcher:
        patcher.setattr(os, "mkdir", swap)
        with pytest.raises(NotADirectoryError):
            Directories(str(tmp_path / "segments"), watch)
    watch.close()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and the others are listed."""
    tmp_path.chmod(0o755)
    watch = Watch()
    with (
        contextlib.closing(watch),
        contextlib.closing(Directories(str(tmp_path), watch)) as directories,
    ):
        (tmp_path / "www").mkdir(mode=0o755)
        (tmp_path / "a.stats").touch()
        broken = directories.look("www")
        assert broken is not None
        with open("/dev/null", "rb") as file:
            os.dup2(file.fileno(), broken.fd, inheritable=False)
        for _ in range(2):
            listed = directories.list_files([broken, directories.top])
            assert [[*files] for files in listed.values()] == [["a.stats"]]
    assert len(caplog.records) == 1

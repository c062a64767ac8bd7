"""The directories of a collector: made, watched, and known by what they are."""

import contextlib
import os
import stat
from pathlib import Path

import pytest

from statsfs.collector.directories import Directories
from statsfs.collector.watching import Watch
from statsfs.tree.log_budget import LogBudget


def test_where_a_directory_is(tmp_path: Path) -> None:
    """It is known by what it is, not by its name."""
    path = tmp_path / "segments"
    watch = Watch()
    with (
        contextlib.closing(watch),
        contextlib.closing(Directories(str(path), watch, LogBudget())) as found,
    ):
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
        contextlib.closing(Directories(str(tmp_path), watch, LogBudget())) as directories,
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
            Directories(str(tmp_path / "segments"), watch, LogBudget())
    watch.close()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o700

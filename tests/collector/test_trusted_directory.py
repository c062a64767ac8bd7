"""Trusted directories: which files are opened, and which directories."""

import os
from pathlib import Path

import pytest

from statsfs.collector.trusted_directory import TrustedDirectory, open_directory
from statsfs.exceptions import SegmentError
from tests.support.mounts import run


def test_a_file_that_is_replaced_while_it_is_opened(
    trusted: TrustedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is refused, and closed."""
    for name in ("one.stats", "two.stats"):
        Path(trusted.path, name).write_bytes(b"")
    open_ = os.open
    opened = []

    def swap(name: str, *args: int, dir_fd: int) -> int:
        opened.append(open_("two.stats", *args, dir_fd=dir_fd))
        return opened[0]

    with monkeypatch.context() as patcher:
        patcher.setattr(os, "open", swap)
        with pytest.raises(SegmentError, match="another file took its place"):
            trusted.open("one.stats")
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened[0])


@pytest.mark.root
def test_a_file_of_another_device(trusted: TrustedDirectory) -> None:
    """Mounted in the place of one, it is refused."""
    file = Path(trusted.path, "one.stats")
    file.write_bytes(b"")
    other = Path("/dev/shm", f"statsfs-test-{os.getpid()}")
    other.write_bytes(b"")
    run("mount", "--bind", other, file)
    try:
        with pytest.raises(SegmentError, match="another device"):
            trusted.open("one.stats")
    finally:
        run("umount", file)
        other.unlink()


def test_a_directory_of_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused if it is neither root's nor ours."""
    tmp_path.chmod(0o755)
    if not os.geteuid():
        os.chown(tmp_path, 1234, 1234)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    owner = tmp_path.stat().st_uid
    with pytest.raises(SegmentError, match=f"user {owner}'s, neither root's nor ours"):
        open_directory(str(tmp_path))

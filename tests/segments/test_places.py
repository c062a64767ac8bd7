"""The directories of segments: which one is meant, and which are refused."""

import os
import pwd
import stat
from pathlib import Path

import pytest

from statsfs.exceptions import SegmentError
from statsfs.segments import places
from statsfs.segments.places import check_directory, check_path, find_directory


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host's directory that is not there, and an environment that says nothing."""
    host = tmp_path / "run" / "statsfs"
    monkeypatch.setattr(places, "HOST_DIRECTORY", host)
    monkeypatch.delenv("STATSFS_DIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return host


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    """What STATSFS_DIR names is meant, there or not; it is read when it is asked for."""
    host.mkdir(parents=True)
    monkeypatch.setenv("STATSFS_DIR", "/somewhere/else")
    assert find_directory() == Path("/somewhere/else")
    monkeypatch.setenv("STATSFS_DIR", "")
    assert find_directory() == host


def test_then_the_hosts_directory(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    """Itself if it can be written, else the subdirectory that has the user's name."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(host.parent))
    own = host / pwd.getpwuid(os.geteuid()).pw_name
    own.mkdir(parents=True)
    assert find_directory() == host
    writable = {own}

    def access(path: Path, mode: int, effective_ids: bool) -> bool:
        assert (mode, effective_ids) == (os.W_OK | os.X_OK, True)
        return path in writable

    monkeypatch.setattr(os, "access", access)
    assert find_directory() == own
    writable.clear()
    assert find_directory() == host.parent / "statsfs"


def test_then_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is made for the user alone, once."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for _ in range(2):
        directory = find_directory()
        assert directory == tmp_path / "statsfs"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    with pytest.raises(SegmentError, match=r"cannot make .*missing/statsfs: No such file"):
        find_directory()


def test_else_somebody_must_say(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    """The error says what to do; it is the same for a user without a name."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(SegmentError, match=f"make {host}, or name one in STATSFS_DIR") as caught:
        find_directory()
    assert caught.value.offender == host


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o1755, 0o500])
def test_a_directory_that_its_owner_alone_may_write(tmp_path: Path, mode: int) -> None:
    """Others may read it or not."""
    tmp_path.chmod(mode)
    check_directory(tmp_path.stat(), tmp_path)
    tmp_path.chmod(0o755)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777, 0o720])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """The group too, and whatever the sticky bit promises."""
    tmp_path.chmod(mode)
    with pytest.raises(SegmentError, match="chmod go-w"):
        check_directory(tmp_path.stat(), tmp_path)


def test_a_file_is_no_directory() -> None:
    """Whatever its bits are."""
    with pytest.raises(SegmentError, match="is not a directory"):
        check_directory(os.stat(__file__), __file__)


def test_the_host_delegates_a_directory_with_its_name(host: Path) -> None:
    """In DIR/NAME there are paths below NAME/, as the host's collector asks; elsewhere any."""
    check_path(host, "web/worker")
    check_path(host / "web", "web/worker")
    check_path(host / "web" / "deeper", "app")
    for path in ("app/worker", "web", "website/worker"):
        with pytest.raises(SegmentError, match=f"paths in {host}/web begin with web/"):
            check_path(host / "web", path)

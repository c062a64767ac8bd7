"""QMP sockets: patterns, and the directories that are safe."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsfs.exceptions import QmpError
from statsfs.kvm import qmp_sockets
from statsfs.kvm.qmp_sockets import (
    check_directories,
    check_owners,
    check_path,
    find_manager,
    find_sockets,
    find_vm,
    is_pattern,
)
from tests.support.mounts import NOBODY
from tests.support.qmp_servers import no_vm, pretend_a_vm


@contextmanager
def bound(path: Path) -> Iterator[None]:
    """A socket there, which is left behind."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        yield


def found(*patterns: str | Path) -> list[str]:
    """The paths that are found, in order."""
    return sorted(one.path for one in find_sockets(map(str, patterns)))


def test_which_sockets_there_are(tmp_path: Path) -> None:
    """Paths and patterns; other files are none, and one that has two names is one."""
    (tmp_path / "vms").mkdir()
    (tmp_path / "file.qmp").touch()
    (tmp_path / "link.qmp").symlink_to("vms/a.qmp")
    (tmp_path / "dangling.qmp").symlink_to("nowhere")
    assert found(tmp_path / "**/*.qmp", tmp_path / "vms" / "a.qmp") == []
    with bound(tmp_path / "vms" / "a.qmp"), bound(tmp_path / "b.qmp"):
        a, b = str(tmp_path / "vms" / "a.qmp"), str(tmp_path / "b.qmp")
        assert found(tmp_path / "*.qmp") == [b, a]
        assert found(tmp_path / "**/*.qmp") == [b, a]
        assert found(a, tmp_path / "vms" / "?.qmp", tmp_path / "link.qmp") == [a]


def test_a_successor_is_another_socket(tmp_path: Path) -> None:
    """What is bound at the same path again is found as something new."""
    with bound(tmp_path / "a"):
        before = find_sockets([str(tmp_path / "a")])
        (tmp_path / "a").rename(tmp_path / "kept")
        with bound(tmp_path / "a"):
            assert find_sockets([str(tmp_path / "a")]) != before


def test_what_is_a_pattern(tmp_path: Path) -> None:
    """A path that is there stands for itself, whatever characters it has."""
    odd = tmp_path / "vm[1]"
    assert is_pattern(str(odd))
    assert not is_pattern(str(tmp_path / "vm1"))
    with bound(odd):
        assert not is_pattern(str(odd))
        assert found(odd) == [str(odd)]


def test_a_directory_that_is_ours(tmp_path: Path) -> None:
    """It is safe below a sticky one, there or not yet; the real path is returned."""
    tmp_path.chmod(0o755)
    (tmp_path / "link").symlink_to(".")
    assert check_directories(str(tmp_path / "link" / "a")) == str(tmp_path / "a")
    assert check_directories(str(tmp_path / "not" / "yet" / "a")).endswith("/not/yet/a")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777, 0o2770])
def test_a_directory_where_others_can_write(mode: int, tmp_path: Path) -> None:
    """The socket's own directory is refused, sticky or not, through a symbolic link too."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    (tmp_path / "link").symlink_to("open")
    for name in ("open", "link"):
        with pytest.raises(QmpError, match=rf"{name}/a: refused: others can write in .*/open$"):
            check_directories(str(tmp_path / name / "a"))


@pytest.mark.parametrize(("mode", "safe"), [(0o777, False), (0o770, False), (0o1777, True)])
def test_a_directory_above(mode: int, safe: bool, tmp_path: Path) -> None:
    """Others could put another directory in the place of ours, unless it is sticky."""
    (tmp_path / "open" / "own").mkdir(parents=True)
    (tmp_path / "open").chmod(mode)
    path = str(tmp_path / "open" / "own" / "a")
    if safe:
        assert check_directories(path) == path
    else:
        with pytest.raises(QmpError, match=r"others can write in .*/open$"):
            check_directories(path)


@pytest.mark.root
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    """Its owner can write whatever its mode says; only a VM of the same user may be there."""
    (tmp_path / "theirs").mkdir(mode=0o500)
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    path = str(tmp_path / "theirs" / "a")
    assert check_directories(path) == path
    check_owners(path, NOBODY)
    for user in (0, 1234):
        with pytest.raises(QmpError, match=f"theirs belongs to user {NOBODY}$"):
            check_owners(path, user)


def test_the_directories_of_managers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths, patterns and links that lead there; not what only begins with the same letters."""
    monkeypatch.setattr(qmp_sockets, "_MANAGERS", {str(tmp_path / "run" / "vms"): "a manager"})
    (tmp_path / "run" / "vms").mkdir(parents=True)
    (tmp_path / "link").symlink_to("run")
    for inside in ("run/vms/*.qmp", "run/vms/100.qmp", "link/vms/**/[0-9]*", "run/vms/a/b"):
        assert find_manager(str(tmp_path / inside)) == "a manager", inside
    for outside in ("run/*/a.qmp", "run/vms2/*.qmp", "run/a.qmp", "*"):
        assert find_manager(str(tmp_path / outside)) is None, outside


def test_the_managers_that_are_known() -> None:
    """Those of which Proxmox VE connects only now and then."""
    assert find_manager("/var/lib/libvirt/qemu/domain-1-web/monitor.sock") == "libvirt"
    assert find_manager("/run/libvirt/qemu/*.sock") == "libvirt"
    assert find_manager(f"{os.path.realpath('/var/run')}/qemu-server/*.qmp") == "Proxmox VE"


def test_a_directory_that_cannot_be_looked_at(tmp_path: Path) -> None:
    """What cannot be seen is not safe."""
    (tmp_path / "file").touch()
    with pytest.raises(QmpError, match=r"refused: .*/file/x: Not a directory"):
        check_directories(str(tmp_path / "file" / "x" / "a"))


def test_a_path_that_is_no_socket(tmp_path: Path) -> None:
    """A directory and a file are refused; a path that does not exist yet may become a socket."""
    (tmp_path / "file").touch()
    for name in ("", "file"):
        with pytest.raises(QmpError, match=r"refused: not a socket$"):
            check_path(str(tmp_path / name))
    with bound(tmp_path / "a"):
        check_path(str(tmp_path / "a"))
        with pytest.raises(QmpError, match=r"a/b: refused: Not a directory$"):
            check_path(str(tmp_path / "a" / "b"))
    check_path(str(tmp_path / "later"))


def test_the_vm_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is the lowest descriptor of what KVM made for the process."""
    with pretend_a_vm(monkeypatch) as name:
        fd = find_vm(os.getpid())
        assert name == f"{os.getpid()}-{fd}"
        assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"


def test_a_process_without_a_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what is missing, of one that is gone too."""
    no_vm(monkeypatch)
    with pytest.raises(QmpError, match="has no VM of KVM"):
        find_vm(os.getpid())
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(QmpError, match=f"cannot read /proc/{ended.pid}/fd: No such file"):
        find_vm(ended.pid)


def test_a_descriptor_that_is_closed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is none of those that are looked at."""
    with pretend_a_vm(monkeypatch):
        fd = find_vm(os.getpid())
        real = os.listdir
        monkeypatch.setattr(os, "listdir", lambda where: [*real(where), "1000000", "0"])
        assert find_vm(os.getpid()) == fd


def test_a_process_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the right that is missing."""

    def refuse(where: str) -> list[str]:
        raise PermissionError(13, "Permission denied", where)

    # Root without the capability may list descriptors, and not see what they are.
    for call in ("readlink", "listdir"):
        monkeypatch.setattr(os, call, refuse)
        with pytest.raises(QmpError, match="CAP_SYS_PTRACE"):
            find_vm(os.getpid())

"""The watcher process, without a mount: its end, and its beginning."""

import os
import subprocess
from pathlib import Path

import pytest

from statsfs.watcher import Watcher
from tests.deadlines import wait_until


def children() -> set[str]:
    """Return the pids of this process's children, zombies too."""
    tasks = (Path("/proc/self/task") / task / "children" for task in os.listdir("/proc/self/task"))
    return {pid for task in tasks for pid in task.read_text().split()}


def descriptors() -> set[str]:
    """Return the descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))


def test_a_watcher_that_is_closed(tmp_path: Path) -> None:
    """It ends at once; neither a process nor a descriptor is left."""
    before = children(), descriptors()
    watcher = Watcher(str(tmp_path))
    assert len(children() - before[0]) == 1
    watcher.close()
    assert (children(), descriptors()) == before


def test_a_watcher_that_was_killed(tmp_path: Path) -> None:
    """Closing it is no error."""
    before = children(), descriptors()
    watcher = Watcher(str(tmp_path))
    (pid,) = children() - before[0]
    os.kill(int(pid), 9)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", "the watcher's end")
    watcher.close()
    assert (children(), descriptors()) == before


def test_a_watcher_does_not_keep_what_it_could_inherit(tmp_path: Path) -> None:
    """No descriptor but the pipe, no directory, no terminal, no process group of the program."""
    before = children()
    with open(tmp_path / "file", "w") as file:
        os.set_inheritable(file.fileno(), True)
        watcher = Watcher(str(tmp_path))
        try:
            (pid,) = children() - before
            wait_until(lambda: os.path.basename(os.readlink(f"/proc/{pid}/exe")) != "python3")
            process = Path("/proc") / pid
            wait_until(lambda: b"statsfs-watcher" in (process / "cmdline").read_bytes())
            assert sorted(os.listdir(process / "fd")) == ["0", "1", "2"]
            assert os.readlink(process / "fd" / "1") == "/dev/null"
            assert os.readlink(process / "cwd") == "/"
            assert os.getsid(int(pid)) == int(pid)
        finally:
            watcher.close()


def test_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that cannot be started leaves no descriptor."""

    def fail(*args: object, **options: object) -> None:
        raise FileNotFoundError("/bin/sh")

    before = descriptors()
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(FileNotFoundError):
        Watcher(str(tmp_path))
    assert descriptors() == before


def test_a_dead_program_without_a_mount(tmp_path: Path) -> None:
    """The pipe closes, the mount answers, or there is none: the watcher ends and does nothing."""
    for path in (tmp_path, "/proc"):
        before = children()
        watcher = Watcher(str(path))
        (pid,) = children() - before
        os.close(watcher._writing)
        watcher._process.wait(20)
        assert watcher._process.returncode == 0
        assert os.path.isdir(path)
        assert not os.path.exists(f"/proc/{pid}")

"""The watcher process, without a mount: its end, and its beginning."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from statsfs.filesystem.watcher import Watcher
from tests.support.deadlines import wait_until


def children() -> set[str]:
    """Return the pids of this process's children, zombies too."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread of another test may just end.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update((task / "children").read_text().split())
    return found


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
            # For a moment there is also the loader's, on the shell's libraries.
            wait_until(lambda: sorted(os.listdir(process / "fd")) == ["0", "1", "2"])
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


def fake(directory: Path, name: str, script: str) -> None:
    """Put a program in a directory of programs."""
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("answers", "cleared"),
    [
        (["Transport endpoint is not connected"], True),
        (["Software caused connection abort", "Transport endpoint is not connected"], True),
        (["Software caused connection abort", ""], False),
        (["No such file or directory"], False),
        (["Permission denied"], False),
        ([""], False),
    ],
)
@pytest.mark.parametrize("closed", [True, False])
def test_what_is_cleared(
    answers: list[str], cleared: bool, closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount that answers that nobody serves it; after a clean end as well as after a death."""
    for number, answer in enumerate(answers):
        (tmp_path / f"answer{number}").write_text(answer)
    fake(
        tmp_path,
        "stat",
        f"""cd {tmp_path}; echo "$@" >>asked; n=$(($(wc -l <asked) - 1)); cat answer$n
        test ! -s answer$n""",
    )
    fake(tmp_path, "fusermount3", f'echo "$@" >>{tmp_path}/unmounted')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    watcher = Watcher("/some/where -x")
    if closed:
        watcher.close()
    else:
        os.close(watcher._writing)
        watcher._process.wait(20)
    unmounted = tmp_path / "unmounted"
    assert (tmp_path / "asked").read_text() == "-f -- /some/where -x\n" * len(answers)
    assert unmounted.exists() == cleared
    if cleared:
        assert unmounted.read_text() == "-uz -- /some/where -x\n"


def test_a_forked_child_lets_go(tmp_path: Path) -> None:
    """It has the pipe no more, and is not warned that it did not wait for the process."""
    before = descriptors()
    watcher = Watcher(str(tmp_path))
    process = watcher._process
    copy = os.dup(watcher._writing)  # the parent's
    watcher.disown()
    assert len(descriptors() - before) == 1
    assert process.poll() == 0
    os.close(copy)
    assert os.waitpid(process.pid, 0)[0] == process.pid

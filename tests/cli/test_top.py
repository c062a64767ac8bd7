"""`statsfs top`, as a program: on a real mount, a server, a terminal; its errors."""

import csv
import fcntl
import io
import os
import pty
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT, is_mounted
from tests.support.registry_place import Tree

TOP = (sys.executable, "-m", "statsfs", "top")


def run_top(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*TOP, *arguments], capture_output=True, text=True, cwd=cwd, env=environment,
        timeout=DEADLINE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@contextmanager
def demo(path: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A demo at a path."""
    command = [sys.executable, "-m", "statsfs", "demo", str(path), "--vms", "2", "--vcpus", "2"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, cwd=ROOT) as program:
        try:
            wait_until(lambda: is_mounted(path))
            yield program
        finally:
            if program.poll() is None:
                program.send_signal(signal.SIGTERM)
            assert program.wait(DEADLINE) == 0


class Terminal:
    """A program on a terminal, and what it wrote there."""

    living: ClassVar[set["Terminal"]] = set()

    def __init__(
        self, *arguments: str, program: Sequence[str] = TOP, term: str = "xterm-256color"
    ) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM=term, PYTHONPATH=str(ROOT))
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
            os.execvp(program[0], [*program, *arguments])
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 150, 0, 0))
        self.text = ""
        self.living.add(self)

    def wait_for(self, pattern: str) -> None:
        """Wait until something is written."""
        deadline = time.monotonic() + DEADLINE
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text[-3000:]
            if select.select([self._fd], [], [], 0.1)[0]:
                self.text += os.read(self._fd, 1 << 16).decode(errors="replace")

    def press(self, keys: str) -> None:
        """Type; what was written before is forgotten."""
        self.text = ""
        os.write(self._fd, keys.encode())

    def end(self) -> int:
        """Read until it ends; return its status."""
        try:
            while os.read(self._fd, 1 << 16):
                pass
        except OSError:  # the other side is closed
            pass
        return self.close()

    def close(self) -> int:
        """Close the terminal; return the status."""
        os.close(self._fd)
        self.living.remove(self)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """A test that fails leaves no program behind."""
    yield
    for terminal in [*Terminal.living]:
        os.kill(terminal.pid, signal.SIGKILL)
        terminal.end()


@pytest.mark.mount
def test_scripts_read_a_real_mount(tmp_path: Path) -> None:
    """A table or CSV, of a directory, of the current one, filtered; rates are there."""
    stats = tmp_path / "stats"
    with demo(stats):
        table = run_top("--once", "-i", "0.2", "-f", "vcpu0/exits$", str(stats / "kvm"))
        assert (table.returncode, table.stderr) == (0, "")
        lines = [line.split() for line in table.stdout.splitlines()]
        assert [len(line) for line in lines] == [3, 3]
        assert {line[0].split("/")[-1] for line in lines} == {"exits"}
        assert all(line[2].endswith("/s") for line in lines)
        rows = run_top("--once", "--csv", "-i", "0.2", cwd=stats / "kvm").stdout
        found = {(row["path"], row["name"]): row for row in csv.DictReader(io.StringIO(rows))}
        assert float(found["", "exits"]["rate"]) >= 0
        total = sum(int(row["value"]) for (path, name), row in found.items()
                    if name == "exits" and path.count("/") == 1)  # fmt: skip
        assert int(found["", "exits"]["value"]) == total
        assert len(found["", "halt_wait_hist"]["value"].split()) > 10
        assert found["", "max_mmu_rmap_size"]["rate"] == ""


@pytest.mark.mount
def test_a_daemon_is_read_over_the_network(tmp_path: Path) -> None:
    """What `--listen` shows is what the mount shows; a path is a source."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    stats = tmp_path / "stats"
    with demo(stats, "--rate", "0", "--listen", str(port)):
        for path in ("", "/kvm"):
            here = run_top("--once", "-i", "0.1", f"{stats}{path}")
            there = run_top("--once", "-i", "0.1", f"http://127.0.0.1:{port}{path}")
            assert (there.returncode, there.stderr) == (0, "")
            # What the daemon counts of itself moves by itself.
            same = [line for line in here.stdout.splitlines() if not line.startswith("statsfs/")]
            assert len(same) > 100
            assert set(same) <= set(there.stdout.splitlines())


@pytest.mark.mount
def test_csv_goes_on_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """One header, then all rows at each interval; where the mount goes away it ends in one line."""
    stats = tmp_path / "stats"
    command = [*TOP, "--csv", "-i", "0.1", "-f", "^kvm/exits$", str(stats)]
    with demo(stats, "--rate", "0") as server:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as program:
            assert program.stdout is not None
            lines = [program.stdout.readline() for _ in range(4)]
            program.send_signal(signal.SIGINT)
            assert program.wait(DEADLINE) == 0
        assert lines[0] == "time,path,name,value,rate\n"
        assert all(re.fullmatch(r"[\d.]+,kvm,exits,\d+,0\n", line) for line in lines[1:])
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        ) as program:
            assert program.stdout is not None
            assert program.stderr is not None
            program.stdout.readline()
            server.send_signal(signal.SIGTERM)
            server.wait(DEADLINE)
            assert program.wait(DEADLINE) == 1
            errors = program.stderr.read()
        assert errors.startswith("statsfs: error: ")
        assert errors.count("\n") == 1


@pytest.mark.mount
def test_a_terminal_has_the_tree_and_a_mount_may_come_back(tmp_path: Path) -> None:
    """It writes 0 when that is answered with y, waits for a mount that went, and quits with q."""
    stats = tmp_path / "stats"
    with demo(stats, "--rate", "0"):
        terminal = Terminal("-i", "0.1", str(stats))
        terminal.wait_for(r"kvm/exits = ")
        exits = stats / "kvm" / "exits"
        assert int(exits.read_text()) > 0
        terminal.press("0")
        terminal.wait_for("Write 0 to kvm/exits")
        terminal.press("y")
        wait_until(lambda: int(exits.read_text()) == 0)
        terminal.press("")
    terminal.wait_for("waiting")
    with demo(stats):
        terminal.press("")
        terminal.wait_for(r"\d/s")
        terminal.press("q")
        assert terminal.end() == 0


@contextmanager
def stopped(program: subprocess.Popen[bytes]) -> Iterator[None]:
    """Its mount hangs meanwhile."""
    program.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        program.send_signal(signal.SIGCONT)


@pytest.mark.mount
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["--once", "--csv"])
def test_signals_end_it_while_its_mount_hangs(
    how: str, number: signal.Signals, tmp_path: Path
) -> None:
    """A read from such a mount ends by no signal; it was to be killed."""
    stats = tmp_path / "stats"
    with demo(stats) as server, stopped(server):
        command = [*TOP, how, str(stats)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as program:
            task = Path(f"/proc/{program.pid}/task")
            wait_until(lambda: len(list(task.iterdir())) > 1, "the thread that reads")
            program.send_signal(number)
            assert program.stderr is not None
            assert (program.wait(DEADLINE), program.stderr.read()) == (0, b"")


@pytest.mark.mount
def test_a_mount_that_hangs_is_told_of_on_a_terminal(tmp_path: Path) -> None:
    """And again when it goes on; SIGHUP gives the terminal back, as SIGTERM does."""
    stats = tmp_path / "stats"
    with demo(stats) as server:
        for number in (signal.SIGTERM, signal.SIGHUP):
            terminal = Terminal("-i", "0.1", str(stats))
            terminal.wait_for(r"kvm/exits = ")
            with stopped(server):
                terminal.wait_for(r"waiting: no answer for \d+ s")
            terminal.press("")
            terminal.wait_for(r"\d/s")
            os.kill(terminal.pid, number)
            terminal.wait_for(r"\x1b\[\?1049l")
            assert terminal.end() == 0


@pytest.mark.mount
def test_a_terminal_that_is_closed_ends_it(tmp_path: Path) -> None:
    """There is nothing to give back; nor to wait for."""
    stats = tmp_path / "stats"
    with demo(stats):
        terminal = Terminal("-i", "0.1", str(stats))
        terminal.wait_for(r"kvm/exits = ")
        assert terminal.close() == 0


@pytest.mark.mount
def test_ctrl_z_stops_it_until_fg(tmp_path: Path) -> None:
    """The shell has its terminal meanwhile."""
    stats = tmp_path / "stats"
    script = f"{shlex.join([*TOP, str(stats)])}; echo it is stopped; read line; fg; echo ended $?"
    with demo(stats):
        terminal = Terminal(program=("bash", "--norc", "-i", "-c", f"set -m; {script}"))
        terminal.wait_for(r"kvm/exits = ")
        terminal.press("\x1a")
        terminal.wait_for("it is stopped")
        terminal.press("\n")
        terminal.wait_for(r"\x1b\[\?1049h")
        terminal.wait_for(r"\d/s")
        terminal.press("q")
        terminal.wait_for("ended 0")
        terminal.end()


@pytest.mark.mount
def test_its_output_has_no_reader_or_no_room(tmp_path: Path) -> None:
    """`| head` ends it with status 0; a full disk is one line."""
    stats = tmp_path / "stats"
    top = shlex.join([*TOP, "-i", "0.1", str(stats)])
    with demo(stats):
        for command, status, said in (
            (f"{top} --csv | head -n 1", 0, ""),
            (f"{top} --once > /dev/full", 1, "the output cannot be written: No space left"),
            (f"{top} --csv > /dev/full", 1, "the output cannot be written: No space left"),
        ):
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command],
                capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE,
            )  # fmt: skip
            assert done.returncode == status, done.stderr
            assert said in done.stderr
            assert done.stderr.count("\n") == status


def test_a_terminal_that_nothing_can_be_drawn_on(tmp_path: Path) -> None:
    """It was full of escape sequences."""
    (tmp_path / ".stats.json").write_text('{"values": {}, "subordinates": {}}')
    terminal = Terminal(str(tmp_path), term="dumb")
    terminal.wait_for("error: nothing can be drawn on a terminal of type dumb; try --once")
    assert "\x1b" not in terminal.text
    assert terminal.end() == 1


def test_what_is_wrong_is_told_in_one_line(tmp_path: Path) -> None:
    """With the exit code of a failure, or of a wrong use."""
    (tmp_path / "file").write_text("7")
    for arguments, code, reason in (
        ((str(tmp_path),), 1, "not a directory of a statsfs"),
        ((str(tmp_path / "none"), "--once"), 1, "No such file or directory"),
        ((str(tmp_path / "file"), "--csv"), 1, "file: not a recording"),
        (("http://127.0.0.1:1", "--once"), 1, "Connection refused"),
        (("https://127.0.0.1",), 1, "not http://HOST:PORT"),
        (("-f", "("), 2, "not a regular expression"),
        (("-f", "a{99999999999}"), 2, "not a regular expression"),
        (("-i", "0"), 2, "0.0 is not in the range"),
        (("-i", "1e308"), 2, "1e+308 is not in the range"),
    ):
        done = run_top(*arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith("statsfs: error: ")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1


def test_without_textual_it_says_what_to_install(tmp_path: Path) -> None:
    """`--once` and `--csv` do without it."""
    (tmp_path / ".stats.json").write_text('{"values": {"n": 7}, "subordinates": {}}')
    (tmp_path / ".schema.json").write_text('{"labels": {}, "values": [], "subordinates": {}}')
    program = (
        "import sys\n"
        "sys.modules['textual'] = None\n"
        "from statsfs.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, "top", *arguments, str(tmp_path)],
            capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL, timeout=DEADLINE,
        )  # fmt: skip

    done = run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "statsfs: error: statsfs top needs textual: pip install 'statsfs[top]'\n"
    )
    done = run("--once", "-i", "0.1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "n  7\n", "")


def test_where_there_is_no_terminal_it_says_what_scripts_use(tmp_path: Path) -> None:
    """Its screen would be of no use in a pipe."""
    (tmp_path / ".stats.json").write_text('{"values": {}, "subordinates": {}}')
    done = run_top(str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "statsfs: error: not a terminal; --once and --csv are for scripts\n"


def test_a_recording_is_played_on_a_terminal(tmp_path: Path) -> None:
    """It goes on by itself, keys stop it, and it says where it is."""
    tree = Tree(tmp_path / "r.parquet")
    for _ in range(101):
        tree.workers[0].requests += 5
        tree.tick()
    tree.recorder.close()
    terminal = Terminal("-i", "0.1", str(tree.file))
    terminal.wait_for("worker0")
    terminal.press("5")
    terminal.wait_for(r"[5-9]\d% of 1:40")  # it goes on from the middle
    terminal.press(".")
    terminal.wait_for("PAUSED")
    terminal.press("q")
    assert terminal.end() == 0

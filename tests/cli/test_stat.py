"""`statsfs stat`: what moved while a command ran."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import STATSFS, CommandServer, assert_error, run, serving
from tests.support.deadlines import DEADLINE, wait_until

pytestmark = pytest.mark.mount

GO = "sleep 0.5; echo go; exec sleep 60"  # something moves before it


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    path = tmp_path_factory.mktemp("stat") / "stats"
    with serving("demo", path, "--vms", "2", "--vcpus", "2") as server:
        yield server
        server.stop()


def test_what_moved_is_on_stderr_and_the_status_is_kept(demo: CommandServer) -> None:
    """The command's output is its own; units are those of the schema."""
    before = demo.read("kvm/exits")
    done = run("stat", "-p", str(demo.mountpoint), "--", "sh", "-c", "sleep 0.3; echo out; exit 3")
    after = demo.read("kvm/exits")
    assert (done.returncode, done.stdout) == (3, "out\n")
    assert f"What moved in {demo.mountpoint}" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if " kvm/exits " in line]
    assert 0 < int(line.split()[0].replace(",", "")) <= after - before
    assert "/s" in line
    assert "kvm/halt_wait_ns" in done.stderr
    assert "seconds elapsed" in done.stderr
    assert "vcpu0" not in done.stderr


def test_runs_as_json_into_a_file(demo: CommandServer, tmp_path: Path) -> None:
    """Each run, the mean and the deviation; of each source by itself."""
    out = tmp_path / "out.json"
    options = ["-r", "3", "--json", "--per-source", "-o", str(out), "-p", str(demo.mountpoint)]
    done = run("stat", *options, "--", "sleep", "0.2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    report = json.loads(out.read_text())
    assert (report["command"], report["status"]) == (["sleep", "0.2"], 0)
    assert len(report["runs"]) == 3
    assert report["elapsed"] >= 0.2
    rows = {(one["source"], one["value"]): one for one in report["values"]}
    exits = rows["kvm", "exits"]
    assert exits["mean"] == pytest.approx(sum(exits["runs"]) / 3)
    assert exits["rate"] > 0
    assert len(exits["runs"]) == 3
    assert any(source.endswith("vcpu0") for source, _ in rows)
    assert rows["kvm", "halt_wait_ns"]["unit"] == "seconds"


def test_a_run_in_which_nothing_moves(demo: CommandServer) -> None:
    """A source whose numbers stand still has no lines; a signal's status is a shell's."""
    vm = next(path for path in (demo.mountpoint / "kvm").iterdir() if path.is_dir())
    done = run("stat", "-r", "2", "-p", str(vm), "--", "sh", "-c", "kill -TERM $$")
    assert done.returncode == 128 + signal.SIGTERM
    assert "( +- " in done.stderr


def test_sigint_ends_the_command_and_the_report_comes(demo: CommandServer) -> None:
    """It ends by the signal itself then, as `perf stat` does, and runs no more."""
    with subprocess.Popen(
        [*STATSFS, "stat", "-r", "9", "-p", demo.mountpoint, "--", "sh", "-c", GO],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGINT
    assert "kvm/exits" in stderr
    assert "Traceback" not in stderr


def test_sigterm_is_passed_on(demo: CommandServer) -> None:
    """The command does not outlive it."""
    with subprocess.Popen(
        [*STATSFS, "stat", "-p", demo.mountpoint, "--", "sh", "-c", "echo $$; exec sleep 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGTERM
    wait_until(lambda: not os.path.exists(f"/proc/{child}"))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["-p", "STATS", "--", "no-such-program"], 127, ["no-such-program", "No such file"]),
        (["-p", "STATS", "--", "/etc/passwd"], 126, ["/etc/passwd", "Permission denied"]),
        (["-p", "/", "--", "true"], 1, ["not a directory of a statsfs"]),
        (["-p", "STATS", "-p", "STATS/kvm", "--", "true"], 2, ["give one of them"]),
        (["-p", "STATS", "-o", "/none/x", "--", "true"], 1, ["/none/x", "No such file"]),
        (["-p", "STATS"], 2, ["COMMAND"]),
        (["-p", "STATS", "-r", "0", "--", "true"], 2, ["-r"]),
    ],
)
def test_errors_are_one_line(
    demo: CommandServer, arguments: list[str], status: int, words: list[str]
) -> None:
    """With the status that is documented."""
    named = [argument.replace("STATS", str(demo.mountpoint)) for argument in arguments]
    assert_error(run("stat", *named), status, *words)

"""`statsfs stat`: what moved while a command ran."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import STATSFS, CommandServer, assert_error, mounting, run
from tests.support.deadlines import DEADLINE, wait_until

pytestmark = pytest.mark.mount

GO = "sleep 0.5; echo go; exec sleep 60"  # something moves before it


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


PROGRAM = """
import sys
from statsfs import Aggregate, Registry, Source, Stats, gauge, log_hist, mount, u64

class Work(Stats):
    jobs = u64(Aggregate.SUM)
    busy = gauge()
    wait = log_hist(8)

def make(name, *, jobs, wait=()):
    stats = Work()
    stats.jobs = jobs
    for one in wait:
        stats.wait.observe(one)
    source = Source(name)
    source.add_values(Work, stats)
    app.add_subordinate(source)
    return source, stats

mountpoint, asked, answered = sys.argv[1:]
registry = Registry()
app = Source("app")
registry.register(app)
stays = make("stays", jobs=100, wait=[1, 5])
goes, returns = make("goes", jobs=7), make("returns", jobs=50)
with mount(registry, mountpoint):
    while True:
        with open(asked) as step:
            exec(step.read())
        with open(answered, "w") as answer:
            answer.write("done")
"""
STEP = 'printf "%s" "$1" > "$2"; cat "$3"'


@pytest.mark.parametrize("per_source", [False, True])
def test_sources_come_and_go_and_counters_begin_anew(tmp_path: Path, per_source: bool) -> None:
    """No counter grows by less than nothing: what is not known is said."""
    stats, asked, answered = tmp_path / "stats", tmp_path / "asked", tmp_path / "answered"
    stats.mkdir()
    os.mkfifo(asked)
    os.mkfifo(answered)
    program: list[str | Path] = [sys.executable, "-c", PROGRAM, stats, asked, answered]

    def during(step: str, *options: str) -> "subprocess.CompletedProcess[str]":
        command = ["sh", "-c", STEP, "sh", step, str(asked), str(answered)]
        options = (*options, *(["--per-source"] if per_source else []))
        done = run("stat", *options, "-p", str(stats), "--", *command)
        assert (done.returncode, done.stdout) == (0, "done")
        return done

    def read(step: str) -> dict[str, int | list[int] | None]:
        out = tmp_path / "out.json"
        assert during(step, "--json", "-o", str(out)).stderr == ""
        rows = json.loads(out.read_text())["values"]
        for row in rows:
            if row["difference"] is None:
                assert row["rate"] is None
        return {f"{row['source']}/{row['value']}": row["difference"] for row in rows}

    with mounting(program, stats):
        # One comes and goes meanwhile; one comes and stays.
        found = read(
            "comes = make('comes', jobs=3)\n"
            "passes = make('passes', jobs=9)\n"
            "app.remove_subordinate(passes[0])\n"
            "stays[1].jobs += 1\n"
        )
        assert not any("passes" in name for name in found)
        assert found.get("app/comes/jobs") == (3 if per_source else None)
        assert found.get("app/stays/jobs") == (1 if per_source else None)
        assert_grown(found)
        # One goes: its total falls, or has what it retained.
        found = read("app.remove_subordinate(goes[0])\nstays[1].jobs += 1\n")
        assert not any("goes" in name for name in found)
        assert_grown(found)
        # One returns with less: a worker that was restarted.
        found = read("app.remove_subordinate(returns[0])\nreturns = make('returns', jobs=2)\n")
        if per_source:
            assert found["app/returns/jobs"] is None
        assert_grown(found)
        # Numbers are cleared.
        clear = "app.clear_value('jobs')\nstays[1].jobs += 1\n"
        assert "<cleared>  app/jobs" in during(clear).stderr
        assert read("app.clear_value('jobs')\n")["app/jobs"] is None


def assert_grown(found: "dict[str, int | list[int] | None]") -> None:
    """No counter has become less."""
    for name, difference in found.items():
        if not name.endswith("busy") and difference is not None:
            parts = difference if isinstance(difference, list) else [difference]
            assert min(parts) >= 0, found


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

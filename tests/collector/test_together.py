"""The host's daemon and the producers of all kinds that it may meet, killed at any step."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsfs.segments import publish
from tests.soak.daemons import Daemons, daemons
from tests.support.c_header import compile_c
from tests.support.collecting import WorkerStats, collecting, files_in, total, wait_for
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT, directory_for_a_mount

EXAMPLES = ROOT / "examples"


@contextmanager
def daemon(directory: Path, errors: Path) -> Iterator[Daemons]:
    """The command, as a process that may be killed and started again; it must say nothing."""
    with (
        directory_for_a_mount() as mountpoint,
        errors.open("w") as file,
        daemons(mountpoint, directory, file) as running,
    ):
        running.start()
        running.wait_for(".stats.json")
        yield running
        running.end()
    assert errors.read_text() == ""


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    """The producer in C, compiled."""
    program = tmp_path / "counter"
    compile_c("c", "-o", program, EXAMPLES / "counter.c")
    return program


def buckets(text: str) -> int:
    """How many were observed."""
    return sum(int(line.split()[-1]) for line in text.splitlines())


@pytest.mark.mount
def test_producers_in_c(directory: Path, tmp_path: Path, counter: Path) -> None:
    """What three count to their ends is shown, beside one that is killed, by two daemons."""
    with daemon(directory, tmp_path / "errors") as running:
        app = running.mountpoint / "app"
        with subprocess.Popen([counter, directory, "app/endless"]) as endless:
            try:
                running.wait_for("app/endless/late_max")
                some = [subprocess.Popen([counter, directory, f"app/c{n}", "40"]) for n in range(3)]
                assert [process.wait(DEADLINE) for process in some] == [0, 0, 0]
                wait_until(lambda: len(files_in(directory)) == 1, "three folds")
                running.kill()
                running.start()
                running.wait_for("app/endless/ticks")
                ticks = int((app / "endless/ticks").read_text())
                assert int((app / "ticks").read_text()) >= 120 + ticks
            finally:
                endless.kill()
        wait_until(lambda: files_in(directory) == [], "the last fold")
        counted = int((app / "ticks").read_text())
        assert counted >= 120 + ticks
        # It may be killed between the two.
        assert counted - buckets((app / "late").read_text()) in (0, 1)
        running.kill()
        running.start()
        running.wait_for("app/ticks")
        assert int((app / "ticks").read_text()) == counted
        assert [path.name for path in app.iterdir() if path.is_dir()] == []


def find_producer(file: Path) -> int:
    """The process that has mapped a segment; whose child it is differs between Pythons."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if str(file) in maps.read_text():
                return int(maps.parent.name)
    raise AssertionError(f"nobody has mapped {file}")


@pytest.mark.mount
def test_a_directory_that_was_removed_does_not_come_back(directory: Path, tmp_path: Path) -> None:
    """The daemon is killed right after it; what stays does."""
    with daemon(directory, tmp_path / "errors") as running:
        shown = running.mountpoint
        for path in ("app/a/w1", "app/b/w1", "gone/a/w1"):
            with publish(path, values=WorkerStats, directory=directory) as segment:
                running.wait_for(f"{path}/requests")
                segment.stats.requests = 5
        wait_until(lambda: files_in(directory) == [], "the folds")
        for directories in (["app/a"], ["gone/a", "gone"]):
            wait_until(lambda: not (shown / directories[0] / "w1").exists())  # noqa: B023  # at once
            for path in directories:
                (shown / path).rmdir()
            running.kill()
            running.start()
            running.wait_for("app/b/requests")
            assert not (shown / directories[-1]).exists()
        assert [path.name for path in shown.iterdir()] == ["statsfs", "app"]
        assert int((shown / "app/requests").read_text()) == 10
        assert int((shown / "app/b/requests").read_text()) == 5


@pytest.mark.mount
def test_worker_processes(directory: Path, tmp_path: Path) -> None:
    """Workers of multiprocessing are seen one by one; one that is killed takes nothing with it."""
    example = str(EXAMPLES / "worker_processes.py")
    command = [sys.executable, example, str(directory), "--workers", "3"]
    with daemon(directory, tmp_path / "errors") as running:
        app = running.mountpoint / "app"
        with subprocess.Popen(command) as process:
            try:
                for number in range(3):
                    running.wait_for(f"app/worker-{number}/requests")
                wait_until(lambda: int((app / "worker-1/requests").read_text()) > 5)
                os.kill(find_producer(directory / files_in(directory)[-1]), signal.SIGKILL)
                before = int((app / "requests").read_text())
                wait_until(lambda: len(files_in(directory)) == 2, "the fold")
                assert int((app / "requests").read_text()) >= before
                running.kill()
                running.start()
                running.wait_for("app/requests")
                assert int((app / "requests").read_text()) >= before
            finally:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(DEADLINE)
                process.kill()
        assert process.returncode == 0
        wait_until(lambda: files_in(directory) == [], "the last fold")
        answered = int((app / "requests").read_text())
        assert answered - buckets((app / "latency").read_text()) in (0, 1)


def publish_and_die(directory: Path, path: str, number: int) -> None:
    """Have a process count so many requests, and be killed."""
    program = (
        "import os, sys\n"
        "from statsfs import publish\n"
        "from tests.support.collecting import WorkerStats\n"
        "segment = publish(sys.argv[1], values=WorkerStats, directory=sys.argv[2])\n"
        "segment.stats.requests = int(sys.argv[3])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, path, directory, str(number)], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL


# Steps of a start and of a fold: whatever is done to files is preceded by an audit event. The
# process kills itself before the n-th of them, which is after the one before.
SWEEP = """
import gc, json, os, signal, sys, time
from itertools import count
from pathlib import Path
from statsfs import Collector, Registry, publish
from tests.support.collecting import WorkerStats, files_in, total
from tests.support.deadlines import wait_until
import inotify_simple

place = Path(sys.argv[1])
STEPS = {"os.rename", "os.remove", "os.truncate", "os.mkdir"}

def fork(function):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            function(writing)
        finally:
            os._exit(1)
    os.close(writing)
    return pid, reading

def produce(directory, path, number):
    def run(writing):
        segment = publish(path, values=WorkerStats, directory=directory)
        segment.stats.requests = segment.stats.deepest = number
        os.write(writing, b"!")
        signal.pause()
    pid, reading = fork(run)
    assert os.read(reading, 1) == b"!"
    os.close(reading)
    return pid

def collect(directory, most):
    def run(writing):
        seen = 0
        cleared = False
        def hook(event, arguments):
            nonlocal seen
            if cleared:  # what is measured of the process is written as it exits
                return
            flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
            if event in STEPS or flags & os.O_WRONLY:
                seen += 1
                if seen > most:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        registry = Registry()
        with Collector(registry, directory):
            os.write(writing, b"!")
            wait_until(lambda: files_in(directory) == [] and total(registry) == 1111)
            registry.by_name["app"].clear_value("requests")
            cleared = True
            os._exit(0)
    return fork(run)

def end(pid, status):
    found = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert found in status, found
    return found

def wait_for_folds(directory, collector, left):
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    wait_until(
        lambda: len(files_in(directory)) <= left or os.waitid(os.P_PID, collector, how)
    )

for most in count():
    directory = place / str(most)
    directory.mkdir(0o755)
    for number in (1, 10):
        pid = produce(directory, f"app/dead/w{number}", number)
        os.kill(pid, signal.SIGKILL)
        end(pid, [-9])
    living = [produce(directory, f"app/living/w{number}", number) for number in (100, 1000)]
    collector, reading = collect(directory, most)
    os.read(reading, 1)  # nothing, if it was killed at the start
    os.close(reading)
    # One after the other, so that there are as many steps each time.
    wait_for_folds(directory, collector, 2)
    for left, pid in enumerate(living):
        os.kill(pid, signal.SIGKILL)
        end(pid, [-9])
        wait_for_folds(directory, collector, 1 - left)
    found = end(collector, [-9, 0])
    print(json.dumps(found), flush=True)
    if not found:
        break
"""


@pytest.mark.slow
def test_killed_at_each_step(directory: Path) -> None:
    """Of a start, of folds and of a clear: whatever it was, the next has every number once.

    As the last step a total is cleared; a kill before its record is renamed undoes that.
    """
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, directory],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=DEADLINE * 3,
    )  # fmt: skip
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert ends == [-signal.SIGKILL] * (len(ends) - 1) + [0]
    # Making the two directories of its own, two folds at least of a record and two files, a clear.
    assert len(ends) > 8
    totals = []
    for number in range(len(ends)):
        place = directory / str(number)
        with collecting(place) as registry:
            totals.append(total(registry))
            assert total(registry, "deepest") == 1000
            assert files_in(place) == []
        with collecting(place) as registry:
            assert total(registry) == totals[-1]
            assert total(registry, "deepest") == 1000
    # Only what follows the rename of the clear has it.
    assert totals == sorted(totals, reverse=True)
    assert set(totals) == {1111, 0}
    assert totals.count(0) == 1


@pytest.mark.slow
def test_many_lives_at_one_path(directory: Path) -> None:
    """Dead segments of a time without a collector, at the path of a living one."""
    for number in (1, 10, 100):
        publish_and_die(directory, "app/w1", number)
        # The living one is found before the dead.
        (file,) = set(directory.glob("app*"))
        file.rename(directory / f"z{number}.stats")
    with publish("app/w1", values=WorkerStats, directory=directory) as segment:
        segment.stats.requests = 1000
        with collecting(directory) as registry:
            assert total(registry) == 1111
            assert total(registry, path="app/w1") == 1000
            assert files_in(directory) == [segment.file.name]
        with collecting(directory) as registry:
            assert total(registry) == 1111
            wait_for(registry, "app/w1")


def test_two_who_live_at_one_path(directory: Path) -> None:
    """The first one keeps it when a daemon follows another, or a total would fall."""
    with (
        publish("app/w1", values=WorkerStats, directory=directory) as first,
        publish("app/w1", values=WorkerStats, directory=directory) as second,
    ):
        first.stats.requests, second.stats.requests = 1, 10
        # Neither their names nor what else is there decide.
        oldest = first.file.rename(directory / "z.stats").stat().st_ctime_ns
        other = second.file.rename(directory / "b.stats")

        def is_younger() -> bool:
            # The clock of files has ticks of some milliseconds.
            other.chmod(0o644)
            return other.stat().st_ctime_ns > oldest

        wait_until(is_younger)
        (directory / "a.stats").symlink_to("b.stats")
        for _ in range(2):
            with collecting(directory) as registry:
                assert total(registry) == 1


def test_clearing_beside_a_segment_at_the_top(directory: Path) -> None:
    """What was not cleared is in no record."""
    with (
        publish("single", values=WorkerStats, directory=directory) as single,
        publish("app/w1", values=WorkerStats, directory=directory) as other,
        collecting(directory) as registry,
    ):
        single.stats.requests, other.stats.requests = 1, 10
        registry.by_name["app"].clear_value("requests")
        assert [total(registry), total(registry, path="single")] == [0, 1]
        assert [path.name for path in (directory / ".retained").iterdir()] == ["app"]

"""Segments of real processes: how they live, die, fork and become other programs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsfs.segments import places
from tests.support.deadlines import wait_until
from tests.support.segment_files import alive, read_segment, segments_in

pytestmark = pytest.mark.slow

HEADER = """
import multiprocessing, os, signal, sys, threading
from statsfs import Aggregate, SegmentError, Stats, log_hist, publish, u64

class WorkerStats(Stats):
    requests = u64(Aggregate.SUM)
    latency = log_hist(8)

def refused(touch):
    try:
        touch()
    except SegmentError as error:
        assert "belongs to the process that forked this one" in str(error), error
        return True
    return False

def say(word):
    os.write(1, word.encode() + b"\\n")

def hear():
    sys.stdin.readline()
"""
PUBLISH = """
segment = publish("app/worker-%d", os.getpid(), values=WorkerStats, directory=sys.argv[1])
segment.stats.requests += 5
"""


@pytest.fixture
def directory(directory: Path) -> Path:
    """A directory in which a collector has been."""
    (directory / places.COLLECTOR).touch()
    return directory


class Producer:
    """A program that publishes, says words and hears lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def wait_for(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Wait for its end; its status."""
        return self.process.wait(timeout=60)


@contextmanager
def producer(program: str, directory: Path) -> Iterator[Producer]:
    """Run a program that writes no error; if the test fails, its children end with it."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", HEADER + program, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Producer(process)
            process.wait(timeout=60)
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


ENDS = {
    "by SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "by SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "at its end": ("", 0),
    "by sys.exit": ("sys.exit(3)", 3),
    "by os._exit": ("os._exit(4)", 4),
    "by close": ("segment.close()", 0),
    "by another program": ("os.execv('/bin/true', ['true'])", 0),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_kernel_knows_the_dead(directory: Path, end: str) -> None:
    """However a process ends, its lock is dropped and its numbers are there."""
    how, status = ENDS[end]
    with producer(f"{PUBLISH}\nsay('ready')\nhear()\n{how}", directory) as running:
        running.wait_for("ready")
        (file,) = segments_in(directory)
        assert alive(file)
        running.go_on()
        assert running.end() == status
    assert not alive(file)
    assert read_segment(file).numbers["requests"] == 5


def test_a_process_that_becomes_another_program_is_dead_at_once(directory: Path) -> None:
    """Neither the mapping nor a descriptor goes over."""
    program = f"{PUBLISH}\nsay('ready')\nhear()\nos.execv('/bin/cat', ['cat'])"
    with producer(program, directory) as running:
        running.wait_for("ready")
        (file,) = segments_in(directory)
        running.go_on()
        wait_until(lambda: not alive(file), "its death")
        assert running.process.poll() is None
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert running.end() == 0


FORK = (
    PUBLISH
    + """
stats, buckets = segment.stats, segment.stats.latency
if not os.fork():
    assert refused(lambda: stats.requests)
    assert refused(lambda: setattr(stats, "requests", 1))
    assert refused(lambda: segment.stats.latency)
    buckets.observe(3)                              # memory of its own
    segment.close()
    assert sys.argv[1] not in open("/proc/self/maps").read()
    assert not [fd for fd in os.listdir("/proc/self/fd") if ".stats" in link(fd)]
    own = publish("app/child", values=WorkerStats, directory=sys.argv[1])
    own.stats.requests += 7
    say("child")
    signal.pause()
"""
).replace("link(fd)", "os.path.realpath('/proc/self/fd/' + fd)")


def by_path(directory: Path) -> dict[str, Path]:
    """The segments of a directory, by the last name of their paths."""
    return {read_segment(file).head.components[-1]: file for file in segments_in(directory)}


def test_a_forked_child_has_no_part_in_it(directory: Path) -> None:
    """It is refused there, and publishes its own; the parent's death is seen while it lives."""
    program = FORK + "hear()\nstats.requests += 1\nsay('parent')\nhear()"
    with producer(program, directory) as running:
        running.wait_for("child")
        parent = by_path(directory)[f"worker-{running.process.pid}"]
        child = by_path(directory)["child"]
        running.go_on()
        running.wait_for("parent")
        assert read_segment(parent).numbers == {"requests": 6, "latency": [0] * 8, "latency.sum": 0}
        assert alive(parent)
        running.process.kill()
        assert running.end() == -signal.SIGKILL
        wait_until(lambda: not alive(parent), "the parent's death")
        assert alive(child)
        assert read_segment(child).numbers["requests"] == 7
        os.killpg(running.process.pid, signal.SIGKILL)
    wait_until(lambda: not alive(child), "the child's death")


def test_a_childs_end_is_nothing_to_the_parent(directory: Path) -> None:
    """Whether it ends with or without Python's way of ending."""
    program = (
        PUBLISH
        + """
for end in (sys.exit, os._exit):
    if not (pid := os.fork()):
        end(0)
    assert os.waitpid(pid, 0)[1] == 0
say("ready")
hear()
segment.stats.requests += 1
"""
    )
    with producer(program, directory) as running:
        running.wait_for("ready")
        (file,) = segments_in(directory)
        assert alive(file)
        running.go_on()
        assert running.end() == 0
    assert read_segment(file).numbers["requests"] == 6


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing(tmp_path: Path, method: str) -> None:
    """Each publishes in its own process, however it was started; the numbers are all there."""
    tmp_path.chmod(0o755)
    script = tmp_path / "program.py"
    script.write_text(
        HEADER
        + """
def work(number):
    with publish("app/worker-%d", number, values=WorkerStats, directory=sys.argv[1]) as mine:
        mine.stats.requests += number
        return mine.stats.requests, mine.file.read_bytes()[:3] == bytes(3)

if __name__ == "__main__":
    kept = publish("app/main", values=WorkerStats, directory=sys.argv[1])
    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
        assert pool.map(work, range(6)) == [(number, True) for number in range(6)]
        pool.close()
        pool.join()
    kept.stats.requests += 1
    assert len(os.listdir(sys.argv[1])) == 1
    kept.close()
"""
    )
    directory = tmp_path / "segments"
    directory.mkdir(mode=0o755)
    done = subprocess.run(
        [sys.executable, script, directory, method], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(directory.iterdir()) == []


def test_a_fork_waits_for_what_is_being_published(directory: Path) -> None:
    """A child never has a descriptor or a mapping of a segment that its parent's thread made."""
    program = """
ended = threading.Event()

def publish_on():
    while not ended.is_set():
        publish("app/a", values=WorkerStats, directory=sys.argv[1]).close()

threads = [threading.Thread(target=publish_on) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(100):
    if not (pid := os.fork()):
        held = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        held.append(open("/proc/self/maps").read())
        os._exit(any(sys.argv[1] in one for one in held))
    assert os.waitpid(pid, 0)[1] == 0
ended.set()
for thread in threads:
    thread.join()
"""
    with producer(program, directory) as running:
        assert running.end() == 0
    assert segments_in(directory)
    assert not any(map(alive, segments_in(directory)))
    assert [path for path in directory.iterdir() if path.suffix != ".stats"] == [
        directory / places.COLLECTOR
    ]


def test_many_producers_at_the_same_time(directory: Path) -> None:
    """Each counts in its own, and no name meets another; all are seen to be dead."""
    program = HEADER + PUBLISH + "segment.stats.requests += os.getpid()"
    running = [
        subprocess.Popen([sys.executable, "-c", program, directory], stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    for process in running:
        assert process.communicate(timeout=60)[1] == b""
    seen = {
        read_segment(file).head.path: read_segment(file).numbers["requests"]
        for file in segments_in(directory)
    }
    assert seen == {f"app/worker-{process.pid}": 5 + process.pid for process in running}
    assert not any(map(alive, segments_in(directory)))


def test_nobody_sees_half_a_segment(directory: Path) -> None:
    """Whatever has its real name is whole and alive, at any moment until its producer ends."""
    program = """
for number in range(300):
    publish("app/worker-%d", number, values=WorkerStats, directory=sys.argv[1])
say("done")
hear()
"""
    with producer(program, directory) as running:
        seen: set[Path] = set()
        while len(seen) < 300:
            for file in segments_in(directory):
                if file not in seen:
                    assert read_segment(file).head.path.startswith("app/worker-")
                    assert alive(file)
                    seen.add(file)
        running.wait_for("done")
        running.go_on()
        assert running.end() == 0

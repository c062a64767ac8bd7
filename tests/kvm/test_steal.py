"""The scheduler's numbers of threads."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from statsfs.kvm.steal import SCHEDULER_VALUES, ThreadTimes
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import wait_until


@contextmanager
def thread() -> Iterator[tuple[int, threading.Event]]:
    """A thread that works until the event; its number."""
    end = threading.Event()
    working = threading.Thread(target=lambda: all(not end.wait(0.0001) for _ in iter(int, 1)))
    working.start()
    assert working.native_id is not None
    try:
        yield working.native_id, end
    finally:
        end.set()
        working.join()


def test_a_thread_that_works(registry: Registry) -> None:
    """Its numbers grow, those of a directory are sums, and a clear is a baseline."""
    with (
        thread() as (tid, _),
        ThreadTimes(os.getpid(), tid) as times,
        Source("vcpu0", refresh=times.refresh, blocking=False) as vcpu,
        Source("kvm") as kvm,
    ):
        vcpu.add_values(SCHEDULER_VALUES, times.numbers)
        kvm.add_subordinate(vcpu)
        registry.register(kvm)
        assert set(kvm.names()) == {"run_ns", "wait_ns", "timeslices"}
        first = {name: kvm.get_value(name) for name in kvm.names()}
        assert first["run_ns"] > 0
        wait_until(lambda: kvm.get_value("run_ns") > first["run_ns"])
        wait_until(lambda: vcpu.get_value("timeslices") > first["timeslices"])
        assert kvm.get_value("wait_ns") >= first["wait_ns"]
        before = times.numbers["run_ns"]
        kvm.clear_value("run_ns")
        assert kvm.get_value("run_ns") < before


def test_the_file_is_that_of_the_thread() -> None:
    """The numbers are those that the kernel says of it, in its order."""
    with subprocess.Popen(["sleep", "100"]) as process:

        def said() -> list[int]:
            with open(f"/proc/{process.pid}/task/{process.pid}/schedstat") as file:
                return [int(word) for word in file.read().split()]

        with ThreadTimes(process.pid, process.pid) as times:

            def same() -> bool:
                times.refresh()
                return list(times.numbers.values()) == said()

            wait_until(same, "a process that sleeps")
            process.kill()
            process.wait()
            with pytest.raises(ProcessLookupError):
                times.refresh()
        with pytest.raises(FileNotFoundError):
            ThreadTimes(process.pid, process.pid)


def test_a_thread_that_ends() -> None:
    """Its process lives on; there are no numbers any more."""
    with thread() as (tid, end), ThreadTimes(os.getpid(), tid) as times:
        end.set()

        def gone() -> bool:
            try:
                times.refresh()
            except ProcessLookupError:
                return True
            return False

        wait_until(gone, "its end")


def test_closing() -> None:
    """Nothing stays open, and what is closed has no numbers; closing again does nothing."""
    before = os.listdir("/proc/self/fd")
    with ThreadTimes(os.getpid(), threading.get_native_id()) as times:
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    times.close()
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        times.refresh()


def test_a_kernel_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros are not shown as numbers, and nothing stays open."""
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "pread", lambda *_: b"0 0 0\n")
    with pytest.raises(OSError, match="the kernel does not count"):
        ThreadTimes(os.getpid(), threading.get_native_id())
    assert os.listdir("/proc/self/fd") == before

"""Locks that a signal handler cannot leave locked."""

import subprocess
import sys
import threading
from typing import Any

import pytest

from statsfs.model.locking import Flag, call_locked

LOCKS: dict[str, Any] = {"lock": threading.Lock, "reentrant": threading.RLock}


@pytest.mark.parametrize("name", LOCKS)
def test_a_function_is_called_under_the_lock(name: str) -> None:
    """What it returns is returned, and afterwards the lock is free."""
    lock = LOCKS[name]()
    assert call_locked(lock, lambda: is_free(lock)) is False
    assert is_free(lock)


def is_free(lock: Any) -> bool:
    """Whether another thread can take the lock."""
    found: list[bool] = []

    def take() -> None:
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return found[0]


def test_what_the_function_raises_leaves_the_lock_free() -> None:
    """Also in a call inside another, which keeps it."""
    lock = threading.RLock()

    def fail() -> None:
        raise ZeroDivisionError

    def outer() -> bool:
        with pytest.raises(ZeroDivisionError):
            call_locked(lock, fail)
        return is_free(lock)

    assert call_locked(lock, outer) is False
    assert is_free(lock)


# A signal comes all the time, and its handler raises wherever it meets the module.
BEGIN = """
import signal, threading
from statsfs.model.locking import Flag, call_locked

class Raised(BaseException):
    pass

def handle(number, frame):
    if frame is not None and frame.f_code.co_filename.endswith("locking.py"):
        raise Raised

lock, flags, raised = threading.RLock(), [Flag() for _ in range(1000)], 0
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 20e-6, 20e-6)
"""
END = """
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
"""


def run_in_a_storm(meanwhile: str, afterwards: str) -> str:
    """What a program of two parts prints, of which the first is run in a storm."""
    program = BEGIN + meanwhile + END + afterwards
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_no_interrupt_leaves_the_lock_taken() -> None:
    """A signal handler raises 3,000 times, anywhere in the call."""
    meanwhile = """
while raised < 3000:
    try:
        call_locked(lock, lambda: None)
    except Raised:
        raised += 1
"""
    afterwards = """
free = []
thread = threading.Thread(target=lambda: free.append(lock.acquire(timeout=5)))
thread.start()
thread.join()
print(free)
"""
    assert run_in_a_storm(meanwhile, afterwards) == "[True]\n"


def test_a_flag_is_waited_for() -> None:
    """By several threads, which all go on when it is set; setting it again is nothing."""
    flag, gone_on = Flag(), list[bool]()
    assert not flag.wait(0)
    assert not flag.wait(-1)
    assert not flag.is_set()
    threads = [threading.Thread(target=lambda: gone_on.append(flag.wait(60))) for _ in range(3)]
    for thread in threads:
        thread.start()
    flag.set()
    flag.set()
    for thread in threads:
        thread.join()
    assert gone_on == [True] * 3
    assert flag.wait()
    assert flag.is_set()


def test_no_interrupt_of_one_who_waits_hinders_the_one_who_sets() -> None:
    """A thousand times; `threading.Event` would be locked for ever after a few."""
    meanwhile = """
for flag in flags:
    try:
        flag.wait(1e-4)
    except Raised:
        raised += 1
"""
    afterwards = """
thread = threading.Thread(target=lambda: [flag.set() for flag in flags], daemon=True)
thread.start()
thread.join(10)
print(raised > 100, thread.is_alive(), all(flag.wait(0) for flag in flags))
"""
    assert run_in_a_storm(meanwhile, afterwards) == "True False True\n"

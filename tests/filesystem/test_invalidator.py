"""Telling the kernel what to forget, without a kernel: who sends, when, and what comes back."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyfuse3
import pytest

from statsfs.filesystem.inodes import Stale
from statsfs.filesystem.invalidator import Invalidator
from statsfs.filesystem.known import ROOT
from statsfs.filesystem.vfs import Vfs
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.kernel import Kernel
from tests.support.trees import make_kvm, subordinate

CHANGE = ChangeNotice({0: {"name"}})


class Device:
    """What pyfuse3 is told in place of the kernel; `answer` is called first, and may raise."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.threads: list[int] = []
        self.answer: Callable[[tuple[Any, ...]], None] = lambda _: None

    def entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        """Stand for `invalidate_entry`; `deleted` would unlink what is in use."""
        assert not deleted
        self._take((parent, name))

    def inode(self, inode: int, attr_only: bool = False) -> None:
        """Stand for `invalidate_inode`."""
        assert attr_only
        self._take((inode,))

    def _take(self, told: tuple[Any, ...]) -> None:
        self.answer(told)
        self.sent.append(told)
        self.threads.append(threading.get_ident())


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device in place of the one that pyfuse3 writes to."""
    device = Device()
    monkeypatch.setattr(pyfuse3, "invalidate_entry", device.entry)
    monkeypatch.setattr(pyfuse3, "invalidate_inode", device.inode)
    return device


@pytest.fixture
def invalidator(registry: Registry, device: Device) -> Iterator[Invalidator]:
    """An invalidator that listens to the registry; the kernel knows nothing but the root."""
    invalidator = Invalidator(Vfs(registry))
    registry.add_listener(invalidator)
    yield invalidator
    invalidator.stop()


def in_thread(function: Callable[[], object]) -> threading.Thread:
    """Run something in another thread."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_nothing_is_sent_before_start_and_after_stop(
    invalidator: Invalidator, registry: Registry, device: Device
) -> None:
    """Without a session pyfuse3 would crash."""
    registry.register(Source("before"))
    assert device.sent == []
    invalidator.start()
    registry.register(Source("between"))
    assert device.sent == [(ROOT,)]
    invalidator.stop()
    invalidator.stop()
    registry.register(Source("after"))
    assert device.sent == [(ROOT,)]


def test_names_go_before_attributes(registry: Registry, device: Device) -> None:
    """All that follows from a change is sent by the thread that made it, before it returns."""
    vfs = Vfs(registry)
    invalidator, kernel = Invalidator(vfs), Kernel(vfs)
    kvm = make_kvm(registry)
    kernel.walk()
    registry.add_listener(invalidator)
    invalidator.start()
    parent = kernel.find("kvm")
    for name in ("cpu0", "cpu1"):
        kvm.remove_subordinate(subordinate(kvm, name))
    gone = {b"cpu1", b"exits", b"wait.min", b"wait.max", b"wait.avg", b"busy"}
    assert device.sent[:2] == [(parent, b"cpu0"), (parent,)]
    assert set(device.sent[2:-1]) == {(parent, name) for name in gone}
    assert device.sent[-1] == (parent,)
    assert set(device.threads) == {threading.get_ident()}
    invalidator.stop()


def test_nothing_stale_nothing_sent(
    invalidator: Invalidator, registry: Registry, device: Device
) -> None:
    """A change of what the kernel does not know costs it nothing."""
    kvm = make_kvm(registry)
    invalidator.start()
    kvm.remove_subordinate(subordinate(kvm, "cpu0"))
    assert device.sent == []


def test_a_change_on_the_serving_thread_is_sent_by_another(
    invalidator: Invalidator, registry: Registry, device: Device
) -> None:
    """One thread for all of them, and it ends with the session."""
    invalidator.start()
    invalidator.serve_from(threading.get_ident())
    for name in ("one", "two"):
        registry.register(Source(name))
    wait_until(lambda: device.sent == [(ROOT,), (ROOT,)])
    (sender,) = set(device.threads)
    assert sender != threading.get_ident()
    assert sender in {thread.ident for thread in threading.enumerate()}
    invalidator.stop()
    assert sender not in {thread.ident for thread in threading.enumerate()}
    in_thread(lambda: registry.register(Source("three"))).join(DEADLINE)
    assert len(device.sent) == 2


@contextmanager
def requests() -> Iterator[tuple[int, int]]:
    """Have a pipe in place of the device: what is written to it is a request."""
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("asked", [True, None])
def test_a_change_on_the_serving_thread_does_not_wait_for_a_lookup(
    invalidator: Invalidator, registry: Registry, device: Device, asked: bool | None
) -> None:
    """Where the kernel may wait for a reply that this very thread must give, it goes on."""
    lookup = threading.Event()
    device.answer = lambda _: None if lookup.wait(DEADLINE) else pytest.fail("nobody replied")
    invalidator.start()
    with requests() as (reading, writing):
        os.write(writing, b"a request")
        invalidator.serve_from(threading.get_ident(), reading if asked else None)
        registry.register(Source("one"))
        assert device.sent == []
        lookup.set()
        invalidator.stop()


def test_a_change_on_the_serving_thread_waits_while_nobody_asks(
    invalidator: Invalidator, registry: Registry, device: Device
) -> None:
    """The other thread may be late; the kernel is told all the same when the change returns."""
    device.answer = lambda _: time.sleep(0.02)
    invalidator.start()
    with requests() as (reading, _):
        invalidator.serve_from(threading.get_ident(), reading)
        for number in range(5):
            registry.register(Source(str(number)))
            assert len(device.sent) == number + 1
        invalidator.stop()


def test_a_change_on_the_serving_thread_does_not_wait_for_ever(
    invalidator: Invalidator, registry: Registry, device: Device
) -> None:
    """Whatever the other thread waits for: then the kernel is told later."""
    leave = threading.Event()
    device.answer = lambda _: None if leave.wait(DEADLINE) else pytest.fail("nobody let it go")
    invalidator.start()
    with requests() as (reading, _):
        invalidator.serve_from(threading.get_ident(), reading)
        registry.register(Source("one"))
        assert device.sent == []
        leave.set()
        invalidator.stop()


def test_for_a_removal_by_the_kernel_another_thread_sends(
    invalidator: Invalidator, registry: Registry, device: Device
) -> None:
    """Nobody waits for it: the kernel takes it when it has its answer. The end waits."""
    entered, answered = threading.Event(), threading.Event()

    def answer(told: tuple[Any, ...]) -> None:
        entered.set()
        assert answered.wait(DEADLINE)

    device.answer = answer
    invalidator.start()
    invalidator._vfs.removing.add(threading.get_ident())
    registry.register(Source("a"))
    assert entered.wait(DEADLINE)
    stop = in_thread(invalidator.stop)
    wait_until(lambda: not invalidator._running)
    assert stop.is_alive()
    answered.set()
    stop.join(DEADLINE)
    assert not stop.is_alive()
    assert device.sent == [(ROOT,)]


def test_stop_waits_for_what_is_being_sent(
    invalidator: Invalidator, registry: Registry, device: Device
) -> None:
    """From whichever threads; what changes meanwhile is not sent."""
    entered, leave = threading.Barrier(3), threading.Event()

    def answer(told: tuple[Any, ...]) -> None:
        entered.wait(DEADLINE)
        assert leave.wait(DEADLINE)

    device.answer = answer
    invalidator.start()
    changes = [in_thread(partial(registry.register, Source(name))) for name in "ab"]
    entered.wait(DEADLINE)
    stops = [in_thread(invalidator.stop) for _ in range(3)]
    wait_until(lambda: not invalidator._running)
    registry.register(Source("late"))
    assert all(thread.is_alive() for thread in (*changes, *stops))
    leave.set()
    for thread in (*changes, *stops):
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert device.sent == [(ROOT,), (ROOT,)]


def test_what_is_handed_over_while_stopping_is_dropped(
    invalidator: Invalidator, registry: Registry, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that ends needs no invalidation; nothing is left running."""
    stopping: list[threading.Thread] = []

    def find_stale(change: ChangeNotice) -> Stale:
        stopping.append(in_thread(invalidator.stop))
        wait_until(lambda: not invalidator._running)
        return Stale([(ROOT, b"name")])

    monkeypatch.setattr(invalidator._vfs, "find_stale", find_stale)
    invalidator.start()
    invalidator.serve_from(threading.get_ident())
    before = threading.active_count()
    invalidator(CHANGE)
    stopping[0].join(DEADLINE)
    assert device.sent == []
    wait_until(lambda: threading.active_count() == before)


def test_a_forked_child_sends_nothing(
    invalidator: Invalidator, registry: Registry, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tree is a copy; the mount is its parent's."""
    invalidator.start()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    registry.register(Source("one"))
    assert device.sent == []


def test_errors_of_the_kernel(
    registry: Registry, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not cached is as it should be, or found by its name; others are but noted."""
    vfs = Vfs(registry)
    invalidator, kernel = Invalidator(vfs), Kernel(vfs)
    kvm = make_kvm(registry)
    kernel.walk()
    registry.add_listener(invalidator)
    invalidator.start()
    errors: dict[int, OSError] = {}
    tried: list[tuple[Any, ...]] = []

    def answer(told: tuple[Any, ...]) -> None:
        tried.append(told)
        if len(told) in errors:
            raise errors[len(told)]

    device.answer = answer
    parent = kernel.find("kvm")
    errors.update({1: FileNotFoundError(), 2: FileNotFoundError()})
    kvm.remove_subordinate(subordinate(kvm, "cpu0"))
    assert tried == [(parent, b"cpu0"), (parent,), (ROOT, b"kvm")]
    registry.register(Source("root has no name"))
    assert tried[3:] == [(ROOT,)]
    errors.update({1: OSError(107, "not connected"), 2: OSError(107, "not connected")})
    with caplog.at_level(logging.DEBUG):
        kvm.remove_subordinate(subordinate(kvm, "cpu1"))
    assert caplog.text.count("not connected") == 7
    assert all(record.levelno == logging.DEBUG for record in caplog.records)
    invalidator.stop()


def test_an_error_while_looking_for_what_is_stale(
    invalidator: Invalidator,
    registry: Registry,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The change stands, the error is logged, and stopping does not wait for ever."""

    def find_stale(change: ChangeNotice) -> Stale:
        raise ValueError("a bug")

    monkeypatch.setattr(invalidator._vfs, "find_stale", find_stale)
    invalidator.start()
    source = Source("one")
    registry.register(source)
    assert source.parent is registry
    assert "a bug" in caplog.text
    invalidator.stop()


def test_an_error_on_the_sending_thread(
    invalidator: Invalidator, registry: Registry, device: Device
) -> None:
    """It does not end the thread's work: the next change is sent."""

    def answer(told: tuple[Any, ...]) -> None:
        device.answer = lambda _: None
        raise RuntimeError("pyfuse3 is not as it was")

    device.answer = answer
    invalidator.start()
    invalidator.serve_from(threading.get_ident())
    for name in ("one", "two"):
        registry.register(Source(name))
    # On a busy machine a change does not wait for the sending thread, which `stop` ends.
    wait_until(lambda: device.sent)
    invalidator.stop()
    assert device.sent == [(ROOT,)]


def test_closing_from_inside_an_invalidation(
    registry: Registry, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler may: `stop` does not wait for itself, and nothing more is sent."""
    invalidator = Invalidator(Vfs(registry))
    stale = Stale([(ROOT, b"one"), (ROOT, b"two")], [(ROOT, None), (5, (ROOT, b"five"))])
    monkeypatch.setattr(invalidator._vfs, "find_stale", lambda change: stale)
    device.answer = lambda _: invalidator.stop()
    invalidator.start()
    invalidator(CHANGE)
    assert device.sent == [(ROOT, b"one")]


def test_a_change_from_inside_an_invalidation(
    registry: Registry, device: Device, invalidator: Invalidator
) -> None:
    """As a signal handler may make: both are sent, and then `stop` has nothing to wait for."""
    sources = [Source("two")]

    def answer(told: tuple[Any, ...]) -> None:
        if sources:
            registry.register(sources.pop())

    device.answer = answer
    invalidator.start()
    registry.register(Source("one"))
    assert device.sent == [(ROOT,), (ROOT,)]
    invalidator.stop()

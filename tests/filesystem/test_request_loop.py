"""How requests are waited for: whose turn it is, what ends serving, and what does not.

A pipe stands for the device, and a copy of pyfuse3's loop for pyfuse3. `test_request_loop_mounts`
has the same with the real ones.
"""

import errno
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pyfuse3
import pytest
import trio

from statsfs.filesystem import request_loop
from statsfs.filesystem.request_loop import Loop, find_descriptors, make_loop, run_in_thread
from tests.support.deadlines import DEADLINE

patched: Any = cast(Any, pyfuse3)


class Device:
    """A pipe on which requests are bytes.

    "q" is answered at once, "s" waits until the gate is opened, "S" does so without a word, "t"
    waits for another gate in a thread and is "-" if serving ended first, "T" does so when it has
    ended it, "k" notes whether Ctrl-C is kept out; any other byte is an error number that reading
    fails with.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.answered: list[str] = []
        self.gate = trio.Event()
        self.thread_gate = threading.Event()
        self.patience = math.inf
        self.protected = False
        self.waiting = 0
        self.tasks = 0
        self.arguments: set[tuple[int, int]] = set()
        self.loop = Loop()
        self._lock = trio.Lock()
        self._readers = 0
        self._ended = False

    async def main(self, min_tasks: int, max_tasks: int) -> None:
        """Do what `pyfuse3.main` does with one session task."""
        self.arguments.add((min_tasks, max_tasks))
        async with trio.open_nursery() as nursery:
            loop = patched._session_loop
            nursery.start_soon(loop, nursery, min_tasks, max_tasks, name="a session task")

    async def session_loop(self, nursery: object, min_tasks: int, max_tasks: int) -> None:
        """Read and answer."""
        self.tasks += 1
        try:
            while not self._ended and self._readers <= min_tasks:
                if not await patched._wait_fuse_readable():
                    break
                request = os.read(self.reading, 1)
                self._ended |= not request
                if request:
                    await self._answer(request)
        finally:
            self.tasks -= 1

    async def wait(self) -> bool:
        """Wait for a request as pyfuse3 does."""
        self._readers += 1
        try:
            async with self._lock:
                if self._ended:
                    return False
                await trio.lowlevel.wait_readable(self.reading)
        except trio.ClosedResourceError:
            return False
        finally:
            self._readers -= 1
        return True

    async def _answer(self, request: bytes) -> None:
        if request in (b"s", b"S"):
            if request == b"s":
                task = request_loop._current.get()
                for _ in range(2):  # once more is harmless
                    task.loop.hand_over(task)
            self.waiting += 1
            await self.gate.wait()
            self.waiting -= 1
        elif request in (b"t", b"T"):
            if request == b"T":
                self.loop.terminate()
            self.waiting += 1
            done = await run_in_thread(
                self.thread_gate.wait, trio.CapacityLimiter(1), self.patience
            )
            self.waiting -= 1
            request = b"t" if done else b"-"
        elif request == b"k":
            self.protected = trio.lowlevel.currently_ki_protected()
        elif request != b"q":
            raise OSError(request[0], "as asked")
        self.answered.append(request.decode())

    def ask(self, requests: str | bytes) -> None:
        """Send requests."""
        os.write(self.writing, requests if isinstance(requests, bytes) else requests.encode())

    def end(self) -> None:
        """End the session, as an unmount does."""
        os.close(self.writing)
        self.writing = -1

    def terminate(self) -> None:
        """End the session, as `pyfuse3.terminate` does."""
        self._ended = True
        trio.lowlevel.notify_closing(self.reading)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A device that pyfuse3 serves."""
    made = Device()
    replaced = {
        "main": made.main,
        "terminate": made.terminate,
        "_session_loop": made.session_loop,
        "_wait_fuse_readable": made.wait,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(pyfuse3, name, function)
    yield made
    for descriptor in (made.reading, made.writing):
        if descriptor >= 0:
            os.close(descriptor)
    assert replaced == {name: getattr(pyfuse3, name) for name in replaced}


@pytest.fixture(params=["own", "pyfuse3's"])
def which(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either loop."""
    if request.param != "own":
        monkeypatch.setattr(request_loop, "_HOOKS", ("no_such_name",))
    return str(request.param)


def has_waiting(device: Device, number: int) -> bool:
    """Tell whether so many handlers wait."""
    return device.waiting == number


def has_answered(device: Device, number: int) -> bool:
    """Tell whether so many requests were answered."""
    return len(device.answered) == number


async def until(condition: Callable[[], object]) -> None:
    """Wait for something in a trio program."""
    with trio.fail_after(DEADLINE):
        while not condition():
            await trio.sleep(0.001)


def run(device: Device, program: Callable[[Device], Any]) -> None:
    """Serve a device, and run a program that ends the session."""

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                device.loop = make_loop(device.reading)
                nursery.start_soon(device.loop.serve)
                await program(device)

    trio.run(main)


@pytest.mark.usefixtures("which")
@pytest.mark.parametrize("ending", [Device.end, lambda device: device.loop.terminate()])
def test_serving_ends_with_the_session(device: Device, ending: Callable[[Device], None]) -> None:
    """Unmounted or terminated, asked before or not: all session tasks end."""

    async def program(device: Device) -> None:
        await until(lambda: device.tasks == 2)
        device.ask("qqq")
        await until(lambda: len(device.answered) == 3)
        assert not os.get_blocking(device.reading)
        ending(device)
        await until(lambda: device.tasks == 0)

    run(device, program)


@pytest.mark.usefixtures("which")
@pytest.mark.parametrize("slow", [1, 2, 7])
def test_who_reads_while_handlers_wait(device: Device, slow: int) -> None:
    """Another task each time; when all is done, two are left."""

    async def program(device: Device) -> None:
        for number in range(slow):
            device.ask("s")
            await until(partial(has_waiting, device, number + 1))
            device.ask("q")
            await until(partial(has_answered, device, number + 1))
        device.gate.set()
        await until(lambda: device.waiting == 0)
        assert sorted(device.answered) == ["q"] * slow + ["s"] * slow
        device.ask("q" * 20)
        await until(lambda: device.tasks == 2)
        await until(lambda: device.answered.count("q") == slow + 20)
        device.end()

    run(device, program)


def test_one_task_reads(device: Device) -> None:
    """A handler that waits without a word keeps its turn, and the parked task stays parked."""

    async def program(device: Device) -> None:
        device.ask("Sq")
        await until(lambda: device.waiting == 1)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert device.answered == []
        device.gate.set()
        await until(lambda: device.answered == ["S", "q"])
        device.end()

    run(device, program)


@pytest.mark.usefixtures("which")
def test_requests_go_on_while_a_handler_waits_for_a_thread(device: Device) -> None:
    """It goes on when the thread is done."""

    async def program(device: Device) -> None:
        device.ask("t")
        await until(lambda: device.waiting == 1)
        device.ask("q")
        await until(lambda: device.answered == ["q"])
        device.thread_gate.set()
        await until(lambda: device.answered == ["q", "t"])
        device.end()

    run(device, program)


@pytest.mark.usefixtures("which")
@pytest.mark.parametrize("asked", ["t", "T"])
def test_a_handler_that_waits_does_not_delay_the_end(device: Device, asked: str) -> None:
    """It is told, and so is one that begins to wait when it is too late."""

    async def program(device: Device) -> None:
        await until(lambda: device.tasks == 2)
        device.ask(asked)
        await until(lambda: device.waiting == 1 or device.tasks == 0)
        device.loop.terminate()
        await until(lambda: device.tasks == 0)

    run(device, program)
    assert device.answered == ["-"]
    device.thread_gate.set()


@pytest.mark.usefixtures("which")
def test_a_handler_waits_for_so_long(device: Device) -> None:
    """Then it goes on without the thread."""
    device.patience = 0.001

    async def program(device: Device) -> None:
        device.ask("t")
        await until(lambda: device.answered == ["t"])
        device.end()

    run(device, program)
    device.thread_gate.set()


def test_no_more_tasks_than_the_bound(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the next request waits for a handler, and then is answered."""
    monkeypatch.setattr(request_loop, "_TASKS_MAX", 3)

    async def program(device: Device) -> None:
        device.ask("sssq")
        await until(lambda: device.waiting == 3)
        assert device.tasks == 3
        device.gate.set()
        await until(lambda: sorted(device.answered) == ["q", "s", "s", "s"])
        device.end()

    run(device, program)


@pytest.mark.usefixtures("which")
def test_requests_that_are_taken_back(
    device: Device, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading begins again, and no handler that waits is cancelled."""
    caplog.set_level(logging.DEBUG, request_loop.__name__)

    async def program(device: Device) -> None:
        device.ask("s")
        await until(lambda: device.waiting == 1)
        for _ in range(5):
            device.ask(bytes([errno.EAGAIN]))
        await until(lambda: caplog.text.count("took its request back") == 5)
        device.ask("q")
        await until(lambda: device.answered == ["q"])
        assert device.waiting == 1
        device.gate.set()
        await until(lambda: device.answered == ["q", "s"])
        device.end()

    run(device, program)


def test_a_descriptor_that_is_not_readable_after_all(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that ends too early is begun again before pyfuse3 reads: it would lose its buffer."""
    waits, original = 0, trio.lowlevel.wait_readable

    async def wait_readable(descriptor: int) -> None:
        nonlocal waits
        waits += 1
        await (original(descriptor) if waits > 5 else trio.lowlevel.checkpoint())

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_readable)

    async def program(device: Device) -> None:
        await until(lambda: waits == 6)
        device.ask("q")
        await until(lambda: device.answered == ["q"])
        device.end()

    run(device, program)


@pytest.mark.usefixtures("which")
def test_a_request_is_taken_back_as_the_end_is_announced(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader, which was told of the request but not of the end, does not wait once more."""
    original = trio.lowlevel.wait_readable

    async def wait_readable(descriptor: int) -> None:
        await original(descriptor)
        if descriptor == device.reading:
            os.read(descriptor, 1)
            device.loop.terminate()

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_readable)

    async def program(device: Device) -> None:
        await until(lambda: device.tasks == 2)
        device.ask("q")
        await until(lambda: device.tasks == 0)

    run(device, program)
    assert device.answered == []


@pytest.mark.usefixtures("which")
def test_what_serving_cannot_survive(device: Device) -> None:
    """Any other error comes through, beside a parked task and a handler that waits."""

    async def program(device: Device) -> None:
        device.ask("s")
        await until(lambda: device.waiting == 1)
        device.ask(bytes([errno.EIO]))
        await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        run(device, program)
    assert caught.group_contains(OSError, match="as asked")
    assert device.tasks == 0


@pytest.mark.usefixtures("which")
def test_serving_can_be_cancelled(device: Device) -> None:
    """Parked, reading or in a handler."""

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(make_loop(device.reading).serve)
                device.ask("s")
                await until(lambda: device.waiting == 1 and device.tasks >= 2)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert device.tasks == 0


def test_other_tasks_have_their_turn(device: Device) -> None:
    """However fast requests come: each turn ends."""
    turns = 0

    async def program(device: Device) -> None:
        nonlocal turns
        while turns < 20:
            device.ask("q" * 1000)
            await trio.sleep(0)
            turns += 1
        device.end()

    run(device, program)
    assert set(device.answered) == {"q"}


def test_ctrl_c_does_not_strike_in_a_handler(device: Device) -> None:
    """Its task is a child of pyfuse3's, and trio protects no children."""

    async def program(device: Device) -> None:
        device.ask("k")
        await until(lambda: device.answered == ["k"])
        assert device.protected
        device.end()

    run(device, program)


def test_a_busy_cpu(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a yield took long, there is none for a while."""
    yields = 0

    def slow() -> None:
        nonlocal yields
        yields += 1

    monkeypatch.setattr(request_loop, "_yield_cpu", slow)
    monkeypatch.setattr(request_loop, "_LATE", -1.0)
    monkeypatch.setattr(request_loop, "_NO_YIELD", DEADLINE * 2)

    async def program(device: Device) -> None:
        for number in range(5):
            device.ask("q")
            await until(partial(has_answered, device, number + 1))
        device.end()

    run(device, program)
    assert yields == 1


# Which loop it is


@pytest.mark.parametrize("name", ["_session_loop", "_wait_fuse_readable"])
def test_names_that_pyfuse3_lacks(
    name: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own loop serves then; one line says so."""
    lines: list[str] = []
    monkeypatch.setattr(request_loop.log, "warning", lambda text, *args: lines.append(text % args))
    assert type(make_loop(device.reading)) is request_loop._OwnLoop
    assert lines == []
    with monkeypatch.context() as without:
        without.delattr(pyfuse3, name)
        assert type(make_loop(device.reading)) is Loop
    assert lines == [f"pyfuse3 has no {name}: its own loop serves, which is slower"]


def test_pyfuse3_starts_no_session_task(device: Device, which: str) -> None:
    """Nor does it end one of ours but in its own loop, which keeps two."""

    async def program(device: Device) -> None:
        await until(lambda: device.tasks == 2)
        device.end()

    run(device, program)
    [(least, most)] = device.arguments
    assert most < -1_000_000
    assert least == 1 if which != "own" else least > 1_000_000


def test_what_was_in_place_is_restored(device: Device) -> None:
    """At the end, as the fixture finds; and in a child that is forked while we serve."""

    def found() -> tuple[Any, Any]:
        return patched._session_loop, patched._wait_fuse_readable

    before, in_child = found(), []

    async def program(device: Device) -> None:
        await until(lambda: device.tasks == 2)
        ours = found()
        assert not set(ours) & set(before)
        request_loop._restore()
        in_child.append(found())
        patched._session_loop, patched._wait_fuse_readable = ours
        device.end()

    run(device, program)
    assert in_child == [before]
    patched._session_loop, patched._wait_fuse_readable = before


def test_finding_descriptors() -> None:
    """Those on /dev/fuse; others of the process are not counted, nor is that of the listing."""
    before = find_descriptors()
    with open("/dev/null") as other:
        assert other.fileno() not in find_descriptors()
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        with open("/dev/fuse", "rb") as device:
            assert find_descriptors() - before == {device.fileno()}
    assert find_descriptors() == before

"""The serving loop on real mounts: who waits for whom, and what is left behind."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import loop_calls
from tests.support import mount_calls as calls
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mount_server import mount_here
from tests.support.mounts import Server, serving

pytestmark = pytest.mark.mount

# A client that reads as fast as it can.
_HAMMER = """
import os, sys
while True:
    descriptor = os.open(sys.argv[1], os.O_RDONLY)
    assert os.read(descriptor, 100) == b"0\\n"
    os.close(descriptor)
"""


@pytest.fixture(params=["thread", "trio", "fallback"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with our loop, in a thread or a trio program, or with pyfuse3's."""
    fallback = request.param == "fallback"
    with serving("later" if fallback else request.param) as served:
        served.call(calls.build, cpus=4)
        if fallback:
            served.call(loop_calls.force_fallback)
            served.call(mount_here, str(served.mountpoint))
        assert read(served) == "0\n"
        assert served.call(loop_calls.replaced) is not fallback
        yield served
        if fallback:
            [message] = served.call(loop_calls.messages)
            assert message == "pyfuse3 has no no_such_name: its own loop serves, which is slower"
            served.call(calls.close_all)
            assert not served.call(loop_calls.replaced)


@contextlib.contextmanager
def hammering(path: Path, clients: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Have clients read a file as fast as they can, until they are killed."""
    processes = [
        subprocess.Popen([sys.executable, "-SEc", _HAMMER, path], stderr=subprocess.DEVNULL)
        for _ in range(clients)
    ]
    try:
        yield processes
        assert all(process.poll() is None for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def slow_clients(server: Server, number: int) -> Iterator[list["Future[bytes]"]]:
    """Have clients ask for what takes until the gate is opened, at the end of the block."""
    server.call(loop_calls.hamper)
    with ThreadPoolExecutor(number) as pool:
        asked = [
            pool.submit(os.getxattr, server / f"kvm/cpu{index % 4}/exits", "user.slow")
            for index in range(number)
        ]
        try:
            wait_until(lambda: server.call(loop_calls.waiting) == number, "the slow handlers")
            yield asked
        finally:
            server.call(loop_calls.open_gate)
        assert [each.result(DEADLINE) for each in asked] == [b"at last"] * number


def read(server: Server) -> str:
    """Read a value."""
    return (server / "kvm/cpu0/exits").read_text()


@pytest.mark.parametrize("number", [1, 2, 9])
def test_reads_go_on_while_handlers_wait(server: Server, number: int) -> None:
    """However many wait at once, all are answered in the end, and two session tasks are left."""
    with slow_clients(server, number):
        for _ in range(20):
            assert read(server) == "0\n"
        assert server.call(loop_calls.waiting) == number

    def is_at_rest() -> bool:
        read(server)
        return server.call(loop_calls.session_tasks) == 2

    wait_until(is_at_rest, "the end of the other tasks")


def test_requests_that_are_taken_back_while_a_handler_waits(server: Server) -> None:
    """Reading begins again; the handler is not cancelled, and its client gets its answer."""
    server.call(calls.count_restarts)
    with slow_clients(server, 1):
        server.call(calls.wake_for_nothing, 20)
        assert read(server) == "0\n"
        wait_until(lambda: server.call(calls.restarts) == 20, "so many reads for nothing")
        assert read(server) == "0\n"
        assert server.call(loop_calls.waiting) == 1


def test_clients_that_are_killed_while_a_handler_waits(server: Server) -> None:
    """At any moment, and the one that waits too."""
    ask = "import os, sys; os.getxattr(sys.argv[1], 'user.slow')"
    with contextlib.ExitStack() as stack, slow_clients(server, 1):
        for _ in range(4):
            with hammering(server / "kvm/cpu0/exits", 2):
                for _ in range(10):
                    assert read(server) == "0\n"
        doomed = subprocess.Popen([sys.executable, "-SEc", ask, server / "kvm/exits"])
        # The kernel lets it die when it is answered.
        stack.callback(doomed.wait, DEADLINE)
        wait_until(lambda: server.call(loop_calls.waiting) == 2, "the client to be killed")
        doomed.kill()
        assert read(server) == "0\n"
    assert read(server) == "0\n"


def test_idle_it_uses_no_cpu(server: Server) -> None:
    """After a request as before."""

    def used() -> int:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # in ticks of 10 ms

    def is_idle() -> bool:
        before, end = used(), time.monotonic() + 0.3
        while time.monotonic() < end:
            time.sleep(0.05)
        return used() - before <= 1

    for _ in range(100):
        read(server)
    wait_until(is_idle, "the server's rest")


def test_a_trio_program_goes_on() -> None:
    """However fast clients read; how fast it goes on is measured by the benchmark."""
    with serving("trio") as server:
        server.call(calls.build, cpus=1)
        server.call(loop_calls.start_ticker)
        with hammering(server / "kvm/exits", 4):
            wait_until(lambda: server.call(loop_calls.ticks) > 200, "the ticker")


def test_mounting_many_times() -> None:
    """Each mount is served by our loop, each end leaves what was there before."""
    with serving("later") as server:
        server.call(calls.build, cpus=1)
        left = server.call(loop_calls.mount_many_times, str(server.mountpoint), 50)
        assert set(left[1:]) == {left[1]}
        assert left[1][1] == 1


@pytest.mark.parametrize("mode", ["thread", "trio"])
def test_a_forked_child(mode: str) -> None:
    """It has pyfuse3, and the interpreter, as they were before the mount; the parent goes on."""
    with serving(mode, options={"switch_interval": 0.002}) as server:
        server.call(calls.build, cpus=1)
        assert read(server) == "0\n"
        assert server.call(loop_calls.fork) == (False, 0.005)
        assert server.call(loop_calls.replaced)
        assert server.call(loop_calls.switch_interval) == 0.002
        assert read(server) == "0\n"


def test_the_switch_interval() -> None:
    """As long as the mount is there, unless the program sets another meanwhile."""
    with serving("later") as server:

        def mount_with(interval: float | None) -> None:
            server.call(mount_here, str(server.mountpoint), switch_interval=interval)

        def now() -> float:
            return server.call(loop_calls.switch_interval)

        assert now() == 0.005
        for interval, during in ((None, 0.005), (0.0012, 0.0012), (2e-6, 2e-6)):
            mount_with(interval)
            assert now() == pytest.approx(during)
            server.call(calls.close_all)
            assert now() == 0.005
        mount_with(0.001)
        server.call(loop_calls.switch_interval, 0.003)
        server.call(calls.close_all)
        assert now() == 0.003

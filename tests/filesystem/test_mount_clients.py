"""Clients that are killed, stopped or simply many: nobody else notices, and nothing is leaked."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import mount_calls as calls
from tests.support import mount_threads as threads
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import Server, forget, run, shell

pytestmark = pytest.mark.mount


# What the clients do


@contextlib.contextmanager
def client(*command: str | os.PathLike[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a client, with whatever it starts in one process group, until the end of the block."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, **options
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def counts_on(server: Server, before: int) -> bool:
    """Tell whether the counting thread has come further."""
    return server.call(threads.counted) > before + 1000


def was_woken(server: Server, times: int) -> bool:
    """Tell whether so many reads found nothing."""
    return server.call(calls.restarts) == times


def test_the_descriptor_does_not_block(server: Server) -> None:
    """A read without a request, which holds the interpreter, returns at once."""
    wait_until(lambda: server.call(calls.is_blocking) == [False], "the descriptor")


@pytest.mark.parametrize("times", [1, 100])
def test_a_request_that_is_taken_back(server: Server, times: int) -> None:
    """The read finds nothing; serving goes on, and so does the program's counting."""
    server.call(calls.build, cpus=20)
    server.call(calls.count_restarts)
    server.call(threads.start_counter)
    server.call(calls.wake_for_nothing, times)
    # The first request ends a wait that was begun before.
    assert run("cat", server / "kvm/exits").stdout == "0\n"
    wait_until(partial(was_woken, server, times), "so many reads for nothing")
    assert run("cat", server / "kvm/exits").stdout == "0\n"
    before = server.call(threads.counted)
    wait_until(partial(counts_on, server, before), "counting")
    server.call(threads.stop_counter)


def test_killed_clients_stop_nobody(server: Server) -> None:
    """Killed at random moments in the middle of reading, many of them, one after the other."""
    server.call(calls.build, cpus=20)
    server.call(calls.count_restarts)
    server.call(threads.start_counter)
    moment = random.Random(5)
    reading = 'while :; do cat "$1"/*/exits; grep -r . "$1"; done >/dev/null 2>&1'
    for _ in range(25):
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(client("sh", "-c", reading, "sh", server / "kvm"))
            time.sleep(moment.uniform(0.005, 0.05))
        # Nobody asks anything now: a server that was blocked would stay so.
        before = server.call(threads.counted)
        wait_until(partial(counts_on, server, before), "counting")
    server.call(threads.stop_counter)
    assert run("cat", server / "kvm/exits").stdout == "0\n"


def test_a_client_that_is_stopped_holding_files(server: Server) -> None:
    """Neither new clients, nor changes, nor the end of the mount wait for it."""
    server.call(calls.build, cpus=20)
    holding = (
        'exec 3<"$1/cpu0/exits"; cd "$1/cpu1"; read -r line <&3; echo ready; kill -STOP $$; cat <&3'
    )
    with client("sh", "-c", holding, "sh", server / "kvm", stderr=subprocess.STDOUT) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "ready\n"
        state = Path(f"/proc/{held.pid}/stat")
        wait_until(lambda: state.read_text().split()[2] == "T", "the stop")
        for _ in range(100):
            server.call(calls.add, "passing")
            server.call(calls.remove, "passing")
        assert len(run("grep", "-r", ".", server / "kvm").stdout.splitlines()) == 20 * 3 + 5
        server.end()
        held.send_signal(signal.SIGCONT)
        assert "Transport endpoint is not connected" in held.communicate(timeout=DEADLINE)[0]


def test_descriptors_threads_and_children(server: Server) -> None:
    """However many clients there were, killed or not, the server has what it had."""
    server.call(calls.build, cpus=20)
    run("grep", "-r", ".", server / "kvm")
    before = server.call(calls.resources)
    for _ in range(3):
        with client("sh", "-c", 'while :; do ls -lR "$1"; done', "sh", server / "kvm"):
            run("grep", "-r", ".", server / "kvm")
    server.call(calls.add_many, 100)
    server.call(calls.remove_many, 100)
    assert server.call(calls.resources) == before


@pytest.mark.root
def test_memory_is_free_after_forget(server: Server) -> None:
    """What was looked at and then removed leaves neither inodes nor sources nor memory."""
    server.call(calls.build, cpus=20)
    look = 'grep -r . "$1" >/dev/null; ls -lR "$1" >/dev/null'
    used = []
    for _ in range(4):
        server.call(calls.add_many, 200)
        shell(look, server / "kvm")
        assert server.call(calls.known_inodes) >= 200 * 4
        server.call(calls.remove_many, 200)
        forget(server)
        wait_until(lambda: server.call(calls.known_inodes) < 200, "the kernel's forgetting")
        assert server.call(calls.sources_alive) == 21
        used.append(server.call(calls.memory))
    assert used[-1] - used[1] < 1 << 20


@pytest.mark.root
def test_a_file_that_is_held_keeps_its_source(server: Server) -> None:
    """Until it is closed; and with the last name that the kernel knows, all is forgotten."""
    server.call(calls.build, cpus=1)
    with open(server / "kvm/cpu0/exits", "rb", buffering=0) as file:
        server.call(calls.remove, "cpu0")
        forget(server)
        assert file.read() == b"0\n"
        assert server.call(calls.sources_alive) == 2
    forget(server)
    wait_until(lambda: server.call(calls.sources_alive) == 1, "the release")


def test_looking_in_what_is_gone_keeps_nothing(server: Server) -> None:
    """The kernel keeps that a name is not there, and its directory; changes that follow end it."""
    server.call(calls.build, cpus=0)
    for number in range(20):
        server.call(calls.add, "cpu0")
        held = os.open(server / "kvm/cpu0", os.O_DIRECTORY)
        server.call(calls.remove, "cpu0")
        for name in ("exits", "nosuch"):
            with pytest.raises(FileNotFoundError):
                os.stat(name, dir_fd=held)
        os.close(held)
        assert number == 0 or server.call(calls.sources_alive) > 2

    def is_released() -> bool:
        server.call(calls.add_many, 1)
        server.call(calls.remove_many, 1)
        return server.call(calls.sources_alive) == 1

    wait_until(is_released, "the release")


def test_what_a_request_costs_that_is_taken_back(server: Server) -> None:
    """A page: pyfuse3 does not free the buffer that it read nothing into."""
    server.call(calls.build, cpus=20)
    server.call(calls.count_restarts)
    used = []
    for turn in range(1, 4):
        server.call(calls.wake_for_nothing, 1000)
        run("cat", server / "kvm/exits")
        wait_until(partial(was_woken, server, 1000 * turn))
        used.append(server.call(calls.memory))
    assert used[-1] - used[0] < 2000 * 6000

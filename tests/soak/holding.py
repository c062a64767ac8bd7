"""Clients that hold files and directories open, for long, or by the thousand."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator

from tests.soak.clients import Client, client, collect, wait_until_stopped
from tests.soak.holders import hold_and_stop, hold_many, list_in_pieces
from tests.soak.measures import check_use, expect_quiet, serving_long, use_of, warm_up
from tests.support import mount_calls as calls
from tests.support import mount_threads as threads
from tests.support.deadlines import DEADLINE, until
from tests.support.mounts import Server, run

__all__ = ["held_files", "listings", "stopped_clients"]

STAYING = [f"stable{number}" for number in range(40)]
TOTALS = ["exits", "busy", "wait.min", "wait.max", "wait.avg"]
GROWTH = 4.0  # MiB
# What an open file may cost the server, in bytes; it costs no descriptor.
FILE = 3000


def listings(seconds: float) -> str:
    """List a directory by small buffers, from everywhere in it, while it changes.

    No name twice, none that stays missed.
    """
    with serving_long(seconds) as server, contextlib.ExitStack() as stack:
        server.call(calls.clear)
        for name in STAYING:
            server.call(calls.add, name)
        server.call(threads.start_churn, 3)
        end = time.monotonic() + seconds
        names = json.dumps([*STAYING, *TOTALS])
        clients = [
            stack.enter_context(client(list_in_pieces, server / "kvm", names, seed, end))
            for seed in range(3)
        ]
        done = sum(collect(process, seconds + DEADLINE) for process in clients)
        rounds, errors = server.call(threads.end_churn)
        assert errors == []
        server.call(calls.clear)
        expect_quiet(server)
    return f"{done} listings while {rounds} sources came and went"


def stopped_clients(seconds: float) -> str:
    """Stop clients that have a file, a view and a directory open, for thousands of changes.

    They go on, and read what they had begun to its end, and then what is true by now.
    """
    done = 0
    changes = 0
    with serving_long(seconds) as server:
        server.call(calls.clear)
        for name in STAYING:
            server.call(calls.add, name, 1)
        for _ in until(seconds):
            server.call(calls.add, "cpu0", 5)
            with client(hold_and_stop, server / "kvm", "cpu0") as process:
                wait_until_stopped(process.pid)
                server.call(calls.remove, "cpu0")
                for _ in until(min(seconds / 2, 5)):
                    server.call(calls.add_many, 500)
                    server.call(calls.remove_many, 500)
                    changes += 1000
                server.call(calls.set_exits, ["cpu0"], 77)
                server.call(calls.remove, STAYING[-1])
                process.send_signal(signal.SIGCONT)
                seen = collect(process)
            check_what_was_seen(seen)
            server.call(calls.add, STAYING[-1], 1)
            done += 1
        server.call(calls.clear)
        expect_quiet(server)
        assert server.call(calls.sources_alive) == 1
    return f"{done} clients stood still during {changes} changes"


def check_what_was_seen(seen: dict[str, list[object]]) -> None:
    """See what a client that stood still has read."""
    everything = sorted(["cpu0", *STAYING])
    assert seen["before"] == [5, 5 + len(STAYING), everything]
    assert seen["after"] == [77, sorted(STAYING[:-1])]
    names = seen["names"]
    assert len(set(map(str, names))) == len(names)
    assert {*STAYING[:-1], *TOTALS, "it is gone"} <= set(map(str, names))
    # It was there when the listing was begun, and gone before its turn came.
    assert STAYING[-1] not in names


@contextlib.contextmanager
def _holding(server: Server, count: int, limit: int) -> Iterator[Client]:
    with client(hold_many, server / "kvm", count, limit) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate(timeout=DEADLINE)
        yield process


def _held(process: Client) -> int:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()
    held: int = collect(process)
    return held


def held_files(seconds: float) -> str:
    """Hold thousands of files and views open, and reach the limit of descriptors, on either side.

    The server has no descriptor for any of them, and little memory; others read on.
    """
    count, most = 2000 if seconds < 10 else 8000, 0
    with serving_long(seconds) as server:
        warm_up(server)
        for number in range(10):
            server.call(calls.add, f"cpu{number}")
        look_around(server)
        before = use_of(server)
        for _ in until(seconds):
            with _holding(server, count, count + 100) as process:
                held = use_of(server)
                assert held[:3] == before[:3]
                assert held.memory - before.memory < (GROWTH * (1 << 20)) + count * FILE
                look_around(server)
                most = max(most, _held(process))
            with _holding(server, count, 200) as process:
                # The client is at its limit; nobody else is.
                look_around(server)
                assert 100 < _held(process) <= 200
            server.call(calls.fill_descriptors)
            try:
                look_around(server)
                server.call(calls.add_many, 100)
                server.call(calls.remove_many, 100)
            finally:
                server.call(calls.free_descriptors)
        assert most == count
        server.call(calls.clear)
        expect_quiet(server)
        memory = check_use(before, use_of(server), GROWTH)
    return f"{count} files held open at once; {memory}"


def look_around(server: Server) -> None:
    """Read, list, clear and look at views as anybody does."""
    kvm = server / "kvm"
    assert len(run("grep", "-r", ".", kvm).stdout.splitlines()) == 10 * 3 + len(TOTALS)
    assert len(json.loads((kvm / ".stats.json").read_bytes())["subordinates"]) == 10
    (kvm / "exits").write_text("0\n")
    assert os.stat(kvm).st_nlink == 12

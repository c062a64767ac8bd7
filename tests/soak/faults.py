"""Clients that are killed, a server that is stopped, an unmount that comes too early."""

import contextlib
import json
import os
import random
import signal
import time
from typing import Final

from tests.soak.clients import Client, shell_client, stop, wait_until_called, wait_until_stopped
from tests.soak.measures import (
    check_use,
    expect_counting,
    expect_quiet,
    serving_long,
    use_of,
    warm_up,
)
from tests.support import mount_calls as calls
from tests.support import mount_threads as threads
from tests.support.deadlines import DEADLINE, until, wait_until
from tests.support.mount_server import mount_here
from tests.support.mounts import Server, run

__all__ = ["busy_mounts", "killed_clients", "stopped_server"]

MANY: Final = 1000  # sources; their views take tens of milliseconds
GROWTH: Final = 12.0  # MiB; renderings are large, and freed in any order
# What clients do when they are killed: all of it takes a while.
READING: Final = (
    'while :; do cat "$1"/.stats.json; done',
    'while :; do cat "$1"/.stats.prom "$1"/many1/.stats.bin; done',
    'exec 3<"$1"/.stats.json; while :; do dd bs=1000 count=9 <&3; done',
    'while :; do cat "$1"/many*/exits; done',
    'while :; do ls -l "$1"; done',
    'while :; do for n in 1 2 3 4 5 6 7 8 9; do [ -e "$1"/$n/$n ]; done; cat "$1"/exits; done',
    'cd "$1"/many7; while :; do grep -r . .; echo 0 >exits; done',
)

# What clients do while the server stands still; and one that is killed then.
WAITING: Final = (
    'cat "$1"/exits "$1"/cpu*/*',
    'cat "$1"/.stats.json >/dev/null',
    'ls -lR "$1"',
    'echo 0 >"$1"/exits',
    'cat "$1"/cpu1/.stats.prom "$1"/.stats.prom',
)
DOOMED: Final = 'exec 3<"$1"; kill -STOP $$; exec cat <&3'


def killed_clients(seconds: float) -> str:
    """Kill clients in the middle of reads, of the rendering of views, of lookups and listings.

    A thread of the server that counts does not notice, nor does anybody else; nothing stays open.
    """
    moment, killed = random.Random(7), 0
    with serving_long(seconds) as server:
        warm_up(server)
        server.call(calls.add_many, MANY)
        look_at_many(server)
        before = use_of(server)
        server.call(threads.start_counter)
        for _ in until(seconds):
            with contextlib.ExitStack() as stack:
                for script in moment.sample(READING, 4):
                    stack.enter_context(shell_client(script, server / "kvm"))
                    killed += 1
                time.sleep(moment.uniform(0.01, 0.1))
            expect_counting(server)
        look_at_many(server)
        server.call(threads.stop_counter)
        expect_quiet(server)
        memory = check_use(before, use_of(server), GROWTH)
    return f"{killed} clients killed; {memory}"


def look_at_many(server: Server) -> None:
    """See that the whole tree is there."""
    found = json.loads((server / "kvm/.stats.json").read_bytes())
    assert len(found["subordinates"]) == MANY
    assert run("cat", server / "kvm/exits").stdout == "0\n"


def stopped_server(seconds: float) -> str:
    """Stop the server while clients wait for it.

    One that is killed meanwhile in a read is dead at once; all others have their answers when the
    server goes on. (One that is killed where it waits for a directory's lock has to wait on.)
    """
    times = 0
    with serving_long(seconds) as server:
        server.call(calls.build, cpus=10)
        # When a file is closed for the first time the kernel asks for a flush, and waits for it.
        (server / "kvm/exits").read_text()
        for _ in until(seconds):
            with contextlib.ExitStack() as stack:
                doomed = stack.enter_context(shell_client(DOOMED, server / "kvm/exits"))
                wait_until_stopped(doomed.pid)
                stop(server.pid)
                try:
                    waiting = [
                        stack.enter_context(shell_client(f"set -e; {command}", server / "kvm"))
                        for command in WAITING * 3
                    ]
                    doomed.send_signal(signal.SIGCONT)
                    wait_until_called(doomed, "cat")
                    doomed.kill()
                    doomed.wait(DEADLINE)
                finally:
                    os.kill(server.pid, signal.SIGCONT)
                statuses = [process.wait(DEADLINE) for process in waiting]
            assert statuses == [0] * len(waiting), statuses
            times += 1
        expect_quiet(server)
    return f"stopped {times} times, with {len(WAITING) * 3} clients waiting each time"


# Holds a file, a view and a directory; then, when it goes on, the view alone; then it reads that.
HOLDING: Final = (
    'exec 3<"$1"/exits 4<"$1"/.stats.json 5<"$1"/cpu0; kill -STOP $$; exec 3<&- 5<&-; '
    'kill -STOP $$; read -r line <&4; case $line in "{"*) ;; *) exit 1 ;; esac'
)


def busy_mounts(seconds: float) -> str:
    """Unmount what is in use: it is refused, and done when the last file is closed.

    The program's own `close` does not wait for clients; what they hold answers ENOTCONN.
    """
    times = 0
    with serving_long(seconds, "later") as server:
        server.call(calls.build)
        server.call(mount_here, server.mountpoint)
        server.call(calls.close)
        before = server.call(calls.resources)
        for _ in until(seconds):
            for end in (unmount_when_closed, close_while_busy):
                server.call(mount_here, server.mountpoint)
                with shell_client(HOLDING, server / "kvm") as holding:
                    end(server, holding)
                assert server.call(calls.state)[1]
                assert server.call(calls.refcount) == 2
                times += 1
        assert server.call(calls.resources) == before
    return f"{times} mounts ended"


def expect_refusal(server: Server, holding: Client) -> None:
    """See that a mount that a client uses cannot be unmounted, and that the client is stopped."""
    wait_until_stopped(holding.pid)
    assert "busy" in run("fusermount3", "-u", server.mountpoint, status=1).stderr
    held = 3 + ("3" in os.listdir(f"/proc/{holding.pid}/fd"))
    # The kernel waits for no answer when a file is closed.
    wait_until(lambda: server.call(calls.refcount) == held, "closing")


def unmount_when_closed(server: Server, holding: Client) -> None:
    """Unmount as anybody may, again and again until the last file is closed."""
    for _ in range(2):
        expect_refusal(server, holding)
        holding.send_signal(signal.SIGCONT)
    assert holding.wait(DEADLINE) == 0
    run("fusermount3", "-u", server.mountpoint)
    assert server.call(calls.wait, DEADLINE)


def close_while_busy(server: Server, holding: Client) -> None:
    """Close as the program does: the client, which would read on, is told that all is over."""
    expect_refusal(server, holding)
    server.call(calls.close)
    for _ in range(2):
        wait_until_stopped(holding.pid)
        holding.send_signal(signal.SIGCONT)
    assert holding.wait(DEADLINE) == 1

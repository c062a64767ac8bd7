"""Programs that fork while their views are rendered in threads, which a child has not."""

import contextlib

from tests.soak.clients import shell_client
from tests.soak.measures import check_use, expect_quiet, serving_long, use_of, warm_up
from tests.support import mount_calls as calls
from tests.support import mount_forks as forks
from tests.support.deadlines import until

__all__ = ["forks_while_rendering"]

MANY = 1000  # sources: a rendering is nearly always under way
READERS = 3
GROWTH = 12.0  # MiB


def forks_while_rendering(seconds: float) -> str:
    """Fork again and again while views are rendered and threads change the tree.

    No child hangs, whatever lock a thread of its parent held: each samples and changes its copy of
    the tree, and ends.
    """
    children = 0
    with serving_long(seconds) as server:
        warm_up(server)
        before = use_of(server)
        server.call(calls.add_many, MANY)
        script = 'while :; do cat "$1"/.stats.json "$1"/.stats.prom; done'
        with contextlib.ExitStack() as stack:
            for _ in range(READERS):
                stack.enter_context(shell_client(script, server / "kvm"))
            server.call(forks.fork_under_load, 2)
            before = before._replace(memory=server.call(calls.memory))
            for _ in until(seconds):
                assert server.call(forks.fork_under_load, 5) == [True] * 5
                children += 5
        expect_quiet(server, inodes=MANY * 4)
        server.call(calls.clear)
        expect_quiet(server)
        memory = check_use(before, use_of(server), GROWTH)
    return f"{children} children; {memory}"

"""Many readers of a tree that changes all the time."""

import contextlib
import time
from collections import Counter

from tests.soak.clients import client, collect
from tests.soak.fleet import end_fleet, start_fleet
from tests.soak.measures import check_use, expect_quiet, serving_long, use_of, warm_up
from tests.soak.readers import read_fleet
from tests.support import mount_calls as calls
from tests.support.deadlines import DEADLINE, wait_until

__all__ = ["load"]

READERS = 16
WARM_UP = 0.4  # of the duration
GROWTH = 4.0  # MiB
KNOWN = 3000  # inodes that the kernel may still know, of what went in the last second
VIEWS = ("look_at_json", "look_at_metrics", "look_at_binary", "look_at_schema")


def load(seconds: float) -> str:
    """Let readers in processes of their own read while threads create and remove sources.

    No error but ENOENT for what has gone, no wrong number; and afterwards all is as before.
    """
    with serving_long(seconds) as server, contextlib.ExitStack() as stack:
        warm_up(server)
        before = use_of(server)
        server.call(start_fleet)
        end = time.monotonic() + seconds
        readers = [
            stack.enter_context(client(read_fleet, server.mountpoint, seed, end))
            for seed in range(READERS)
        ]
        warm = end - seconds * (1 - WARM_UP)
        wait_until(lambda: time.monotonic() > warm, deadline=seconds + DEADLINE)
        before = before._replace(memory=server.call(calls.memory))
        done: Counter[str] = Counter()
        for reader in readers:
            done.update(collect(reader, seconds + DEADLINE))
        machines, errors = server.call(end_fleet)
        assert errors == []
        assert server.call(calls.known_inodes) < KNOWN
        expect_quiet(server)
        server.call(calls.clear)
        memory = check_use(before, use_of(server), GROWTH)
    gone = done.pop("gone", 0)
    views = sum(times for look, times in done.items() if look in VIEWS)
    return (
        f"{READERS} readers looked {done.total()} times, {views} of them at views, and missed what "
        f"had gone {gone} times; {machines} machines came and went; {memory}"
    )

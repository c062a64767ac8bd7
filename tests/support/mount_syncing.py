"""A poller in a program with a mount: each read makes other subordinates."""

from __future__ import annotations

from itertools import count

from statsfs.model.fields import counter, gauge
from statsfs.model.stats import Stats
from statsfs.tree.source import Source
from tests.support.mount_server import World

__all__ = ["Proc", "build", "poll", "sync"]

TOTAL = 120


class Proc(Stats):
    """What is known of a process."""

    cpu: int = counter()
    rss: int = gauge()


def build(world: World) -> None:
    """Register an empty source that retains, and is synced by `sync`."""
    procs = Source("procs", retain=True, collapse=False)
    procs.add_values(Proc, None)
    world.registry.register(procs)


def sync(world: World, mapping: dict[str, dict[str, int]]) -> None:
    """Sync it."""
    world.registry.by_name["procs"].sync(mapping, Proc, label="pid")


def poll(world: World, *, blocking: bool) -> None:
    """Register a source that syncs to other processes at each read: their `rss` is 120 in all."""
    asked = count(1)

    def ask() -> None:
        many = 10 + 10 * (next(asked) % 3)
        each, more = divmod(TOTAL, many)
        rows = {str(n): {"rss": each + (n < more), "cpu": n} for n in range(many)}
        polled.sync(rows, Proc, label="pid")

    polled = Source("polled", refresh=ask, blocking=blocking)
    polled.add_values(Proc, None)
    world.registry.register(polled)

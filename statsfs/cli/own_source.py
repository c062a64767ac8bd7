"""The daemon's own numbers, as the source `statsfs` of its tree.

Owns the source, and in it a directory for each user who publishes. Requests and scrapes are counted
by the threads that answer them; the other numbers are found when they are read.

Threading: made by the main thread; read in any.
"""

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import statsfs
from statsfs.collector.collector import Collector
from statsfs.collector.user_stats import UserStats
from statsfs.filesystem.mounting import Mount
from statsfs.formats.metric_conflicts import OWN
from statsfs.model.fields import counter, gauge
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Kind, Type, Unit, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

if TYPE_CHECKING:
    from statsfs.monitoring.http_server import MetricsServer

__all__ = ["OwnSource"]

_REASONS_MAX: Final = 16  # lines of one user


class _ProcessStats(Stats):
    start_time = gauge("When the daemon began, since 1970", mode=0o444, unit=Unit.SECONDS)
    cpu_ns = counter("CPU time of the daemon", mode=0o444, unit=Unit.SECONDS, exponent=-9)
    resident_memory = gauge("Memory of the daemon", mode=0o444, unit=Unit.BYTES)
    sources = gauge("Sources in the tree, hidden ones too", mode=0o444)


class _Process:
    # The values of `_ProcessStats`, found at each read.

    def __init__(self, registry: Registry) -> None:
        self.start_time: Final = int(time.time())
        self._registry = registry
        # Kept open: at a read there may be no descriptor left.
        self._statm: Final = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def cpu_ns(self) -> int:
        return time.process_time_ns()

    @property
    def resident_memory(self) -> int:
        pages = os.pread(self._statm, 100, 0).split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def sources(self) -> int:
        found = list(self._registry.sources)
        for source in found:
            found += list(directory_of(source).subordinates.values())
        return len(found)


class _User:
    # The directory of one user: numbers for all, and reasons that only the user and root may read.

    def __init__(self, user: int, collectors: list[Collector]) -> None:
        self.source: Final = Source(
            "user-%d", user, label="user", label_value=str(user), owner=(user, os.getegid())
        )
        self.stats: Final = UserStats()
        self._user = user
        self._collectors = collectors
        reasons = Value(
            "refusal_reasons",
            Type.U64,
            mode=0o400,
            kind=Kind.INSTANT,
            description="What is not shown now, and why",
            show=self._list_reasons,
        )
        self.source.add_values(UserStats, self.stats)
        self.source.add_values([reasons], self)

    @property
    def refusal_reasons(self) -> int:
        return self.stats.refused_files

    def _list_reasons(self, _: int) -> str:
        lines = [
            line
            for collector in self._collectors
            for line in collector.users.find_reasons(self._user, _REASONS_MAX)
        ]
        return "\n".join(lines[:_REASONS_MAX])

    def take(self, numbers: Counter[str]) -> None:
        for value in values_of(UserStats):
            setattr(self.stats, value.name, numbers[value.name])


class OwnSource:
    """The source `statsfs`. Once it is registered, nothing else can have its name.

    Args:
        registry: of the daemon; the source is registered in it.
        collects: whether there will be collectors.
    """

    def __init__(self, registry: Registry, *, collects: bool) -> None:
        self._collectors: Final[list[Collector]] = []
        self._users: Final[dict[int, _User]] = {}
        self._source = Source(
            OWN,
            info={"version": statsfs.__version__, "daemon.pid": str(os.getpid())},
            # Without collectors none: one refresh in the tree makes each read look for refreshes.
            refresh=self._refresh if collects else None,
        )
        self._source.add_values(_ProcessStats, _Process(registry))
        registry.register(self._source)

    def add_collector(self, collector: Collector) -> None:
        """Show the users of a collector that has begun."""
        self._collectors.append(collector)

    def show(self, mounted: Mount, server: "MetricsServer | None") -> None:
        """Show the counters of a mount's requests, and of scrapes."""
        self._source.add_values(type(mounted.stats), mounted.stats)
        if server is not None:
            self._source.add_values(type(server.stats), server.stats)

    def _refresh(self) -> None:
        found: dict[int, Counter[str]] = {}
        for collector in self._collectors:
            for user, numbers in collector.users.count().items():
                found.setdefault(user, Counter()).update(numbers)
        for user in found.keys() - self._users.keys():
            made = self._users[user] = _User(user, self._collectors)
            self._source.add_subordinate(made.source)
            made.source.put()
        for user, known in self._users.items():
            known.take(found.get(user, Counter()))

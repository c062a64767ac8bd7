"""Stats for each thread that counts, as one visible total.

Threading: any thread; each has stats of its own.
"""

import itertools
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from statsfs.exceptions import StatsfsError
from statsfs.model.counts import count_of
from statsfs.model.stats import Stats, values_of
from statsfs.tree.source import Source, check_source

__all__ = ["PerThread"]

_S = TypeVar("_S", bound=Stats)

_numbers: Final = itertools.count(1)


class _Ender:
    # Lives as long as a thread's own attributes do.
    __slots__ = ("_parent", "_source")

    def __init__(self, parent: Source, source: Source) -> None:
        self._parent = parent
        self._source = source

    def __del__(self) -> None:
        with suppress(StatsfsError):  # the program has removed them
            self._parent.remove_subordinate(self._source)


class PerThread(threading.local, Generic[_S]):
    """Stats for each thread that counts: no lock, and no count is lost.

    Each thread has a hidden source of its own, from its first count to its end. The totals are in
    `source`; what a thread has counted stays there when it ends.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> class WorkerStats(Stats):
    ...     jobs = counter("Jobs done")
    >>> pool = Source("pool")
    >>> stats = PerThread(pool, WorkerStats)
    >>> def work(job):
    ...     stats.mine.jobs += 1
    >>> with ThreadPoolExecutor(4) as threads:
    ...     done = threads.map(work, range(100))
    >>> pool.get_value("jobs")
    100

    Args:
        source: where the totals are.
        stats: the `Stats` class.

    Attributes:
        mine: the stats of the thread that asks.

    Raises:
        TypeError: not a source, or not a `Stats` class.
        ReleasedError: the source was released.
    """

    # All threads share what is in slots, but not what is in the dictionary: `mine`.
    __slots__ = ("_stats", "_threads")

    if TYPE_CHECKING:
        mine: _S

    def __init__(self, source: Source, stats: type[_S]) -> None:
        if hasattr(self, "_threads"):
            return  # at its first access in another thread, which calls this again
        check_source(source)
        values_of(stats)
        self._stats = stats
        # What threads count stays, whether `source` retains or not.
        with Source("threads%d", next(_numbers), hidden=True, retain=True) as threads:
            threads.add_values(stats, None)
            source.add_subordinate(threads)
        self._threads = threads

    def __repr__(self) -> str:
        threads = count_of(len(self._threads.subordinates), "thread")
        return f"<PerThread {self._threads.path!r}: {threads}>"

    def __getattr__(self, name: str) -> Any:
        if name != "mine":
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}", name=name)
        made = self._stats()
        with Source("thread%d", next(_numbers), hidden=True) as source:
            source.add_values(self._stats, made)
            self._threads.add_subordinate(source)
        self.mine = made
        self._ender = _Ender(self._threads, source)
        return made

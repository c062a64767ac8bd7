"""The counters that a mount has of its own work.

Threading: counted on the serving thread alone, as each base has one writer; any thread may read.
"""

from typing import Final

from statsfs.model.fields import counter, gauge, hist
from statsfs.model.stats import Stats
from statsfs.model.values import Unit

__all__ = ["ServingStats"]

_MILLISECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)


class ServingStats(Stats):
    """Counters of the requests of a mount's clients; they are read-only."""

    opens = counter("Files and views that were opened", mode=0o444)
    open_files = gauge("Files and views that are open")
    reads = counter("Reads of open files and views", mode=0o444)
    clears = counter("Writes that cleared something", mode=0o444)
    refused_requests = counter("Requests that were refused: a share is used up", mode=0o444)
    failed_requests = counter("Requests that failed: their clients got EIO", mode=0o444)
    views = counter("Views that were made", mode=0o444)
    view_duration_ns = hist(
        bounds=[round(bound * 1e6) for bound in _MILLISECONDS],
        unit=Unit.SECONDS,
        exponent=-9,
        mode=0o444,
        description="Time until a view was made, with the refreshes of its sources",
    )

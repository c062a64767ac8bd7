"""The statistics of a server of metrics: its scrapes.

Threading: counted on the server's trio thread alone, as each base has one writer; any thread may
read.
"""

from typing import Final

from statsfs.model.fields import counter, hist
from statsfs.model.stats import Stats
from statsfs.model.values import Unit

__all__ = ["ScrapeStats"]

_MILLISECONDS: Final = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000)


class ScrapeStats(Stats):
    """The scrapes of a server; the values are read-only."""

    scrapes = counter("Scrapes that were answered, or failed", mode=0o444)
    failed_scrapes = counter("Scrapes that failed", mode=0o444)
    scrape_duration_ns = hist(
        bounds=[round(bound * 1e6) for bound in _MILLISECONDS],
        unit=Unit.SECONDS,
        exponent=-9,
        mode=0o444,
        description="Time until the answer to a scrape was made",
    )

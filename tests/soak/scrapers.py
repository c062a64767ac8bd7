"""Clients that scrape without a rest, and miss no scrape: as Prometheus does, and curl.

One has a connection for each scrape, one goes on with the same while it may. As Go's client does,
it asks anew if a connection that has had an answer before was closed without one.
"""

import contextlib
import http.client
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tests.support.deadlines import DEADLINE

__all__ = ["scraping"]

_SAMPLE: Final = re.compile(r"^app_requests_total(?:\{.*\})? (\d+)$", re.MULTILINE)
_PAUSE: Final = 0.01  # seconds


class _Scraper:
    def __init__(self, port: int, keeps: bool) -> None:
        self.port = port
        self.keeps = keeps
        self.stopping = threading.Event()
        self.errors: list[str] = []
        self.scrapes = 0
        self._connection: http.client.HTTPConnection | None = None
        self._most = 0

    def run(self) -> None:
        while not self.stopping.is_set() and not self.errors:
            try:
                self._look(self._scrape())
            except Exception as error:
                self.errors.append(f"scrape {self.scrapes}: {error!r}")
            time.sleep(_PAUSE)
        if self._connection is not None:
            self._connection.close()

    def _look(self, text: str) -> None:
        number = sum(map(int, _SAMPLE.findall(text)))
        if number < self._most:
            self.errors.append(f"{number} after {self._most}")
        self._most = number
        self.scrapes += 1

    def _scrape(self) -> str:
        reused = self._connection is not None
        connection = self._connection or http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=DEADLINE
        )
        self._connection = None
        try:
            connection.request("GET", "/metrics")
            with connection.getresponse() as response:
                text = response.read().decode()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            connection.close()
            if reused:
                return self._scrape()
            raise
        if response.status != 200:
            raise http.client.HTTPException(response.status)
        if self.keeps and not response.will_close:
            self._connection = connection
        else:
            connection.close()
        return text


@contextlib.contextmanager
def scraping(port: int) -> Iterator[Counter[str]]:
    """Scrape until the end of the block; count the scrapes, none of which may fail."""
    done: Counter[str] = Counter()
    scrapers = [_Scraper(port, keeps) for keeps in (False, True)]
    threads = [threading.Thread(target=one.run, daemon=True) for one in scrapers]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        for one, thread in zip(scrapers, threads, strict=True):
            one.stopping.set()
            thread.join(DEADLINE)
    for one in scrapers:
        assert not one.errors, one.errors
        assert one.scrapes
        done["scrapes"] += one.scrapes

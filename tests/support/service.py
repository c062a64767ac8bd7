"""A service of one user's, which says how long it took to read, to publish and to be scraped.

`python -m tests.support.service ROLE PATH…` plays one role, for some turns at least, until its
standard input ends. Then it prints a line of JSON: the seconds of each turn, and what was wrong.
"""

import contextlib
import encodings.idna  # noqa: F401  # urllib asks for it too late, as another user
import json
import os
import re
import select
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate
from statsfs.segments.publishing import publish
from tests.support.collecting import become

__all__ = ["NAME", "USER"]

USER = 4321
NAME = "web_api"  # of the user's directory
_PATIENCE = 60.0  # seconds for one turn


class ServiceStats(Stats):
    """What the service counts."""

    requests = u64(Aggregate.SUM)


def _read(mountpoint: str, directory: str) -> Iterator[str]:
    # Counts, and sees its total right at once.
    with publish(f"{NAME}/keep", values=ServiceStats, directory=directory) as segment:
        path = f"{mountpoint}/{NAME}/requests"
        end = time.monotonic() + _PATIENCE
        while not os.path.exists(f"{mountpoint}/{NAME}/keep") and time.monotonic() < end:
            time.sleep(0.01)
        before = _read_number(path)  # of earlier lives
        while True:
            segment.stats.requests += 1
            number, counted = _read_number(path), before + segment.stats.requests
            yield "" if number == counted else f"{number} in place of {counted}"


def _read_number(path: str) -> int:
    with open(path, "rb", 0) as file:
        return int(file.read())


def _publish(mountpoint: str, directory: str) -> Iterator[str]:
    # A new segment, until there is a file of it.
    number = 0
    while True:
        number += 1
        with publish(f"{NAME}/w{number}", values=ServiceStats, directory=directory):
            path = f"{mountpoint}/{NAME}/w{number}/requests"
            end = time.monotonic() + _PATIENCE
            while not os.path.exists(path) and time.monotonic() < end:
                time.sleep(0.001)
            yield "" if time.monotonic() < end else f"{path}: not within {_PATIENCE} s"


def _echo() -> Iterator[str]:
    # What two processes take that answer each other: what the machine itself is late.
    ours, theirs = socket.socketpair()
    if not os.fork():
        ours.close()
        while said := theirs.recv(1):
            theirs.send(said)
        os._exit(0)
    theirs.close()
    with ours:
        while True:
            ours.send(b"x")
            yield "" if ours.recv(1) else "no answer"


def _scrape(url: str) -> Iterator[str]:
    # Its number is in what monitoring gets.
    while True:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
            text = answer.read()
        found = re.search(rf"^{NAME}_requests_total [1-9]".encode(), text, re.MULTILINE)
        yield "" if found else f"{len(text)} bytes without it"


# With the seconds between two turns, and the least number of turns.
_ROLES: dict[str, tuple[Callable[..., Iterator[str]], float, int]] = {
    "read": (_read, 0.001, 1000),
    "publish": (_publish, 0.02, 10),
    "scrape": (_scrape, 0.25, 3),
    "echo": (_echo, 0.001, 100),
}


def main(role: str, *paths: str) -> None:
    """Play a role until the standard input ends."""
    become(USER)
    function, rest, least = _ROLES[role]
    turns = function(*paths)
    taken: list[float] = []
    wrong: list[str] = []
    with contextlib.closing(turns):  # type: ignore[type-var]  # it is a generator
        next(turns)
        print("begun", flush=True)
        while not select.select([sys.stdin], [], [], rest)[0] or len(taken) < least:
            begun = time.monotonic()
            try:
                said = next(turns)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                turns = function(*paths)
            taken.append(time.monotonic() - begun)
            if said and len(wrong) < 10:
                wrong.append(said)
    print(json.dumps({"taken": taken, "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])

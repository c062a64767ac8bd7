"""A client that reads the totals of segments, and knows what they can be; standard library only.

It reads through a mount whose server is killed again and again. While there is none it tries again;
but what is there once, in a mount that serves, has to be there.
"""

import contextlib
import errno
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tests.soak.accounts import GROUPS, VALUES, Account, paths_of

__all__ = ["read_totals", "reading", "sum_buckets"]

_AWAY: Final = (errno.ENOTCONN, errno.ECONNABORTED)
_SAMPLE: Final = re.compile(r"app_(\w+?)(?:_total)?(?:\{.*\})? (\d+)")


class Away(Exception):
    """There is no server at the moment."""


@contextlib.contextmanager
def reading(mountpoint: str) -> Iterator[int]:
    """A descriptor of the mount, whatever is mounted there later.

    Raises:
        Away: there is no server, or there is none any more.
    """
    try:
        fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Away from error
    except OSError as error:
        if error.errno in _AWAY:
            raise Away from error
        raise
    try:
        # Not "..": in a mount that was just replaced, and so detached, the root is its own parent.
        if os.fstat(fd).st_dev == os.stat(os.path.dirname(mountpoint)).st_dev:
            raise Away
        yield fd
    except OSError as error:
        if error.errno in _AWAY:
            raise Away from error
        raise
    finally:
        os.close(fd)


def _read(path: str, at: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        pieces = []
        while piece := os.read(fd, 1 << 17):
            pieces.append(piece)
    finally:
        # Whoever has asked closes, and is told nothing new.
        with contextlib.suppress(OSError):
            os.close(fd)
    return b"".join(pieces)


def sum_buckets(text: bytes) -> int:
    """How many were observed, of a histogram's file."""
    return sum(int(line.split()[-1]) for line in text.splitlines())


class _Reader:
    def __init__(
        self, mountpoint: str, account: Account, number: int, clearing: bool, alone: bool
    ) -> None:
        self.mountpoint = mountpoint
        self.account = account
        self.number = number
        self.clearing = clearing
        self.alone = alone
        self.random = random.Random(number)
        self.done: Counter[str] = Counter()
        self.least: dict[tuple[str, int], int] = {}

    def read(self, until: float) -> None:
        """Look here and there."""
        looks = (self.look_at_total, self.look_at_sizes, self.look_at_json, self.look_at_metrics)
        while time.monotonic() < until and not self.account.stopped:
            (look,) = self.random.choices(looks, (20, 4, 1, 1))
            try:
                with reading(self.mountpoint) as at:
                    try:
                        look(at)
                    except FileNotFoundError as error:
                        there = os.listdir(os.open("app", os.O_RDONLY, dir_fd=at))
                        error.add_note(f"there are {sorted(there)} now")
                        raise
                self.done[look.__name__] += 1
            except Away:
                self.done["away"] += 1
                time.sleep(0.01)
            time.sleep(self.random.uniform(0, 0.005))

    def note_before(self, value: str, group: int) -> None:
        """Note what the next number can be at least, and how much was cleared."""
        falls = self.clearing and value in ("requests", "sizes")
        own = self.number if self.alone else None
        self.least[value, group] = 0 if falls else self.account.seen(value, group, own)
        self.floor = {group: self.account.floor(group) for group in range(-1, GROUPS)}

    def check(self, value: str, group: int, number: int) -> None:
        """See that a number is one that there can be."""
        most = self.account.most("requests" if value == "sizes" else value, group)
        if value == "requests":
            most -= self.floor[group]
        least = self.least[value, group]
        assert least <= number <= most, (paths_of(group), value, least, number, most)
        self.account.note_seen(self.number, value, group, number)

    def choose(self) -> int:
        """A group, or all."""
        return self.random.randrange(-1, GROUPS)

    def look_at_total(self, at: int) -> None:
        value, group = self.random.choice(VALUES[:3]), self.choose()
        if value == "more":
            group = -1  # there may be none of the later release in a group
        value = self.random.choice((value, "largest"))
        self.note_before(value, group)
        try:
            text = _read(f"{paths_of(group)}/{value}", at)
        except FileNotFoundError:
            # While nobody of the later release has lived.
            assert value == "more"
            assert not self.least[value, group]
            return
        self.check(value, group, int(text))

    def look_at_sizes(self, at: int) -> None:
        group = self.choose()
        self.note_before("sizes", group)
        self.check("sizes", group, sum_buckets(_read(f"{paths_of(group)}/sizes", at)))

    def look_at_json(self, at: int) -> None:
        for group in range(-1, GROUPS):
            for value in ("requests", "begun", "largest", "sizes"):
                self.note_before(value, group)
        found = json.loads(_read("app/.stats.json", at))
        for group in range(-1, GROUPS):
            node = found if group < 0 else found["subordinates"][f"group{group}"]
            for value in ("requests", "begun", "largest"):
                self.check(value, group, node["values"][value])
            self.check("sizes", group, sum(node["values"]["sizes"]))

    def look_at_metrics(self, at: int) -> None:
        # With what the dead have left. Groups have no series: their top has one.
        group = -1
        sums: Counter[str] = Counter()
        for value in ("requests", "begun"):
            self.note_before(value, group)
        for line in _read("app/.stats.prom", at).decode().splitlines():
            sample = _SAMPLE.fullmatch(line)
            if sample:
                sums[sample[1]] += int(sample[2])
        for value in ("requests", "begun"):
            self.check(value, group, sums[value])


def read_totals(
    mountpoint: str, account: str, number: str, until: str, clearing: str, alone: str = ""
) -> None:
    """Read until a moment of the monotonic clock; print how often each look was taken.

    Args:
        mountpoint: of the tree.
        account: the file of the account.
        number: of this reader.
        until: seconds.
        clearing: "1" where requests are cleared.
        alone: "1" where others may have seen more a moment before, through another server.
    """
    reader = _Reader(mountpoint, Account(account), int(number), clearing == "1", alone == "1")
    reader.read(float(until))
    print(json.dumps(reader.done))

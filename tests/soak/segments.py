"""Producers that come and go by hundreds, readers of their totals, and a daemon that is killed."""

import contextlib
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from statsfs.collector import Collector
from statsfs.segments.places import SUFFIX
from statsfs.tree.registry import Registry
from tests.soak.accounts import GROUPS, PER_GROUP, VALUES, Account
from tests.soak.clients import client, collect
from tests.soak.daemons import Daemons, daemons
from tests.soak.nursery import raise_producers
from tests.soak.scrapers import scraping
from tests.soak.segment_readers import Away, read_totals, reading, sum_buckets
from tests.support.deadlines import DEADLINE, until, wait_until
from tests.support.mounts import directory_for_a_mount
from tests.support.prometheus_server import free_port

__all__ = ["cleared_segments", "segments", "takeovers"]

READERS: Final = 8
LONG: Final = 10.0  # seconds; shorter runs have fewer producers, which live shorter
# Segments belong in memory, as in /run.
MEMORY: Final = "/dev/shm" if os.path.isdir("/dev/shm") else None
# What daemons may say: who comes to a path before the dead there is seen to be dead has to wait.
SAID: Final = re.compile(
    r".* is not shown yet: .* is there already; waiting for it|.*: process \d+ took over"
)


@dataclass
class Scene:
    """All that is under way.

    Attributes:
        account: of what is counted.
        daemons: of which one lives.
        directory: the segments'.
        random: for the moments of death.
        nursery: what raises the producers.
        seconds: how long it lasts.
    """

    account: Account
    daemons: Daemons
    directory: Path
    random: random.Random
    nursery: Any
    seconds: float

    @property
    def mountpoint(self) -> Path:
        """Where the daemons mount."""
        return self.daemons.mountpoint

    def total(self, value: str) -> int:
        """Read a total; it is tried again until there is a server."""
        text = (self.mountpoint / "app" / value).read_text()
        return sum_buckets(text.encode()) if value == "sizes" else int(text)

    def restart(self) -> None:
        """Kill the daemon at whatever it is about, and start another at once."""
        self.daemons.kill()
        self.daemons.start()


@contextlib.contextmanager
def _scene(seconds: float, *options: str) -> Iterator[Scene]:
    long = seconds >= LONG
    with (
        directory_for_a_mount() as mountpoint,
        tempfile.TemporaryDirectory(prefix="statsfs-segments-", dir=MEMORY) as place,
        open(f"{place}/errors", "w+") as errors,
    ):
        directory, page = Path(place, "segments"), Path(place, "account")
        directory.mkdir(0o755)
        stack = contextlib.ExitStack()
        stack.push(partial(_tell, errors))
        with stack, daemons(mountpoint, directory, errors) as running:
            running.start(*options)
            running.wait_for(".stats.json")
            producers, pace = (200, 1.0) if long else (40, 0.15)
            with client(raise_producers, page, directory, producers, pace, "1") as nursery:
                moment = random.Random(3)
                scene = Scene(Account(page), running, directory, moment, nursery, seconds)
                for group in range(GROUPS):
                    # With whoever stays in it.
                    running.wait_for(f"app/group{group}/worker-{group * PER_GROUP}/begun")
                yield scene
        errors.seek(0)
        said = [line for line in errors.read().splitlines() if not SAID.fullmatch(line)]
        assert not said, said


def _tell(errors: IO[str], kind: type[BaseException] | None, *_: object) -> None:
    # What the daemons said may be the reason.
    if kind is not None:
        errors.seek(0)
        print(errors.read()[-5000:], file=sys.stderr)


@contextlib.contextmanager
def _readers(
    scene: Scene, clearing: bool, done: Counter[str], alone: bool = False
) -> Iterator[None]:
    # Beyond the end of the block, if that is early; for as long as the account is not stopped.
    end = time.monotonic() + scene.seconds + DEADLINE
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                client(
                    read_totals, scene.mountpoint, scene.directory.parent / "account",
                    number, end, int(clearing), int(alone),
                )
            )
            for number in range(READERS)
        ]  # fmt: skip
        yield
        scene.account.stop()
        for one in running:
            done.update(collect(one))


def _live_for_a_while(scene: Scene) -> None:
    # A third of the daemons die while they start, or just after it.
    if scene.random.random() < 0.3:
        time.sleep(scene.random.uniform(0, 0.4))
    else:
        scene.daemons.wait_for("app/requests")
        time.sleep(scene.random.uniform(0, 1.2))


def _expect_the_end(scene: Scene, cleared: tuple[int, int]) -> str:
    # All have died. `cleared` is how many requests were cleared, at least and at most.
    born: dict[str, int] = collect(scene.nursery, DEADLINE)
    account = scene.account
    scene.daemons.wait_for("app/requests")
    wait_until(lambda: not list(scene.directory.glob(f"*{SUFFIX}")), "the last fold")
    shown = scene.mountpoint / "app"
    wait_until(lambda: not [path for path in shown.glob("*/*") if path.is_dir()], "the last to go")
    bounds = {value: (account.least(value), account.most(value)) for value in VALUES}
    least, most = bounds["requests"]
    bounds["requests"] = (least - cleared[1], most - cleared[0])
    if not cleared[1]:
        bounds["sizes"] = (least, most)

    def check(read: Callable[[str], int]) -> None:
        found = {value: read(value) for value in bounds}
        wrong = [v for v, number in found.items() if not bounds[v][0] <= number <= bounds[v][1]]
        assert not wrong, (wrong, found, bounds)

    check(scene.total)
    scene.daemons.end()
    # By what it left for the next one alone.
    assert [path.name for path in (scene.directory / ".retained").iterdir()] == ["app"]
    registry = Registry()
    with Collector(registry, scene.directory):
        app = registry.by_name["app"]
        check(lambda value: _as_number(app.get_value(value)))
    return (
        f"{born['most']} producers at a time, {born['lives']} in all, {born.get('killed', 0)} "
        f"killed, {born.get('in doubt', 0)} of them in the middle of a count; "
        f"{most} requests counted"
    )


def _as_number(number: Any) -> int:
    return sum(number) if isinstance(number, list) else int(number)


def segments(seconds: float) -> str:
    """Let producers live and die while readers read and the daemon is killed again and again.

    No total ever falls for any reader, or exceeds what was counted; at the end each is right.
    """
    done: Counter[str] = Counter()
    with _scene(seconds) as scene:
        with _readers(scene, False, done):
            for _ in until(seconds):
                _live_for_a_while(scene)
                scene.restart()
        end = _expect_the_end(scene, (0, 0))
    away = done.pop("away", 0)
    return (
        f"{end}; {scene.daemons.kills} daemons killed; {READERS} readers read {done.total()} "
        f"times, {done['look_at_json'] + done['look_at_metrics']} of them views, and found no "
        f"daemon {away} times"
    )


def cleared_segments(seconds: float) -> str:
    """Clear the requests of all, or of a group, while all that happens.

    What is read then is never more than what was counted since, by whichever daemon.
    """
    done: Counter[str] = Counter()
    with _scene(seconds) as scene:
        times, most = 0, [0] * GROUPS
        with _readers(scene, True, done):
            for _ in until(seconds):
                for _ in range(scene.random.randrange(1, 4)):
                    group = scene.random.randrange(-1, GROUPS)
                    for one, cleared in _clear(scene, group).items():
                        most[one] = cleared
                    times += 1
                _live_for_a_while(scene)
                scene.restart()
        end = _expect_the_end(scene, (scene.account.floor(-1), sum(most)))
    away = done.pop("away", 0)
    return (
        f"{end}; cleared {times} times; {scene.daemons.kills} daemons killed; {READERS} readers "
        f"read {done.total()} times, and found no daemon {away} times"
    )


def takeovers(seconds: float, most: int = 0) -> str:
    """Have daemon after daemon take over, while producers live and die, and others look.

    Readers find a server each time, and scrapes an answer. No total falls for anybody, or exceeds
    what was counted; at the end each is right.
    """
    done: Counter[str] = Counter()
    port = free_port()
    options = ("--listen", str(port))
    times = 0
    with _scene(seconds, *options) as scene:
        with (
            _readers(scene, False, done, alone=True),
            scraping(port) as scraped,
        ):
            for _ in until(seconds, most or (20 if seconds >= LONG else 5)):
                scene.daemons.replace(*options)
                times += 1
                time.sleep(scene.random.uniform(0, 0.2))
        end = _expect_the_end(scene, (0, 0))
    assert not done["away"], done
    return (
        f"{end}; {times} takeovers; {READERS} readers read {done.total()} times, "
        f"{done['look_at_json'] + done['look_at_metrics']} of them views; {scraped['scrapes']} "
        f"scrapes"
    )


def _clear(scene: Scene, group: int) -> dict[int, int]:
    # Returns how many requests of each group have been cleared at most. Who counts before he is in
    # the tree has that after the clearing; so nobody is born in the meantime.
    account = scene.account
    account.hold(True)
    wait_until(lambda: account.holding, "the last birth")
    begun = account.least("begun")
    groups = range(GROUPS) if group < 0 else (group,)
    path = "app/requests" if group < 0 else f"app/group{group}/requests"
    while True:
        scene.daemons.wait_for("app/begun")
        wait_until(lambda: scene.total("begun") >= begun, "all that were born")
        least = {one: account.least("requests", one) for one in groups}
        if _is_cleared(scene, path):
            break
    most = {one: account.most("requests", one) for one in groups}
    for one in groups:
        account.note_floor(one, least[one])
    account.hold(False)
    return most


def _is_cleared(scene: Scene, path: str) -> bool:
    # In half of the cases the daemon is killed in the middle, or just before or after.
    doomed = scene.random.random() < 0.5
    killing = scene.daemons.kill_later(scene.random.uniform(0, 0.01)) if doomed else None
    try:
        with reading(str(scene.mountpoint)):
            (scene.mountpoint / path).write_text("0\n")
        return True
    except (Away, OSError):
        assert doomed
        return False
    finally:
        if killing is not None:
            killing.join()
            scene.restart()

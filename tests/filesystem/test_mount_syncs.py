"""Subordinates that a poller syncs, on a real mount."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import mount_asking as asking
from tests.support import mount_syncing as syncing
from tests.support.deadlines import DEADLINE
from tests.support.mounts import Server, run, serving

pytestmark = pytest.mark.mount

TURNS = 20


@pytest.fixture(params=["thread", "trio"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that is synced."""
    with serving(request.param) as server:
        server.call(syncing.build)
        yield server


def test_names_and_numbers_are_those_of_the_last_sync(server: Server) -> None:
    """At once, whatever the kernel knew; also where another has the name of one that left."""
    procs = server / "procs"
    server.call(syncing.sync, {"1": {"cpu": 5, "rss": 1}, "a/b": {"cpu": 7}})
    assert sorted(os.listdir(procs)) == ["1", "a%2Fb", "cpu", "rss"]
    assert os.listdir(procs / "a%2Fb") == ["cpu"]
    with open(procs / "1/cpu") as old, open(procs / "1/rss") as lacking:
        before = os.stat(procs / "1").st_ino
        server.call(syncing.sync, {"1": {"cpu": 6}, "a/b": {"cpu": 7, "rss": 2}})
        assert os.stat(procs / "1").st_ino == before
        assert run("cat", procs / "1/cpu", procs / "a%2Fb/rss").stdout == "6\n2\n"
        done = run("cat", procs / "1/rss", procs / "rss", status=1)
        assert (done.stdout, "No data available" in done.stderr) == ("3\n", True)
        with pytest.raises(OSError, match="No data available"):
            lacking.read()
        server.call(syncing.sync, {"1": {"cpu": 2}})
        assert os.stat(procs / "1").st_ino != before
        assert run("cat", procs / "1/cpu", procs / "cpu").stdout == "2\n15\n"
        assert not (procs / "a%2Fb").exists()
        assert old.read() == "6\n"
    (procs / "cpu").write_text("0\n")
    server.call(syncing.sync, {"1": {"cpu": 3}})
    assert run("cat", procs / "1/cpu", procs / "cpu").stdout == "1\n1\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_refresh_that_syncs(server: Server, blocking: bool) -> None:
    """Clients that read, list and look for names, at the same time: each sees one whole sync."""
    server.call(asking.set_deadline, DEADLINE)
    server.call(syncing.poll, blocking=blocking)
    polled = server / "polled"
    total = f"{syncing.TOTAL}\n"

    def read() -> None:
        for _ in range(TURNS):
            assert (polled / "rss").read_text() == total

    def view() -> None:
        for _ in range(TURNS):
            found = json.loads((polled / ".stats.json").read_text())
            each = [one["values"]["rss"] for one in found["subordinates"].values()]
            assert found["values"]["rss"] == sum(each) == syncing.TOTAL
            assert len(each) in (10, 20, 30)

    def look() -> None:
        for _ in range(TURNS):
            names = os.listdir(polled)
            assert {"0", "9", "cpu", "rss"} <= {*names} or not names
            for name in names:
                read_if_there(polled / name / "rss")

    (polled / "rss").read_text()
    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work) for work in (read, view, look) * 2]:
            done.result()


def read_if_there(path: Path) -> None:
    """Read a number of somebody who may have left."""
    try:
        assert 4 <= int(path.read_text()) <= 12
    except (FileNotFoundError, NotADirectoryError):
        assert path.name == "rss"

"""Refreshes that make sources, that are async, and what is cleared below them, on a real mount."""

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import mount_asking as asking
from tests.support import mount_polling as polling
from tests.support.deadlines import wait_until
from tests.support.mounts import Server, run, serving, shell

pytestmark = pytest.mark.mount

async_or_not = pytest.mark.parametrize("awaits", [False, True], ids=["plain", "async"])
WAYS = [{}, {"blocking": False}, {"awaits": True}]


@pytest.fixture(params=["thread", "trio"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with nothing yet."""
    with serving(request.param) as server:
        yield server


def is_gone(path: Path) -> bool:
    """Tell whether a client finds nothing there."""
    return not path.exists()


# Names


@pytest.mark.parametrize("options", WAYS, ids=["blocking", "quick", "async"])
def test_a_listing_asks_first(server: Server, options: dict[str, bool]) -> None:
    """`ls` shows what there is now, each time; so does a name that was never listed."""
    server.call(polling.build, **options)
    procs = server / "host/procs"
    assert os.listdir(procs) == []
    server.call(polling.set_numbers, a=1, b=2)
    assert run("ls", procs).stdout.split() == ["a", "b", "n", "top"]
    server.call(polling.set_numbers, b=3, c=4)
    assert run("stat", "--format=%F", procs / "c").stdout == "directory\n"
    assert run("ls", procs).stdout.split() == ["b", "c", "n", "top"]
    wait_until(lambda: not (procs / "a").exists())  # the kernel forgets it once it has its answer
    assert run("cat", procs / "b/n", procs / "n").stdout == "3\n7\n"
    server.call(polling.set_numbers, d=5)
    shown = json.loads((procs / ".stats.json").read_text())
    assert list(shown["subordinates"]) == ["d"]


def test_a_first_lookup_asks(server: Server) -> None:
    """A path is found that nobody listed, and a value that was not there."""
    server.call(polling.build)
    server.call(polling.set_numbers, a=1)
    assert (server / "host/procs/a/n").read_text() == "1\n"
    asked = server.call(polling.count_asked)
    assert not (server / "host/procs/nobody").exists()
    assert server.call(polling.count_asked) == asked + 1


def test_each_is_asked_once_within_its_age(server: Server) -> None:
    """A `find` of the tree lists each directory, of which many are below one source."""
    server.call(polling.build, max_age=1000)
    server.call(polling.set_numbers, **{f"p{number}": number for number in range(300)})
    found = run("find", server.mountpoint).stdout.splitlines()
    assert (
        len([line for line in found if line.endswith("/n")]) == 301
    )  # that of `host` was not there when it was listed
    assert server.call(polling.count_asked) == 1


def test_names_are_listed_of_one_that_hangs(server: Server) -> None:
    """Those that there are; others are answered meanwhile, and its numbers are not there."""
    server.call(polling.build)
    server.call(polling.set_numbers, a=1)
    procs = server / "host/procs"
    assert sorted(os.listdir(procs)) == ["a", "n", "top"]
    server.call(polling.set_answers, False)
    asked = server.call(polling.count_asked)
    with subprocess.Popen(["ls", procs], stdout=subprocess.PIPE, text=True) as listing:
        wait_until(lambda: server.call(polling.count_asked) > asked)
        turns = 0
        while listing.poll() is None:
            assert os.listdir(server.mountpoint) == ["host"]
            turns += 1
        output, _ = listing.communicate()
    assert turns > 1  # the others waited for one another, it would be one
    assert output.split() == ["a", "n", "top"]
    with pytest.raises(OSError, match="No data") as raised:
        (procs / "a/n").read_text()
    assert raised.value.errno == errno.ENODATA
    server.call(polling.set_numbers, b=2)
    server.call(polling.set_answers)
    wait_until(lambda: "b" in os.listdir(procs))
    assert (procs / "b/n").read_text() == "2\n"


def test_a_listing_does_not_wait_for_its_own_invalidations(server: Server) -> None:
    """The kernel has the directory locked until it is answered, and what goes was known."""
    server.call(polling.build)
    server.call(asking.set_deadline, 1000)  # who waits for the lock waits longer than the test
    procs = server / "host/procs"
    for turn in range(20):
        server.call(polling.set_numbers, **{f"p{turn}": 1})
        os.listdir(procs)
        (procs / f"p{turn}/n").stat()
        server.call(polling.set_numbers)
        assert not (procs / f"q{turn}").exists()  # the lookup removes what the kernel knows
        wait_until(partial(is_gone, procs / f"p{turn}"))


# Async


def test_what_an_async_refresh_raises(server: Server) -> None:
    """It is as with any other: no numbers, until it answers again."""
    server.call(polling.build, awaits=True)
    server.call(polling.set_numbers, a=1)
    file = server / "host/procs/a/n"
    assert file.read_text() == "1\n"
    server.call(polling.set_answers, error="gone")
    with pytest.raises(OSError, match="No data"):
        file.read_text()
    server.call(polling.set_answers)
    server.call(polling.set_numbers, a=2)
    assert file.read_text() == "2\n"


def test_a_slow_async_refresh_delays_nobody_else(server: Server) -> None:
    """Its reader waits for the deadline, and then for nothing, until it answers."""
    server.call(polling.build, awaits=True)
    server.call(polling.set_numbers, a=1)
    file = server / "host/procs/a/n"
    assert file.read_text() == "1\n"
    server.call(polling.set_answers, False)
    with subprocess.Popen(["cat", file], stderr=subprocess.PIPE, text=True) as reading:
        asked = server.call(polling.count_asked)
        turns = 0
        while reading.poll() is None:
            assert os.listdir(server.mountpoint) == ["host"]
            turns += 1
        assert turns > 1
        assert reading.stderr is not None
        assert "No data" in reading.stderr.read()
    server.call(asking.set_deadline, 1000)
    with pytest.raises(OSError, match="No data"):
        file.read_text()
    assert server.call(polling.count_asked) <= asked + 2
    server.call(polling.set_answers)
    wait_until(lambda: run("cat", file, status=None).stdout == "1\n")


# Clearing


@async_or_not
def test_a_clear_subtracts(server: Server, awaits: bool) -> None:
    """Here and in all directories above, until counting begins anew."""
    server.call(polling.build, awaits=awaits, baseline=True)
    server.call(polling.set_numbers, a=5, b=7)
    procs = server / "host/procs"
    cleared = f"echo 0 > {procs}/a/n; cat {procs}/a/n {procs}/b/n {procs}/n {procs}/../n"
    assert shell(cleared).split() == ["0", "7", "7", "7"]
    server.call(polling.set_numbers, a=15, b=8)
    shown = json.loads((server / "host/.stats.json").read_text())
    assert shown["values"]["n"] == 18
    assert shown["subordinates"]["procs"]["subordinates"]["a"]["values"]["n"] == 10
    assert shell(f"echo 0 > {procs}/../n; cat {procs}/../n").split() == ["0"]
    server.call(polling.set_numbers, a=3, b=9)
    assert shell(f"cat {procs}/a/n {procs}/b/n {procs}/n").split() == ["3", "1", "4"]
    assert (procs / "a/top").stat().st_mode & 0o777 == 0o444
    assert (procs / "a/n").stat().st_mode & 0o777 == 0o644


@async_or_not
def test_without_a_baseline_values_are_read_only(server: Server, awaits: bool) -> None:
    """To root, too; and so are totals of nothing else."""
    server.call(polling.build, awaits=awaits)
    server.call(polling.set_numbers, a=5)
    procs = server / "host/procs"
    for file in (procs / "a/n", procs / "a/top", procs / "n", procs / "top"):
        assert run("stat", "--format=%a", file).stdout == "444\n"
        with pytest.raises(PermissionError) as raised:
            file.open("w")
        assert raised.value.errno == errno.EACCES
        with pytest.raises(PermissionError):
            os.truncate(file, 0)
    with pytest.raises(PermissionError):
        (server / "host/n").write_text("0\n")
    schema = json.loads((procs / ".schema.json").read_text())
    assert {value["mode"] for value in schema["values"]} == {0o444}
    assert (server / "host/n").read_text() == "5\n"

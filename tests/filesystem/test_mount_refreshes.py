"""Sources that must be asked, on a real mount."""

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import mount_asking as asking
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import Server, run, serving, shell

pytestmark = pytest.mark.mount

NO_DATA = "No data available"


@pytest.fixture(params=["thread", "trio"])
def vms(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Path]]:
    """A server with three VMs that must be asked, and their directory."""
    with serving(request.param) as server:
        server.call(asking.build, 3)
        yield server, server / "kvm"


def test_reading_and_clearing_ask(vms: tuple[Server, Path]) -> None:
    """A file tells what it is now; what is cleared is what it was when it was cleared."""
    server, kvm = vms
    assert run("cat", kvm / "vm1/exits").stdout == "2\n"
    server.call(asking.count, "vm1", 10)
    assert run("cat", kvm / "vm1/exits", kvm / "exits").stdout == "12\n16\n"
    server.call(asking.count, "vm1", 100)
    assert shell('echo 0 > "$0/exits"; cat "$0/exits"'.replace("$0", str(kvm))) == "0\n"
    server.call(asking.count, "vm1", 5)
    assert json.loads((kvm / ".stats.json").read_text())["values"] == {"exits": 5}
    assert server.call(asking.asked, "vm0") == 4


def test_a_page_that_was_read_asks_no_more(vms: tuple[Server, Path]) -> None:
    """Only offset 0 asks: the rest of the text is that of the same moment."""
    server, kvm = vms
    with open(kvm / "vm2/exits", "rb", 0) as file:
        assert os.pread(file.fileno(), 1, 0) == b"3"
        server.call(asking.count, "vm2", 30)
        assert os.pread(file.fileno(), 10, 1) == b"\n"
        assert server.call(asking.asked, "vm2") == 1
        assert os.pread(file.fileno(), 10, 0) == b"33\n"


def test_one_that_hangs_delays_nobody_else(vms: tuple[Server, Path]) -> None:
    """Its first reader waits; others read other files meanwhile, and its own fail at once then."""
    server, kvm = vms
    assert run("cat", kvm / "exits").stdout == "6\n"
    server.call(asking.hang, "vm0")
    server.call(asking.set_deadline, 3.0)
    first = subprocess.Popen(["cat", kvm / "vm0/exits"], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: server.call(asking.asked, "vm0") == 2)
    turns = 0
    while first.poll() is None:
        assert (kvm / "vm1/exits").read_text() == "2\n"
        os.listdir(kvm / "vm0")
        turns += 1
    _, errors = first.communicate()
    assert first.returncode == 1
    assert NO_DATA in errors
    assert turns > 1  # the others waited for one another, it would be one
    server.call(asking.set_deadline, 1000)  # whoever waits, waits longer than the test may take
    for _ in range(20):
        with pytest.raises(OSError, match=NO_DATA) as raised:
            (kvm / "vm0/exits").read_text()
        assert raised.value.errno == errno.ENODATA
        assert (kvm / "exits").read_text() == "6\n"
    with pytest.raises(OSError, match=NO_DATA):
        (kvm / "vm0/exits").write_text("0\n")
    shown = json.loads((kvm / ".stats.json").read_text())
    assert shown["values"] == {"exits": 6}
    assert shown["subordinates"]["vm0"] == {"values": {}, "subordinates": {}}
    assert 'vm="vm0"' not in (kvm / ".stats.prom").read_text()
    assert server.call(asking.asked, "vm0") == 2
    server.call(asking.go_on, "vm0", exits=100)
    wait_until(lambda: run("cat", kvm / "vm0/exits", status=None).stdout == "100\n")
    assert (kvm / "exits").read_text() == "105\n"


def test_many_readers_wait_together(vms: tuple[Server, Path]) -> None:
    """Forty that wait for one that hangs are all told, and nobody else waits for them."""
    server, kvm = vms
    server.call(asking.hang, "vm0")

    def read(_: int) -> int | None:
        try:
            (kvm / "vm0/exits").read_text()
        except OSError as error:
            return error.errno
        return None

    with ThreadPoolExecutor(40) as threads:
        found = threads.map(read, range(40))
        wait_until(lambda: server.call(asking.asked, "vm0") == 1)
        assert (kvm / "vm1/exits").read_text() == "2\n"
        assert set(found) == {errno.ENODATA}
    server.call(asking.go_on, "vm0")


def test_one_that_is_gone_has_no_data(vms: tuple[Server, Path]) -> None:
    """An error is not waited for; when it is over, the numbers are back."""
    server, kvm = vms
    server.call(asking.go_on, "vm1", broken=True)
    done = run("grep", "-r", ".", kvm, status=2)
    assert done.stdout.splitlines().count(f"{kvm}/exits:4") == 1
    assert [line.partition(": ")[2] for line in done.stderr.splitlines()] == [
        f"{kvm}/vm1/exits: {NO_DATA}"
    ]
    server.call(asking.go_on, "vm1", broken=False)
    assert (kvm / "vm1/exits").read_text() == "2\n"


def test_the_mount_ends_while_somebody_waits(vms: tuple[Server, Path]) -> None:
    """Whoever hangs does not keep the server from ending, and its readers are told."""
    server, kvm = vms
    server.call(asking.hang, "vm0")
    reader = subprocess.Popen(["cat", kvm / "vm0/exits"], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: server.call(asking.asked, "vm0") == 1)
    server.end()
    _, errors = reader.communicate(timeout=DEADLINE)
    assert reader.returncode == 1
    assert errors


def test_many_that_answer_at_once() -> None:
    """Hundreds of quick ones, and one file of them."""
    with serving() as server:
        server.call(asking.build, 300, blocking=False)
        kvm = server / "kvm"
        assert (kvm / "vm7/exits").read_text() == "8\n"
        assert server.call(asking.asked, "vm6") == 0
        assert (kvm / "exits").read_text() == f"{sum(range(301))}\n"
        assert len(json.loads((kvm / ".stats.json").read_text())["subordinates"]) == 300
        assert server.call(asking.asked, "vm6") == 2

"""What one user has of a server: whatever that is, there is something left for all others."""

import contextlib
import errno
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mount_shares as shares
from tests.support.deadlines import wait_until
from tests.support.mount_shares import OPEN_ALL, acting
from tests.support.mounts import Server, as_nobody, serving

pytestmark = [pytest.mark.mount, pytest.mark.root]


@pytest.fixture
def later() -> Iterator[Server]:
    """A server that has yet to mount."""
    with serving("later") as server:
        yield server


def said(process: "subprocess.Popen[str]") -> list[int]:
    """Return the numbers of the line that a client prints."""
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


def look(server: Server) -> None:
    """Read a value, a view and a listing, as another user: they are there."""
    assert as_nobody("cat", server / "kvm/exits").stdout == "0\n"
    whole = json.loads(as_nobody("cat", server / "many/.stats.json").stdout)
    assert len(whole["subordinates"]) == 100
    assert len(as_nobody("ls", server / "many").stdout.split()) > 100


def memory(server: Server) -> int:
    """Return what a server has in memory, in bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def test_open_views(later: Server) -> None:
    """25 of one reader used up what there was for all."""
    later.call(shares.mount_with_shares, str(later.mountpoint), TEXTS_MAX=2_000_000)
    path = later / "many/.stats.json"
    size = len(as_nobody("cat", path).stdout)
    with acting(OPEN_ALL, path, "50") as attacker:
        assert said(attacker) == [1_000_000 // size, errno.EMFILE]
        look(later)
    # What it had is given back.
    with acting(OPEN_ALL, path, "2") as attacker:
        assert said(attacker) == [2]


def test_open_files_and_directories(later: Server) -> None:
    """They count, too."""
    later.call(shares.mount_with_shares, str(later.mountpoint), HANDLES_MAX=100)
    for name in ("kvm/exits", "many"):
        with acting(OPEN_ALL, later / name, "70") as attacker:
            assert said(attacker)[:1] == [50]
            look(later)


def test_open_histograms(later: Server) -> None:
    """600 opens of one took 1.4 GB."""
    later.call(shares.mount_with_shares, str(later.mountpoint))
    later.call(shares.add_histograms, 1)
    path = later / "histograms/s0/h"
    size = len(as_nobody("cat", path).stdout)
    before = memory(later)
    with acting(OPEN_ALL, path, "300") as attacker:
        opened, *refused = said(attacker)
        assert (opened, refused) == (300, [errno.EMFILE])
        assert memory(later) - before < (1 << 27) + (32 << 20)
        look(later)
    assert 300 * size > 1 << 27


def test_requests_that_wait(later: Server) -> None:
    """With 256 of them nobody read requests any more."""
    later.call(shares.mount_with_shares, str(later.mountpoint), WAITING_MAX=20)
    with acting(OPEN_ALL, later / "slow/.stats.json", "60", "threads") as attacker:
        wait_until(lambda: later.call(shares.waiting) == 10, "the attacker")
        look(later)
        later.call(shares.let_go)
        opened, *refused = said(attacker)
        assert 10 <= opened < 60
        assert refused == [errno.EMFILE]


@pytest.mark.parametrize("path", ["slow/.stats.json", "large/large"])
def test_users_take_turns(later: Server, path: str) -> None:
    """A large value is read in a thread, as a view is; one user's do not make another wait."""
    later.call(shares.mount_with_shares, str(later.mountpoint))
    with contextlib.ExitStack() as stack:
        attackers = []
        # A reading that has not begun would be shared with those who come later: one after another.
        for begun, count in (1, 1), (2, 1), (2, 28):
            attackers.append(
                stack.enter_context(acting(OPEN_ALL, later / path, f"{count}", "threads"))
            )
            wait_until(lambda begun=begun: later.call(shares.begun) == begun, "a thread")  # type: ignore[misc]
        wait_until(lambda: later.call(shares.waiting) == 30, "the attacker")
        look(later)
        assert later.call(shares.begun) == 2
        later.call(shares.let_go)
        assert [said(attacker) for attacker in attackers] == [[1], [1], [28]]
    # Those who waited for a thread shared one reading.
    assert later.call(shares.begun) == 3
    text = as_nobody("cat", later / "large/large").stdout
    assert text == "0 5\n"


def test_clears_that_take_long(later: Server) -> None:
    """As those do that a program writes down."""
    later.call(shares.mount_with_shares, str(later.mountpoint))
    with subprocess.Popen(["tee", later / "told/slow"], stdin=subprocess.PIPE) as tee:
        assert tee.stdin is not None
        tee.stdin.write(b"0")
        tee.stdin.close()
        wait_until(lambda: later.call(shares.begun) == 1, "the clear")
        look(later)
        later.call(shares.let_go)
        assert tee.wait() == 0
    assert as_nobody("cat", later / "told/slow").stdout == "0\n"


def test_totals_of_large_histograms(later: Server) -> None:
    """They are what they are, in however many pieces they are read."""
    later.call(shares.mount_with_shares, str(later.mountpoint))
    later.call(shares.add_histograms, 3)
    text = (later / "histograms/h").read_text()
    assert text == "".join(f"{start} {3 * start + 6}\n" for start in range(shares.BUCKETS))

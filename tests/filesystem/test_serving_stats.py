"""What a mount counts of its own work."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from statsfs.model.values import Aggregate, Value
from statsfs.tree.source import Source
from tests.support import mount_shares as shares
from tests.support.mount_server import World
from tests.support.mounts import Server, serving

pytestmark = pytest.mark.mount


def build(world: World) -> None:
    """A source with a value, and one that is broken."""
    source = world.registry.register(Source("app"))
    source.add_values([Value("hits", aggregate=Aggregate.SUM)], {"hits": 1})
    base: dict[str, Any] = {"odd": 1}
    source.add_values([Value("odd")], base)
    base["odd"] = "broken"
    logging.disable()


def counted(world: World) -> dict[str, Any]:
    """What it has counted."""
    return {name: number for name, number in world.mount.stats.asdict().items() if number}


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that has a value."""
    with serving() as server:
        server.call(build)
        yield server


def test_requests(server: Server) -> None:
    """Opens, reads, clears and views, each once; a listing and a stat are none."""
    assert server.call(counted).keys() <= {"view_duration_ns"}
    file = server / "app/hits"
    os.stat(file)
    os.listdir(server.mountpoint)
    with open(file, "rb", 0) as one:
        assert server.call(counted)["open_files"] == 1
        assert os.pread(one.fileno(), 10, 0) == b"1\n"
        assert os.pread(one.fileno(), 10, 2) == b""
    with open(file, "wb", 0) as one:
        one.write(b"0")
        with pytest.raises(OSError, match="Invalid"):
            one.write(b"1")
    with open(server / "app/.stats.json", "rb", 0) as view:
        view.readall()
        view.seek(0)
        view.read(1)
    seen = server.call(counted)
    assert seen["opens"] == 3
    assert seen["clears"] == 1
    assert seen["views"] == sum(seen["view_duration_ns"]) == 2
    assert seen.keys() & {"failed_requests", "refused_requests"} == set()


def test_failures(server: Server) -> None:
    """A broken value is one; a name that is missing is none."""
    with pytest.raises(OSError, match="Input/output"):
        (server / "app/odd").read_bytes()
    with pytest.raises(FileNotFoundError):
        os.stat(server / "app/none")
    seen = server.call(counted)
    assert seen["failed_requests"] == 1
    assert "refused_requests" not in seen


def test_refused_requests() -> None:
    """A user who has too much open is told so, and counted."""
    with serving("later") as server:
        server.call(shares.mount_with_shares, str(server.mountpoint), HANDLES_MAX=4)
        opened = [os.open(server / "kvm/exits", os.O_RDONLY) for _ in range(2)]
        with pytest.raises(OSError, match="Too many open files"):
            os.open(server / "kvm/exits", os.O_RDONLY)
        for one in opened:
            os.close(one)
        seen = server.call(counted)
    assert (seen["opens"], seen["refused_requests"]) == (2, 1)

"""What tests of several commands look at."""

from collections.abc import Iterator

import pytest

from tests.support.commands import CommandServer, serving


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    """A demo of two VMs with two vCPUs each, for all tests of a module."""
    path = tmp_path_factory.mktemp("demo") / "stats"
    with serving("demo", path, "--vms", "2", "--vcpus", "2") as server:
        yield server
        server.stop()

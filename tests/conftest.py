"""Fixtures that every test may ask for."""

import gc
import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from statsfs.filesystem.vfs import Vfs
from statsfs.tree.registry import Registry
from tests.support.kernel import Kernel
from tests.support.mounts import Server, directory_for_a_mount, serving, sweep_dead_mounts

# Trees are large to draw and the machines of CI slow: no time limits; and no explanations, which
# would run a failing test hundreds of times more.
settings.register_profile(
    "statsfs",
    max_examples=50,
    deadline=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("statsfs")


@pytest.fixture
def registry() -> Registry:
    """A registry that nobody else has."""
    return Registry()


@pytest.fixture
def kernel(registry: Registry) -> Kernel:
    """A stand-in for a kernel that has the registry mounted, and is told what changes."""
    kernel = Kernel(Vfs(registry))
    registry.add_listener(kernel)
    return kernel


# Real mounts, real guests

_HOST = 0xEFFFFFFC  # the inode of the first PID namespace, PROC_PID_INIT_INO
NEEDS = {  # what tests with these marks need: devices and programs
    "mount": ("/dev/fuse",),
    "kvm": ("/dev/kvm",),
    "browser": ("chromium", "chromedriver"),
}


def needs_of(item: pytest.Item) -> list[str]:
    """What a test needs of the machine."""
    return [need for mark in NEEDS if item.get_closest_marker(mark) for need in NEEDS[mark]]


def may_use(need: str) -> bool:
    """Whether there is a device or a program that this user may use."""
    if need.startswith("/dev/"):
        return os.access(need, os.R_OK | os.W_OK)
    return shutil.which(need) is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the choice of tests that other tests would disturb."""
    parser.addoption("--alone", choices=("only", "not"), help="only, or not, the tests marked so")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks of tests that need something of the machine, or much time."""
    config.addinivalue_line("markers", "mount: mounts a filesystem; where that can be, it must be")
    config.addinivalue_line("markers", "kvm: runs real guests; where there is KVM, it must")
    config.addinivalue_line("markers", "root: needs the rights of root")
    config.addinivalue_line("markers", "host: needs the kernel's own numbers of processes")
    config.addinivalue_line("markers", "tools: runs programs of Debian packages: cc, promtool")
    config.addinivalue_line("markers", "browser: shows the page in chromium; where it is, it must")
    config.addinivalue_line(
        "markers", "alone: measures how long things take, or all VMs; see --alone"
    )
    config.addinivalue_line("markers", "slow: not among the tests of `make quick`")


def pytest_sessionstart() -> None:
    """Clear what an earlier run left."""
    sweep_dead_mounts()
    # After `&` in a script, or under nohup, a signal is ignored, also in each program that a test
    # starts. A handler of Python's is not handed on.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot do, and leave out what `--alone` does."""
    if choice := config.getoption("--alone"):
        sorted_out: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            sorted_out[item.get_closest_marker("alone") is not None].append(item)
        items[:] = sorted_out[choice == "only"]
        config.hook.pytest_deselected(items=sorted_out[choice != "only"])
    for item in items:
        for need in needs_of(item):
            if not may_use(need):
                item.add_marker(pytest.mark.skip(reason=f"no {need} that this user may use"))
        if item.get_closest_marker("root") and os.geteuid():
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if item.get_closest_marker("host") and os.stat("/proc/self/ns/pid").st_ino != _HOST:
            item.add_marker(pytest.mark.xfail(run=False, reason="in a PID namespace"))


def pytest_collection_finish() -> None:
    """Keep thousands of tests and their modules out of each garbage collection that follows."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where there is what a test needs, a device or a program, it fails if it is skipped."""
    report = yield
    needs = needs_of(item)
    must = needs and all(map(may_use, needs))
    cannot = item.get_closest_marker("root") and os.geteuid()
    if report.skipped and must and not cannot and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, though there is a {' and a '.join(needs)}: {report.longrepr}"
    return report


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with an empty tree, of this test alone."""
    with serving() as server:
        yield server


@pytest.fixture
def mountpoint() -> Iterator[Path]:
    """An empty directory to mount on."""
    with directory_for_a_mount() as path:
        yield path

"""Fixtures of these tests; and what the kernel tells needs the host's own process numbers."""

import os
from collections.abc import Iterator

import pytest

from statsfs.demo.real_kvm import RealKvm
from statsfs.tree.registry import Registry
from tests.support.libvirtd import Libvirtd, running_libvirtd

# Those of the kernel's first namespace (PROC_PID_INIT_INO).
_FIRST = 0xEFFFFFFC
_MODULES = {
    "test_bpf.py",
    "test_checking.py",
    "test_host.py",
    "test_libvirt_vms.py",
    "test_mount_kvm.py",
    "test_taken.py",
    "test_uevents.py",
    "test_units.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a PID namespace the kernel's numbers are those of other processes."""
    if os.stat("/proc/self/ns/pid").st_ino == _FIRST:
        return
    for item in items:
        if item.path.name in _MODULES and item.get_closest_marker("kvm"):
            item.add_marker(pytest.mark.xfail(run=False, reason="in a PID namespace"))


@pytest.fixture
def guests() -> Iterator[RealKvm]:
    """VMs of this process, which run when a test says so."""
    with RealKvm(Registry(), rate=0) as kvm:
        yield kvm


@pytest.fixture
def libvirtd() -> Iterator[Libvirtd]:
    """A libvirtd without domains."""
    with running_libvirtd() as libvirtd:
        yield libvirtd

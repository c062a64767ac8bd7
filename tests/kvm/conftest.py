"""Tests of what the kernel tells of a host's VMs, which need the host's own process numbers."""

import os

import pytest

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

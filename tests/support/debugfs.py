"""KVM's directory in debugfs as a test makes it, with the files of Linux 6.18."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from statsfs.kvm.vm_sources import Section

__all__ = ["Debugfs"]


class Debugfs:
    """A directory that looks like debugfs's `kvm`.

    Args:
        path: where it is made.
        vm, vcpu: what the kernel counts.
    """

    def __init__(self, path: Path, vm: Section, vcpu: Section) -> None:
        self.path = path
        # Of a histogram there is the first bucket; of the scheduler nothing.
        self._names = [
            *vm.places,
            *(name for name in vcpu.places if name not in ("run_ns", "wait_ns", "timeslices")),
        ]
        path.mkdir()
        self.write("", {})

    def write(self, name: str, numbers: Mapping[str, int]) -> None:
        """Let the directory of a VM, or the one above, have these numbers, and 0 for all else."""
        directory = self.path / name
        directory.mkdir(exist_ok=True)
        for one in self._names:
            _replace(directory / one, numbers.get(one, 0))

    def write_vcpus(self, name: str, threads: Iterable[int | None]) -> None:
        """Let a VM have vCPUs, which these threads ran last; None for an older kernel."""
        for number, thread in enumerate(threads):
            directory = self.path / name / f"vcpu{number}"
            directory.mkdir(exist_ok=True)
            _replace(directory / "guest_mode", 1)
            _replace(directory / "tsc-offset", -5)
            if thread is not None:
                _replace(directory / "pid", thread)

    def remove(self, name: str) -> None:
        """Remove a VM's directory."""
        for where, directories, files in os.walk(self.path / name, topdown=False):
            for one in files:
                os.unlink(f"{where}/{one}")
            for one in directories:
                os.rmdir(f"{where}/{one}")
        (self.path / name).rmdir()


def _replace(file: Path, number: int) -> None:
    # A reader sees the old number or the new one.
    new = file.with_name(".new")
    new.write_text(f"{number}\n")
    new.rename(file)

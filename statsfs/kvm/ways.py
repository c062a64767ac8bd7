"""The ways in which VMs are found and read, and what they have in common.

Owns `FoundVm` and `Way`; each way is a module of its own. Threading: constant objects.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from statsfs.kvm.scanning import KvmFiles

if TYPE_CHECKING:
    from statsfs.kvm.vm_sources import Section

__all__ = ["ALL", "FoundVm", "Known", "MakeWay", "Numbers", "Way", "Which"]

ALL: Final = -1
"""Stands for the number of a vCPU where a way has only sums over all vCPUs of the VM. Its block has
the sums of all values that are neither histograms nor the scheduler's."""

Known = tuple[Collection[str] | None, Collection[str] | None]
"""The names of the values that a way knows, of a VM and of a vCPU; None for all."""

Numbers = tuple[bytes | None, Mapping[int, bytes]]
"""The block of a VM, or None where it is not known, and of each vCPU by its number, or of `ALL`."""


Which = tuple[object, int] | None


class FoundVm(NamedTuple):
    """A VM that a way found, and its numbers of that moment.

    Attributes:
        name: that of debugfs, `<pid>-<fd>`.
        pid: the process that has it.
        key: another one is another VM, even of the same name.
        numbers: of that moment.
        which: the same in this process, for `Way.read`: what tells VMs of that name from each
            other, and its number for this one. None if nothing does.
    """

    name: str
    pid: int
    key: object
    numbers: Numbers
    which: Which = None


class Way(Protocol):
    """One way to find VMs, and to read them.

    Attributes:
        name: what users see.
        known: the values that it knows.
        blocking: whether `read` may block.
    """

    @property
    def name(self) -> str: ...
    @property
    def known(self) -> Known: ...
    @property
    def blocking(self) -> bool: ...

    def look(self, files: Mapping[int, KvmFiles], others: Collection[str]) -> list[FoundVm]:
        """Return the VMs that it can read now, and let go of all others.

        Args:
            files: KVM's descriptors of each process that has a VM.
            others: the names of VMs that better ways read, which are to be left alone.
        """

    def find_failure(self) -> str:
        """Return why the way does not work here at all; "" if it does."""

    def explain(self, files: KvmFiles) -> str:
        """Return why a look did not find the VM of a process with these descriptors."""

    def read(self, name: str, which: Which = None) -> Numbers:
        """Return the numbers of a VM that it found; OSError if they are not there.

        Args:
            name: its name.
            which: that of the found VM. If another one has the name now, nothing is returned.
        """

    def close(self) -> None:
        """Let go of all VMs."""


MakeWay = Callable[["Section", "Section"], Way]
"""What makes a way, of what this kernel counts for a VM and for a vCPU."""

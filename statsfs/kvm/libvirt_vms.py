"""The VMs of libvirt's running domains, as far as no better way reads them.

Owns which process a domain is, and its numbers as the blocks of `vm_sources`. libvirt is asked only
where there is a VM that nothing better reads. A domain's first answer is waited for in a thread of
its own: a QEMU that hangs must not hold the others. Threading: `look` belongs to one thread; any
may `read`.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from statsfs.exceptions import KvmError
from statsfs.kvm.libvirt_source import LibvirtSource
from statsfs.kvm.scanning import KvmFiles
from statsfs.kvm.vm_sources import Section
from statsfs.kvm.ways import FoundVm, Known, Numbers, Which

__all__ = ["LibvirtVms"]

_RETRY: Final = 5.0  # seconds until libvirt is asked for its domains again


@dataclass(eq=False)
class _Domain:
    # A process that may be a domain, its vCPUs, and the last answer.
    pid: int
    vcpus: frozenset[int]
    numbers: Numbers | None = None
    asked: bool = False


class LibvirtVms:
    """The VMs of running domains.

    Args:
        vm, vcpu: what the kernel counts.
        connect: makes the connection; KvmError says why it cannot.
    """

    name = "libvirt"
    blocking = True

    def __init__(
        self, vm: Section, vcpu: Section, connect: Callable[[], LibvirtSource] = LibvirtSource
    ) -> None:
        self._vm, self._vcpu = vm, vcpu
        self._connect = connect
        self._source: LibvirtSource | None = None
        self._failure = ""
        self._next_try = 0.0
        self._running: set[int] = set()  # the processes of domains
        self._domains: dict[str, _Domain] = {}
        self._known: tuple[set[str], set[str]] = (set(), set())

    @property
    def known(self) -> Known:
        """The values that libvirt told of at last."""
        return self._known

    def look(self, files: Mapping[int, KvmFiles], others: Collection[str]) -> list[FoundVm]:
        """Ask for what is new, and return the domains that have answered; see `Way.look`."""
        wanted = {one.name(pid): (pid, one) for pid, one in files.items()}
        for name in self._domains.keys() - (wanted.keys() - set(others)):
            del self._domains[name]
        for name, (pid, one) in wanted.items():
            if name not in others and one.vcpus:
                domain = self._domains.setdefault(name, _Domain(pid, frozenset()))
                domain.vcpus = frozenset(one.vcpus)
        if any(domain.pid not in self._running for domain in self._domains.values()):
            self._list()
        for domain in self._domains.values():
            if domain.pid in self._running and not domain.asked:
                domain.asked = True
                threading.Thread(target=self._ask, args=(domain,), daemon=True).start()
        return [
            FoundVm(name, domain.pid, None, self._fill(domain, domain.numbers))
            for name, domain in self._domains.items()
            if domain.numbers is not None
        ]

    def _list(self) -> None:
        now = time.monotonic()
        if now < self._next_try:
            return
        self._next_try = now + _RETRY
        try:
            if self._source is None:
                self._source = self._connect()
            self._running = {domain.pid for domain in self._source.domains()}
            self._failure = ""
        except KvmError as error:
            self._failure = str(error)

    def _ask(self, domain: _Domain) -> None:
        try:
            self._read(domain)
        except KvmError as error:
            self._failure = str(error)
            domain.asked = False  # once more at the next look

    def _read(self, domain: _Domain) -> Numbers:
        assert self._source is not None
        answer = self._source.read(domain.pid, domain.vcpus)
        self._known = (set(answer.vm), {*next(iter(answer.vcpus.values()))})
        vcpus = {number: self._vcpu.pack(one) for number, one in answer.vcpus.items()}
        domain.numbers = (self._vm.pack(answer.vm), vcpus)
        return domain.numbers

    def _fill(self, domain: _Domain, numbers: Numbers) -> Numbers:
        # A vCPU that was just plugged in has no numbers yet: the next reader brings them.
        block, vcpus = numbers
        return block, {n: vcpus.get(n) or bytes(self._vcpu.size) for n in domain.vcpus}

    def find_failure(self) -> str:
        """Return why libvirt does not answer, or cannot be asked; "" if nothing is known."""
        self._list()
        return self._failure.removeprefix("libvirt: ")

    def explain(self, files: KvmFiles) -> str:
        """Return why a process's VM was not found."""
        return "no domain of libvirt's" if files.vcpus else "it has no vCPUs"

    def read(self, name: str, which: Which = None) -> Numbers:
        """Return the numbers of a domain; KvmError if it or libvirtd does not answer."""
        domain = self._domains.get(name)
        if domain is None:
            raise KvmError(f"{name} has ended", name)
        return self._read(domain)

    def close(self) -> None:
        """Close the connection."""
        if self._source is not None:
            self._source.close()

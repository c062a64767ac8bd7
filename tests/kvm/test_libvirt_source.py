"""What libvirt tells of its domains: a real libvirtd, and errors of a pretended library."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from statsfs.exceptions import KvmError
from statsfs.kvm import libvirt_source
from statsfs.kvm.identity import identify
from statsfs.kvm.libvirt_source import Domain, LibvirtNumbers, LibvirtSource
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.libvirtd import UUID, Libvirtd
from tests.support.mounts import run
from tests.support.qemus import confined, find_kvm_files


@pytest.fixture
def source(libvirtd: Libvirtd) -> Iterator[LibvirtSource]:
    """Its domains."""
    with LibvirtSource(libvirtd.uri, libvirtd.state) as source:
        yield source


def wait_for_domains(source: LibvirtSource, *domains: Domain) -> None:
    """Wait until there are these."""
    wait_until(lambda: _domains(source) == list(domains), "the domains")


def _domains(source: LibvirtSource) -> list[Domain] | None:
    try:
        return sorted(source.domains(), key=lambda domain: domain.name)
    except KvmError:
        return None


def read(source: LibvirtSource, pid: int) -> LibvirtNumbers | None:
    """The numbers of a domain, or None."""
    try:
        return source.read(pid, find_kvm_files(pid).vcpus)
    except KvmError:
        return None


def ask_qemu(libvirtd: Libvirtd, name: str, command: str, **arguments: Any) -> Any:
    """What a QEMU of libvirt answers to a command of QMP."""
    message = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirtd.virsh("qemu-monitor-command", name, message))["return"]


@pytest.mark.kvm
@pytest.mark.root
@pytest.mark.slow
def test_the_numbers_of_a_domain(libvirtd: Libvirtd, source: LibvirtSource) -> None:
    """All but histograms, by the kernel's names and numbers of vCPUs, as QEMU itself says them."""
    assert source.domains() == []
    pid = libvirtd.create("web", sockets=2, cores=3)
    wait_for_domains(source, Domain(pid, "web", UUID))
    identity = identify(pid)
    assert (identity.vmm, identity.name, identity.uuid) == ("qemu", "web", UUID)
    wait_until(lambda: (found := read(source, pid)) and found.vcpus[4]["exits"] > 0)
    libvirtd.virsh("suspend", "web")

    def same() -> bool:
        found = source.read(pid, find_kvm_files(pid).vcpus)
        providers = [{"provider": "kvm"}]
        for entry in ask_qemu(
            libvirtd, "web", "query-stats", target="vcpu", providers=providers
        ) + ask_qemu(libvirtd, "web", "query-stats", target="vm", providers=providers):
            ours = found.vm
            if path := entry.get("qom-path"):
                number = ask_qemu(libvirtd, "web", "qom-get", path=path, property="apic-id")
                ours = found.vcpus[number]
            theirs = {one["name"]: one["value"] for one in entry["stats"]}
            if ours != {k: v for k, v in theirs.items() if not isinstance(v, list)}:
                return False
        return found.vcpus.keys() == {0, 1, 2, 4, 5, 6}

    wait_until(same, "the same numbers")


@pytest.mark.kvm
@pytest.mark.root
@pytest.mark.slow
def test_a_domain_that_is_stopped(libvirtd: Libvirtd, source: LibvirtSource) -> None:
    """It holds neither the others, nor libvirtd."""
    other = UUID.replace("4", "5")
    web, db = libvirtd.create("web"), libvirtd.create("db", other)
    wait_for_domains(source, Domain(db, "db", other), Domain(web, "web", UUID))
    wait_until(lambda: read(source, web))
    os.kill(web, signal.SIGSTOP)
    wait_until(lambda: libvirt_source._is_stopped(web), "its stop")
    with pytest.raises(KvmError, match=f"process {web} is stopped"):
        source.read(web, {0, 1})
    wait_until(lambda: read(source, db))
    assert len(source.domains()) == 2
    os.kill(web, signal.SIGCONT)
    wait_until(lambda: read(source, web))
    os.kill(web, signal.SIGKILL)
    wait_for_domains(source, Domain(db, "db", other))
    with pytest.raises(KvmError, match=f"no domain of process {web}$"):
        source.read(web, {0, 1})


@pytest.mark.kvm
@pytest.mark.root
@pytest.mark.slow
def test_a_libvirtd_that_hangs_and_is_restarted(libvirtd: Libvirtd, source: LibvirtSource) -> None:
    """It is one line, and asking goes on with the next libvirtd."""
    pid = libvirtd.create("web")
    domain = Domain(pid, "web", UUID)
    wait_for_domains(source, domain)
    libvirtd.send_signal(signal.SIGSTOP)
    for _ in range(2):
        with pytest.raises(KvmError, match=r"^libvirt: no answer$"):
            source.domains()
    libvirtd.send_signal(signal.SIGCONT)
    wait_for_domains(source, domain)
    libvirtd.kill()
    with pytest.raises(KvmError, match=r"^libvirt: Failed to connect socket to .*refused$"):
        source.domains()
    libvirtd.start()
    wait_for_domains(source, domain)
    wait_until(lambda: read(source, pid))


PROGRAM = """
import sys
from pathlib import Path
from statsfs.kvm.libvirt_source import LibvirtSource
with LibvirtSource(sys.argv[1], Path(sys.argv[2])) as source:
    (domain,) = source.domains()
    print(domain.name, sorted(source.read(domain.pid, {0, 1}).vcpus))
"""


@pytest.mark.kvm
@pytest.mark.root
@pytest.mark.slow
def test_domains_under_the_unit(libvirtd: Libvirtd, source: LibvirtSource) -> None:
    """The capabilities, system calls and address families of the unit are enough."""
    prefix = confined("examples/statsfs.service")
    pid = libvirtd.create("web")
    wait_for_domains(source, Domain(pid, "web", UUID))
    wait_until(lambda: read(source, pid))
    arguments = (libvirtd.uri, libvirtd.state)
    done = run(*prefix, sys.executable, "-c", PROGRAM, *arguments)
    assert (done.stdout, done.stderr) == ("web [0, 1]\n", "")


# A pretended library


class Error(Exception):
    """Its error."""


class Library:
    """A library that answers as it is told."""

    VIR_CONNECT_LIST_DOMAINS_ACTIVE = 1
    VIR_DOMAIN_STATS_VCPU, VIR_DOMAIN_STATS_VM = 8, 128
    VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT = 1 << 29
    libvirtError = Error

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.alive = True
        self.stats: dict[str, Any] = {"vm.pages.cur": 7, "vcpu.2.exits.sum": 5, "vcpu.2.a.max": 1}
        self.flowing = threading.Event()
        self.flowing.set()
        self.opened = 0

    def registerErrorHandler(self, handler: Any, _: None) -> None:
        handler(None, "an error")

    def openReadOnly(self, _: str) -> "Library":
        self.opened += 1
        return self

    def isAlive(self) -> bool:
        return self.alive

    def close(self) -> None:
        raise Error("closed already")

    def _answer(self) -> None:
        self.flowing.wait(DEADLINE)
        if self.errors:
            raise self.errors.pop(0)

    def listAllDomains(self, _: int) -> list[Any]:
        self._answer()
        names = ("web", "starting")
        return [
            SimpleNamespace(name=lambda name=name: name, UUIDString=lambda: UUID, ID=lambda: 3)
            for name in names
        ]

    def lookupByID(self, number: int) -> int:
        assert number == 3
        return number

    def domainListGetStats(self, domains: list[int], what: int, _: int) -> Any:
        self._answer()
        assert (domains, what) == ([3], 136)
        return [(None, self.stats)]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Library:
    """It, in the place of libvirt's."""
    library = Library()
    monkeypatch.setitem(sys.modules, "libvirt", library)
    (tmp_path / "web.pid").write_text(str(os.getpid()))
    return library


@pytest.fixture
def pretended(library: Library, tmp_path: Path) -> Iterator[LibvirtSource]:
    """A source over it, with one domain."""
    with LibvirtSource(state=tmp_path) as source:
        assert source.domains() == [Domain(os.getpid(), "web", UUID)]
        yield source


def test_numbers(pretended: LibvirtSource, library: Library) -> None:
    """Of what libvirt tells, the kernel's; vCPUs in the kernel's order; booleans are integers."""
    library.stats |= {"vcpu.current": 2, "vcpu.10.state": 1, "vcpu.10.exits.sum": 6, "name": "x",
                      "vcpu.10.guest_mode.cur": True}  # fmt: skip
    found = pretended.read(os.getpid(), {4, 0})
    assert found == ({"pages": 7}, {0: {"exits": 5, "a": 1}, 4: {"exits": 6, "guest_mode": 1}})
    assert type(found.vcpus[4]["guest_mode"]) is int


@pytest.mark.parametrize("missing", ["vm.pages.cur", "vcpu.2"])
def test_a_domain_that_tells_nothing(
    missing: str, pretended: LibvirtSource, library: Library
) -> None:
    """As where another question waits for it; and one whose vCPUs are others."""
    with pytest.raises(KvmError, match=r"libvirt tells of 1 vCPU of process \d+, KVM of 2"):
        pretended.read(os.getpid(), {0, 1})
    library.stats = {k: v for k, v in library.stats.items() if not k.startswith(missing)}
    with pytest.raises(KvmError, match=f"libvirt tells nothing of process {os.getpid()} now"):
        pretended.read(os.getpid(), {0})


def test_errors_are_one_line(pretended: LibvirtSource, library: Library) -> None:
    """They are cut; a connection that was lost is opened again, once."""
    library.errors = [Error("Domain not found:\n" + "x" * 1000)]
    with pytest.raises(KvmError, match=r"^libvirt: Domain not found: x{100,200}$"):
        pretended.read(os.getpid(), {0})
    assert library.opened == 1
    library.alive = False
    library.errors = [Error("Broken pipe")]
    assert pretended.read(os.getpid(), {0}).vm == {"pages": 7}
    assert library.opened == 2
    library.errors = [Error("Broken pipe"), Error("Connection refused")]
    with pytest.raises(KvmError, match=r"^libvirt: Connection refused$"):
        pretended.domains()


def test_few_questions_wait(
    pretended: LibvirtSource, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Domains that do not answer leave libvirtd threads for others."""
    monkeypatch.setattr(libvirt_source, "_PATIENCE", 0.01)
    library.flowing.clear()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(pretended.read, os.getpid(), {0}) for _ in range(4)]
        wait_until(lambda: pretended._waiting._value == 0)
        with pytest.raises(KvmError, match=r"^libvirt: 4 questions wait for an answer$"):
            pretended.read(os.getpid(), {0})
        library.flowing.set()
        for one in waiting:
            one.result(DEADLINE)


def test_connections_of_two_threads(pretended: LibvirtSource, library: Library) -> None:
    """One that was lost is dropped by the first that notices, and used by all no more."""

    def lose(connection: Any) -> int:
        if library.opened == 1:
            pretended._connection = other
            library.opened += 1
            raise Error("Broken pipe")
        return 5

    other, library.alive = Library(), False
    assert pretended._ask(lose) == 5
    assert pretended._connection is other


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to install it."""
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(KvmError, match=r"^libvirt needs libvirt-python: pip install 'statsfs\["):
        LibvirtSource()


def test_a_process_that_has_ended(library: Library, tmp_path: Path) -> None:
    """It is not stopped; what libvirt says of it is said."""
    with subprocess.Popen(["true"]) as ended:
        pass
    (tmp_path / "web.pid").write_text(str(ended.pid))
    with LibvirtSource(state=tmp_path) as source:
        source.domains()
        library.errors = [Error("Domain not found")]
        with pytest.raises(KvmError, match="Domain not found"):
            source.read(ended.pid, {0})


def test_nothing_is_asked_until_somebody_does(library: Library) -> None:
    """Nor is there a connection to close."""
    LibvirtSource().close()
    assert not library.opened

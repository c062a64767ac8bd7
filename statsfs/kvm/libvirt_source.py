"""The numbers of libvirt's running domains, over its read-only socket, which changes nothing.

Owns the connection to libvirtd, which may be restarted; which process a domain is; and how many
questions wait for an answer. libvirt has the kernel's values but for histograms.
Threading: any thread. `read` waits as long as its domain does not answer, so each domain is read in
a thread of its own; `domains` does not wait long.
"""

import contextlib
import importlib
import re
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from statsfs.exceptions import KvmError
from statsfs.model.counts import count_of

__all__ = ["Domain", "LibvirtNumbers", "LibvirtSource"]

_T = TypeVar("_T")

# Where libvirtd writes which process a domain is.
_STATE: Final = Path("/run/libvirt/qemu")
# Questions that wait for an answer: a QEMU that hangs holds one of the 20 threads of libvirtd, in
# which others have a part, and of the 5 that a client may use (max_workers, max_client_requests).
_WAITING: Final = 4
_PATIENCE: Final = 0.5  # seconds to wait for another question's end, and for the domains
# The suffix is the kind: cumulative, instant, peak.
_VM: Final = re.compile(r"vm\.(\w+)\.(?:sum|cur|max)")
_VCPU: Final = re.compile(r"vcpu\.(\d+)\.(\w+)\.(?:sum|cur|max)")


@dataclass(frozen=True, slots=True)
class Domain:
    """A running domain: its process, name and UUID."""

    pid: int
    name: str
    uuid: str


class LibvirtNumbers(NamedTuple):
    """The numbers of a domain by the kernel's names, of the VM and of each vCPU by KVM's number."""

    vm: dict[str, int]
    vcpus: dict[int, dict[str, int]]


class LibvirtSource(AbstractContextManager["LibvirtSource"]):
    """The running domains of one libvirtd; closes as a context.

    Args:
        uri: of libvirtd; it is connected read-only, when something is asked.
        state: the directory where it says which process a domain is.

    Raises:
        KvmError: the library libvirt-python is missing.
    """

    def __init__(self, uri: str = "qemu:///system", state: Path = _STATE) -> None:
        try:
            self._library: Any = importlib.import_module("libvirt")
        except ImportError as error:
            text = f"libvirt needs libvirt-python: pip install 'statsfs[libvirt]' ({error})"
            raise KvmError(text, "libvirt") from error
        # Else it prints each error.
        self._library.registerErrorHandler(lambda *_: None, None)
        self._uri = uri
        self._state = state
        self._lock = threading.Lock()  # of what follows; no question is asked under it
        self._connection: Any = None
        self._listing: Future[list[Domain]] | None = None
        self._waiting = threading.Semaphore(_WAITING)
        # By process libvirt's number: a domain that is started anew has another.
        self._ids: dict[int, int] = {}

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(self._library.libvirtError):
                connection.close()

    def domains(self) -> list[Domain]:
        """Return the running domains; KvmError if libvirtd does not tell soon."""
        with self._lock:
            listing, begun = self._listing, False
            if listing is None:
                listing, begun = Future(), True
                self._listing = listing
        if begun:
            # A daemon thread: one that waits for ever does not keep the program from ending.
            threading.Thread(target=self._list, args=(listing,), daemon=True).start()
        try:
            return listing.result(_PATIENCE if begun else 0)
        except TimeoutError:
            raise KvmError("libvirt: no answer", self._uri) from None

    def _list(self, listing: "Future[list[Domain]]") -> None:
        active = self._library.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        try:
            domains = self._ask(lambda connection: connection.listAllDomains(active))
            found = dict(filter(None, map(self._identify, domains)))
            self._ids = {domain.pid: number for number, domain in found.items()}
        except Exception as error:
            self._listing = None
            listing.set_exception(error)
        else:
            self._listing = None
            listing.set_result(list(found.values()))

    def _identify(self, domain: Any) -> tuple[int, Domain] | None:
        try:
            pid = int((self._state / f"{domain.name()}.pid").read_text())
        except (OSError, ValueError):
            return None  # it has just ended, or is starting
        return domain.ID(), Domain(pid, domain.name(), domain.UUIDString())

    def read(self, pid: int, vcpus: Collection[int]) -> LibvirtNumbers:
        """Return the numbers of a domain.

        Args:
            pid: of one of `domains`.
            vcpus: KVM's numbers of the vCPUs that the process has. libvirt counts them from 0, in
                the same order.

        Raises:
            KvmError: the domain or libvirtd does not answer, or tells of other vCPUs.
        """
        number = self._ids.get(pid)
        if number is None:
            raise KvmError(f"libvirt has no domain of process {pid}", pid)
        if _is_stopped(pid):
            raise KvmError(f"process {pid} is stopped", pid)
        stats = self._ask(lambda connection: self._query(connection, number))
        vm, by_index = _split(stats)
        if not vm or not by_index:
            # So libvirt answers while another question waits for the domain.
            raise KvmError(f"libvirt tells nothing of process {pid} now", pid)
        if len(by_index) != len(vcpus):
            told = count_of(len(by_index), "vCPU")
            raise KvmError(f"libvirt tells of {told} of process {pid}, KVM of {len(vcpus)}", pid)
        numbers = (by_index[index] for index in sorted(by_index))
        return LibvirtNumbers(vm, dict(zip(sorted(vcpus), numbers, strict=True)))

    def _query(self, connection: Any, number: int) -> dict[str, Any]:
        library = self._library
        domain = connection.lookupByID(number)
        what = library.VIR_DOMAIN_STATS_VCPU | library.VIR_DOMAIN_STATS_VM
        flags = library.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        return dict(connection.domainListGetStats([domain], what, flags)[0][1])

    def _ask(self, question: Callable[[Any], _T]) -> _T:
        # Once more if libvirtd was restarted, which only a question shows.
        with self._turn():
            connection = self._connect()
            try:
                return question(connection)
            except self._library.libvirtError as error:
                if connection.isAlive():
                    raise self._summarize(error) from error
            if self._connection is connection:
                self._connection = None
            try:
                return question(self._connect())
            except self._library.libvirtError as error:
                raise self._summarize(error) from error

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._waiting.acquire(timeout=_PATIENCE):
            raise KvmError(f"libvirt: {_WAITING} questions wait for an answer", self._uri)
        try:
            yield
        finally:
            self._waiting.release()

    def _connect(self) -> Any:
        connection = self._connection
        if connection is None:
            # Two threads may do so; the second one's is closed when it is forgotten.
            try:
                connection = self._connection = self._library.openReadOnly(self._uri)
            except self._library.libvirtError as error:
                raise self._summarize(error) from error
        return connection

    def _summarize(self, error: Exception) -> KvmError:
        words = str(error).split()
        return KvmError(f"libvirt: {' '.join(words)[:200]}", self._uri)


def _is_stopped(pid: int) -> bool:
    # By a signal or a debugger: a question would hold a thread of libvirtd until it goes on.
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "Tt"
    return False


def _split(stats: dict[str, Any]) -> tuple[dict[str, int], dict[int, dict[str, int]]]:
    vm: dict[str, int] = {}
    vcpus: dict[int, dict[str, int]] = {}
    for key, number in stats.items():
        if found := _VM.fullmatch(key):
            vm[found[1]] = int(number)
        elif found := _VCPU.fullmatch(key):
            vcpus.setdefault(int(found[1]), {})[found[2]] = int(number)
    return vm, vcpus

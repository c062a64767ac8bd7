"""QEMU's virtual machines, queried over QMP: sources for those that run.

Owns which sockets are tried, and when; the sources of each VM, under the names of debugfs
(`<pid>-<fd>/vcpu<n>`); and when a VM is queried: for a reader, and at most once in 100 ms. A VM
that does not answer stays until its connection is lost: its query waits, its readers do not.
Threading: one thread's asyncio loop connects, queries, and changes the tree. Refreshes come from
other threads, and wait for it.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

from statsfs.exceptions import DuplicateNameError, QmpError, StatsfsError
from statsfs.kvm import qmp_sockets
from statsfs.kvm.qmp_answers import AnswerParser
from statsfs.kvm.values import index_values, make_values
from statsfs.model.external import Numbers
from statsfs.model.values import Value
from statsfs.tree.source import Source

if TYPE_CHECKING:
    from statsfs.kvm.qmp import QmpConnection

__all__ = ["QemuMonitor"]

log = logging.getLogger(__name__)

_RESCAN: Final = 1.0  # seconds between two looks for sockets
_RETRY: Final = 10.0  # seconds until the next try of a socket that failed
_SETUP: Final = 5.0  # seconds that a VM may take to describe itself
_FRESH: Final = 0.1  # seconds for which numbers are new enough
# Seconds that a refresh waits. Readers wait for one second; but if the VM goes on later, its files
# return without another reader.
_PATIENCE: Final = 60.0


class _Target:
    # A VM or a vCPU: its source, and the base of its values.
    __slots__ = ("_numbers", "_parser", "source", "values")

    def __init__(self, source: Source, parser: AnswerParser) -> None:
        self.source = source
        self.values = make_values(parser.descriptors)
        self._parser = parser
        self._numbers = Numbers(index_values(self.values))
        source.add_values(self.values, self._numbers)

    def take(self, stats: Mapping[str, Any]) -> None:
        self._numbers.take(self._parser.row(stats))


class _Vm:
    # A running VM: its sources and its connection. All methods belong to the loop but `_refresh`,
    # which brings the numbers up to date for any other thread.

    def __init__(self, connection: "QmpConnection", fd: int) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._vcpus: dict[str, _Target] = {}  # by qom-path
        self._plugging: asyncio.Task[None] | None = None
        self._lock = threading.Lock()  # of what `refresh` shares with the loop
        self._answer: Future[None] | None = None
        self._answered = 0.0
        self._ended = False
        self.source = Source(f"{connection.pid}-{fd}", label="vm", refresh=self._refresh)

    async def describe(self) -> list[tuple[Value, ...]]:
        """Query what it has, and make the sources; return the arrays of a VM and of a vCPU."""
        schemas = await self._connection.query_schemas()
        vm, vcpus = await self._query()
        if not vcpus or not {"vm", "vcpu"} <= schemas.keys():
            raise QmpError(f"{self._connection.path}: no KVM statistics", self._connection.path)
        self._vcpu_parser = AnswerParser(schemas["vcpu"], next(iter(vcpus.values())))
        self._vm = _Target(self.source, AnswerParser(schemas["vm"], vm))
        self._vm.take(vm)
        self._arrange(await self._connection.query_cpus(), vcpus)
        return [self._vm.values, make_values(self._vcpu_parser.descriptors)]

    async def _query(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        # The numbers of the VM, and of each vCPU by its qom-path.
        vm = await self._connection.query_stats("vm")
        return vm.get("", {}), await self._connection.query_stats("vcpu")

    def _arrange(self, numbers: Mapping[str, int], stats: Mapping[str, Any]) -> None:
        # Makes and removes the sources of vCPUs: a vCPU has a number and statistics.
        for path in self._vcpus.keys() - stats.keys():
            self.source.remove_subordinate(self._vcpus.pop(path).source)
        new = stats.keys() & numbers.keys() - self._vcpus.keys()
        for path in sorted(new, key=lambda path: numbers[path]):
            with Source("vcpu%d", numbers[path], label="vcpu") as source:
                vcpu = _Target(source, self._vcpu_parser)
                vcpu.take(stats[path])
                self.source.add_subordinate(source)
            self._vcpus[path] = vcpu

    def _refresh(self) -> None:
        # Waits for the query that is under way, however long, or was answered just now, or a new
        # one. The age of numbers counts from the answer: on a host where a query takes longer than
        # `_FRESH`, each file of a `grep -r` would start another.
        with self._lock:
            answer = self._answer
            old = time.monotonic() - self._answered >= _FRESH
            if answer is None or (answer.done() and old):
                if self._ended:
                    raise QmpError("the VM has ended", self.source)
                answer = asyncio.run_coroutine_threadsafe(self._take(), self._loop)
                self._answer = answer
        try:
            answer.result(_PATIENCE)
        except TimeoutError:
            raise QmpError(f"no answer within {_PATIENCE:g} s", self.source) from None

    async def _take(self) -> None:
        try:
            vm, vcpus = await self._query()
            self._vm.take(vm)
            for path in vcpus.keys() & self._vcpus.keys():
                self._vcpus[path].take(vcpus[path])
        finally:
            self._answered = time.monotonic()
        if vcpus.keys() != self._vcpus.keys() and self._plugging is None:
            # In its own task: a change of the tree may wait for a reader, which waits for this.
            self._plugging = asyncio.create_task(self._plug(vcpus))

    async def _plug(self, stats: Mapping[str, Any]) -> None:
        # A vCPU was plugged or unplugged.
        try:
            self._arrange(await self._connection.query_cpus(), stats)
        except StatsfsError as error:
            log.info("%s: cannot update the vCPUs: %s", self.source.path, error)
        finally:
            self._plugging = None

    async def end(self) -> None:
        """Close the connection, which ends all refreshes, and put the source."""
        with self._lock:
            self._ended = True
        await self._connection.close()
        self.source.put()


class QemuMonitor(AbstractContextManager["QemuMonitor"]):
    """The running VMs behind some QMP sockets, as subordinates of a source; closes as a context.

    The monitor looks for sockets every second, and a VM that ends is gone at once. A socket that
    cannot be used, as it has another client or an unsafe directory, is logged once, and tried again
    every 10 s. The first VM declares the totals, which stay.

    Args:
        kvm: the source of the VMs.
        sockets: paths of QMP sockets, and patterns for such paths; they need not exist yet. QMP
            serves one client, so each VM needs a socket that other programs do not use.

    Raises:
        ModuleNotFoundError: the library qemu.qmp is missing.
        QmpError: a path is refused, see `qmp_sockets.check_path`.
    """

    def __init__(self, kvm: Source, sockets: Iterable[str]) -> None:
        try:
            from statsfs.kvm import qmp
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "qemu":
                raise
            text = "QMP needs the library qemu.qmp: pip install 'statsfs[kvm]'"
            raise ModuleNotFoundError(text, name="qemu.qmp") from error
        self._qmp = qmp
        self._kvm = kvm
        self._patterns = tuple(sockets)
        for path in self._patterns:
            qmp_sockets.check_path(path)
        self._found: set[qmp_sockets.FoundSocket] = set()
        self._tasks: dict[qmp_sockets.FoundSocket, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_note_loop_error)
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="statsfs-qemu", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the VMs, close the connections, end the thread; closing again does nothing."""
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._watch())

    async def _watch(self) -> None:
        while not self._stop.is_set():
            self._found = qmp_sockets.find_sockets(self._patterns)
            self._tasks = {key: task for key, task in self._tasks.items() if not task.done()}
            for key in self._found - self._tasks.keys():
                self._tasks[key] = asyncio.create_task(self._attend(key))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _RESCAN)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _attend(self, socket: qmp_sockets.FoundSocket) -> None:
        # As long as the socket is there: shows its VM to its end, and tries again.
        next_try, reported = 0.0, ""
        while socket in self._found:
            if time.monotonic() >= next_try:
                next_try, failure = time.monotonic() + _RETRY, ""
                try:
                    await self._show(socket.path)
                except self._qmp.NoListenerError:
                    next_try, failure = 0.0, reported
                except TimeoutError:
                    failure = f"{socket.path}: no answer within {_SETUP:g} s"
                except StatsfsError as error:
                    failure = str(error)
                if failure not in ("", reported):
                    log.warning("%s; tried again every %g s", failure, _RETRY)
                reported = failure
            await asyncio.sleep(_RESCAN)

    async def _show(self, path: str) -> None:
        # From the connection to the end of the VM.
        connection = await self._qmp.QmpConnection.open(qmp_sockets.check_directories(path))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(connection.close)
            vm = _Vm(connection, qmp_sockets.find_vm(connection.pid))
            stack.push_async_callback(vm.end)
            # Not wait_for: that of Python 3.11 may swallow a cancellation.
            async with asyncio.timeout(_SETUP):
                described = await vm.describe()
            for values in described:
                with suppress(DuplicateNameError):  # declared already
                    self._kvm.add_values(values, None)
            self._kvm.add_subordinate(vm.source)
            stack.callback(self._remove, vm.source)
            await connection.wait_closed()

    def _remove(self, source: Source) -> None:
        with suppress(StatsfsError):  # the program has removed it, or the whole of `kvm`
            self._kvm.remove_subordinate(source)


def _note_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # When a peer hangs up, qemu.qmp leaves futures behind whose error nobody asks for. What went
    # wrong is told by the call that failed.
    log.debug("%s: %r", context["message"], context.get("exception"))

"""QEMU's virtual machines, asked over QMP: sources for those that run.

Owns which sockets are tried, when and how often; the sources of each VM and its vCPUs, under the
names of debugfs (`<pid>-<fd>/vcpu<n>`); and when a VM is asked: when somebody reads, and not again
for 100 ms. How it is asked is the business of `qmp`, what may be asked that of `sockets`,
clearing that of `baselines`.

A VM that does not answer, stopped or stuck, stays: its request waits until it goes on, its readers
do not. One whose connection is lost is gone, and its sources with it.

Threading: all VMs share one thread, whose asyncio loop opens and closes their connections, asks,
and changes the tree. Refreshes come from any threads, and wait for it.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from statsfs.closings import Closing
from statsfs.exceptions import DuplicateNameError, QmpError, StatsfsError
from statsfs.kvm.qmp_answers import Shape
from statsfs.kvm.qmp_sockets import (
    FoundSocket,
    check_directories,
    check_path,
    find_sockets,
    find_vm,
    is_pattern,
)
from statsfs.kvm.values import index_values, make_values
from statsfs.model.external import Numbers
from statsfs.model.values import Value
from statsfs.tree.source import Source

if TYPE_CHECKING:
    from statsfs.kvm.qmp import QmpConnection

__all__ = ["QemuMonitor"]

log = logging.getLogger(__name__)

_RESCAN: Final = 1.0  # seconds between two looks for sockets
_RETRY: Final = 10.0  # seconds until a socket that could not be used is tried again
_SETUP: Final = 5.0  # seconds that a VM may take to say what it has
_FRESH: Final = 0.1  # seconds for which numbers are new enough
# Seconds that a refresh waits: its readers wait for one, but if a VM goes on meanwhile, its files
# return without another reader.
_PATIENCE: Final = 60.0


class _Counted:
    # One VM or one vCPU: a source, and the base that its numbers go to.

    __slots__ = ("numbers", "source")

    def __init__(self, source: Source, values: tuple[Value, ...]) -> None:
        self.source = source
        self.numbers = Numbers(index_values(values))
        source.add_values(values, self.numbers)


class _Vm:
    # A running VM: its sources and its connection. All methods but `refresh` belong to the loop.

    def __init__(self, connection: "QmpConnection", fd: int) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._vcpus: dict[str, _Counted] = {}  # by qom-path
        self._plugging: asyncio.Task[None] | None = None
        # What `refresh` shares with the loop.
        self._lock = threading.Lock()
        self._answer: Future[None] | None = None
        self._answered = 0.0
        self._ended = False
        self.source = Source(
            "%d-%d", connection.pid, fd, label="vm", refresh=self.refresh, blocking=True
        )

    async def describe(self) -> list[tuple[Value, ...]]:
        """Ask what it has, and make the sources; return the arrays of a VM and of a vCPU."""
        schemas = await self._connection.query_schemas()
        vm, vcpus = await self._query()
        if not vcpus or not {"vm", "vcpu"} <= schemas.keys():
            raise QmpError(f"{self._connection.path}: no statistics of KVM", self._connection.path)
        self._vm_shape = Shape(schemas["vm"], vm)
        self._vcpu_shape = Shape(schemas["vcpu"], next(iter(vcpus.values())))
        shapes = self._vm_shape, self._vcpu_shape
        vm_values, self._vcpu_values = (make_values(shape.descriptors) for shape in shapes)
        self._vm = _Counted(self.source, vm_values)
        self._vm.numbers.take(self._vm_shape.row(vm))
        self._arrange(await self._connection.query_cpus(), vcpus)
        return [vm_values, self._vcpu_values]

    async def _query(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        # What was counted, of the VM, and of each vCPU by its qom-path.
        vm = await self._connection.query_stats("vm")
        return vm.get("", {}), await self._connection.query_stats("vcpu")

    def _arrange(self, numbers: Mapping[str, int], stats: Mapping[str, Any]) -> None:
        # Makes and removes the sources of vCPUs: those that there are have a number and statistics.
        for path in self._vcpus.keys() - stats.keys():
            self.source.remove_subordinate(self._vcpus[path].source)
            del self._vcpus[path]
        new = stats.keys() & numbers.keys() - self._vcpus.keys()
        for path in sorted(new, key=lambda path: numbers[path]):
            with Source("vcpu%d", numbers[path], label="vcpu") as source:
                vcpu = _Counted(source, self._vcpu_values)
                vcpu.numbers.take(self._vcpu_shape.row(stats[path]))
                self.source.add_subordinate(source)
            self._vcpus[path] = vcpu

    # Asking

    def refresh(self) -> None:
        """Have the numbers brought up to date; called in any thread but the loop's."""
        try:
            self._ask().result(_PATIENCE)
        except TimeoutError:
            raise QmpError(f"no answer within {_PATIENCE:g} s", self.source) from None

    def _ask(self) -> "Future[None]":
        # The request that is under way, or was answered just now, or a new one. One that a VM does
        # not answer stays the only one, and is answered when the VM goes on. How old numbers are
        # is counted from the answer: on a host so busy that asking takes longer than they count as
        # new, each file of a `grep -r` would else ask once more.
        with self._lock:
            answer = self._answer
            old = time.monotonic() - self._answered >= _FRESH
            if answer is None or (answer.done() and old):
                if self._ended:
                    raise QmpError("the VM has ended", self.source)
                answer = asyncio.run_coroutine_threadsafe(self._answer_one(), self._loop)
                self._answer = answer
            return answer

    async def _answer_one(self) -> None:
        try:
            await self._take()
        finally:
            self._answered = time.monotonic()

    async def _take(self) -> None:
        vm, vcpus = await self._query()
        self._vm.numbers.take(self._vm_shape.row(vm))
        for path in vcpus.keys() & self._vcpus.keys():
            self._vcpus[path].numbers.take(self._vcpu_shape.row(vcpus[path]))
        if vcpus.keys() != self._vcpus.keys() and self._plugging is None:
            # Not here, as changing the tree may wait for readers, and one waits for this.
            self._plugging = asyncio.create_task(self._plug(vcpus))

    async def _plug(self, stats: Mapping[str, Any]) -> None:
        # A vCPU was plugged or unplugged.
        try:
            self._arrange(await self._connection.query_cpus(), stats)
        except StatsfsError as error:
            log.info("%s: its vCPUs are not followed: %s", self.source.path, error)
        finally:
            self._plugging = None

    async def end(self) -> None:
        """Ask no more; close the connection, and let nobody wait any longer."""
        with self._lock:
            self._ended = True
        await self._connection.close()
        self.source.put()


class _Attempt:
    # What is known of a socket, and the task that is about it.

    __slots__ = ("next_try", "said", "task")

    def __init__(self) -> None:
        self.next_try = 0.0
        self.said = ""
        self.task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self.task is not None and not self.task.done()


class QemuMonitor(Closing):
    """The running VMs behind some QMP sockets, as subordinates of a source; closes as a context.

    VMs come and go by themselves: the sockets are looked for every second, and a VM that ends is
    gone at once. A socket that cannot be used, for it has another client, or lies where others can
    write, is said so once in the log, and tried again every 10 s.

    Args:
        kvm: where the VMs are put. Their totals are declared there with the first of them, and
            stay.
        sockets: paths of QMP sockets, and patterns for such paths; they need not be there yet. A
            socket that other programs use is none for us: QMP serves one client.

    Raises:
        ModuleNotFoundError: the library qemu.qmp is missing; the message says how to install it.
        QmpError: others can write in the directory of a path, or above it; or what is there is no
            socket, or not to be seen by this process's user.
    """

    def __init__(self, kvm: Source, sockets: Iterable[str]) -> None:
        try:
            from statsfs.kvm import qmp
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "qemu":
                raise
            text = "asking QEMU needs qemu.qmp: pip install 'statsfs[kvm]'"
            raise ModuleNotFoundError(text, name="qemu.qmp") from error
        self._qmp = qmp
        self._kvm = kvm
        self._patterns = tuple(sockets)
        for path in self._patterns:
            if not is_pattern(path):
                check_path(path)
        self._declared: set[tuple[Value, ...]] = set()
        self._attempts: dict[FoundSocket, _Attempt] = {}
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="statsfs-qemu", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise

    def close(self) -> None:
        """Remove the VMs, close the connections, end the thread; closing again does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # All that follows belongs to the thread.

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._watch())

    async def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            try:
                await asyncio.wait_for(self._stop.wait(), _RESCAN)
            except TimeoutError:
                pass
        tasks = [attempt.task for attempt in self._attempts.values() if attempt.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _look(self) -> None:
        # Begins with what is new, and with what is to be tried again.
        found = find_sockets(self._patterns)
        for key in [key for key, attempt in self._attempts.items() if not attempt.busy]:
            if key not in found:
                del self._attempts[key]
        now = time.monotonic()
        for key in found:
            attempt = self._attempts.setdefault(key, _Attempt())
            if not attempt.busy and now >= attempt.next_try:
                attempt.task = asyncio.create_task(self._attend(key.path, attempt))

    async def _attend(self, path: str, attempt: _Attempt) -> None:
        # From the connection to the end of the VM.
        attempt.next_try = time.monotonic() + _RETRY
        try:
            connection = await self._qmp.QmpConnection.open(check_directories(path))
        except self._qmp.NoListenerError:
            attempt.next_try = 0.0
            return
        except QmpError as error:
            self._fail(attempt, str(error))
            return
        try:
            await self._show(connection, attempt)
        except TimeoutError:
            self._fail(attempt, f"{path}: no answer within {_SETUP:g} s")
        except StatsfsError as error:
            self._fail(attempt, str(error))

    def _fail(self, attempt: _Attempt, text: str) -> None:
        if text != attempt.said:
            log.warning("%s; tried again every %g s", text, _RETRY)
            attempt.said = text

    async def _show(self, connection: "QmpConnection", attempt: _Attempt) -> None:
        try:
            vm = _Vm(connection, find_vm(connection.pid))
        except BaseException:
            await connection.close()
            raise
        try:
            for values in await asyncio.wait_for(vm.describe(), _SETUP):
                self._declare(values)
            self._kvm.add_subordinate(vm.source)
            attempt.said = ""
            try:
                await connection.wait_closed()
            finally:
                self._remove(vm.source)
        finally:
            await vm.end()

    def _declare(self, values: tuple[Value, ...]) -> None:
        if values in self._declared:
            return
        self._declared.add(values)
        try:
            self._kvm.add_values(values, None)
        except DuplicateNameError:
            pass  # declared already, by who made the source

    def _remove(self, source: Source) -> None:
        try:
            self._kvm.remove_subordinate(source)
        except StatsfsError:
            pass  # somebody else did, or the whole of `kvm` is gone

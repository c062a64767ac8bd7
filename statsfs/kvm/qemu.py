"""QEMU's virtual machines, queried over QMP: sources for those that run.

Owns which sockets are tried, and when. Threading: one thread's asyncio loop connects, queries, and
changes the tree.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from statsfs.exceptions import DuplicateNameError, KvmError, StatsfsError
from statsfs.kvm import qmp_sockets, scanning
from statsfs.kvm.kept import KeptVm
from statsfs.kvm.kept_qemu import KeptQemu
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.values import make_values
from statsfs.model.locking import Flag
from statsfs.model.values import Value
from statsfs.tree.index import ClearRecorder
from statsfs.tree.placement import replace
from statsfs.tree.source import Source

if TYPE_CHECKING:
    from statsfs.kvm.qemu_vm import QemuVm
    from statsfs.kvm.qmp_channel import QmpChannel

__all__ = ["QemuMonitor"]

log = logging.getLogger(__name__)

_RESCAN: Final = 1.0  # seconds between two looks for sockets
_RETRY: Final = 10.0  # seconds until the next try of a socket that failed
_SETUP: Final = 5.0  # seconds that a VM may take to describe itself
_FROZEN: Final = 5.0  # seconds for which readers get old numbers while the mounts are swapped
_RESTING: Final = 0.5  # seconds for the queries under way when a successor comes
_CONNECTING: Final = 0.5  # seconds that a successor waits until it reads the same VMs


class _Shown(NamedTuple):
    # A VM in the tree, its socket, and when its process began.
    vm: "QemuVm"
    channel: "QmpChannel"
    began: int | None


class QemuMonitor(AbstractContextManager["QemuMonitor"]):
    """The running VMs behind some QMP sockets, as subordinates of a source; closes as a context.

    The monitor looks for sockets every second, and a VM that ends is gone at once. A socket that
    cannot be used, as it has another client or an unsafe directory, is logged once, and tried again
    every 10 s. The totals of all that this kernel counts are declared at once, or by the first VM
    where /dev/kvm cannot be used; they stay.

    >>> from statsfs.kvm.qemu import QemuMonitor
    >>> kvm = Source("kvm")
    >>> with QemuMonitor(kvm, ["/run/vms/*.qmp"]):
    ...     kvm.subordinates  # until there is such a socket
    ()

    Args:
        kvm: the source of the VMs.
        sockets: paths of QMP sockets, and patterns for such paths; they need not exist yet. QMP
            serves one client, so each VM needs a socket that other programs do not use.
        recorder: that of all sources.
        held: whether to connect to nothing yet, until `begin`: another process is connected.

    Raises:
        ModuleNotFoundError: the library qemu.qmp is missing.
        QmpError: a path leads to something else than a safe socket, a pattern or nothing.
    """

    def __init__(
        self,
        kvm: Source,
        sockets: Iterable[str],
        recorder: ClearRecorder | None = None,
        held: bool = False,
    ) -> None:
        try:
            from statsfs.kvm import qemu_vm, qmp, qmp_channel
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "qemu":
                raise
            text = "QMP needs the library qemu.qmp: pip install 'statsfs[kvm]'"
            raise ModuleNotFoundError(text, name="qemu.qmp") from error
        self._qmp, self._channel_module, self._vms = qmp, qmp_channel, qemu_vm
        self._kvm = kvm
        self._warned: set[str] = set()
        self._patterns = tuple(sockets)
        for path in self._patterns:
            qmp_sockets.check_path(path)
            self._warn(path)
        with suppress(KvmError), OwnVm() as own:
            self._declare(make_values(one.descriptors) for one in (own.vm, own.vcpu))
        self._found: dict[qmp_sockets.FoundSocket, int] = {}
        self._tasks: dict[qmp_sockets.FoundSocket, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_note_loop_error)
        self._stop = asyncio.Event()
        self._recorder = recorder
        self._shown: dict[str, _Shown] = {}
        self._channels: set[QmpChannel] = set()
        self._kept: dict[str, KeptQemu] = {}
        self._whole = Flag()  # set when all are read that the process before this one read
        self._free = asyncio.Event()  # not set while the tree must stay as it is
        if not held:
            self._free.set()
        self._left = False
        self._thread = threading.Thread(target=self._run, name="statsfs-qemu", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            raise

    def __exit__(self, *error: object) -> None:
        self.close()

    # Takeovers

    def hold(self) -> None:
        """Leave the tree as it is until `go_on` or `leave`, and its numbers for a while.

        Nothing is connected any more.

        Raises:
            KvmError: that takes too long.
        """
        # Not by the coroutine: it begins later, perhaps after what a `go_on` has called.
        self._loop.call_soon_threadsafe(self._free.clear)
        try:
            asyncio.run_coroutine_threadsafe(self._hold(), self._loop).result(_SETUP)
        except TimeoutError as error:
            raise KvmError("its VMs cannot be handed over: QMP is busy", self) from error

    async def _hold(self) -> None:
        self._freeze(time.monotonic() + _FROZEN)
        resting = [asyncio.create_task(channel.rest()) for channel in self._channels]
        if resting:
            await asyncio.wait(resting, timeout=_RESTING)

    def _freeze(self, until: float) -> None:
        for shown in list(self._shown.values()):
            shown.vm.freeze(until)

    def keep(self) -> list[KeptVm]:
        """Return each VM's record for the next process, while this is held."""
        kept = []
        for name, (vm, channel, began) in self._shown.items():
            arrays = vm.arrays
            names = [*map(_name, arrays)]
            known = (names[0], names[1])
            kept.append(
                KeptVm(
                    name,
                    channel.pid,
                    began,
                    "qmp",
                    "",
                    name,
                    True,
                    known,
                    known,
                    {},
                    vm.keep(),
                    channel.path,
                    arrays,
                )
            )
        return kept

    def go_on(self) -> None:
        """Query again, and show what comes."""
        self._freeze(0.0)
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._free.set)

    def leave(self) -> None:
        """Query nothing any more, and show nothing new: another process does."""
        self._left = True
        for shown in list(self._shown.values()):
            shown.vm.leave()
        self.go_on()

    def adopt(self, kept: KeptVm) -> None:
        """Show a VM as the process before this one did until it is connected; before `begin`.

        Of a VM behind none of the sockets only the clears are kept.
        """
        vm = self._kept[kept.name] = KeptQemu(kept, self._recorder)
        if vm.socket in {one.path for one in qmp_sockets.find_sockets(self._patterns)}:
            self._kvm.add_subordinate(vm.source)

    def begin(self) -> None:
        """Connect, and wait a moment for the VMs that were adopted."""
        self._forget_ended()
        self.go_on()
        if any(map(self._shows, self._kept.values())):
            self._whole.wait(_CONNECTING)

    def _shows(self, vm: KeptQemu) -> bool:
        return vm.source.parent is self._kvm

    def _forget_ended(self) -> None:
        for name, vm in list(self._kept.items()):
            if not vm.runs():
                self._drop(name, vm)

    def _drop(self, name: str, vm: KeptQemu) -> None:
        del self._kept[name]
        self._remove(vm.source)
        vm.source.put()

    def close(self) -> None:
        """Remove the VMs, close the connections, end the thread; closing again does nothing.

        >>> monitor = QemuMonitor(Source("kvm"), ["/run/vms/*.qmp"])
        >>> monitor.close()
        """
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._watch())

    async def _watch(self) -> None:
        await self._wait_until_free()
        while not self._stop.is_set():
            self._forget_ended()
            self._found = qmp_sockets.find_sockets(self._patterns)
            self._tasks = {key: task for key, task in self._tasks.items() if not task.done()}
            for key in self._found.keys() - self._tasks.keys():
                self._tasks[key] = asyncio.create_task(self._attend(key))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _RESCAN)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for name, kept in list(self._kept.items()):
            self._drop(name, kept)

    async def _wait_until_free(self) -> None:
        waits = [asyncio.create_task(one.wait()) for one in (self._free, self._stop)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def _attend(self, socket: qmp_sockets.FoundSocket) -> None:
        # As long as the socket is there: shows its VM to its end, and tries again. Another VM may
        # be there soon after one that was shown, or was not, and on ext4 with the same inode.
        next_try, reported, tried = 0.0, "", 0
        self._warn(socket.path)
        while socket in self._found:
            made = self._found[socket]
            may = self._free.is_set() and not self._left
            if may and (time.monotonic() >= next_try or made != tried):
                next_try, failure, tried = time.monotonic() + _RETRY, "", made
                try:
                    if await self._show(socket.path):
                        next_try = 0.0
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

    async def _show(self, path: str) -> bool:
        # From the connection to the end of the VM; or at once, if a `KvmHost` shows it.
        async with AsyncExitStack() as stack:
            channel = self._channel_module.QmpChannel(qmp_sockets.check_directories(path))
            self._channels.add(channel)
            stack.callback(self._channels.discard, channel)
            stack.push_async_callback(channel.close)
            async with channel.connected():
                fd = qmp_sockets.find_vm(channel.pid)
                began = scanning.find_beginning(channel.pid)
            shown = self._kvm.find(f"{channel.pid}-{fd}")
            if shown is not None and "kvm.source" in shown.info:
                return False
            vm = self._vms.QemuVm(channel, fd, self._recorder)
            stack.push_async_callback(vm.end)
            # Not wait_for: that of Python 3.11 may swallow a cancellation.
            async with asyncio.timeout(_SETUP):
                described = await vm.describe()
            self._declare(described)
            await self._free.wait()
            if self._left:
                return False
            self._place(vm)
            stack.callback(self._remove, vm.source)
            self._shown[vm.source.name] = _Shown(vm, channel, began)
            stack.callback(self._shown.pop, vm.source.name)
            await channel.ended.wait()
            await self._free.wait()
        return True

    def _place(self, vm: "QemuVm") -> None:
        # Puts a VM into the tree, in the place of what the process before this one showed of it.
        kept = self._kept.get(vm.source.name)
        if kept is not None and kept.runs():
            vm.restore(kept.find_baselines)
        if kept is not None and self._shows(kept):
            replace(self._kvm, kept.source, vm.source)
        else:
            self._kvm.add_subordinate(vm.source)
        if kept is not None:
            self._drop(vm.source.name, kept)
        if not any(map(self._shows, self._kept.values())):
            self._whole.set()

    def _declare(self, arrays: Iterable[tuple[Value, ...]]) -> None:
        for values in arrays:
            with suppress(DuplicateNameError):  # declared already
                self._kvm.add_values(values, None)

    def _warn(self, path: str) -> None:
        manager = qmp_sockets.find_manager(path)
        if manager is not None and manager not in self._warned:
            self._warned.add(manager)
            log.warning(
                "%s: a socket of %s, which cannot connect while statsfs is connected; "
                "give each VM one more socket, for statsfs",
                path,
                manager,
            )

    def _remove(self, source: Source) -> None:
        with suppress(StatsfsError):  # the program has removed it, or the whole of `kvm`
            self._kvm.remove_subordinate(source)


def _name(values: tuple[Value, ...]) -> list[str]:
    return [value.name for value in values]


def _note_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # When a peer hangs up, qemu.qmp leaves futures behind whose error nobody asks for. What went
    # wrong is told by the call that failed.
    log.debug("%s: %r", context["message"], context.get("exception"))

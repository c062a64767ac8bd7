"""Every VM of this host, whatever program runs it, with nothing to configure.

Owns which VMs there are, and by which of the ways each is read. KVM's uevents and pidfds tell what
comes and goes; a look every 2 s finds the rest, such as new vCPUs, and reads what nobody reads.
Threading: one thread looks, and changes the tree, under no lock: a change may wait for a reader,
who waits for a pass. Refreshes come from other threads.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Final

from statsfs.exceptions import DuplicateNameError, KvmError
from statsfs.kvm import scanning
from statsfs.kvm.bpf import BpfIterator
from statsfs.kvm.bpf_vms import BpfVms
from statsfs.kvm.capabilities import find_missing
from statsfs.kvm.debugfs_vms import DebugfsVms
from statsfs.kvm.host_vm import HostVm, describe_vm, find_label
from statsfs.kvm.identity import identify
from statsfs.kvm.libvirt_vms import LibvirtVms
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.taken import NEEDED, TakenVms
from statsfs.kvm.told_vms import ToldVms
from statsfs.kvm.uevents import KvmUevent, KvmUevents
from statsfs.kvm.vm_sources import VmSources, read_sections
from statsfs.kvm.ways import FoundVm, MakeWay, Way
from statsfs.tree.index import ClearRecorder
from statsfs.tree.late_refresh import list_at_once
from statsfs.tree.source import Source

__all__ = ["KvmHost"]

log = logging.getLogger(__name__)

_PAUSE: Final = 0.01  # seconds between two looks at least
_LOOK: Final = 2.0  # seconds between two looks where nothing happens
_EAGER: Final = 0.1  # the same while a VM is young: vCPUs have no uevents
_YOUTH: Final = 5.0  # seconds
_SCAN: Final = 30.0  # seconds between two looks at all processes, without BPF
_RETRY: Final = 30.0  # seconds until BPF is tried again that has worked before
# Limits of one user: else one could fill the tree for all.
_VMS: Final = 1024
_VCPUS: Final = 16384
_COMPLAINTS: Final = 1000  # texts that are logged once each


class KvmHost(AbstractContextManager["KvmHost"]):
    """The VMs of this host as subordinates of a source; closes as a context.

    >>> from statsfs.kvm.host import KvmHost
    >>> registry = Registry()
    >>> with KvmHost() as host:
    ...     registry.register(host.source).get_value("exits") >= 0
    True

    Args:
        ways: what makes ways other than BPF and descriptors, the better ones first.
        recorder: that of all sources.
        held: whether to show nothing yet: another process shows the VMs. See `host_takeover`.

    Attributes:
        source: the source, `kvm`, with totals from the beginning; to be registered.

    Raises:
        KvmError: there is no KVM here, or no way to read its statistics.
    """

    def __init__(
        self,
        ways: Sequence[MakeWay] = (LibvirtVms, DebugfsVms),
        recorder: ClearRecorder | None = None,
        held: bool = False,
    ) -> None:
        with OwnVm() as own:
            self._vm, self._vcpu = read_sections(own)
            taken = TakenVms(own.vcpu.data_size, self._complain)
        self._ways: list[Way] = [taken, *(make(self._vm, self._vcpu) for make in ways)]
        self._bpf: BpfVms | None = None
        self._vms: dict[str, HostVm] = {}
        self._files: dict[int, scanning.KvmFiles] = {}
        self._pidfds: dict[int, int] = {}  # by process
        self._told = ToldVms()
        self._unseen: set[str] = set()  # those that uevents told and no look has found yet
        self._own: list[str] = []  # names of VMs of our own, whose uevents have not come yet
        self._young: dict[str, float] = {}  # VMs that uevents told, and until when they are young
        self._unread: dict[str, float] = {}  # VMs that no way reads, and since when
        self._next_try: float | None = None
        self._next_scan = self._tried = 0.0
        self._complaints: set[str] = set()
        self._stopping, self._recorder = False, recorder
        # The number of the last uevent; until when readers get numbers that were handed over.
        self._heard, self._frozen, self._deaf = 0, 0.0, False
        self._turn = threading.Lock()  # to hear and to look; taken while this is held
        self._holding: list[bool] = []
        self._thread = threading.Thread(target=self._run, name="statsfs-kvm", daemon=True)
        with ExitStack() as stack:
            self.source: Final = Source(
                "kvm",
                retain=True,
                collapse=False,
                refresh=self._refresh,
                blocking=False,
                recorder=recorder,
            )
            stack.callback(self.source.put)
            list_at_once(self.source)
            for values in (*self._vm.arrays, *self._vcpu.arrays):
                self.source.add_values(values, None)
            self._poll = stack.enter_context(select.epoll())
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._wake)
            self._uevents = stack.enter_context(KvmUevents())
            for fd in (self._wake, self._uevents.fileno()):
                self._poll.register(fd, select.EPOLLIN)
            stack.callback(self._leave)
            if why_not := self._try_bpf():
                missing = find_missing(NEEDED)
                if missing:
                    text = " and ".join(missing)
                    raise KvmError(f"{why_not}; other ways need {text}", missing)
                self._complain(f"{why_not}: only what other ways can read is shown")
            if held:
                self._holding.append(self._turn.acquire())
                if self._bpf is None:
                    self._find()  # a way that must ask has its answers when it begins
            else:
                self._look()
            self._thread.start()
            self._closing = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the VMs, and end the thread; closing again does nothing.

        >>> host = KvmHost()
        >>> host.close()
        """
        if not self._stopping:
            self._stopping = True
            self.go_on()
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._closing.close()

    def _leave(self) -> None:
        for vm in list(self._vms.values()):
            self._end(vm)
        for way in (self._bpf, *self._ways):
            if way is not None:
                way.close()

    def _wake_up(self) -> None:
        if not self._stopping:  # the number may be another file's by now
            os.eventfd_write(self._wake, 1)

    def _complain(self, text: str) -> None:
        if text not in self._complaints and len(self._complaints) < _COMPLAINTS:
            self._complaints.add(text)
            log.warning("kvm: %s", text)

    # Reading

    def _refresh(self) -> None:
        # For readers of anything here, in line.
        bpf = self._bpf
        if bpf is not None:
            try:
                bpf.refresh()
            except OSError:
                self._wake_up()  # the next look fails, too, and ends it
                raise

    def _refresh_vm(self, vm: HostVm) -> None:
        way = vm.way
        if way is None:
            raise KvmError("no way to read it", vm.name)
        # Again if a look took numbers meanwhile: these may be older than this reader's question.
        for _ in range(2):
            begun = time.monotonic()
            if begun < self._frozen or vm.take(way, way.read(vm.name, vm.which), begun):
                return

    # BPF

    def _try_bpf(self) -> str:
        # Returns why BPF does not work; "" if it does.
        self._tried = time.monotonic()
        try:
            with self._make_own() as own:
                self._bpf = BpfVms(BpfIterator(own), self._wake_up, self._is_behind)
        except KvmError as error:
            return str(error)
        self._next_try = None
        log.info("kvm: all VMs are read by BPF")
        return ""

    def _is_behind(self) -> bool:
        # A successor that hangs must not stop all numbers: nothing is heard meanwhile.
        return not self._deaf and self._uevents.is_behind()

    def _make_own(self) -> OwnVm:
        own = OwnVm()
        self._own.append(f"{threading.get_native_id()}-{own.fd}")
        return own

    def _drop_bpf(self, reason: object) -> None:
        # Tried again at once, but not if that was just done.
        log.warning("kvm: BPF ends: %s", reason)
        assert self._bpf is not None
        self._bpf.close()
        self._bpf = None
        now = time.monotonic()
        self._next_try = max(now, self._tried + _RETRY)
        self._next_scan = now

    def _look_by_bpf(self, hear: Callable[[], object] | None) -> list[FoundVm]:
        if self._next_try is not None and time.monotonic() >= self._next_try:
            self._next_try += _RETRY
            if why_not := self._try_bpf():
                self._complain(f"{why_not}: only what other ways can read is shown")
        if self._bpf is None:
            return []
        try:
            found = self._bpf.look(self._told.names, hear)
            self._unseen -= {one.name for one in found}
            if self._unseen:
                self._unseen.clear()
                with self._make_own() as own:
                    if not self._bpf.finds(own):
                        raise KvmError("KVM was unloaded, and loaded again")
        except OSError as error:
            self._drop_bpf(error)
            return self._look_by_bpf(hear)
        return found

    # Looking

    def _run(self) -> None:
        while True:
            try:
                ready = {fd for fd, _ in self._poll.poll(self._find_pace())}
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                with self._turn:
                    if self._stopping:
                        return
                    if self._uevents.fileno() in ready:
                        self._hear()
                    self._look()
            except Exception:  # else all numbers would be old from now on
                log.exception("kvm: a look failed")
            time.sleep(_PAUSE)

    def _find_pace(self) -> float:
        now = time.monotonic()
        self._young = {name: until for name, until in self._young.items() if until > now}
        return _EAGER if self._young else _LOOK

    def _hear(self) -> None:
        with self._uevents.hear() as (events, overrun):
            self._learn(events, overrun)

    def _learn(self, events: Sequence[KvmUevent], overrun: bool) -> None:
        for event in events:
            if 0 < event.number <= self._heard:
                continue  # the process before this one heard it
            self._heard = event.number
            name = event.name or f"{event.thread}-"  # a kernel without debugfs has no name
            if event.created and name in self._own:
                self._own.remove(name)
            elif event.created:
                self._young[name] = time.monotonic() + _YOUTH
                self._told.create(name)
                self._unseen.add(name)
            elif self._told.destroy(name):
                self._young.pop(name, None)
                # The next VM may have its name, its address and its numbers.
                if self._bpf is not None:
                    self._bpf.forget(name)
                if name in self._vms:
                    self._end(self._vms[name])
        if overrun:
            self._told.lose()
            self._next_scan = 0.0
            self._unseen.add("")

    def _look(self) -> None:
        begun = time.monotonic()
        found = self._find(self._hear)
        self._note_unread(found.keys())
        for vm in list(self._vms.values()):
            if vm.name not in found:
                (self._hide if self._is_there(vm) else self._end_early)(vm)
        for way_found, one in found.values():
            try:
                self._show(way_found, one, begun)
            except Exception:  # one VM that is odd must not hide all others for ever
                log.exception("kvm: %s cannot be shown", one.name)

    def _find(
        self, hear: Callable[[], object] | None = None
    ) -> "dict[str, tuple[Way | BpfVms, FoundVm]]":
        found: dict[str, tuple[Way | BpfVms, FoundVm]] = {}
        for one in self._look_by_bpf(hear):
            assert self._bpf is not None
            found[one.name] = (self._bpf, one)
        if self._bpf is None:
            self._scan()
            for vm in self._vms.values():
                if not self._is_there(vm):
                    with suppress(OSError):  # its last numbers are still there
                        self._refresh_vm(vm)
        else:
            self._files = {}
        for way in self._ways:
            found.update((one.name, (way, one)) for one in way.look(self._files, found.keys()))
        return found

    def _note_unread(self, found: Collection[str]) -> None:
        # A QEMU opens descriptors, and libvirt knows a domain, some time after the VM is made.
        now = time.monotonic()
        named = {files.name(pid): files for pid, files in self._files.items()}
        left = named.keys() - set(found)
        self._unread = {name: self._unread.get(name, now) for name in left}
        for name, since in self._unread.items():
            if now - since >= _YOUTH and self.source.find(name) is None:
                why = (
                    f"{way.name}: {way.find_failure() or way.explain(named[name])}"
                    for way in self._ways
                )
                self._complain(f"{name} is not shown: {'; '.join(why)}")

    def _scan(self) -> None:
        now = time.monotonic()
        if now >= self._next_scan:
            self._next_scan = now + _SCAN
            self._files = scanning.scan()
            return
        pids = {vm.pid for vm in self._vms.values()} | set(self._files)
        threads = {int(name.partition("-")[0]) for name in self._young}
        pids |= {pid for thread in threads if (pid := scanning.find_process(thread))}
        files = ((pid, scanning.find_files(pid)) for pid in pids)
        self._files = {pid: one for pid, one in files if one is not None}

    def _is_there(self, vm: HostVm) -> bool:
        files = self._files.get(vm.pid)
        return files is not None and int(vm.name.partition("-")[2]) in files.vms

    # The tree

    def _show(self, way: "Way | BpfVms", found: FoundVm, begun: float) -> None:
        vm = self._vms.get(found.name)
        if vm is not None and vm.is_another(way, found):
            self._end_early(vm)
            vm = None
        vm = vm or self._make(found)
        if vm is None:
            return
        if vm.way is not way:
            found = vm.read_by(way, found, begun, self._told.names)
        elif way is not self._bpf:
            vm.take(way, found.numbers, begun)
        if vm.sources.vcpus != found.numbers[1].keys():
            try:
                vm.sources.arrange(self._limit(vm, found.numbers[1]))
            finally:
                if isinstance(way, BpfVms):
                    way.bind(found.key, vm.sources)
        elif vm.sources.vcpus and vm.name in self._young and way is self._bpf:
            del self._young[vm.name]  # all vCPUs are there, if no more came since the last look
        if not vm.shown:
            try:
                self.source.add_subordinate(vm.sources.source)
                vm.shown = True
            except DuplicateNameError as error:  # another way that is not ours shows it
                self._complain(str(error))

    def _vms_of(self, user: int | None) -> list[HostVm]:
        return [vm for vm in self._vms.values() if vm.user == user]

    def _limit(self, vm: HostVm, vcpus: Mapping[int, bytes]) -> Mapping[int, bytes]:
        others = sum(len(one.sources.vcpus) for one in self._vms_of(vm.user) if one is not vm)
        if len(vcpus) <= _VCPUS - others:
            return vcpus
        self._complain(f"of user {vm.user} {_VCPUS} vCPUs are shown, and no more")
        return {number: vcpus[number] for number in sorted(vcpus)[: _VCPUS - others]}

    def _make(self, found: FoundVm) -> HostVm | None:
        user = scanning.find_user(found.pid)
        if len(self._vms_of(user)) < _VMS:
            return self._make_shown(found.name, found.pid, user)
        self._complain(f"of user {user} {_VMS} VMs are shown, and no more")
        return None

    def _make_shown(self, name: str, pid: int, user: int | None, label: str = "") -> HostVm:
        identity = identify(pid)
        label = label or find_label(name, identity, self._vms.values())
        vm: HostVm
        sources = VmSources(
            name,
            self._vm,
            self._vcpu,
            label_value=label,
            refresh=lambda: self._refresh_vm(vm),
            recorder=self._recorder,
        )
        info = describe_vm(pid, identity)
        vm = HostVm(name, pid, scanning.find_beginning(pid), user, label, sources, info)
        self._vms[name] = vm
        if pid not in self._pidfds:
            with suppress(OSError):
                pidfd = self._pidfds[pid] = os.pidfd_open(pid)
                # Once: until its VMs are gone it would go on.
                self._poll.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        return vm

    def _hide(self, vm: HostVm) -> None:
        # It runs on, but nothing can read it now: what it counted is kept.
        vm.way = None
        vm.sources.set_refresh(idle=False)
        if vm.shown:
            vm.shown = False
            self.source.remove_subordinate(vm.sources.source)

    def _end_early(self, vm: HostVm) -> None:
        # Its end will be told.
        self._told.end_early(vm.name)
        self._end(vm)

    def _end(self, vm: HostVm) -> None:
        del self._vms[vm.name]
        if self._bpf is not None:
            self._bpf.unbind(vm.sources)
        if vm.shown:
            self.source.remove_subordinate(vm.sources.source)
        vm.sources.put()
        if not any(other.pid == vm.pid for other in self._vms.values()):
            pidfd = self._pidfds.pop(vm.pid, None)
            if pidfd is not None:
                os.close(pidfd)

    def go_on(self) -> None:
        """Look again, after a takeover that failed, or at its end."""
        with suppress(IndexError):
            self._holding.pop()
            self._turn.release()
        self._wake_up()

"""Takeovers: counts and clears of the VMs below one `kvm` go to the process that replaces this.

Owns which part hands over what, and in which order: clears wait, nothing in the tree changes any
more, and then all of it is one moment. The successor shows the same, and goes on.

Threading: `hold`, `go_on` and `leave` come from one thread at a time, `begin` is for the thread
that made it.
"""

from statsfs.exceptions import FormatError
from statsfs.kvm.clears import Clears
from statsfs.kvm.host import KvmHost
from statsfs.kvm.host_takeover import HostTakeover
from statsfs.kvm.kept import KeptKvm, KeptVm, Values, decode, encode, restore_rows
from statsfs.kvm.qemu import QemuMonitor
from statsfs.tree.source import Source, directory_of

__all__ = ["KvmHandover"]


class KvmHandover:
    """The counts and clears to hand over, of the VMs below a source.

    Args:
        source: `kvm`.
        clears: of all sources there.
        host: what shows VMs there, or None.
        monitor: what shows VMs there by QMP, or None.
    """

    def __init__(
        self, source: Source, clears: Clears, host: KvmHost | None, monitor: QemuMonitor | None
    ) -> None:
        self._source = source
        self._clears = clears
        self._host = None if host is None else HostTakeover(host)
        self._monitor = monitor
        if self._host is not None:
            clears.cleared = self._host.clear_hidden

    def hold(self) -> bytes:
        """Leave all as it is until `go_on` or `leave`; return what the successor needs.

        Raises:
            KvmError: that takes too long.
        """
        self._clears.hold()
        vms: list[KeptVm] = []
        heard = 0
        if self._host is not None:
            self._host.hold()
            heard = self._host.heard
            vms += self._host.keep()
        if self._monitor is not None:
            self._monitor.hold()
            vms += self._monitor.keep()
        return encode(KeptKvm(self._source.retained, vms, heard))

    def go_on(self) -> None:
        """Go on as before: the successor failed."""
        if self._host is not None:
            self._host.go_on()
        if self._monitor is not None:
            self._monitor.go_on()
        self._clears.go_on()

    def leave(self) -> None:
        """Show what is open, as far as it can be read, and clear nothing any more."""
        if self._host is not None:
            self._host.go_on()
        if self._monitor is not None:
            self._monitor.leave()
        self._clears.give_up()

    def begin(self, encoded: bytes | None) -> str:
        """Go on from what another process handed over, or with nothing at None.

        Return why it cannot be used; "" if it was.
        """
        kept, failure = KeptKvm(), ""
        if encoded is not None:
            try:
                kept = decode(encoded, self._find_arrays())
            except FormatError as error:
                failure = str(error)
        self._adopt(kept)
        if self._source.retain:
            restore_rows(self._source, kept.retained)
        if self._host is not None:
            self._host.begin(kept.heard)
        if self._monitor is not None:
            self._monitor.begin()
        return failure

    def _find_arrays(self) -> list[Values]:
        return [array.values for array in directory_of(self._source).index]

    def _adopt(self, kept: KeptKvm) -> None:
        found = () if self._host is None else self._host.find_names(kept.vms)
        for vm in kept.vms:
            by_qmp = vm.socket and vm.name not in found
            if self._monitor is not None and (by_qmp or self._host is None):
                self._monitor.adopt(vm)
            else:
                assert self._host is not None
                self._host.adopt(vm)

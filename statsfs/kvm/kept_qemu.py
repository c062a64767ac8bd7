"""A VM behind a QMP socket as the process before this one showed it, until it is connected.

Owns its sources: their files have no data, and the totals above have the last numbers, as of a VM
that does not answer. Threading: any thread makes it; reading and clearing as of any source.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from statsfs.exceptions import QmpError
from statsfs.kvm import scanning
from statsfs.kvm.kept import KeptTarget, KeptVm, fits
from statsfs.kvm.values import index_values
from statsfs.model.external import Numbers
from statsfs.model.values import Value
from statsfs.tree.index import ClearRecorder
from statsfs.tree.late_refresh import list_at_once
from statsfs.tree.source import Source

__all__ = ["KeptQemu"]


class KeptQemu:
    """Its source, with those of the vCPUs.

    Args:
        kept: the record from the other process.
        recorder: that of all sources.

    Attributes:
        source: the VM's.
        socket: the path of its socket; "" if the other process read it in another way.
    """

    def __init__(self, kept: KeptVm, recorder: ClearRecorder | None) -> None:
        self._kept = kept
        self.socket = kept.socket
        self._numbers: dict[int | None, Numbers] = {}
        self.source = Source(kept.name, label="vm", refresh=self._refresh, recorder=recorder)
        list_at_once(self.source)
        for target in kept.targets:
            if target.vcpu is None:
                self._fill(self.source, kept.arrays[0], target)
            else:
                name = f"vcpu{target.vcpu}"
                with Source(name, label="vcpu", recorder=recorder) as vcpu:
                    self._fill(vcpu, kept.arrays[1], target)
                    self.source.add_subordinate(vcpu)

    def _fill(self, source: Source, values: tuple[Value, ...], kept: KeptTarget) -> None:
        by_name = index_values(values)
        numbers = self._numbers[kept.vcpu] = Numbers(by_name)
        for name, baseline in kept.baselines.items():
            if name in by_name and fits(by_name[name], baseline):
                numbers.baselines[name] = baseline
        given = [kept.numbers.get(one.name) for one in values]
        numbers.take(
            [
                one if fits(value, one) else value.zero
                for value, one in zip(values, given, strict=True)
            ]
        )
        if values:
            source.add_values(values, numbers)

    def _refresh(self) -> NoReturn:
        raise QmpError("it is not connected yet", self.source)

    def runs(self) -> bool:
        """Tell whether its process still runs."""
        return scanning.find_beginning(self._kept.pid) == self._kept.began

    def find_baselines(self, vcpu: int | None) -> Mapping[str, Any]:
        """Return the present baselines of a vCPU, or of the VM for None."""
        shown = self._numbers.get(vcpu) if self.socket else None
        return self._kept.find_baselines(vcpu) if shown is None else shown.baselines

"""What uevents told of VMs, by name: one that has ended may have given its name to another.

A reader of statistics descriptors holds the VM: in the kernel it ends later than for its process.
The kernel may tell its end when another VM has its name, and even when a look has found that.
Threading: one thread uses it.
"""

from collections import Counter

__all__ = ["ToldVms"]


class ToldVms:
    """The VMs that uevents told of, and ends that were told late.

    Attributes:
        names: how many VMs of a name there are in the kernel, as far as is known.
    """

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        # By name: how many ended early, less the shown ones of which the end was told.
        self._early: Counter[str] = Counter()

    def know(self, name: str) -> None:
        """Note a VM that was there before uevents were heard."""
        self.names.setdefault(name, 1)

    def create(self, name: str) -> None:
        """Note that a VM's beginning was told."""
        self.names[name] += 1

    def end_early(self, name: str) -> None:
        """Note that a VM is shown no more, and that its end was not told yet."""
        self.know(name)
        self._add(self._early, name, 1)

    def destroy(self, name: str) -> bool:
        """Note that an end was told; tell whether it is that of the VM that is shown."""
        another = self.names[name] > 1 or self._early[name] > 0
        self._add(self.names, name, -1)
        self._add(self._early, name, -another)
        return not another

    def lose(self) -> None:
        """Note that uevents were lost: ends that are awaited may be among them."""
        self._early.clear()

    def _add(self, counts: Counter[str], name: str, number: int) -> None:
        counts[name] += number
        if counts[name] == 0 or (counts is self.names and counts[name] < 0):
            del counts[name]

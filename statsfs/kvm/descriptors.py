"""Statistics descriptors: what KVM_GET_STATS_FD returns, as the base of a source.

Owns a copy of the descriptor, what was decoded from it once, and the numbers that were read last.
How the bytes are laid out is the business of `formats.binary`, clearing that of `baselines`; who
makes virtual machines, and when they go, is the VMM's.

An open statistics descriptor pins its VM in the kernel: the VM's memory is freed when the last one
is closed, however long ago all others were. So close it with the VM.

Nothing is polled. A reader's `refresh` is one pread (0.6 us, and about 6 us while the guest runs in
this process: measured on Linux 6.18).

Threading: everything may be called from any thread. `close` waits for a read that has begun, so
that nobody reads from another file that got the same number.
"""

import errno
import fcntl
import os
import re
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Final

from statsfs.closings import Closing
from statsfs.formats.binary import Layout, decode
from statsfs.kvm.values import index_values, make_values
from statsfs.model.external import Numbers
from statsfs.model.values import Value
from statsfs.tree.source import Source

__all__ = ["KvmStats"]

_MOST: Final = 1 << 20  # bytes: a kernel's whole object has a few thousand
_VCPU: Final = re.compile(r"kvm-\d+/vcpu-(\d+)")


class KvmStats(Closing):
    """The statistics behind one statistics descriptor, of a VM or of a vCPU.

    It keeps a descriptor of its own, which no program that is executed inherits: the caller's may
    be closed at once. `close`, or leaving it as a context manager, closes it; until then the VM
    lives on in the kernel. A descriptor that another process has opened (pidfd_getfd) does as well.

    Args:
        fd: what the ioctl KVM_GET_STATS_FD returned for a VM or a vCPU.

    Attributes:
        id: whose statistics they are, in the kernel's words: `kvm-4711`, `kvm-4711/vcpu-0`. The
            number is that of the thread which made the VM, as in debugfs.
        values: what is counted, as `add_values` takes it.
        numbers: the base of `values`: what was read last, less the baselines. Clearing a
            cumulative value or a histogram sets one, as the kernel's own totals cannot be cleared.

    Raises:
        FormatError: what is read there is no object of KVM's binary format, or describes what can
            be no value.
        OSError: it cannot be read at all.
    """

    __slots__ = ("__weakref__", "_close", "_fd", "_layout", "_lock", "id", "numbers", "values")

    def __init__(self, fd: int) -> None:
        # Reentrant: a signal handler may read what the code that it interrupted is just reading.
        self._lock = threading.RLock()
        self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        # Who forgets to close it must not keep a VM alive for ever.
        self._close = weakref.finalize(self, os.close, self._fd)
        try:
            statistics = decode(os.pread(self._fd, _MOST, 0))
            self.id: Final = statistics.id
            self.values: Final[tuple[Value, ...]] = make_values(statistics.descriptors)
            self._layout = _share(replace(statistics.layout, id=""))
            self.numbers: Final = Numbers(index_values(self.values))
            self.numbers.take(statistics.numbers)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<KvmStats {self.id!r}{' closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor; closing again does nothing.

        The sources made of it keep their files, which have no data any more: remove them.
        """
        with self._lock:
            self._fd = -1
            self._close()

    def refresh(self) -> None:
        """Read what is counted now into `numbers`; sources call it before they are read.

        Raises:
            OSError: it cannot be read any more, or was closed.
        """
        layout = self._layout
        with self._lock:
            data = os.pread(self._fd, layout.data_size, layout.data_offset)
            if len(data) < layout.data_size:
                raise OSError(errno.ENODATA, f"{self.id}: {len(data)} bytes of statistics")
            self.numbers.take(layout.numbers(data))

    def make_source(
        self,
        name: str | None = None,
        *args: object,
        label: str | None = None,
        cleared: Callable[[], object] | None = None,
        owner: tuple[int, int] | None = None,
    ) -> Source:
        """Make a source that shows these statistics; the caller has its only reference.

        Args:
            name: the directory's name, `name % args` if there are arguments. The default is
                `vcpu0` for the vCPU 0; a VM's name, in debugfs `<pid>-<fd>`, has a number that
                the statistics do not tell, so that it falls back to the id.
            args: what the name is formatted with.
            label: the source's label; by default `vcpu` or `vm`.
            cleared, owner: as for every source.

        Raises:
            InvalidNameError: the name is none for a directory.
        """
        vcpu = _VCPU.fullmatch(self.id)
        if name is None:
            name, args = (f"vcpu{vcpu[1]}" if vcpu else self.id), ()
        source = Source(
            name,
            *args,
            label=label or ("vcpu" if vcpu else "vm"),
            refresh=self.refresh,
            blocking=False,
            cleared=cleared,
            owner=owner,
        )
        source.add_values(self.values, self.numbers)
        return source


@lru_cache(maxsize=64)
def _share(layout: Layout) -> Layout:
    # vCPUs differ in nothing but their ids, which are kept beside it.
    return layout

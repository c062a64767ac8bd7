"""Statistics descriptors, which the ioctl KVM_GET_STATS_FD returns, as the base of a source.

Owns a copy of the descriptor, and the numbers that were read last. An open statistics descriptor
pins its VM in the kernel: the VM's memory is freed when the last one is closed. A reader's
`refresh` is one pread: on Linux 6.18 0.6 us, 6 us while the guest runs here.
Threading: any thread. `close` waits for a read that has begun: else it could read another file that
got the same number.
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
from typing import Final, Self

from statsfs.formats.binary import Layout, decode
from statsfs.kvm.values import index_values, make_values
from statsfs.model.external import Numbers
from statsfs.model.locking import locked
from statsfs.model.values import Value
from statsfs.tree.source import Source

__all__ = ["KvmStats"]

_MOST: Final = 1 << 20  # bytes; a kernel's object has a few thousand
_VCPU: Final = re.compile(r"kvm-\d+/vcpu-(\d+)")


class KvmStats:
    """The statistics behind one statistics descriptor, of a VM or of a vCPU.

    It keeps a copy of the descriptor `fd`, which the ioctl KVM_GET_STATS_FD returned here or in
    another process (pidfd_getfd): the caller's may be closed at once. It is a context manager that
    closes; until then the VM lives on in the kernel.

    >>> from statsfs.kvm import KvmStats
    >>> with KvmStats(stats_fd) as vcpu:  # what the ioctl returned for the vCPU 0
    ...     source = vcpu.make_source()
    ...     source.name, source.get_value("exits")
    ('vcpu0', 102)

    Attributes:
        id: the kernel's name: `kvm-4711`, `kvm-4711/vcpu-0`. The number is that of the thread which
            made the VM, as in debugfs.
        values: for `add_values`.
        numbers: the base of `values`: the numbers that were read last, less the baselines. Clearing
            a cumulative value or a histogram sets its baseline.

    Raises:
        FormatError: it is not an object of KVM's binary format, or an entry describes no value.
        OSError: it cannot be read.
        TypeError: it is not a descriptor.
    """

    __slots__ = ("__weakref__", "_close", "_fd", "_layout", "_lock", "id", "numbers", "values")

    def __init__(self, fd: int) -> None:
        # Reentrant: a signal handler may read what the code that it interrupted is just reading.
        self._lock = threading.RLock()
        self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        # An object that is forgotten, not closed, must not keep a VM alive for ever.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed.

        >>> statistics = KvmStats(stats_fd)
        >>> statistics.close()
        >>> statistics.closed
        True
        """
        return self._fd < 0

    @locked
    def close(self) -> None:
        """Close it; then the files of its sources have no data. Closing again does nothing.

        >>> statistics = KvmStats(stats_fd)
        >>> source = statistics.make_source()
        >>> statistics.close()
        >>> source.get_value("exits")
        Traceback (most recent call last):
            ...
        statsfs.exceptions.UnavailableError: vcpu0: unavailable: the refresh failed: ...
        """
        self._fd = -1
        self._close()

    @locked
    def refresh(self) -> None:
        """Read the current counts into `numbers`, as sources do.

        >>> with KvmStats(stats_fd) as vcpu:
        ...     vcpu.refresh()
        ...     vcpu.numbers["exits"]
        102

        Raises:
            OSError: it was closed, or cannot be read.
        """
        layout = self._layout
        data = os.pread(self._fd, layout.data_size, layout.data_offset)
        if len(data) < layout.data_size:
            text = f"{self.id}: {len(data)} of {layout.data_size} bytes of statistics"
            raise OSError(errno.ENODATA, text)
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

        The arguments and errors are those of `Source`. The name is by default `vcpu0` for the vCPU
        0, and the id for a VM: its name in debugfs, `<pid>-<fd>`, has a number that the statistics
        lack. The label is by default `vcpu` or `vm`.

        >>> with KvmStats(stats_fd) as vcpu:
        ...     vcpu.make_source("vcpu%d", 0)
        <Source 'vcpu0' references=1>
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
    # vCPUs differ only in their ids, which are kept apart.
    return layout

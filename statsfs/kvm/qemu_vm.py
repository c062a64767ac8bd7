"""One running VM behind a QMP socket: its sources, and when QEMU is queried for their numbers.

Owns the sources, under the names of debugfs (`<pid>-<fd>/vcpu<n>`), and what is queried: for a
reader, only what is read, and at most twice in 100 ms. QEMU 7.1 to 8.0 interrupts each vCPU of
which it tells anything. A VM that does not answer stays: its query waits, its readers do not.
Threading: one thread's asyncio loop queries, and changes the tree. Refreshes come from other
threads, and wait for it.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, Final

from statsfs.exceptions import QmpError, StatsfsError
from statsfs.formats.binary import Number
from statsfs.kvm.kept import KeptTarget, fits
from statsfs.kvm.qmp import QmpConnection
from statsfs.kvm.qmp_answers import AnswerParser
from statsfs.kvm.qmp_channel import QmpChannel
from statsfs.kvm.values import index_values, make_values
from statsfs.model.external import Numbers
from statsfs.model.values import Value
from statsfs.tree.index import ClearRecorder
from statsfs.tree.late_refresh import list_at_once
from statsfs.tree.refresh import Read, current_reads
from statsfs.tree.source import Source

__all__ = ["QemuVm"]

log = logging.getLogger(__name__)

_FRESH: Final = 0.1  # seconds for which numbers are new enough
_LOOK: Final = 1.0  # seconds between two looks which vCPUs there are, while some are read
# Seconds that a refresh waits. Readers wait for one second; but if the VM goes on later, its files
# return without another reader.
_PATIENCE: Final = 60.0


class _Target:
    # A VM or a vCPU: its source, the base of its values, and what was queried when.
    __slots__ = ("_all", "_answered", "_names", "_numbers", "_parser", "_row", "source", "values")

    def __init__(self, source: Source, parser: AnswerParser, stats: Mapping[str, Any]) -> None:
        self.source = source
        self.values = make_values(parser.descriptors)
        self._all = frozenset(value.name for value in self.values)
        self._parser = parser
        self._numbers = Numbers(index_values(self.values))
        self._row: Sequence[Number] = ()
        self.take(stats, None)
        source.add_values(self.values, self._numbers)

    def take(self, stats: Mapping[str, Any], names: frozenset[str] | None) -> None:
        # The age of numbers counts from the answer: on a host where a query takes longer than
        # `_FRESH`, each file of a `grep -r` would start another.
        self._row = self._parser.row(stats, names, self._row)
        self._numbers.take(self._row)
        self._names, self._answered = names, time.monotonic()

    def keep(self, vcpu: int | None) -> KeptTarget:
        return KeptTarget(vcpu, self._numbers.numbers, self._numbers.baselines)

    def restore(self, baselines: Mapping[str, Any]) -> None:
        # Subtracts the earlier clears.
        for value in self.values:
            if value.name in baselines and fits(value, baselines[value.name]):
                self._numbers.baselines[value.name] = baselines[value.name]
        self._numbers.take(self._row)

    def find_missing(self, names: frozenset[str] | None) -> frozenset[str] | None:
        # What is to be queried so that these names, or all, are new. What is read next after one
        # name is probably another one (`grep -r`): then all are queried.
        wanted = self._all if names is None else names & self._all
        if time.monotonic() - self._answered >= _FRESH:
            return None if names is None else wanted
        old = wanted - (self._all if self._names is None else self._names)
        return None if old else frozenset()


class QemuVm:
    """A running VM. All methods belong to the loop but the refresh of its source.

    Args:
        channel: the way to it.
        fd: its process's descriptor of the VM.
        recorder: that of all sources.
    """

    def __init__(self, channel: QmpChannel, fd: int, recorder: ClearRecorder | None = None) -> None:
        self._channel = channel
        self._recorder = recorder
        self.source = Source(
            "%d-%d", channel.pid, fd, label="vm", refresh=self._refresh, recorder=recorder
        )
        list_at_once(self.source)
        self._loop = asyncio.get_running_loop()
        self._vcpus: Mapping[str, _Target] = {}  # by qom-path; replaced, not changed
        self._looked = 0.0  # when it was asked which there are
        self._plugging: asyncio.Task[None] | None = None
        self._turn = threading.Lock()  # of the refresh that queries
        self._answer: Future[None] | None = None
        self._lock = threading.Lock()  # of what `_refresh` shares with the loop
        self._ended = ""  # why it is not queried any more
        self._frozen = 0.0  # until when the numbers stay, as they were handed over

    async def describe(self) -> list[tuple[Value, ...]]:
        """Query what it has, and make the sources; return the arrays of a VM and of a vCPU."""
        async with self._channel.connected() as connection:
            schemas = await connection.query_schemas()
            vm = (await connection.query_stats("vm")).get("", {})
            vcpus = await connection.query_stats("vcpu")
            if not vcpus or not {"vm", "vcpu"} <= schemas.keys():
                raise QmpError(f"{self._channel.path}: no KVM statistics", self._channel.path)
            self._vm = _Target(self.source, AnswerParser(schemas["vm"], vm), vm)
            self._parser = AnswerParser(schemas["vcpu"], next(iter(vcpus.values())))
            self._arrange(await connection.query_cpus(), vcpus)
        return [*self.arrays]

    def _arrange(self, numbers: Mapping[str, int], stats: Mapping[str, Any]) -> None:
        # Makes and removes the sources of vCPUs: a vCPU has a number and statistics.
        vcpus = dict(self._vcpus)
        try:
            for path in self._vcpus.keys() - (stats.keys() & numbers.keys()):
                self.source.remove_subordinate(vcpus.pop(path).source)
            new = stats.keys() & numbers.keys() - vcpus.keys()
            for path in sorted(new, key=lambda path: numbers[path]):
                recorder = self._recorder
                with Source("vcpu%d", numbers[path], label="vcpu", recorder=recorder) as source:
                    vcpu = _Target(source, self._parser, stats[path])
                    self.source.add_subordinate(source)
                vcpus[path] = vcpu
        finally:
            self._vcpus = vcpus  # those that are in the tree, if one cannot be made too

    def _refresh(self) -> None:
        # What a reader left behind that gave up is waited for first, however long it takes.
        reads = current_reads()
        if self._is_frozen():
            return
        if not self._turn.acquire(timeout=_PATIENCE):
            raise self._no_answer()
        try:
            self._wait()
            wanted = self._find_wanted(reads)
            if wanted:
                self._answer = self._submit(self._take(wanted))
                self._wait()
        finally:
            self._turn.release()

    def _submit(self, work: Coroutine[Any, Any, None]) -> "Future[None]":
        with self._lock:
            if self._ended:
                work.close()
                raise QmpError(self._ended, self.source)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self) -> None:
        answer = self._answer
        if answer is not None:
            if not wait([answer], _PATIENCE).done:
                raise self._no_answer()
            self._answer = None
            answer.result()

    def _no_answer(self) -> QmpError:
        return QmpError(f"no answer within {_PATIENCE:g} s", self.source)

    def _find_wanted(self, reads: frozenset[Read] | None) -> "dict[_Target, frozenset[str] | None]":
        # The names to query of each target, None for all. A name that the VM does not have is that
        # of another source's value.
        vcpus = {vcpu.source: vcpu for vcpu in self._vcpus.values()}
        names: dict[_Target, frozenset[str] | None] = {}
        for source, name in reads or {(self.source, None)}:
            vcpu = vcpus.get(source)
            for target in (self._vm, *vcpus.values()) if vcpu is None else (vcpu,):
                others = names.get(target, frozenset())
                if name is None or others is None:
                    names[target] = None
                else:
                    names[target] = others | {name}
        missing = {target: target.find_missing(names[target]) for target in names}
        return {target: found for target, found in missing.items() if found != frozenset()}

    async def _take(self, wanted: "dict[_Target, frozenset[str] | None]") -> None:
        if self._is_frozen():
            return
        async with self._channel.connected() as connection:
            if self._vm in wanted:
                names = wanted[self._vm]
                answer = await connection.query_stats("vm", names)
                if self._is_frozen():
                    return
                self._vm.take(answer.get("", {}), names)
            vcpus = {path: vcpu for path, vcpu in self._vcpus.items() if vcpu in wanted}
            if vcpus.keys() != self._vcpus.keys():
                await self._look(connection)
            if not vcpus:
                return
            lists = [wanted[vcpu] for vcpu in vcpus.values()]
            some = [names for names in lists if names is not None]
            names = frozenset().union(*some) if len(some) == len(lists) else None
            whole = vcpus.keys() == self._vcpus.keys()
            stats = await connection.query_stats("vcpu", names, None if whole else vcpus)
        if self._is_frozen():
            return
        if stats.keys() != vcpus.keys():
            self._begin_plug()
        for path in vcpus.keys() & stats.keys():
            vcpus[path].take(stats[path], names)
        if not whole and stats.keys() != vcpus.keys():
            raise QmpError("no such vCPU any more", self.source)

    async def _look(self, connection: QmpConnection) -> None:
        # Who reads no total finds out too that a vCPU was plugged.
        now = time.monotonic()
        if now - self._looked >= _LOOK:
            self._looked = now
            if await connection.query_paths() != self._vcpus.keys():
                self._begin_plug()

    def _begin_plug(self) -> None:
        # In its own task: a change of the tree may wait for a reader, which waits for this.
        if self._plugging is None:
            self._plugging = asyncio.create_task(self._plug())

    async def _plug(self) -> None:
        # A vCPU was plugged or unplugged.
        try:
            async with self._channel.connected() as connection:
                numbers = await connection.query_cpus()
                stats = await connection.query_stats("vcpu")
            if not self._is_frozen():
                self._arrange(numbers, stats)
        except StatsfsError as error:
            log.info("%s: cannot update the vCPUs: %s", self.source.path, error)
        finally:
            self._plugging = None

    # Takeovers

    def _is_frozen(self) -> bool:
        return time.monotonic() < self._frozen

    def freeze(self, until: float) -> None:
        """Leave the numbers, and the vCPUs, as they are until some moment."""
        self._frozen = until

    def keep(self) -> list[KeptTarget]:
        """Return the numbers for another process, while they are frozen."""
        vcpus = self._vcpus.values()
        names = [(int(one.source.name.removeprefix("vcpu")), one) for one in vcpus]
        return [self._vm.keep(None), *(vcpu.keep(number) for number, vcpu in names)]

    @property
    def arrays(self) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """The arrays of the VM, and of each vCPU."""
        return self._vm.values, make_values(self._parser.descriptors)

    def restore(self, find: Callable[[int | None], Mapping[str, Any]]) -> None:
        """Subtract what was cleared in another process: of a vCPU, or of the VM for None."""
        self._vm.restore(find(None))
        for vcpu in self._vcpus.values():
            vcpu.restore(find(int(vcpu.source.name.removeprefix("vcpu"))))

    def leave(self) -> None:
        """Query it no longer: another process does, and QMP serves one client."""
        with self._lock:
            self._ended = "another process reads it now"

    async def end(self) -> None:
        """Close the channel, which ends all refreshes, and put the source."""
        with self._lock:
            self._ended = "the VM has ended"
        await self._channel.close()
        self.source.put()

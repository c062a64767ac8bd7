"""Sources of statistics descriptors; ordinary files stand in for what only /dev/kvm has."""

import errno
import fcntl
import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from statsfs.exceptions import FormatError, InvalidNameError, ReadOnlyValueError, UnavailableError
from statsfs.filesystem.mounting import mount
from statsfs.kvm import KvmStats
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE
from tests.support.kvm_files import DUMPS, KvmFile
from tests.support.mounts import run, shell
from tests.support.trees import refresher_of

WAITS = list(range(32))


@pytest.fixture
def counted(tmp_path: Path) -> KvmFile:
    """A vCPU's statistics."""
    return KvmFile(tmp_path / "vcpu")


@pytest.fixture
def stats(counted: KvmFile) -> Iterator[KvmStats]:
    """What reads them."""
    with open_file(counted.path) as stats:
        yield stats


def open_file(path: Path) -> KvmStats:
    """As a VMM does: what it opened itself is closed at once."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return KvmStats(fd)
    finally:
        os.close(fd)


def open_fds() -> set[str]:
    """The descriptors of this process, and what they are of."""
    return {
        f"{name} {os.readlink(f'/proc/self/fd/{name}')}"
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    }


def test_what_it_says_of_itself(counted: KvmFile, stats: KvmStats) -> None:
    """The kernel's id, the values in its order, and the numbers of the moment it was opened."""
    assert stats.id == "kvm-23556/vcpu-0"
    assert repr(stats) == "<KvmStats 'kvm-23556/vcpu-0'>"
    assert [value.name for value in stats.values] == [o.name for o in counted.layout.descriptors]
    assert list(stats.numbers) == [value.name for value in stats.values]
    counted.count(exits=3)
    with open_file(counted.path) as later:
        assert later.numbers["exits"] == 3


def test_reading_asks(counted: KvmFile, stats: KvmStats) -> None:
    """Values, histograms and totals are those of when they are read; nothing is read before."""
    with Source("kvm") as kvm, stats.make_source() as vcpu:
        kvm.add_subordinate(vcpu)
        counted.count(exits=101, halt_wait_hist=WAITS, guest_mode=2)
        assert stats.numbers["exits"] == 0
        assert vcpu.get_value("exits") == kvm.get_value("exits") == 101
        counted.count(exits=(1 << 64) - 1, halt_wait_hist=WAITS, guest_mode=2)
        assert vcpu.get_value("exits") == (1 << 64) - 1
        assert vcpu.get_value("halt_wait_hist") == kvm.get_value("halt_wait_hist") == WAITS
        assert vcpu.get_value("guest_mode") == 1
        counted.count(exits=5)
        assert kvm.snapshot().to_dict()["subordinates"]["vcpu0"]["values"]["exits"] == 5


def test_a_refresh_that_does_not_block(stats: KvmStats) -> None:
    """Readers make it themselves: no thread is started for a pread."""
    with stats.make_source() as vcpu:
        before = threading.active_count()
        vcpu.get_value("exits")
        assert (refresher_of(vcpu).blocking, refresher_of(vcpu).function) == (
            False,
            stats.refresh,
        )
        assert threading.active_count() == before


def test_clearing_sets_a_baseline(counted: KvmFile, stats: KvmStats) -> None:
    """The kernel goes on as before; what it had when it was cleared is subtracted."""
    with stats.make_source() as vcpu:
        counted.count(exits=100, halt_exits=7, halt_wait_hist=WAITS)
        before = counted.path.read_bytes()
        vcpu.clear_value("exits")
        vcpu.clear_value("halt_wait_hist")
        assert counted.path.read_bytes() == before
        assert stats.numbers.baselines == {"exits": 100, "halt_wait_hist": WAITS}
        assert vcpu.get_value("exits") == 0
        counted.count(exits=130, halt_exits=8, halt_wait_hist=[2 * count for count in WAITS])
        assert [vcpu.get_value(name) for name in ("exits", "halt_exits")] == [30, 8]
        assert vcpu.get_value("halt_wait_hist") == WAITS


@pytest.mark.parametrize("name", ["max_mmu_rmap_size", "pages_4k"])
def test_what_cannot_be_cleared(tmp_path: Path, name: str) -> None:
    """Peaks and what goes up and down have no write bit, here and above."""
    with (
        open_file(KvmFile(tmp_path / "vm", "vm").path) as stats,
        Source("kvm") as kvm,
        stats.make_source("%d-%d", 23556, 4) as vm,
    ):
        kvm.add_subordinate(vm)
        for source in (vm, kvm):
            with pytest.raises(ReadOnlyValueError):
                source.clear_value(name)


# Names


def test_names_and_labels(tmp_path: Path) -> None:
    """The default is the vCPU's number, or the kernel's id; a VMM says what it knows better."""
    for section, name, label in (("vcpu", "vcpu0", "vcpu"), ("vm", "kvm-23556", "vm")):
        with open_file(KvmFile(tmp_path / section, section).path) as stats:
            with stats.make_source() as source:
                assert (source.name, source.label) == (name, label)
            with stats.make_source("%d-%d", 7, 4, label="guest", owner=(1, 2)) as source:
                assert (source.name, source.label, source.owner) == ("7-4", "guest", (1, 2))
            with pytest.raises(InvalidNameError):
                stats.make_source("a/b")


def test_a_reader_learns_what_was_cleared(stats: KvmStats) -> None:
    """`cleared` is called once for a clear, to keep the baselines."""
    told: list[dict[str, int]] = []
    with stats.make_source(cleared=lambda: told.append(dict(stats.numbers.baselines))) as vcpu:
        vcpu.clear_value("exits")
    assert told == [{"exits": 0}]


# Whose descriptor it is


def test_the_descriptor_is_a_copy_of_its_own(counted: KvmFile) -> None:
    """No program that is executed gets it, and closing it leaves nothing behind."""
    before = open_fds()
    stats = open_file(counted.path)
    with stats:
        (opened,) = open_fds() - before
        fd, _, path = opened.partition(" ")
        assert path == str(counted.path)
        assert fcntl.fcntl(int(fd), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert "closed" not in repr(stats)
    assert open_fds() == before
    assert "closed" in repr(stats)
    assert stats.closed
    stats.close()


def test_one_that_is_forgotten_is_closed(counted: KvmFile) -> None:
    """A source without references does not pin its VM."""
    before = open_fds()
    source = open_file(counted.path).make_source()
    assert open_fds() != before
    assert source.get_value("exits") == 0
    source.put()
    del source
    gc.collect()
    assert open_fds() == before


def test_after_the_end_there_is_no_data(counted: KvmFile, stats: KvmStats) -> None:
    """The files of what was closed cannot be read; totals above keep what was read last."""
    with Source("kvm") as kvm, stats.make_source() as vcpu:
        kvm.add_subordinate(vcpu)
        counted.count(exits=9)
        assert kvm.get_value("exits") == 9
        stats.close()
        with pytest.raises(UnavailableError):
            vcpu.get_value("exits")
        with pytest.raises(UnavailableError):
            vcpu.clear_value("exits")
        assert kvm.get_value("exits") == 9
    with pytest.raises(OSError, match="Bad file") as caught:
        stats.refresh()
    assert caught.value.errno == errno.EBADF


def test_a_read_that_ends_early(counted: KvmFile, stats: KvmStats) -> None:
    """Half a block of data is none; when all is there again, so are the files."""
    whole = counted.path.read_bytes()
    with stats.make_source() as vcpu:
        counted.write(whole[:-8])
        with pytest.raises(OSError, match="bytes of statistics") as caught:
            stats.refresh()
        assert caught.value.errno == errno.ENODATA
        with pytest.raises(UnavailableError):
            vcpu.get_value("exits")
        counted.count(exits=4)
        assert vcpu.get_value("exits") == 4


def test_closing_while_others_read(counted: KvmFile, tmp_path: Path) -> None:
    """A number that was given to another file is never read from: it is the right count or none."""
    counted.count(exits=1)
    other = KvmFile(tmp_path / "other")
    other.count(exits=2)
    for _ in range(50):
        stats = open_file(counted.path)
        seen: set[int] = set()
        with ThreadPoolExecutor() as threads:
            reader = threads.submit(read_until_closed, stats, seen)
            stats.close()
            with open_file(other.path), pytest.raises(OSError, match="Bad file"):
                reader.result(DEADLINE)
        assert seen <= {1}


def read_until_closed(stats: KvmStats, seen: set[int]) -> None:
    """Note each count that is read."""
    while True:
        stats.refresh()
        seen.add(stats.numbers["exits"])


# Not a statistics descriptor


HOSTILE = {
    "empty": b"",
    "short": DUMPS["vcpu"][:20],
    "cut": DUMPS["vcpu"][:1000],
    "no data": DUMPS["vcpu"][:-8],
    "text": b"all that is no header at all\n" * 9,
    "flags": b"\1" + DUMPS["vm"][1:],
    "no descriptors": DUMPS["vm"][:8] + bytes(4) + DUMPS["vm"][12:],
    "a name of a path": DUMPS["vm"].replace(b"pages_4k", b"../../4k"),
    "huge": DUMPS["vm"][:8] + b"\xff" * 4 + DUMPS["vm"][12:],
}


@pytest.mark.parametrize("found", HOSTILE.values(), ids=HOSTILE)
def test_bytes_that_are_no_statistics(tmp_path: Path, found: bytes) -> None:
    """One error, and no descriptor stays open."""
    path = tmp_path / "file"
    path.write_bytes(found)
    before = open_fds()
    with pytest.raises(FormatError):
        open_file(path)
    assert open_fds() == before


def test_descriptors_that_cannot_be_read() -> None:
    """A pipe, or a number that is not open, is the system's error."""
    reading, writing = os.pipe()
    before = open_fds()
    try:
        for fd, words in ((reading, "Illegal seek"), (1 << 20, "Bad file")):
            with pytest.raises(OSError, match=words):
                KvmStats(fd)
        assert open_fds() == before
    finally:
        os.close(reading)
        os.close(writing)


# In a mount


@pytest.mark.mount
def test_files_of_a_descriptor(counted: KvmFile, registry: Registry, tmp_path: Path) -> None:
    """A cat asks, echo 0 sets a baseline, and after the end a read is ENODATA."""
    with Source("kvm") as kvm, open_file(counted.path) as stats:
        registry.register(kvm)
        with stats.make_source() as vcpu:
            kvm.add_subordinate(vcpu)
        with mount(registry, str(tmp_path / "stats"), create=True) as mounted:
            exits = f"{mounted.mountpoint}/kvm/vcpu0/exits"
            counted.count(exits=101)
            assert shell(f"cat {exits}") == "101\n"
            assert shell(f"echo 0 > {exits}; cat {exits}") == "0\n"
            counted.count(exits=113)
            assert shell(f"cat {exits} {mounted.mountpoint}/kvm/exits") == "12\n12\n"
            stats.close()
            assert "No data available" in run("cat", exits, status=1).stderr

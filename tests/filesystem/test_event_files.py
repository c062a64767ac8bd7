"""`.events` without FUSE: what reads of any size get, and a reader that is late."""

import json
import os
from random import Random

import pytest

from statsfs.exceptions import ReadOnlyValueError
from statsfs.filesystem.event_files import OpenEvents
from statsfs.filesystem.known import ROOT, Known, NoSuchFileError
from statsfs.filesystem.vfs import Vfs
from statsfs.tree import events as module
from statsfs.tree.events import Events
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.kernel import Kernel
from tests.support.trees import make_kvm


class Log:
    """Events of made up sources, and one reader."""

    def __init__(self) -> None:
        self.events = Events()
        self.written: list[bytes] = []
        self.reader = self.open()
        self.offset = 0

    def open(self) -> OpenEvents:
        """Open it once more."""
        return OpenEvents(Known(None, 0, None, ""), self.events)

    def write(self, count: int) -> None:
        """Have some sources come, in one change."""
        paths = [f"{len(self.written) + more}{'x' * (more % 7)}" for more in range(count)]
        made = list(self.events.make(0, "added", paths))
        self.written += [text for _, text in made]
        for function, *arguments in self.events.steps(made):
            function(*arguments)

    def read(self, size: int = 1 << 17) -> bytes:
        """Read on."""
        text = self.reader.read(self.offset, size)
        self.offset += len(text)
        return text


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """One that keeps some 15 lines."""
    monkeypatch.setattr(module, "TEXT_MAX", 1000)
    return Log()


def lost(count: int) -> bytes:
    """The line that says how many are lost."""
    return f'{{"event":"lost","count":{count}}}\n'.encode()


def test_reading_on(log: Log) -> None:
    """It ends where the lines end, and goes on when there are more."""
    assert log.read() == b""
    log.write(3)
    assert log.read() == b"".join(log.written)
    assert log.read() == b""
    log.write(2)
    assert log.read(5) + log.read(200) == b"".join(log.written[3:])


def test_reading_anywhere(log: Log) -> None:
    """An offset is how many bytes were written before, for each reader."""
    log.write(10)
    whole = b"".join(log.written)
    for offset in range(0, len(whole), 7):
        for size in (1, 30, 1000):
            assert log.reader.read(offset, size) == whole[offset : offset + size]
    assert log.reader.read(len(whole) + 1, 10) == b""


@pytest.mark.parametrize("size", [1, 7, 1 << 17])
def test_a_reader_that_is_late(log: Log, size: int) -> None:
    """It gets the rest of its line, how many are lost, and then the oldest that are kept."""
    log.write(2)
    assert log.read(5) == log.written[0][:5]
    log.write(50)
    kept = [line.text for line in log.events._lines]
    found = b""
    while text := log.read(size):
        found += text
    gone = 52 - len(kept) - 1
    assert found == log.written[0][5:] + lost(gone) + b"".join(kept)
    log.write(1)
    assert log.read() == log.written[-1]
    log.write(50)
    kept = [line.text for line in log.events._lines]
    assert log.read() == lost(50 - len(kept))
    assert log.read() == b"".join(kept)


def test_late_once_more_in_the_middle_of_being_told(log: Log) -> None:
    """The line that says so is not torn either, and what was lost meanwhile is told."""
    log.write(50)
    kept = len(log.events._lines)
    start = log.read(5)
    log.write(100)
    assert start + log.read() == lost(50 - kept)
    assert log.read() == lost(100 - len(log.events._lines) + kept)
    assert log.read() == b"".join(log.written[-len(log.events._lines) :])


def test_seeking_to_what_is_gone(log: Log) -> None:
    """Somebody who has read nothing there is told of all; just before the oldest, of nothing."""
    log.write(100)
    oldest = log.events._lines[0]
    for offset in (1, oldest.start - 60):
        reader = log.open()
        text = reader.read(offset, 1000)
        assert text == lost(oldest.number)
        assert reader.read(offset + len(text), 10) == oldest.text[:10]
    for gap in (1, len(lost(oldest.number)) - 1):
        assert log.open().read(oldest.start - gap, 10) == oldest.text[:10]


@pytest.mark.parametrize("seed", range(20))
def test_whole_lines_at_any_pace(log: Log, seed: int) -> None:
    """However writes and reads of any size follow: each line comes whole, or is counted as lost."""
    random = Random(seed)
    found = b""
    for _ in range(300):
        if random.random() < 0.3:
            log.write(random.choice([1, 2, 5, 40]))
        found += log.read(random.choice([1, 3, 60, 500, 1 << 17]))
        newest = log.events.newest
        assert newest is None or log.offset <= newest.end
    while text := log.read():
        found += text
    number = 0
    for line in found.splitlines(keepends=True):
        told = json.loads(line)
        if told["event"] == "lost":
            assert told["count"] > 0
            number += told["count"]
        else:
            assert line == log.written[number]
            number += 1
    assert number == len(log.written)


# In the filesystem


def open_events(vfs: Vfs, inode: int) -> int:
    """Open it as the handlers do."""
    assert vfs.open_value(inode, os.O_RDONLY) is None
    handle = vfs.open(inode, os.O_RDONLY, user=(1000, 1000))
    assert [*vfs.prepare_read(handle, None)] == []
    return handle


def test_only_the_root_has_it(kernel: Kernel, registry: Registry) -> None:
    """Unlisted, as views are; read-only; as long as what was written, and never cached."""
    make_kvm(registry)
    vfs = kernel.vfs
    inode = kernel.find(".events")
    assert b".events" not in kernel.entries(ROOT)
    with pytest.raises(NoSuchFileError):
        kernel.find("kvm/.events")
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(ReadOnlyValueError):
            vfs.open(inode, flags)
    with pytest.raises(ReadOnlyValueError):
        vfs.check_truncate(inode)
    assert vfs.extended_attributes(inode) == {}
    found = vfs.attributes(inode)
    assert (found.mode & 0o777, found.size, found.live) == (0o444, 0, True)
    assert registry.events == ()


def test_what_the_tree_does_is_told_once_it_was_opened(kernel: Kernel, registry: Registry) -> None:
    """Until then nothing is noted; readers share what is noted; at the end nothing is any more."""
    kvm = make_kvm(registry)
    vfs = kernel.vfs
    inode = kernel.find(".events")
    used = [vfs.in_use]
    first = open_events(vfs, inode)
    used.append(vfs.in_use)
    kvm.add_subordinate(Source("late"))
    second = open_events(vfs, inode)
    used.append(len(registry.events) > 1)
    for handle in (first, second):
        assert vfs.read_at_once(handle, 0, 1000) is None
        assert [*vfs.prepare_read(handle, 0)] == []
        text = vfs.read(handle, 0, 1000)
        assert json.loads(text)["path"] == "kvm/late"
        found = vfs.attributes(inode)
        assert found.size == len(text)
        with pytest.raises(ReadOnlyValueError):
            [*vfs.prepare_write(handle, b"0")]
    assert vfs.user_of(first) == 1000
    for handle in (first, second):
        vfs.close(handle)
    assert [*used, vfs.in_use] == [False, True, False, False]
    vfs.end_events()
    assert registry.events == ()


def test_the_root_is_one_source(registry: Registry) -> None:
    """It is the same file while the root comes and goes, and where there is none."""
    kernel = Kernel(Vfs(registry, top="kvm"))
    registry.add_listener(kernel)
    inode = kernel.find(".events")
    handle = open_events(kernel.vfs, inode)
    for _ in range(2):
        kvm = make_kvm(registry, cpus=1)
        assert kernel.find(".events") == inode
        with pytest.raises(NoSuchFileError):
            kernel.find("cpu0/.events")
        registry.unregister(kvm)
        assert kernel.find(".events") == inode
    lines = kernel.vfs.read(handle, 0, 1000).splitlines()
    found = [(line["event"], line["path"]) for line in map(json.loads, lines)]
    assert found == [("added", "cpu0"), ("removed", "cpu0")] * 2

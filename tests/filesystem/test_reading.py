"""Reading: what is read and cleared at once, and what is so much that a thread does it."""

from types import SimpleNamespace
from typing import Any

import pytest

from statsfs.exceptions import ReadOnlyValueError
from statsfs.filesystem import handles
from statsfs.filesystem.inodes import Stale
from statsfs.filesystem.shares import ShareUsedUpError
from statsfs.filesystem.texts import Text
from statsfs.filesystem.value_files import NotZeroError
from statsfs.filesystem.vfs import Vfs
from statsfs.filesystem.works import Work
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree.refresh import Refresher, Refreshing
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.kernel import Kernel, write

BUCKETS = 2000
HISTOGRAM = Value("h", aggregate=Aggregate.SUM, kind=Kind.LINEAR_HIST, size=BUCKETS, bucket_size=1)
SMALL = Value("small", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=4)
NUMBER = Value("n", aggregate=Aggregate.SUM | Aggregate.MAX)


def add(top: Source, number: int, **options: Any) -> SimpleNamespace:
    """Add a source, with a number and two histograms; return its base."""
    base = SimpleNamespace(h=[0, number, *[1] * (BUCKETS - 2)], small=[0, 0, 0, 5], n=number)
    source = Source("s%d", number, **options)
    source.add_values([HISTOGRAM, SMALL, NUMBER], base)
    top.add_subordinate(source)
    return base


@pytest.fixture
def top(registry: Registry) -> Source:
    """A source with three in it."""
    top = Source("top")
    registry.register(top)
    for number in (1, 2, 3):
        add(top, number)
    return top


@pytest.fixture(autouse=True)
def nothing_to_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process where nothing was ever refreshed, whatever other tests made."""
    monkeypatch.setattr(Refresher, "made", 0)


def works_of(kernel: Kernel, handle: int, offset: int | None = 0) -> list[Any]:
    """Prepare a read; return what ran."""
    ran = []
    for work in kernel.vfs.prepare_read(handle, offset):
        work.run()
        ran.append(work)
    return ran


def test_small_ones_are_read_at_once(kernel: Kernel, top: Source) -> None:
    """Numbers, small histograms and totals of few."""
    for path, text in (
        ("top/s2/n", b"2\n"),
        ("top/n", b"6\n"),
        ("top/n.max", b"3\n"),
        ("top/s1/small", b"4 5\n"),
        ("top/small", b"4 15\n"),
    ):
        handle = kernel.open(kernel.find(path))
        assert works_of(kernel, handle) == []
        assert kernel.vfs.read_at_once(handle, 0, 100) == text
        assert kernel.vfs.read_at_once(handle, 1, 100) == text[1:]
        assert kernel.vfs.read(handle, 0, 100) == text


def test_large_ones_are_not(kernel: Kernel, top: Source) -> None:
    """They are what they were when they were prepared, and prepared anew at offset 0 only."""
    for path, count, number in (("top/s2/h", 1, 2), ("top/h", 3, 6)):
        handle = kernel.vfs.open(kernel.find(path), 0, user=(5, 5))
        assert kernel.vfs.user_of(handle) == 5
        assert kernel.vfs.read_at_once(handle, 0, 100) is None
        (work,) = works_of(kernel, handle)
        assert (work.quick, work.large, work.user) == (False, False, 5)
        lines = [f"1 {number}\n", *(f"{start} {count}\n" for start in range(2, BUCKETS))]
        text = "".join(lines).encode()
        for read in (kernel.vfs.read, kernel.vfs.read_at_once):
            assert read(handle, 10, 1 << 20) == text[10:]
        assert kernel.vfs.read(handle, 0, 1 << 20) == text
        assert works_of(kernel, handle, 10) == []
        # Unprepared it is read as well.
        fresh = kernel.open(kernel.find(path))
        assert kernel.vfs.read(fresh, 0, 1 << 20) == text


def test_very_large_ones(kernel: Kernel, registry: Registry) -> None:
    """They take memory, so one is read at a time."""
    source = Source("app")
    value = Value("h", kind=Kind.LINEAR_HIST, size=65_535, bucket_size=1, aggregate=Aggregate.SUM)
    bases = []
    for number in range(2):
        below = Source("s%d", number)
        bases.append({"h": [0] * 65_535})
        below.add_values([value], bases[-1])
        source.add_subordinate(below)
    registry.register(source)
    (work,) = works_of(kernel, kernel.open(kernel.find("app/h")))
    assert work.large
    (work,) = works_of(kernel, kernel.open(kernel.find("app/s0/h")))
    assert not work.large


def test_totals_of_many_are_not(kernel: Kernel, registry: Registry) -> None:
    """However plain they are; that may change while a file is open."""
    source = Source("many")
    source.add_values([NUMBER], None)
    registry.register(source)
    handle = kernel.open(kernel.find("many/n"))
    assert kernel.vfs.read_at_once(handle, 0, 100) == b"0\n"
    for number in range(10_001):
        below = Source("s%d", number)
        below.add_values([NUMBER], {"n": 1})
        source.add_subordinate(below)
    assert kernel.vfs.read_at_once(handle, 0, 100) is None
    assert len(works_of(kernel, handle)) == 1
    assert kernel.vfs.read(handle, 0, 100) == b"10001\n"
    for below in source.subordinates[5:]:
        source.remove_subordinate(below)
    assert works_of(kernel, handle) == []
    assert kernel.vfs.read(handle, 0, 100) == b"5\n"


def test_who_asks_for_the_same_before_it_begins(kernel: Kernel, top: Source) -> None:
    """Shares one reading, of one user and one file; one that has begun is too old."""
    inode = kernel.find("top/h")
    handles = [kernel.vfs.open(inode, 0, user=(user, 1)) for user in (5, 5, 6, 5)]
    prepared = [kernel.vfs.prepare_read(handle, 0) for handle in handles]
    works = [next(one) for one in prepared[:3]]
    assert works[0] is works[1]
    assert works[2] is not works[0]
    works[0].run()
    late = next(prepared[3])
    assert late is not works[0]
    for work in (works[2], late):
        work.run()
    assert [list(one) for one in prepared] == [[]] * 4
    texts = [kernel.vfs._handles.files[handle].text for handle in handles]
    assert isinstance(texts[0], Text)
    assert texts[0] is texts[1]
    assert len({id(text) for text in texts}) == 3


def test_what_was_closed_meanwhile(kernel: Kernel, top: Source) -> None:
    """Nothing is left of it."""
    handle = kernel.open(kernel.find("top/h"))
    works = kernel.vfs.prepare_read(handle, 0)
    next(works).run()
    kernel.close(handle)
    assert list(works) == []
    assert kernel.vfs._handles._memory.used == 0


def test_clears(kernel: Kernel, top: Source) -> None:
    """Few numbers at once; many, and where a program is told of it, in a thread."""
    told: list[int] = []
    add(top, 9, cleared=lambda: told.append(9))
    for path, quick in (("top/s1/n", True), ("top/s1/h", True), ("top/s9/n", False)):
        handle = kernel.open(kernel.find(path), 1)
        (work,) = list(kernel.vfs.prepare_write(handle, b"0"))
        assert isinstance(work, Work)
        assert work.quick == quick
    total = kernel.open(kernel.find("top/n"), 1)
    (work,) = list(kernel.vfs.prepare_write(total, b"0\n"))
    assert not work.quick
    work.run()
    assert (told, top.get_value("n")) == ([9], 0)
    with pytest.raises(NotZeroError):
        list(kernel.vfs.prepare_write(total, b"1"))
    top.remove_subordinate(next(one for one in top.subordinates if one.name == "s9"))
    (work,) = list(kernel.vfs.prepare_write(total, b"0"))
    assert work.quick


def test_clears_of_what_is_retained(kernel: Kernel, registry: Registry) -> None:
    """The source that retains may be told of them, too."""
    told: list[int] = []
    top = Source("top", retain=True, cleared=lambda: told.append(1))
    registry.register(top)
    add(top, 3)
    (source,) = top.subordinates
    handle = kernel.open(kernel.find("top/n"), 1)
    (work,) = list(kernel.vfs.prepare_write(handle, b"0"))
    assert work.quick
    top.remove_subordinate(source)
    (work,) = list(kernel.vfs.prepare_write(handle, b"0"))
    assert not work.quick
    work.run()
    assert (told, top.get_value("n")) == ([1], 0)


def test_refreshes_come_first(kernel: Kernel, registry: Registry) -> None:
    """Of reads and of clears."""
    source = Source("app", refresh=lambda: None, blocking=False, baseline=True)
    source.add_values([HISTOGRAM], {"h": [1] * BUCKETS})
    registry.register(source)
    handle = kernel.open(kernel.find("app/h"), 2)
    assert kernel.vfs.read_at_once(handle, 0, 100) is None
    assert [type(work) for work in works_of(kernel, handle)] == [Refreshing, Work]
    view = kernel.open(kernel.find("app/.stats.json"))
    assert [type(work) for work in works_of(kernel, view, None)] == [Refreshing, Work]
    clearing = kernel.vfs.prepare_write(handle, b"0")
    assert [type(work) for work in clearing] == [Refreshing, Work]


def test_views_are_not_written(kernel: Kernel, top: Source) -> None:
    """Were one open for it."""
    handle = kernel.open(kernel.find("top/.stats.json"))
    with pytest.raises(ReadOnlyValueError):
        write(kernel.vfs, handle, b"0")


def test_what_is_refused_keeps_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a handle nor the source."""
    monkeypatch.setattr(handles, "HANDLES_MAX", 2)
    source = Source("app")
    source.add_values([NUMBER], {"n": 1})
    registry.register(source)
    kernel = Kernel(Vfs(registry))
    paths = ("app/n", "app/.stats.json", ".stats.json")
    inodes = [kernel.find(path) for path in paths]
    first = kernel.vfs.open(inodes[0], 0)
    count = source.refcount
    for inode in inodes:
        with pytest.raises(ShareUsedUpError):
            kernel.vfs.open(inode, 0)
    with pytest.raises(ShareUsedUpError):
        kernel.vfs.open_directory(1)
    assert source.refcount == count
    kernel.vfs.close(first)
    for inode in inodes:
        kernel.vfs.close(kernel.vfs.open(inode, 0))
    kernel.vfs.close_directory(kernel.vfs.open_directory(1))
    assert source.refcount == count - 1


def test_removed_sources_that_open_files_keep(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens and removes again and again has an end; what was kept is given back."""
    top = Source("top")
    registry.register(top)
    for number in (1, 2, 3):
        add(top, number)
    kernel = Kernel(Vfs(registry))
    left: list[Stale] = []
    registry.add_listener(lambda notice: left.append(kernel.vfs.find_stale(notice)))
    memory = kernel.vfs._handles._memory
    monkeypatch.setattr(memory, "most", 450_000)
    opened = [
        kernel.vfs.open(kernel.find(path), 0, user=(user, 0))
        for user, path in (
            (5, "top/s1/n"),
            (5, "top/s1/n"),
            (5, "top/s2/.stats.json"),
            (6, "top/s1/n"),
            (5, ".stats.json"),
        )
    ]
    assert memory.used == 0
    for source in top.subordinates[:2]:
        top.remove_subordinate(source)
        source.put()
    # A source has 2,005 numbers. Two are kept, one for two users.
    last = kernel.find("top/s3/h")
    with pytest.raises(ShareUsedUpError):
        kernel.vfs.open(last, 0, user=(5, 0))
    kernel.vfs.close(kernel.vfs.open(last, 0, user=(7, 0)))
    weight = memory.used // 3
    assert memory.used == 3 * weight
    assert 2005 * 40 < weight < 2005 * 60
    kernel.vfs.close(opened[2])
    assert memory.used == 2 * weight
    kernel.vfs.close(kernel.vfs.open(last, 0, user=(5, 0)))
    kernel.vfs.close(opened[0])
    assert memory.used == 2 * weight
    kernel.vfs.close(opened[1])
    assert memory.used == weight
    # Closing one of two shows what the other keeps; closing the last leaves nothing.
    third = [kernel.vfs.open(last, 0, user=(5, 0)) for _ in range(2)]
    (source,) = top.subordinates
    top.remove_subordinate(source)
    source.put()
    kernel.vfs.close(third[0])
    assert memory.used == 2 * weight
    kernel.vfs.close(third[1])
    assert memory.used == weight
    for one in (opened[3], opened[4]):
        kernel.vfs.close(one)
    assert (memory.used, kernel.vfs._handles._kept) == (0, {})

"""One source as the root, in the filesystem without FUSE: what it shows, comes and goes, misses."""

import json
import os
import stat
from collections.abc import Callable

import pytest

from statsfs.filesystem.known import ABSENT, ROOT, Attributes, NoSuchFileError
from statsfs.filesystem.vfs import Vfs
from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.bare import bare_log_hist
from tests.support.kernel import Kernel, list_directory, prepare_read
from tests.support.trees import add_cpu, make_kvm, subordinate

FILES = [b"exits", b"wait.min", b"wait.max", b"wait.avg", b"busy"]
SECOND = (Value("second", aggregate=Aggregate.SUM, description="test_vfs_root"),)


class Disk(Stats):
    """Something with a histogram."""

    reads = u64(Aggregate.SUM)
    latency = bare_log_hist(8, Aggregate.SUM)


@pytest.fixture
def kernel(registry: Registry) -> Kernel:
    """A stand-in for a kernel that has `kvm` mounted as the root, and is told what changes."""
    kernel = Kernel(Vfs(registry, top="kvm"))
    registry.add_listener(kernel)
    return kernel


@pytest.fixture
def kvm(registry: Registry) -> Source:
    """The root: a source with `cpu0` and `cpu1` below it, beside another top-level source."""
    registry.register(Source("net"))
    return make_kvm(registry)


@pytest.fixture
def vfs(kernel: Kernel) -> Vfs:
    """The filesystem of the test's registry."""
    return kernel.vfs


def read(kernel: Kernel, path: str) -> bytes:
    """Open, read and close a file or a view."""
    vfs = kernel.vfs
    handle = vfs.open(kernel.find(path), os.O_RDONLY)
    prepare_read(vfs, handle)
    text = vfs.read(handle, 0, 1 << 20)
    vfs.close(handle)
    return text


# What it shows


def test_the_root_is_the_source(kernel: Kernel, vfs: Vfs, kvm: Source) -> None:
    """Its files and subdirectories, and nothing of other sources; by the number that roots have."""
    assert list_directory(vfs, ROOT) == [b"cpu0", b"cpu1", *FILES]
    assert vfs.attributes(ROOT)[:4] == (ROOT, stat.S_IFDIR | 0o755, 4, 0)
    assert vfs.extended_attribute(ROOT, b"user.statsfs.label") == b"module"
    assert read(kernel, "exits") == b"0\n"
    for name in ("kvm", "net"):
        with pytest.raises(NoSuchFileError):
            kernel.find(name)


def test_dots(vfs: Vfs, kernel: Kernel, kvm: Source) -> None:
    """The root is its own parent, and that of its subdirectories."""
    found: list[tuple[bytes, int]] = []

    def reply(name: bytes, attributes: Attributes, offset: int) -> bool:
        found.append((name, attributes.inode))
        return True

    for inode in (ROOT, kernel.find("cpu0")):
        found.clear()
        vfs.list_directory(vfs.open_directory(inode), 0, reply)
        assert found[:2] == [(b".", inode), (b"..", ROOT)]


def test_views(kernel: Kernel, kvm: Source) -> None:
    """They are the source's; the binary one is there as well."""
    assert json.loads(read(kernel, ".stats.json")) == kvm.snapshot().to_dict()
    assert b"kvm_exits_total" in read(kernel, ".stats.prom")
    assert b"kvm" in read(kernel, ".stats.bin")
    assert json.loads(read(kernel, "cpu0/.stats.json"))["values"]["exits"] == 0


def test_the_roots_own_files_are_integers(kernel: Kernel, vfs: Vfs, kvm: Source) -> None:
    """Histograms, and what is shown as a text, are in no listing there and not to be found.

    Below they stay, and in views, whether the directory was looked at before or not.
    """
    disk = Source("disk")
    disk.add_values(Disk, Disk())
    kvm.add_subordinate(disk)
    shown = [Value("state", aggregate=Aggregate.SUM | Aggregate.MAX, show=str)]
    kvm.add_values(shown, {"state": 1})
    low = Source("low")
    level = [Value("level", aggregate=Aggregate.SUM | Aggregate.MAX, show=str)]
    low.add_values(level, {"level": 2})
    kvm.add_subordinate(low)
    for _ in range(2):
        names = list_directory(vfs, ROOT)
        assert {b"reads", b"level"} <= set(names)
        assert not {b"latency", b"state", b"level.max"} & set(names)
        for name in ("latency", "state", "level.max"):
            with pytest.raises(NoSuchFileError):
                kernel.find(name)
    assert kernel.stale_names() == []
    assert b"latency" in list_directory(vfs, kernel.find("disk"))
    assert read(kernel, "low/level") == b"2\n"
    values = json.loads(read(kernel, ".stats.json"))["values"]
    assert {"latency", "state", "level.max"} <= set(values)


def test_owners(registry: Registry) -> None:
    """The root has that of its source."""
    kvm = Source("kvm", owner=(12, 34))
    registry.register(kvm)
    add_cpu(kvm, "cpu0")
    kernel = Kernel(Vfs(registry, top="kvm", owner=(5, 6)))
    for inode in (ROOT, *map(kernel.find, ("cpu0", "cpu0/exits", ".stats.json"))):
        assert kernel.vfs.attributes(inode).owner == (12, 34)
    registry.unregister(kvm)
    assert kernel.vfs.attributes(ROOT).owner == (5, 6)


# Coming and going


def test_a_root_that_is_not_there(kernel: Kernel, vfs: Vfs, registry: Registry) -> None:
    """It is empty: no files, no subdirectories, no views of what else is registered."""
    for source in (Source("net"), Source("kvm", hidden=True)):
        registry.register(source)
    assert list_directory(vfs, ROOT) == []
    assert vfs.attributes(ROOT)[:4] == (ROOT, stat.S_IFDIR | 0o755, 2, 0)
    assert vfs.extended_attributes(ROOT) == {}
    for name in ("kvm", "net", "exits", ".stats.json", ".stats.bin", ".schema.json"):
        with pytest.raises(NoSuchFileError):
            kernel.find(name)


def test_a_root_that_goes_and_comes_back(
    kernel: Kernel, vfs: Vfs, registry: Registry, kvm: Source
) -> None:
    """Each time all its names are forgotten, and there at once; numbers are never used again."""
    seen: set[int] = set()
    for _ in range(5):
        kernel.walk()
        inodes = {kernel.find(path) for path in ("cpu0", "exits", "cpu0/exits", ".stats.json")}
        assert len(inodes) == 4
        assert not inodes & seen
        seen |= inodes
        changed = vfs.attributes(ROOT).modified
        registry.unregister(kvm)
        assert kernel.names == {}
        assert list_directory(vfs, ROOT) == []
        assert vfs.attributes(ROOT).modified > changed
        assert vfs.attributes(ROOT).links == 2
        with pytest.raises(NoSuchFileError):
            kernel.find("exits")
        registry.register(kvm)
        assert kernel.stale_names() == []
        assert vfs.attributes(ROOT).links == 4
    assert (ROOT, None) in [told for stale in kernel.told for told in stale.directories]


def test_what_is_held_open(kernel: Kernel, vfs: Vfs, registry: Registry, kvm: Source) -> None:
    """Open files read on; an open root shows what comes, a directory below it what it was."""
    listed: dict[bytes, int] = {}

    def reply(name: bytes, attributes: Attributes, offset: int) -> bool:
        listed[name] = attributes.inode
        return True

    cpu = kernel.find("cpu0")
    file, view = kernel.open(kernel.find("exits")), kernel.open(kernel.find(".stats.json"))
    root, below = vfs.open_directory(ROOT), vfs.open_directory(cpu)
    registry.unregister(kvm)
    assert vfs.read(file, 0, 99) == b"0\n"
    assert prepare_read(vfs, view)
    assert b"cpu0" in vfs.read(view, 0, 1 << 20)
    for handle, expected in ((root, [b".", b".."]), (below, [])):
        listed.clear()
        vfs.list_directory(handle, 0, reply)
        assert list(listed) == expected
    add_cpu(make_kvm(registry, 0), "new")
    listed.clear()
    vfs.list_directory(root, 0, reply)
    assert list(listed) == [b".", b"..", b"new", *FILES]
    for inode in listed.values():
        vfs.forget(inode, 1)
    for opened in (file, view):
        kernel.close(opened)
    # Of the stay that is over nothing is kept.
    assert kernel.find("new")
    kernel.drop_caches()
    assert len(vfs._inodes) == 0
    assert len(vfs._inodes._known) == 2


def test_a_root_of_which_nothing_was_known(vfs: Vfs, registry: Registry, kvm: Source) -> None:
    """It leaves nothing behind."""
    for _ in range(3):
        assert vfs.attributes(ROOT).links == 4
        registry.unregister(kvm)
        assert vfs.attributes(ROOT).links == 2
        registry.register(kvm)
    assert len(vfs._inodes._known) == 1


def test_other_top_level_sources(kernel: Kernel, registry: Registry, kvm: Source) -> None:
    """Whether they come or go is nothing to the kernel."""
    kernel.walk()
    kernel.told.clear()
    registry.register(Source("other"))
    registry.unregister(registry.by_name["net"])
    assert all(not stale.names and not stale.directories for stale in kernel.told)


def test_a_directory_that_somebody_stands_in(
    kernel: Kernel, registry: Registry, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its root has gone its own names are told again; not the root's, which are others now."""
    monkeypatch.setattr("statsfs.filesystem.inodes._LEFT_OVER", 0.0)
    cpu = kernel.find("cpu0")
    kernel.vfs.lookup(cpu, b"exits")
    kernel.hold(cpu)
    registry.unregister(kvm)
    make_kvm(registry)
    kernel.told.clear()
    registry.register(Source("other"))
    told = {name for stale in kernel.told for name in stale.names}
    assert (cpu, b"exits") in told
    assert not [name for parent, name in told if parent == ROOT]
    kernel.release(cpu)


# Names that are not there


def misses(kernel: Kernel, path: str) -> bool:
    """Tell whether a name is not there."""
    try:
        kernel.find(path)
    except NoSuchFileError:
        return True
    return False


def test_that_there_is_no_such_name_may_be_kept(kernel: Kernel, vfs: Vfs, kvm: Source) -> None:
    """In the root and below; not in a directory that has gone, below a file, or without a root."""
    cpu = kernel.find("cpu0")
    for parent in (ROOT, cpu):
        for name in (b"nothing", b".nothing", b"\xff", b"x" * 255):
            assert vfs.lookup(parent, name) is ABSENT
    for parent in (kernel.find("exits"), kernel.find(".stats.json")):
        with pytest.raises(NoSuchFileError):
            vfs.lookup(parent, b"nothing")
    kvm.remove_subordinate(subordinate(kvm, "cpu0"))
    with pytest.raises(NoSuchFileError):
        vfs.lookup(cpu, b"nothing")


def test_without_a_root_of_its_own(registry: Registry, kvm: Source) -> None:
    """It never may."""
    vfs = Vfs(registry)
    for parent in (ROOT, vfs.lookup(ROOT, b"kvm").inode):
        with pytest.raises(NoSuchFileError):
            vfs.lookup(parent, b"nothing")


@pytest.mark.parametrize(
    ("paths", "change"),
    [
        (["cpu2", "cpu2/exits"], lambda kvm: add_cpu(kvm, "cpu2")),
        (["second"], lambda kvm: kvm.add_values(SECOND, {"second": 1})),
        (["second", "cpu0/second"],
         lambda kvm: subordinate(kvm, "cpu0").add_values(SECOND, {"second": 1})),
        (["second"], lambda kvm: kvm.add_values(SECOND, None)),
        (["cpu0/below"], lambda kvm: subordinate(kvm, "cpu0").add_subordinate(Source("below"))),
    ],
)  # fmt: skip
def test_a_name_that_appears(
    kernel: Kernel, kvm: Source, paths: list[str], change: Callable[[Source], object]
) -> None:
    """A directory, a file, a total above: there at the first look, though its absence is cached."""
    kernel.walk()
    for path in [*paths, "other", "cpu0/other"]:
        assert misses(kernel, path)
        assert misses(kernel, path)
    change(kvm)
    for path in paths:
        assert not misses(kernel, path)
    told = {name for stale in kernel.told for name in stale.names}
    assert not [name for name in told if name[1] == b"other"]


@pytest.mark.parametrize("again", [False, True], ids=["another", "the same"])
def test_names_that_another_root_brings(
    kernel: Kernel, vfs: Vfs, registry: Registry, kvm: Source, again: bool
) -> None:
    """Missed before it came, or in the one before it, even if nobody looked in between."""
    assert misses(kernel, "second")
    registry.unregister(kvm)
    # In the middle of it, as it may be on another thread: the new root is looked at.
    assert vfs.attributes(ROOT).links == 2
    if again:
        kvm.add_values(SECOND, {"second": 1})
        registry.register(kvm)
    else:
        assert misses(kernel, "exits")
        source = Source("kvm")
        source.add_values(SECOND, {"second": 1})
        add_cpu(source, "cpu0")
        registry.register(source)
    for path in ("second", "exits", "cpu0"):
        assert not misses(kernel, path)


def test_a_name_that_appears_in_the_middle_of_the_lookup(
    vfs: Vfs, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noted before it is looked for once more."""
    note = vfs._inodes.note_absent

    def note_late(*args: object) -> bool:
        kvm.add_values(SECOND, {"second": 1})
        return note(*args)  # type: ignore[arg-type]  # whatever it is called with

    monkeypatch.setattr(vfs._inodes, "note_absent", note_late)
    assert vfs.lookup(ROOT, b"second").inode > ROOT


def test_a_root_that_changes_in_the_middle_of_the_lookup(
    vfs: Vfs, registry: Registry, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing in the one says nothing of the other: nothing is to be cached."""
    note = vfs._inodes.note_absent
    changes: list[Callable[[Source], object]] = [registry.unregister, registry.register]

    def note_first(*args: object) -> bool:
        noted = note(*args)  # type: ignore[arg-type]  # whatever it is called with
        changes.pop(0)(kvm)
        return noted

    monkeypatch.setattr(vfs._inodes, "note_absent", note_first)
    for _ in range(2):
        with pytest.raises(NoSuchFileError):
            vfs.lookup(ROOT, b"nothing")


def test_absent_names_are_forgotten(
    kernel: Kernel, vfs: Vfs, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After their time, where the directory has gone as well; or what was looked for again."""
    now = [100.0]
    monkeypatch.setattr("statsfs.filesystem.inodes.time.monotonic", lambda: now[0])
    cpu, inodes = kernel.find("cpu0"), vfs._inodes
    known, _ = inodes.find(cpu)
    vfs.lookup(ROOT, b"first")
    vfs.lookup(cpu, b"first")
    now[0] += 1.5
    vfs.lookup(ROOT, b"first")
    assert inodes.root.absent == {b"first": 103.5}
    assert known.absent == {b"first": 102.0}
    now[0] += 1.0
    vfs.lookup(ROOT, b"second")
    assert inodes.root.absent == {b"first": 103.5, b"second": 104.5}
    assert known.absent == {}
    vfs.lookup(cpu, b"third")
    kvm.remove_subordinate(subordinate(kvm, "cpu0"))
    kernel.drop_caches()
    now[0] += 5.0
    vfs.lookup(ROOT, b"fourth")
    assert inodes.root.absent == {b"fourth": now[0] + 2}
    assert len(inodes._absent) == 1


def test_absent_names_have_an_end(vfs: Vfs, kvm: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for ever new ones fills no memory: the kernel is then asked to ask again."""
    monkeypatch.setattr("statsfs.filesystem.inodes._ABSENT_MAX", 50)
    for number in range(50):
        assert vfs.lookup(ROOT, b"%d" % number) is ABSENT
    for _ in range(2):
        with pytest.raises(NoSuchFileError):
            vfs.lookup(ROOT, b"50")

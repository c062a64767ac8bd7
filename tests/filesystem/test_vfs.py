"""The filesystem without FUSE: names, attributes, directories, extended attributes."""

import os
import stat
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.filesystem.known import (
    ROOT,
    Attributes,
    BusyDirectoryError,
    FixedDirectoryError,
    NoSuchAttributeError,
    NoSuchFileError,
)
from statsfs.filesystem.vfs import Vfs
from statsfs.model.values import Kind, Type, Unit, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.kernel import Kernel, list_directory
from tests.support.trees import Cpu, add_cpu, make_kvm, subordinate

SECRET = (Value("secret", mode=0o600),)


@pytest.fixture
def vfs(kernel: Kernel) -> Vfs:
    """The filesystem of the test's registry."""
    return kernel.vfs


@pytest.fixture
def kvm(registry: Registry) -> Source:
    """A top-level source with `cpu0` and `cpu1` below it."""
    return make_kvm(registry)


# Names and attributes


def test_the_root_has_the_registered_sources(vfs: Vfs, registry: Registry, kvm: Source) -> None:
    """Hidden sources are no directories; the root has no files."""
    registry.register(Source("net"))
    registry.register(Source("ghost", hidden=True))
    assert list_directory(vfs, ROOT) == [b"kvm", b"net"]
    assert vfs.attributes(ROOT)[:4] == (ROOT, stat.S_IFDIR | 0o755, 4, 0)


def test_a_directory_has_subdirectories_and_values(kernel: Kernel, kvm: Source) -> None:
    """Own values below, aggregates above, in the order they were declared."""
    kvm.add_subordinate(Source("ghost", hidden=True))
    assert list_directory(kernel.vfs, kernel.find("kvm/cpu0")) == [b"exits", b"wait", b"busy"]
    files = [b"exits", b"wait.min", b"wait.max", b"wait.avg", b"busy"]
    assert list_directory(kernel.vfs, kernel.find("kvm")) == [b"cpu0", b"cpu1", *files]
    assert kernel.vfs.attributes(kernel.find("kvm")).links == 4


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("kvm", stat.S_IFDIR | 0o755),
        ("kvm/exits", stat.S_IFREG | 0o644),
        ("kvm/wait.avg", stat.S_IFREG | 0o644),
        ("kvm/busy", stat.S_IFREG | 0o444),
        ("kvm/cpu0/exits", stat.S_IFREG | 0o644),
        ("kvm/cpu0/busy", stat.S_IFREG | 0o444),
        ("kvm/cpu0/secret", stat.S_IFREG | 0o600),
    ],
)
def test_modes_and_sizes(kernel: Kernel, kvm: Source, path: str, mode: int) -> None:
    """Directories 0755 without a size, files their mode and 4096 bytes; each name one link."""
    subordinate(kvm, "cpu0").add_values(SECRET, {"secret": 1})
    attributes = kernel.vfs.attributes(kernel.find(path))
    size, links = (0, 4) if stat.S_ISDIR(mode) else (4096, 1)
    assert (attributes.mode, attributes.size, attributes.links) == (mode, size, links)


@pytest.mark.parametrize("name", [b"nothing", b"ghost", b"hidden", b"\xff\xfe", b"", b"x" * 256])
def test_no_such_name(kernel: Kernel, kvm: Source, name: bytes) -> None:
    """Unknown names, hidden ones and those that are no text are not there."""
    kvm.add_subordinate(Source("ghost", hidden=True))
    kvm.add_values([Value("hidden", hidden=True)], {"hidden": 1})
    for parent in (ROOT, kernel.find("kvm")):
        with pytest.raises(NoSuchFileError):
            kernel.vfs.lookup(parent, name)


def test_no_such_inode(kernel: Kernel, kvm: Source) -> None:
    """An inode that was never given, or is a file's where a directory is wanted, is refused."""
    file = kernel.find("kvm/exits")
    calls: list[Callable[[int], object]] = [
        lambda inode: kernel.vfs.lookup(inode, b"exits"),
        kernel.vfs.open_directory,
    ]
    for call in calls:
        for inode in (file, 77, 1 << 60):
            with pytest.raises(NoSuchFileError):
                call(inode)
    for inode in (77, 1 << 60, file + 999):
        with pytest.raises(NoSuchFileError):
            kernel.vfs.attributes(inode)
        with pytest.raises(NoSuchFileError):
            kernel.vfs.open(inode, os.O_RDONLY)
        with pytest.raises(NoSuchFileError):
            kernel.vfs.check_truncate(inode)
    with pytest.raises(NoSuchFileError):
        kernel.vfs.open(kernel.find("kvm"), os.O_RDONLY)


def test_times(kernel: Kernel, kvm: Source, registry: Registry) -> None:
    """A file is as old as its source's place; a directory as its last change."""
    vfs = kernel.vfs
    directory, file = kernel.find("kvm"), kernel.find("kvm/exits")
    placed = vfs.attributes(file).modified
    before = time.time_ns()
    assert placed <= before
    add_cpu(kvm, "cpu2")
    assert vfs.attributes(directory).modified >= before
    assert vfs.attributes(file).modified == placed
    before = time.time_ns()
    registry.register(Source("net"))
    assert vfs.attributes(ROOT).modified >= before


def test_inodes_are_stable_while_a_source_stays(kernel: Kernel, kvm: Source) -> None:
    """What else comes and goes, and what is forgotten, changes no inode number."""
    paths = ["kvm", "kvm/cpu0", "kvm/cpu0/exits", "kvm/exits", "kvm/wait.max"]
    before = {path: kernel.find(path) for path in paths}
    assert len(set(before.values())) == len(paths)
    kernel.drop_caches()
    add_cpu(kvm, "cpu2")
    kvm.remove_subordinate(subordinate(kvm, "cpu1"))
    assert {path: kernel.find(path) for path in paths} == before


def test_inodes_are_never_used_again(kernel: Kernel, registry: Registry) -> None:
    """A source that leaves and comes back has new numbers, and so has all that is below it."""
    parent, child = Source("parent"), Source("child")
    child.add_values(Cpu, Cpu())
    parent.add_subordinate(child)
    seen: set[int] = set()
    paths = ["parent", "parent/child", "parent/exits", "parent/child/exits"]
    for _ in range(20):
        registry.register(parent)
        inodes = {kernel.find(path) for path in paths}
        assert len(inodes) == len(paths)
        assert not inodes & seen
        seen |= inodes
        registry.unregister(parent)


# Extended attributes


def test_extended_attributes_of_values(kernel: Kernel, kvm: Source) -> None:
    """What a value is, in words; those of an aggregate are its value's."""
    wait = {
        b"user.statsfs.type": b"s64",
        b"user.statsfs.aggregate": b"min,max,avg",
        b"user.statsfs.kind": b"cumulative",
        b"user.statsfs.unit": b"seconds",
        b"user.statsfs.base": b"10",
        b"user.statsfs.exponent": b"-9",
        b"user.statsfs.description": b"",
    }
    for path in ("kvm/cpu0/wait", "kvm/wait.avg"):
        assert kernel.vfs.extended_attributes(kernel.find(path)) == wait
    bits = Value("bits", Type.U8, kind=Kind.PEAK, unit=Unit.BYTES, base=2, description="ü")
    kvm.add_values([bits], {"bits": 1})
    found = kernel.vfs.extended_attributes(kernel.find("kvm/bits"))
    assert [text.decode() for text in found.values()] == [
        "u8", "peak", "bytes", "2", "0", "none", "ü",
    ]  # fmt: skip


def test_extended_attributes_of_sources(kernel: Kernel, kvm: Source) -> None:
    """A source's label, if it has one; the root has none."""
    vfs = kernel.vfs
    assert vfs.extended_attributes(kernel.find("kvm")) == {b"user.statsfs.label": b"module"}
    assert vfs.extended_attributes(kernel.find("kvm/cpu0")) == {}
    assert vfs.extended_attributes(ROOT) == {}
    assert vfs.extended_attribute(kernel.find("kvm"), b"user.statsfs.label") == b"module"


def test_what_else_is_known_of_a_source(kernel: Kernel, kvm: Source) -> None:
    """A source's info is in extended attributes, as it is now."""
    vm = Source("12-3", label="vm", info={"uuid": "0-1", "kvm.source": "bpf"})
    kvm.add_subordinate(vm)
    found = kernel.find("kvm/12-3")
    assert kernel.vfs.extended_attributes(found) == {
        b"user.statsfs.uuid": b"0-1",
        b"user.statsfs.kvm.source": b"bpf",
        b"user.statsfs.label": b"vm",
    }
    vm.info = {"kvm.source": "libvirt"}
    assert kernel.vfs.extended_attribute(found, b"user.statsfs.kvm.source") == b"libvirt"


@pytest.mark.parametrize(
    "name", [b"security.capability", b"user.statsfs.nothing", b"user.other", b"", b"\xff"]
)
def test_no_such_extended_attribute(kernel: Kernel, kvm: Source, name: bytes) -> None:
    """Others are not there, on files, directories and the root."""
    for inode in (ROOT, kernel.find("kvm"), kernel.find("kvm/exits")):
        with pytest.raises(NoSuchAttributeError):
            kernel.vfs.extended_attribute(inode, name)


# Directories that change while they are listed


def test_dots(kernel: Kernel, kvm: Source) -> None:
    """Every directory lists itself and its parent; the root is its own."""
    found: list[tuple[bytes, int]] = []

    def reply(name: bytes, attributes: Attributes, offset: int) -> bool:
        found.append((name, attributes.inode))
        return len(found) % 3 != 0

    for path, inode, parent in [
        ("", ROOT, ROOT),
        ("kvm", kernel.find("kvm"), ROOT),
        ("kvm/cpu0", kernel.find("kvm/cpu0"), kernel.find("kvm")),
    ]:
        handle = kernel.vfs.open_directory(inode)
        kernel.vfs.list_directory(handle, 0, reply)
        assert found[:2] == [(b".", inode), (b"..", parent)], path
        found.clear()


@pytest.mark.parametrize("room", [1, 2, 3])
def test_an_entry_that_does_not_fit_comes_next(kernel: Kernel, kvm: Source, room: int) -> None:
    """Even "." and "..", with a buffer of one entry; and it is not known before it is taken."""
    inode = kernel.find("kvm/cpu0")
    assert list_directory(kernel.vfs, inode, [room]) == [b"exits", b"wait", b"busy"]
    with pytest.raises(NoSuchFileError):
        kernel.vfs.attributes(kernel.vfs.lookup(inode, b"exits").inode + 8)


def test_a_directory_can_be_read_again(kernel: Kernel, kvm: Source) -> None:
    """At offset 0 it is listed anew; at another offset as it was, or as it is if it never was."""
    listed: list[bytes] = []

    def reply(name: bytes, attributes: Attributes, offset: int) -> bool:
        listed.append(name)
        return True

    vfs = kernel.vfs
    first, second = (vfs.open_directory(kernel.find("kvm")) for _ in range(2))
    vfs.list_directory(first, 0, reply)
    assert listed[2:4] == [b"cpu0", b"cpu1"]
    add_cpu(kvm, "cpu2")
    for handle, offset, wanted in [
        (first, 2, [b"cpu0", b"cpu1", b"exits"]),
        (first, 0, [b".", b"..", b"cpu0"]),
        (first, 4, [b"cpu2", b"exits", b"wait.min"]),
        (second, 3, [b"cpu1", b"cpu2", b"exits"]),
    ]:
        listed.clear()
        vfs.list_directory(handle, offset, reply)
        assert listed[:3] == wanted


def test_a_removed_directory_lists_nothing(kernel: Kernel, kvm: Source) -> None:
    """Through a directory held open; neither when it is read again."""
    listed: list[bytes] = []

    def reply(name: bytes, attributes: Attributes, offset: int) -> bool:
        listed.append(name)
        return len(listed) != 3

    handle = kernel.vfs.open_directory(kernel.find("kvm/cpu0"))
    kernel.vfs.list_directory(handle, 0, reply)
    kvm.remove_subordinate(subordinate(kvm, "cpu0"))
    for offset in (2, 0):
        listed.clear()
        kernel.vfs.list_directory(handle, offset, reply)
        assert listed == []


NAMES = [f"cpu{number}" for number in range(6)]
STEPS = st.lists(st.lists(st.sampled_from(NAMES), max_size=3), max_size=12)


@given(
    first=st.sets(st.sampled_from(NAMES)),
    room=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    steps=STEPS,
)
def test_listing_while_the_tree_changes(
    first: set[str], room: list[int], steps: list[list[str]]
) -> None:
    """No name twice, none that was there all the time missed, none that was never there."""
    registry = Registry()
    kvm = make_kvm(registry, cpus=0)
    kernel = Kernel(Vfs(registry))
    kvm.add_values(Cpu, Cpu())
    there, always, ever = set(first), set(first), set(first)
    for name in first:
        add_cpu(kvm, name)

    def change(toggled: list[str]) -> None:
        for name in toggled:
            if name in there:
                kvm.remove_subordinate(subordinate(kvm, name))
            else:
                add_cpu(kvm, name)
            there.symmetric_difference_update({name})
            always.intersection_update(there)
            ever.update(there)

    between = [lambda toggled=toggled: change(toggled) for toggled in steps]
    found = [n.decode() for n in list_directory(kernel.vfs, kernel.find("kvm"), room, between)]
    assert len(found) == len(set(found))
    assert always | {"exits", "wait", "busy"} <= set(found)
    assert set(found) <= ever | {"exits", "wait", "busy", "wait.min", "wait.max", "wait.avg"}


def test_what_has_gone_is_left_out(kernel: Kernel, kvm: Source) -> None:
    """A name whose turn comes after its removal is not listed."""
    gone = subordinate(kvm, "cpu1")
    found = list_directory(
        kernel.vfs, kernel.find("kvm"), [3], [lambda: kvm.remove_subordinate(gone)]
    )
    assert found == [b"cpu0", b"exits", b"wait.min", b"wait.max", b"wait.avg", b"busy"]


# Removing directories


@pytest.fixture
def removable(registry: Registry, vfs: Vfs) -> Source:
    """A top-level source in which directories can be removed, but for the last; some have owners.

    Of those with an "x" in their names it is known that they are in use.
    """

    def rmdir(source: Source) -> bool:
        assert threading.get_ident() in vfs.removing
        if "x" in source.name:
            return False
        app.remove_subordinate(source)
        return True

    app = Source("app", owner=(5, 6))
    for name, owner in (("inherits", None), ("owned", (7, 8)), ("x", None)):
        app.add_subordinate(Source(name, owner=owner, rmdir=rmdir))
    app.add_subordinate(Source("hidden", hidden=True, rmdir=rmdir))
    app.add_subordinate(Source("fixed"))
    registry.register(app)
    return app


@pytest.mark.parametrize(
    ("name", "user"), [("inherits", 0), ("inherits", 5), ("owned", 0), ("owned", 7)]
)
def test_a_directory_is_removed(kernel: Kernel, removable: Source, name: str, user: int) -> None:
    """By root and by its owner, in the thread that calls what is returned."""
    app = kernel.find("app")
    remove = kernel.vfs.prepare_rmdir(app, name.encode(), user)
    assert removable.find(name) is not None
    remove()
    assert removable.find(name) is None
    assert kernel.vfs.removing == set()
    with pytest.raises(NoSuchFileError):
        kernel.vfs.prepare_rmdir(app, name.encode(), user)


@pytest.mark.parametrize(
    ("name", "user"), [("inherits", 7), ("inherits", 6), ("owned", 5), ("owned", 8), ("fixed", 0)]
)
def test_a_directory_of_others_is_not_removed(
    kernel: Kernel, removable: Source, name: str, user: int
) -> None:
    """Nor a program's, by anybody."""
    with pytest.raises(FixedDirectoryError, match=rf"^app/{name} cannot be removed$"):
        kernel.vfs.prepare_rmdir(kernel.find("app"), name.encode(), user)


def test_a_directory_in_use_is_not_removed(kernel: Kernel, removable: Source) -> None:
    """Its source knows."""
    remove = kernel.vfs.prepare_rmdir(kernel.find("app"), b"x", 0)
    with pytest.raises(BusyDirectoryError, match=r"^app/x is in use$"):
        remove()
    assert kernel.vfs.removing == set()
    assert removable.find("x") is not None


def test_what_is_not_there_is_not_removed(
    kernel: Kernel, registry: Registry, removable: Source
) -> None:
    """A hidden source, any other name, and whatever was in a directory that is gone."""
    app = kernel.find("app")
    for name in (b"hidden", b"new", b"\xff"):
        with pytest.raises(NoSuchFileError):
            kernel.vfs.prepare_rmdir(app, name, 0)
    registry.unregister(removable)
    with pytest.raises(NoSuchFileError):
        kernel.vfs.prepare_rmdir(app, b"inherits", 0)

"""Views in the filesystem without FUSE: names, attributes, opening, reading anew, what is held."""

import json
import os
import stat
import time

import pytest

from statsfs.exceptions import ReadOnlyValueError
from statsfs.filesystem.known import ROOT, Known, NoSuchAttributeError, NoSuchFileError, Numbered
from statsfs.filesystem.value_files import FILE_SIZE
from statsfs.filesystem.vfs import Vfs
from statsfs.model.values import Value
from statsfs.tree.access import Owner
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of
from tests.support.kernel import Kernel, list_directory, prepare_read, write
from tests.support.trees import Cpu, add_cpu, make_kvm, subordinate

NAMES = (".stats.json", ".stats.prom", ".stats.openmetrics", ".stats.bin", ".schema.json")


@pytest.fixture
def kvm(registry: Registry) -> Source:
    """A top-level source with `cpu0` and `cpu1` below it."""
    return make_kvm(registry)


@pytest.fixture
def vfs(kernel: Kernel) -> Vfs:
    """The filesystem of the test's registry."""
    return kernel.vfs


def open_view(kernel: Kernel, path: str, client: int = 0, user: Owner = (0, 0)) -> int:
    """Open and render a view."""
    inode = kernel.find(path)
    handle = kernel.vfs.open(inode, os.O_RDONLY, client=client, user=user)
    kernel.opened[handle] = inode
    assert prepare_read(kernel.vfs, handle)
    return handle


def read(vfs: Vfs, handle: int, offset: int = 0, size: int = 1 << 20) -> bytes:
    """Read as the handlers do."""
    prepare_read(vfs, handle, offset)
    return vfs.read(handle, offset, size)


# Names


@pytest.mark.parametrize("name", NAMES)
def test_each_directory_has_each_view(kernel: Kernel, kvm: Source, name: str) -> None:
    """The root too, but for the binary one, which is of one directory's own values."""
    found = {kernel.find(f"{path}{name}") for path in ("kvm/", "kvm/cpu0/", "kvm/cpu1/")}
    if name == ".stats.bin":
        with pytest.raises(NoSuchFileError):
            kernel.find(name)
    else:
        found.add(kernel.find(name))
    assert len(found) == 4 - (name == ".stats.bin")
    assert not found & {ROOT, kernel.find("kvm"), kernel.find("kvm/cpu0")}


def test_listings_have_no_views(kernel: Kernel, kvm: Source) -> None:
    """Not even of a directory of which they are all open."""
    handles = [open_view(kernel, f"kvm/{name}") for name in NAMES]
    for path in ("kvm", "kvm/cpu0"):
        assert not any(
            name.startswith(b".") for name in list_directory(kernel.vfs, kernel.find(path))
        )
    assert list_directory(kernel.vfs, ROOT) == [b"kvm"]
    assert kernel.vfs.attributes(kernel.find("kvm")).links == 4
    for handle in handles:
        kernel.close(handle)


@pytest.mark.parametrize("name", [".stats", ".stats.json ", ".STATS.JSON", "stats.json", ".", ".x"])
def test_other_names_with_a_dot_are_not_there(kernel: Kernel, kvm: Source, name: str) -> None:
    """And below a file or a view there is nothing."""
    for path in ("", "kvm/"):
        with pytest.raises(NoSuchFileError):
            kernel.find(path + name)
    for path in ("kvm/exits", "kvm/.stats.json"):
        with pytest.raises(NoSuchFileError):
            kernel.vfs.lookup(kernel.find(path), b".stats.json")


def test_inode_numbers(kernel: Kernel, kvm: Source, registry: Registry) -> None:
    """Stable as long as the directory stays; new with it."""
    paths = [f"kvm/{name}" for name in NAMES]
    before = [kernel.find(path) for path in paths]
    kernel.drop_caches()
    assert [kernel.find(path) for path in paths] == before
    registry.unregister(kvm)
    registry.register(kvm)
    assert not {kernel.find(path) for path in paths} & set(before)


def test_the_kernel_forgets(kernel: Kernel, kvm: Source) -> None:
    """A view counts like any file; what was rendered of it is forgotten too."""
    vfs, path = kernel.vfs, "kvm/cpu0/.stats.json"
    before = len(vfs._inodes)
    kernel.close(open_view(kernel, path))
    inode = kernel.find(path)
    assert vfs.attributes(inode).size != FILE_SIZE
    kernel.drop_caches()
    assert len(vfs._inodes) == before
    with pytest.raises(NoSuchFileError):
        vfs.attributes(inode)
    assert vfs.attributes(kernel.find(path)).size == FILE_SIZE


# Attributes


@pytest.mark.parametrize("name", NAMES)
def test_attributes(kernel: Kernel, kvm: Source, name: str) -> None:
    """Before the first rendering the size of any file, then that of the newest; never cached."""
    vfs, path = kernel.vfs, f"kvm/{name}"
    inode = kernel.find(path)
    fresh = vfs.attributes(inode)
    assert fresh == (
        inode,
        stat.S_IFREG | 0o444,
        1,
        FILE_SIZE,
        directory_of(kvm).placed,
        (0, 0),
        True,
    )
    before = time.time_ns()
    handle = open_view(kernel, path)
    text = read(vfs, handle)
    shown = vfs.attributes(inode)
    assert (shown.size, shown.live) == (len(text), True)
    assert before <= shown.modified <= time.time_ns()
    kernel.close(handle)
    assert vfs.attributes(inode) == vfs.lookup(kernel.find("kvm"), name.encode()) == shown


def test_attributes_at_the_root(kernel: Kernel, kvm: Source, registry: Registry) -> None:
    """As everywhere; an unrendered one is as old as the last change there."""
    inode = kernel.find(".stats.json")
    changed = kernel.vfs.attributes(ROOT).modified
    assert kernel.vfs.attributes(inode)[3:] == (FILE_SIZE, changed, (0, 0), True)
    handle = open_view(kernel, ".stats.json")
    assert json.loads(read(kernel.vfs, handle)) == registry.snapshot().to_dict()
    kernel.close(handle)


def test_ordinary_files_may_be_cached(kernel: Kernel, kvm: Source) -> None:
    """Only views change without being told."""
    for path in ("kvm", "kvm/exits", "kvm/cpu0/exits"):
        assert not kernel.vfs.attributes(kernel.find(path)).live


def test_each_client_sees_the_size_of_what_it_reads(kernel: Kernel, kvm: Source) -> None:
    """As long as it has it open, whatever others have opened meanwhile; else that of the newest."""
    vfs, cpu, path = kernel.vfs, add_cpu(kvm, "cpu2"), "kvm/.stats.json"
    inode, texts, handles, moments = kernel.find(path), {}, {}, {}
    for client in (1, 2, 3):
        cpu.exits = 10**client
        handles[client] = open_view(kernel, path, client)
        texts[client] = read(vfs, handles[client])
        moments[client] = vfs.attributes(inode, client).modified
    assert len({len(text) for text in texts.values()}) == 3
    assert moments[1] < moments[2] < moments[3]
    for client in (1, 2, 3):
        assert vfs.attributes(inode, client).size == len(texts[client])
        assert vfs.attributes(inode, client).modified == moments[client]
    for other in (4, 0, None):
        assert vfs.attributes(inode, other).size == len(texts[3])
    # One that has it open twice sees what it rendered last.
    cpu.exits = 10**8
    again = open_view(kernel, path, 1)
    newest = len(read(vfs, again))
    assert vfs.attributes(inode, 1).size == newest
    kernel.close(again)
    assert vfs.attributes(inode, 1).size == len(texts[1])
    assert vfs.attributes(inode, 2).size == len(texts[2])
    for handle in handles.values():
        kernel.close(handle)
    assert vfs.attributes(inode, 1).size == newest
    assert vfs._handles.files == {}


def test_a_view_that_is_being_rendered_has_no_size_yet(kernel: Kernel, kvm: Source) -> None:
    """Whoever looks meanwhile sees the one before."""
    vfs, path = kernel.vfs, "kvm/.stats.json"
    inode = kernel.find(path)
    handle = kernel.open(inode)
    assert vfs.attributes(inode, 0).size == FILE_SIZE
    assert vfs.read(handle, 0, 99) == b""
    prepare_read(vfs, handle)
    size = vfs.attributes(inode, 0).size
    add_cpu(kvm, "cpu2")
    second = kernel.open(inode)
    assert vfs.attributes(inode, 0).size == size
    prepare_read(vfs, second)
    assert vfs.attributes(inode, 0).size > size
    for one in (handle, second):
        kernel.close(one)


def test_extended_attributes(kernel: Kernel, kvm: Source) -> None:
    """There are none: what a value is, its own file says, and the schema."""
    inode = kernel.find("kvm/.stats.json")
    assert kernel.vfs.extended_attributes(inode) == {}
    with pytest.raises(NoSuchAttributeError):
        kernel.vfs.extended_attribute(inode, b"user.statsfs.type")


# Opening


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC | os.O_APPEND])
@pytest.mark.parametrize("name", NAMES)
def test_a_view_cannot_be_written(kernel: Kernel, kvm: Source, name: str, flags: int) -> None:
    """Nor truncated, by whomever."""
    inode = kernel.find(f"kvm/{name}")
    with pytest.raises(ReadOnlyValueError):
        kernel.vfs.open(inode, flags)
    with pytest.raises(ReadOnlyValueError):
        kernel.vfs.check_truncate(inode)
    assert kernel.vfs._handles.files == {}


@pytest.mark.parametrize("flags", [os.O_TRUNC, os.O_APPEND, os.O_NONBLOCK, os.O_DIRECT])
def test_flags_without_effect(kernel: Kernel, kvm: Source, flags: int) -> None:
    """Opened for reading it is read."""
    handle = kernel.open(kernel.find("kvm/.stats.json"), flags)
    prepare_read(kernel.vfs, handle)
    assert json.loads(read(kernel.vfs, handle)) == kvm.snapshot().to_dict()
    with pytest.raises(ReadOnlyValueError):
        write(kernel.vfs, handle, b"0\n")
    kernel.close(handle)


def test_files_need_no_rendering(kernel: Kernel, kvm: Source) -> None:
    """They are read when they are read."""
    handle = kernel.open(kernel.find("kvm/exits"))
    assert not prepare_read(kernel.vfs, handle)
    assert not prepare_read(kernel.vfs, handle, 0)
    kernel.close(handle)


def test_a_rendering_that_comes_too_late(kernel: Kernel, kvm: Source) -> None:
    """Its file was closed meanwhile, or a mount ended: nothing is left of it."""
    vfs, inode = kernel.vfs, kernel.find("kvm/.stats.json")
    handle = kernel.open(inode)
    works = vfs.prepare_read(handle, None)
    rendering = next(works)
    kernel.close(handle)
    rendering.run()
    assert list(works) == []
    assert vfs._handles.files == {}
    assert vfs.attributes(inode).size == FILE_SIZE


def test_masks(registry: Registry, kvm: Source) -> None:
    """A view tells nobody what the value's own file would not."""
    modes = (0o600, 0o200, 0o640, 0o644, 0o004)
    values = [Value(f"m{mode:o}", mode=mode) for mode in modes]
    kvm.add_values(values, {value.name: 1 for value in values})
    vfs = Vfs(registry, owner=(12, 34))
    kernel = Kernel(vfs)
    for user, shown in (((0, 9), 0o444), ((12, 34), 0o400), ((9, 34), 0o040), ((9, 9), 0o004)):
        handle = open_view(kernel, "kvm/.stats.json", user=user)
        found = json.loads(read(kernel.vfs, handle))["values"]
        assert {name for name in found if name.startswith("m")} == {
            f"m{mode:o}" for mode in modes if mode & shown
        }
        # Also when it is rendered anew.
        assert read(kernel.vfs, handle, 0) == read(kernel.vfs, handle, 0)
        kernel.close(handle)


# Reading


def test_reading_at_the_beginning_once_more(kernel: Kernel, kvm: Source) -> None:
    """The first time it is what was rendered at open, then it is rendered anew; and only there."""
    cpu, vfs = add_cpu(kvm, "cpu2"), kernel.vfs
    handle = open_view(kernel, "kvm/cpu2/.stats.json")
    cpu.exits = 5
    first = read(vfs, handle, 0, 10)
    assert (
        first + read(vfs, handle, 10)
        == b'{"values": {"exits": 0, "wait": 0, "busy": 0}, "subordinates": {}}\n'
    )
    assert not prepare_read(vfs, handle, 1)
    assert b'"exits": 0,' in first + read(vfs, handle, 10)
    assert b'"exits": 5,' in read(vfs, handle, 0)
    cpu.exits = 67
    assert b": 5," in read(vfs, handle, 12)
    assert b'"exits": 67,' in read(vfs, handle, 0)
    assert read(vfs, handle, 1 << 40) == b""
    assert vfs.attributes(kernel.find("kvm/cpu2/.stats.json")).size == len(read(vfs, handle, 0))
    kernel.close(handle)


def test_reading_in_the_middle_first(kernel: Kernel, kvm: Source) -> None:
    """A reader that begins elsewhere has the text of its open, and its first read at 0 too."""
    cpu, vfs = add_cpu(kvm, "cpu2"), kernel.vfs
    handle = open_view(kernel, "kvm/cpu2/.stats.json")
    cpu.exits = 5
    tail = read(vfs, handle, 10)
    assert b'"exits": 0,' in read(vfs, handle, 0, 10) + tail
    assert b'"exits": 5,' in read(vfs, handle, 0)
    kernel.close(handle)


def test_several_handles_at_once(kernel: Kernel, kvm: Source) -> None:
    """Each has the text of its own moment, and rendering one anew leaves the others."""
    cpu, vfs, handles = add_cpu(kvm, "cpu2"), kernel.vfs, []
    for exits in range(5):
        cpu.exits = exits
        handles.append(open_view(kernel, "kvm/.stats.json"))
    cpu.exits = 77
    found = [json.loads(read(vfs, handle))["values"]["exits"] for handle in handles]
    assert found == [0, 1, 2, 3, 4]
    assert json.loads(read(vfs, handles[2]))["values"]["exits"] == 77
    assert b'"exits": 3,' in read(vfs, handles[3], 1)
    for handle in handles:
        kernel.close(handle)


# Directories that go


def test_a_removed_directory(kernel: Kernel, kvm: Source) -> None:
    """Its views go with it; those that are open are read on, and even anew."""
    vfs, cpu = kernel.vfs, subordinate(kvm, "cpu0")
    inode = kernel.find("kvm/cpu0/.stats.json")
    directory = kernel.find("kvm/cpu0")
    handle = open_view(kernel, "kvm/cpu0/.stats.json")
    references = cpu.refcount
    kvm.remove_subordinate(cpu)
    assert cpu.refcount == references - 1
    with pytest.raises(NoSuchFileError):
        kernel.find("kvm/cpu0/.stats.json")
    with pytest.raises(NoSuchFileError):
        vfs.lookup(directory, b".stats.json")
    with pytest.raises(NoSuchFileError):
        vfs.open(inode, os.O_RDONLY)
    assert vfs.attributes(inode).links == 0
    first = read(vfs, handle)
    assert json.loads(first)["values"] == {"exits": 0, "wait": 0, "busy": 0}
    assert read(vfs, handle) == first
    kernel.close(handle)
    assert kernel.stale_names() == []
    assert cpu.refcount == 0


def test_a_view_holds_its_source(kernel: Kernel, registry: Registry) -> None:
    """As an open file does; the root's hold none."""
    source = Source("s")
    source.add_values(Cpu, Cpu())
    registry.register(source)
    source.put()
    root, handle = open_view(kernel, ".stats.json"), open_view(kernel, "s/.stats.json")
    assert source.refcount == 2
    registry.unregister(source)
    assert json.loads(read(kernel.vfs, handle))["values"]["exits"] == 0
    kernel.close(handle)
    assert source.refcount == 0
    assert json.loads(read(kernel.vfs, root))["subordinates"].keys() == {"s"}
    assert json.loads(read(kernel.vfs, root))["subordinates"] == {}
    kernel.close(root)


def test_a_directory_that_goes_during_the_lookup(
    kernel: Kernel, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is told that there is nothing, and nothing is kept for it."""
    vfs, directory = kernel.vfs, kernel.find("kvm/cpu0")
    before = len(vfs._inodes)
    note = Known.note_file

    def note_late(known: Known, file: Numbered) -> int:
        kvm.remove_subordinate(subordinate(kvm, "cpu0"))
        return note(known, file)

    monkeypatch.setattr(Known, "note_file", note_late)
    with pytest.raises(NoSuchFileError):
        vfs.lookup(directory, b".stats.json")
    monkeypatch.undo()
    assert len(vfs._inodes) <= before


def test_a_change_leaves_views_known(kernel: Kernel, kvm: Source) -> None:
    """Files that come and go in a directory make no view stale."""
    inode = kernel.find("kvm/cpu0/.stats.json")
    subordinate(kvm, "cpu0").revoke()
    subordinate(kvm, "cpu0").add_values([Value("new")], {"new": 1})
    assert kernel.names[kernel.find("kvm/cpu0"), b".stats.json"] == inode
    assert not any(name == b".stats.json" for stale in kernel.told for _, name in stale.names)


def test_the_end_of_a_mount(kernel: Kernel, kvm: Source) -> None:
    """Closes what is open, and lets go of the sources."""
    references = kvm.refcount
    for name in NAMES:
        open_view(kernel, f"kvm/{name}")
    assert kvm.refcount == references + len(NAMES)
    kernel.vfs.close_all()
    assert kvm.refcount == references
    assert kernel.vfs._handles.files == {}

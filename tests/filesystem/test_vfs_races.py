"""Changes that other threads make in the middle of a call of `Vfs`, one by one."""

import stat
from collections.abc import Callable

import pytest

from statsfs.filesystem.inodes import Inodes
from statsfs.filesystem.known import ROOT, Known, NoSuchFileError
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of
from tests.support.kernel import Kernel, list_directory
from tests.support.trees import Cpu, make_kvm, subordinate


@pytest.fixture
def kvm(registry: Registry) -> Source:
    """A top-level source with `cpu0` and `cpu1` below it."""
    return make_kvm(registry)


class Turncoat(Source):
    """A source that does something the next time its `hidden` is looked at, as a thread might."""

    __slots__ = ("trick",)

    trick: Callable[[], object] | None

    @property  # type: ignore[misc]  # final, but for this
    def hidden(self) -> bool:
        """Whether it is hidden; never."""
        trick, self.trick = getattr(self, "trick", None), None
        if trick is not None:
            trick()
        return False

    @hidden.setter
    def hidden(self, hidden: bool) -> None:
        pass


def test_a_directory_that_leaves_while_it_is_looked_up(kernel: Kernel, registry: Registry) -> None:
    """It is not there; the root, and all the rest, still are."""
    source = Turncoat("source")
    registry.register(source)
    source.trick = lambda: registry.unregister(source)
    with pytest.raises(NoSuchFileError):
        kernel.vfs.lookup(ROOT, b"source")
    registry.register(source)
    assert list_directory(kernel.vfs, ROOT) == [b"source"]


def when_noted(
    monkeypatch: pytest.MonkeyPatch, method: str, changes: list[Callable[[], object]]
) -> None:
    """Have the tree change right after a name was noted as known, once for each change."""
    owner = Known if method == "note_file" else Inodes
    original = getattr(owner, method)

    def note(self: object, *args: object) -> object:
        noted = original(self, *args)
        if changes:
            changes.pop(0)()
        return noted

    monkeypatch.setattr(owner, method, note)


def test_a_directory_that_comes_back_while_it_is_looked_up(
    kernel: Kernel, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is returned is the new one; the kernel knows nothing of the old."""
    old, new = subordinate(kvm, "cpu0"), Source("cpu0")
    parent = kernel.find("kvm")
    known: list[int] = []

    def replace() -> None:
        known.append(directory_of(old).place << 30)
        kvm.remove_subordinate(old)
        kvm.add_subordinate(new)

    when_noted(monkeypatch, "note_directory", [replace])
    assert kernel.vfs.lookup(parent, b"cpu0").inode == directory_of(new).place << 30
    with pytest.raises(NoSuchFileError):
        kernel.vfs.attributes(known[0])


def test_a_file_that_becomes_a_directory_while_it_is_looked_up(
    kernel: Kernel, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is returned, and the other way round the file."""
    parent, source = kernel.find("kvm"), Source("exits")
    when_noted(monkeypatch, "note_file", [lambda: kvm.add_subordinate(source)])
    assert kernel.vfs.lookup(parent, b"exits").inode == directory_of(source).place << 30
    when_noted(monkeypatch, "note_directory", [lambda: kvm.remove_subordinate(source)])
    assert stat.S_ISREG(kernel.vfs.lookup(parent, b"exits").mode)


@pytest.mark.parametrize(("name", "noted"), [(b"cpu0", "note_directory"), (b"exits", "note_file")])
def test_a_parent_that_leaves_while_a_name_is_looked_up(
    kernel: Kernel,
    kvm: Source,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    name: bytes,
    noted: str,
) -> None:
    """The name is not there; nor is it listed."""
    parent = kernel.find("kvm")
    when_noted(monkeypatch, noted, [lambda: registry.unregister(kvm)])
    with pytest.raises(NoSuchFileError):
        kernel.vfs.lookup(parent, name)


@pytest.mark.parametrize("comes", [True, False])
def test_a_name_that_changes_its_meaning_while_names_are_collected(
    kernel: Kernel, registry: Registry, comes: bool
) -> None:
    """A directory where a file was, or the reverse, in the middle of it: the name comes once."""
    source, other = Source("source"), Source("exits")
    trick = Turncoat("trick")
    source.add_values(Cpu, Cpu())
    source.add_subordinate(trick)
    if not comes:
        source.add_subordinate(other)
    registry.register(source)
    inode = kernel.find("source")
    change = source.add_subordinate if comes else source.remove_subordinate
    trick.trick = lambda: change(other)
    found = list_directory(kernel.vfs, inode)
    assert sorted(found) == [b"busy", b"exits", b"trick", b"wait"]

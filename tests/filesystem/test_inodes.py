"""What the kernel was told: counting it, and what it must forget after each kind of change."""

from collections.abc import Callable
from itertools import count

import pytest

from statsfs.exceptions import ExhaustedError, StatsfsError
from statsfs.filesystem.inodes import Inodes, Stale
from statsfs.filesystem.known import ROOT, Known, NoSuchFileError, number_inode
from statsfs.filesystem.vfs import Vfs
from statsfs.model.arrays import FILE_NUMBERS
from statsfs.model.values import Aggregate, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of
from tests.support.kernel import Kernel, list_directory
from tests.support.trees import Cpu, add_cpu, make_kvm, subordinate

COUNT = (Value("count", aggregate=Aggregate.SUM, description="test_inodes"),)
EXITS = (Value("exits", aggregate=Aggregate.SUM, description="test_inodes"),)


@pytest.fixture
def kvm(registry: Registry, kernel: Kernel) -> Source:
    """A source with `cpu0` and `cpu1` below it; the kernel knows all of it."""
    kvm = make_kvm(registry)
    kernel.walk()
    kernel.told.clear()
    return kvm


def told_names(kernel: Kernel) -> set[tuple[int, bytes]]:
    """All names that the kernel was told to forget."""
    return {name for stale in kernel.told for name in stale.names}


def told_directories(kernel: Kernel) -> set[int]:
    """All directories whose attributes the kernel was told to forget."""
    return {inode for stale in kernel.told for inode, _ in stale.directories}


# Numbers and counts


def test_numbers() -> None:
    """A place and a number make an inode; there is an end to both, and it is said."""
    assert number_inode(5) == 5 << 30
    assert number_inode(5, 1) == 5 << 30 | 1
    places = (1 << 34) - 1
    assert number_inode(places, FILE_NUMBERS - 1) == (1 << 64) - 1
    for place, number in ((5, FILE_NUMBERS), (places + 1, 0)):
        with pytest.raises(ExhaustedError, match="no inode number is left"):
            number_inode(place, number)


def test_a_place_beyond_the_last_number(
    kernel: Kernel, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no inode number counts, but is not shown; nothing is noted, and nothing is taken."""
    monkeypatch.setattr("statsfs.tree.placement._places", count((1 << 34) - 1))
    for name in ("last", "late"):
        add_cpu(kvm, name).exits = 1
    assert kernel.vfs.attributes(kernel.find("kvm/last/exits")).inode >> 30 == (1 << 34) - 1
    known = len(kernel.vfs._inodes)
    for _ in range(2):
        with pytest.raises(ExhaustedError):
            kernel.find("kvm/late")
    assert len(kernel.vfs._inodes) == known
    names = list_directory(kernel.vfs, kernel.find("kvm"))
    assert b"last" in names
    assert b"late" not in names
    assert kvm.get_value("exits") == 2


def test_lookups_and_forgets_are_counted(kernel: Kernel, kvm: Source) -> None:
    """An inode is known until all its lookups were taken back, in whatever portions."""
    vfs = Kernel(kernel.vfs).vfs
    parent = kernel.find("kvm")
    (file,) = {vfs.lookup(parent, b"exits").inode for _ in range(5)}
    # The kernel of the fixture has one more.
    for lookups in (1, 3, 1):
        vfs.forget(file, lookups)
        assert vfs.attributes(file).links == 1
    vfs.forget(file, 1)
    with pytest.raises(NoSuchFileError):
        vfs.attributes(file)


def test_a_directory_is_known_while_something_in_it_is() -> None:
    """Forgetting a parent first, as the kernel may, keeps it for its children; then all goes."""
    registry = Registry()
    make_kvm(registry)
    vfs = Vfs(registry)
    kvm = vfs.lookup(ROOT, b"kvm").inode
    cpu = vfs.lookup(kvm, b"cpu0").inode
    file = vfs.lookup(cpu, b"exits").inode
    for inode in (kvm, cpu):
        vfs.forget(inode, 1)
        assert vfs.attributes(inode).links > 1
    vfs.forget(file, 1)
    for inode in (kvm, cpu, file):
        with pytest.raises(NoSuchFileError):
            vfs.attributes(inode)


@pytest.mark.parametrize("inode", [0, ROOT, 2, 77, 1 << 40, (1 << 64) - 1])
def test_forgetting_what_is_not_known(kernel: Kernel, kvm: Source, inode: int) -> None:
    """It never raises, and the root stays."""
    for lookups in (0, 1, 1 << 63):
        kernel.vfs.forget(inode, lookups)
    assert kernel.vfs.attributes(ROOT).links == 3
    kernel.vfs.forget(kernel.find("kvm/cpu0/exits"), 1 << 63)
    assert kernel.vfs.attributes(kernel.find("kvm/cpu0")).links == 2


def test_files_of_the_root_are_forgotten(kernel: Kernel, kvm: Source) -> None:
    """Its views, which are all that it has; the root itself is known for ever."""
    known = len(kernel.vfs._inodes)
    view = kernel.vfs.lookup(ROOT, b".stats.json").inode
    kernel.vfs.lookup(ROOT, b".stats.json")
    assert len(kernel.vfs._inodes) == known + 1
    kernel.vfs.forget(view, 2)
    assert len(kernel.vfs._inodes) == known
    with pytest.raises(NoSuchFileError):
        kernel.vfs.attributes(view)


def test_what_the_kernel_keeps_of_removed_directories(
    kernel: Kernel, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a later change it is told of all that it still knows, until it knows nothing."""
    monkeypatch.setattr("statsfs.filesystem.inodes._LEFT_OVER", 0.0)
    vfs = kernel.vfs
    cpu = kernel.find("kvm/cpu0")
    exits = vfs.lookup(cpu, b"exits").inode
    kernel.hold(cpu)
    kvm.remove_subordinate(subordinate(kvm, "cpu0"))
    for name in (b"exits", b"nosuch", b"\xff", *(b"%d" % number for number in range(200))):
        with pytest.raises(NoSuchFileError):
            vfs.lookup(cpu, name)
    kernel.told.clear()
    add_cpu(kvm, "cpu2")
    told = told_names(kernel)
    assert {(cpu, b"exits"), (cpu, b"nosuch"), (cpu, b"\xff")} <= told
    assert len(told) < 120
    # What was missed is told once, what is known as long as it is.
    kernel.told.clear()
    add_cpu(kvm, "cpu3")
    assert told_names(kernel) == {(cpu, b"exits")}
    vfs.forget(exits, 99)
    vfs.forget(cpu, 99)
    kernel.told.clear()
    add_cpu(kvm, "cpu4")
    add_cpu(kvm, "cpu5")
    assert told_names(kernel) == set()
    assert not vfs._inodes._removed


def test_what_the_kernel_keeps_below_removed_directories(
    kernel: Kernel, kvm: Source, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a subtree it is told down to the last file."""
    monkeypatch.setattr("statsfs.filesystem.inodes._LEFT_OVER", 0.0)
    top, cpu = kernel.find("kvm"), kernel.find("kvm/cpu0")
    kernel.vfs.lookup(cpu, b"exits")
    registry.unregister(kvm)
    kernel.told.clear()
    make_kvm(registry)
    assert {(top, b"cpu0"), (cpu, b"exits")} <= told_names(kernel)


def test_what_is_left_of_a_source_that_came_back() -> None:
    """The old directory and the new one of a name are two; pruning one leaves the other."""
    registry = Registry()
    inodes = Inodes(registry)
    source = Source("source")
    known: list[Known] = []
    for _ in range(2):
        registry.register(source)
        child = inodes.note_directory(inodes.root, source, "source")
        assert child is not None
        known.append(child)
        registry.unregister(source)
    assert inodes.note_directory(inodes.root, source, "source") is None
    assert [child.alive for child in known] == [False, False]
    assert len(inodes) == 2
    inodes.forget(known[0].inode, 1)
    assert inodes.root.directories == {"source": known[1]}
    inodes.forget(known[1].inode, 1)
    assert inodes.root.directories == {}
    assert len(inodes) == 0


def test_a_parent_that_is_forgotten_before_its_children() -> None:
    """Whatever the order in which the kernel forgets, in the end nothing is known."""
    registry = Registry()
    inodes = Inodes(registry)
    parent, child = Source("parent"), Source("child")
    registry.register(parent)
    above = inodes.note_directory(inodes.root, parent, "parent")
    assert above is not None
    below = []
    for _ in range(2):
        parent.add_subordinate(child)
        below.append(inodes.note_directory(above, child, "child"))
        parent.remove_subordinate(child)
    inodes.forget(above.inode, 1)
    # The newer took the name in its parent, so the parent goes with it, and the older is last.
    for known in reversed(below):
        assert known is not None
        inodes.forget(known.inode, 1)
    assert len(inodes) == 0
    assert inodes.root.directories == {}


# What must be forgotten


def test_an_addition(kernel: Kernel, kvm: Source) -> None:
    """No name, as what is not there is not cached; but link counts, where names came."""
    add_cpu(kvm, "cpu2")
    assert told_names(kernel) == set()
    assert told_directories(kernel) == {kernel.find("kvm")}
    kvm.add_subordinate(Source("hidden", hidden=True))
    assert told_directories(kernel) == {kernel.find("kvm")}


def test_a_first_addition_brings_files_above(kernel: Kernel, kvm: Source) -> None:
    """The directories above that have a new aggregate are not as they were."""
    deep = Source("deep")
    subordinate(kvm, "cpu0").add_subordinate(deep)
    kernel.told.clear()
    deep.add_values(COUNT, None)
    assert told_directories(kernel) == {kernel.find("kvm"), kernel.find("kvm/cpu0")}


def test_a_removal(kernel: Kernel, kvm: Source) -> None:
    """The name goes; nothing else, while another source holds up the aggregates."""
    parent, cpu = kernel.find("kvm"), subordinate(kvm, "cpu0")
    kvm.remove_subordinate(cpu)
    assert told_names(kernel) == {(parent, b"cpu0")}
    assert told_directories(kernel) == {parent}
    assert not kernel.stale_names()


def test_aggregates_that_vanish_from_all_ancestors(kernel: Kernel, registry: Registry) -> None:
    """With the last source that counts, at whatever depth, the totals above go."""
    top, middle, leaf = Source("top"), Source("middle"), Source("leaf", hidden=True)
    registry.register(top)
    top.add_subordinate(middle)
    middle.add_subordinate(leaf)
    leaf.add_values(COUNT, {"count": 1})
    kernel.walk()
    inodes = [kernel.find("top"), kernel.find("top/middle")]
    middle.remove_subordinate(leaf)
    assert told_names(kernel) == {(inode, b"count") for inode in inodes}
    assert not kernel.stale_names()


def test_a_top_level_removal(kernel: Kernel, kvm: Source, registry: Registry) -> None:
    """One name for the subtree; and the root's link count."""
    registry.unregister(kvm)
    assert (ROOT, b"kvm") in told_names(kernel)
    assert told_directories(kernel) == {ROOT}
    assert kernel.told[0].directories == [(ROOT, None)]
    assert kernel.names == {}


@pytest.mark.parametrize("top", [None, "kvm"])
@pytest.mark.parametrize(
    "ask", [lambda vfs, name: vfs.lookup(ROOT, name), lambda vfs, _: list_directory(vfs, ROOT)]
)
def test_a_root_that_the_kernel_does_not_know_yet(
    registry: Registry, top: str | None, ask: Callable[[Vfs, bytes], object]
) -> None:
    """It keeps none of its attributes, so none are stale, until it is looked into."""
    vfs, kvm = Vfs(registry, top=top), make_kvm(registry)
    other, stale = Source("other"), []
    registry.add_listener(lambda change: stale.append(vfs.find_stale(change)))
    vfs.forget_root()
    for told in ([], [(ROOT, None)]):
        assert vfs.attributes(ROOT).live is not bool(told)
        (registry.register if top is None else kvm.add_subordinate)(other)
        (registry.unregister if top is None else kvm.remove_subordinate)(other)
        assert [one.directories for one in stale] == [told, told]
        stale.clear()
        ask(vfs, b"kvm" if top is None else b"cpu0")


def test_what_is_in_use_below_a_removal(kernel: Kernel, kvm: Source, registry: Registry) -> None:
    """Open files and directories below have names of their own that the kernel kept."""
    cpu = kernel.find("kvm/cpu0")
    kernel.hold(cpu)
    handles = [kernel.open(kernel.find(path)) for path in ("kvm/cpu1/busy", "kvm/exits")]
    parents = {path: kernel.find(path) for path in ("kvm", "kvm/cpu1")}
    registry.unregister(kvm)
    assert {
        (ROOT, b"kvm"),
        (parents["kvm"], b"cpu0"),
        (parents["kvm"], b"cpu1"),
        (parents["kvm"], b"exits"),
        (parents["kvm/cpu1"], b"busy"),
    } == told_names(kernel)
    assert kernel.names == {}
    for handle in handles:
        kernel.close(handle)
    kernel.release(cpu)
    with pytest.raises(NoSuchFileError):
        kernel.vfs.attributes(cpu)


def test_an_open_file_that_was_forgotten(registry: Registry) -> None:
    """The kernel forgets no open file; if it did, its name would be cached nowhere."""
    kernel = Kernel(Vfs(registry))
    kvm = make_kvm(registry)
    file, parent = kernel.find("kvm/exits"), kernel.find("kvm")
    handle = kernel.vfs.open(file, 0)
    kernel.vfs.forget(file, 1)
    place = parent >> 30
    registry.add_listener(kernel)
    registry.unregister(kvm)
    assert kernel.told == [Stale([(ROOT, b"kvm")], [(ROOT, None)])]
    assert place != directory_of(kvm).place
    kernel.vfs.close(handle)


def test_a_hidden_or_unknown_source_that_leaves(kernel: Kernel, registry: Registry) -> None:
    """What the kernel never saw it need not forget."""
    source, hidden = Source("source"), Source("hidden", hidden=True)
    for new in (source, hidden):
        registry.register(new)
    below = Source("below")
    hidden.add_subordinate(below)
    kernel.told.clear()
    hidden.remove_subordinate(below)
    registry.unregister(hidden)
    registry.unregister(source)
    assert told_names(kernel) == set()
    assert told_directories(kernel) == {ROOT}


def test_a_subdirectory_that_shadows_a_file(kernel: Kernel, kvm: Source) -> None:
    """The file's name is forgotten when it comes, and the directory's when it goes."""
    parent, source = kernel.find("kvm"), Source("exits")
    file = kernel.find("kvm/exits")
    kvm.add_subordinate(source)
    assert told_names(kernel) == {(parent, b"exits")}
    directory = kernel.find("kvm/exits")
    assert directory == directory_of(source).place << 30
    kernel.told.clear()
    kvm.remove_subordinate(source)
    assert told_names(kernel) == {(parent, b"exits")}
    assert kernel.find("kvm/exits") == file


def test_a_revocation(kernel: Kernel, kvm: Source) -> None:
    """Own values become totals of nothing, or go; the names above stay as they are."""
    cpu, above = subordinate(kvm, "cpu0"), kernel.find("kvm/exits")
    parent = kernel.find("kvm/cpu0")
    old = {name: kernel.find(f"kvm/cpu0/{name}") for name in ("exits", "busy")}
    cpu.revoke()
    assert told_names(kernel) == {(parent, name) for name in (b"exits", b"wait", b"busy")}
    assert all(kernel.find(f"kvm/cpu0/{name}") != inode for name, inode in old.items())
    assert kernel.find("kvm/exits") == above
    with pytest.raises(NoSuchFileError):
        kernel.find("kvm/cpu0/wait")
    kernel.walk()
    kernel.told.clear()
    cpu.add_values(Cpu, Cpu())
    totals = (b"exits", b"busy", b"wait.min", b"wait.max", b"wait.avg")
    assert told_names(kernel) == {(parent, name) for name in totals}
    assert {name: kernel.find(f"kvm/cpu0/{name}") for name in old} == old


def test_a_name_that_another_value_takes(kernel: Kernel, kvm: Source) -> None:
    """An own value wins over a total of that name, in the directory where it is added only."""
    parent, old = kernel.find("kvm"), kernel.find("kvm/exits")
    kvm.add_values(EXITS, {"exits": 1})
    assert told_names(kernel) == {(parent, b"exits")}
    assert kernel.find("kvm/exits") != old


def test_a_name_that_an_older_array_takes(kernel: Kernel, registry: Registry) -> None:
    """Where totals meet, one of an array that is older takes the name when it comes below."""
    older, newer = (
        [Value("count", aggregate=Aggregate.SUM, description=f"{age} of this test")]
        for age in ("older", "newer")
    )
    first = Source("first")  # as long as it is there, so is the array
    first.add_values(older, None)
    top = Source("top")
    registry.register(top)
    low, late = Source("low"), Source("late")
    low.add_values(newer, None)
    late.add_values(older, None)
    top.add_subordinate(low)
    parent, old = kernel.find("top"), kernel.find("top/count")
    top.add_subordinate(late)
    assert (parent, b"count") in told_names(kernel)
    new = kernel.find("top/count")
    assert new != old
    top.remove_subordinate(late)
    assert kernel.find("top/count") == old


def test_directories_are_told_with_their_names(kernel: Kernel, kvm: Source) -> None:
    """The name by which the kernel finds a directory goes with it, for one it is just told of."""
    subordinate(kvm, "cpu0").add_subordinate(Source("below"))
    parent, directory = kernel.find("kvm"), kernel.find("kvm/cpu0")
    assert kernel.told == [Stale([], [(directory, (parent, b"cpu0"))])]


def test_nothing_known_nothing_to_forget(registry: Registry) -> None:
    """A kernel that looked at nothing is told of the root alone."""
    kernel = Kernel(Vfs(registry))
    registry.add_listener(kernel)
    kvm = make_kvm(registry)
    add_cpu(kvm, "cpu2")
    subordinate(kvm, "cpu0").revoke()
    registry.unregister(kvm)
    assert {ROOT} == told_directories(kernel)
    assert told_names(kernel) == set()
    with pytest.raises(StatsfsError):
        kernel.find("kvm")

"""Sources and values that come and go on a real mount: there at once, gone at the first look.

The server makes each change when it is told to and answers when the call has returned, so what a
test sees then is what any program would see after the change.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsfs.sources import Source
from statsfs.values import Aggregate, Value
from tests.deadlines import wait_until
from tests.mount_server import World
from tests.mounts import Server, run, serving
from tests.trees import Cpu, add_cpu, make_kvm, subordinate

pytestmark = pytest.mark.mount

COUNT = (Value("count", aggregate=Aggregate.SUM, description="test_mount_changes"),)
FILES = {"exits", "busy", "wait.min", "wait.max", "wait.avg"}


# What the server does


def build(world: World) -> None:
    """Make an empty `kvm`."""
    make_kvm(world.registry, cpus=0)


def clear(world: World) -> None:
    """Have an empty `kvm`, whatever became of the one before."""
    for source in world.registry.sources:
        world.registry.unregister(source)
    build(world)


def kvm_of(world: World) -> Source:
    """Return the one top-level source."""
    return world.registry.by_name["kvm"]


def add(world: World, name: str, exits: int = 0) -> None:
    """Add a CPU that has counted some exits."""
    world.kept[name] = add_cpu(kvm_of(world), name)
    world.kept[name].exits = exits


def remove(world: World, name: str) -> None:
    """Remove a CPU."""
    kvm = kvm_of(world)
    kvm.remove_subordinate(subordinate(kvm, name))


def unregister(world: World) -> None:
    """Take `kvm` away; keep it."""
    world.kept["source"] = kvm_of(world)
    world.registry.unregister(world.kept["source"])


def register(world: World) -> None:
    """Put it back."""
    world.registry.register(world.kept["source"])


def replace(world: World, name: str) -> None:
    """Remove a CPU and add another of that name, with nothing in between."""
    remove(world, name)
    add(world, name)


def expect_losses(world: World) -> None:
    """Do not log that a name is taken, which is what a test is about."""
    logging.getLogger("statsfs.directories").setLevel(logging.ERROR)


def add_empty(world: World, name: str) -> None:
    """Add a source without values."""
    kvm_of(world).add_subordinate(Source(name))


def revoke(world: World, name: str) -> None:
    """Revoke the values of a CPU."""
    subordinate(kvm_of(world), name).revoke()


def restore(world: World, name: str) -> None:
    """Add the values of a CPU again."""
    subordinate(kvm_of(world), name).add_values(Cpu, world.kept[name])


def add_count(world: World, name: str) -> None:
    """Add one more array to a CPU."""
    subordinate(kvm_of(world), name).add_values(COUNT, {"count": 3})


def count_up(world: World, name: str) -> None:
    """Count one exit, removed or not."""
    world.kept[name].exits += 1


# What the test sees


@pytest.fixture(scope="module", params=["thread", "trio"])
def mode(request: pytest.FixtureRequest) -> str:
    """How the server mounts: in the second case the serving thread itself makes the changes."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared(mode: str) -> Iterator[Server]:
    """A server for all tests of this module."""
    with serving(mode) as server:
        server.call(build)
        yield server


@pytest.fixture
def kvm(shared: Server) -> Iterator[Path]:
    """Its directory, empty at the beginning and at the end of each test."""
    assert os.listdir(shared / "kvm") == []
    yield shared / "kvm"
    shared.call(clear)


def exists(path: Path) -> bool:
    """Tell whether one stat finds something."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def is_gone(path: Path, mode: str) -> bool:
    """Tell whether a name is gone at the first look.

    A change made on the serving thread can be told the kernel by another thread only; it returns
    when that is done, or after 2 ms, which on a busy machine may come first. So there it is looked
    at until it is gone.
    """
    if mode != "thread":
        wait_until(lambda: not exists(path), "the removal")
    return not exists(path)


@contextmanager
def descriptor(path: Path) -> Iterator[int]:
    """Hold a directory open."""
    held = os.open(path, os.O_DIRECTORY)
    try:
        yield held
    finally:
        os.close(held)


def test_new_names_are_there_at_once(shared: Server, kvm: Path) -> None:
    """Even those that were looked for, and missed, just before."""
    for number in range(50):
        name = f"cpu{number}"
        for path in (kvm / name, kvm / name / "exits"):
            assert not exists(path)
        shared.call(add, name, number)
        assert (kvm / name / "exits").read_text() == f"{number}\n"
        assert name in os.listdir(kvm)
        assert int((kvm / "exits").read_text()) == sum(range(number + 1))


@pytest.mark.parametrize("first", ["directory", "file"])
def test_removed_names_are_gone_at_the_first_look(
    shared: Server, kvm: Path, mode: str, first: str
) -> None:
    """A thousand times, with everything about them cached."""
    for number in range(1000):
        name = f"cpu{number}"
        shared.call(add, name)
        directory, file = kvm / name, kvm / name / "exits"
        assert exists(file)
        shared.call(remove, name)
        looks = (directory, file) if first == "directory" else (file, directory)
        assert all(is_gone(path, mode) for path in looks)


def test_names_that_vanish_from_ancestors(shared: Server, kvm: Path, mode: str) -> None:
    """With the last source that counts its totals go, at the first look; and they come back."""
    for _ in range(300):
        shared.call(add, "cpu0")
        assert {path.name for path in kvm.iterdir()} == {"cpu0", *FILES}
        assert all(exists(kvm / name) for name in FILES)
        shared.call(remove, "cpu0")
        assert all(is_gone(kvm / name, mode) for name in FILES)
        assert os.listdir(kvm) == []


def test_a_removed_subtree(shared: Server, kvm: Path, mode: str) -> None:
    """All names below a source go with it, and come back under new inode numbers."""
    names = [f"cpu{number}" for number in range(10)]
    for name in names:
        shared.call(add, name)
    paths = [kvm, *(kvm / name for name in names), *(kvm / name / "busy" for name in names)]
    seen: set[int] = set()
    for _ in range(100):
        inodes = {os.stat(path).st_ino for path in paths}
        assert len(inodes) == len(paths)
        assert not inodes & seen
        seen |= inodes
        shared.call(unregister)
        assert all(is_gone(path, mode) for path in reversed(paths))
        shared.call(register)


def test_a_name_that_is_replaced(shared: Server, kvm: Path) -> None:
    """Removed and added again between two looks: it is another directory, with other files."""
    shared.call(add, "cpu0", 5)
    for _ in range(300):
        before = os.stat(kvm / "cpu0"), os.stat(kvm / "cpu0/exits")
        shared.call(replace, "cpu0")
        after = os.stat(kvm / "cpu0"), os.stat(kvm / "cpu0/exits")
        assert not {status.st_ino for status in before} & {status.st_ino for status in after}
        assert (kvm / "cpu0/exits").read_text() == "0\n"


def test_link_counts_are_fresh(shared: Server, kvm: Path) -> None:
    """A directory's, and the root's, right after a subdirectory came or went."""
    for number in range(50):
        assert os.stat(kvm).st_nlink == 2 + number
        shared.call(add_empty, f"cpu{number}")
    for number in reversed(range(50)):
        shared.call(remove, f"cpu{number}")
        assert os.stat(kvm).st_nlink == 2 + number
    assert os.stat(kvm.parent).st_nlink == 3
    shared.call(unregister)
    assert os.stat(kvm.parent).st_nlink == 2
    shared.call(register)
    assert os.stat(kvm.parent).st_nlink == 3


def test_times_are_fresh(shared: Server, kvm: Path) -> None:
    """A directory is newer when something came or went in it."""
    times = [os.stat(kvm).st_mtime_ns]
    for change, name in ((add, "cpu0"), (add_count, "cpu0"), (remove, "cpu0")):
        shared.call(change, name)
        times.append(os.stat(kvm).st_mtime_ns)
    assert times == sorted(set(times))


# Names that are held


@pytest.mark.parametrize("change", [remove, replace])
def test_a_directory_that_is_held_open(
    shared: Server, kvm: Path, mode: str, change: Callable[[World, str], None]
) -> None:
    """Through its descriptor nothing is to be found any more, whatever was cached."""
    for _ in range(50):
        shared.call(add, "cpu0")
        with descriptor(kvm / "cpu0") as held:
            assert os.stat("exits", dir_fd=held).st_nlink == 1
            shared.call(change, "cpu0")
            assert is_gone(Path(f"/proc/self/fd/{held}/exits"), mode)
            with pytest.raises(FileNotFoundError):
                os.open("exits", os.O_RDONLY, dir_fd=held)
            with pytest.raises(FileNotFoundError):
                os.listdir(f"/proc/self/fd/{held}")
        if change is replace:
            shared.call(remove, "cpu0")


def test_an_open_file_goes_on_and_its_name_does_not(shared: Server, kvm: Path, mode: str) -> None:
    """Its source counts on; but neither its path nor its directory's descriptor leads to it."""
    for _ in range(50):
        shared.call(add, "cpu0", 7)
        directory = kvm / "cpu0"
        with descriptor(directory) as held, open(directory / "exits", "rb", buffering=0) as file:
            assert file.read() == b"7\n"
            shared.call(remove, "cpu0")
            shared.call(count_up, "cpu0")
            assert is_gone(directory / "exits", mode)
            assert is_gone(Path(f"/proc/self/fd/{held}/exits"), mode)
            with pytest.raises(FileNotFoundError):
                os.open("exits", os.O_RDONLY, dir_fd=held)
            with pytest.raises(FileNotFoundError):
                os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
            assert os.pread(file.fileno(), 99, 0) == b"8\n"


def test_standing_in_a_removed_directory(shared: Server, kvm: Path, mode: str) -> None:
    """A shell in it sees nothing; a shell above it neither, though it may leave by `..`."""
    shared.call(add, "cpu0")
    before = os.getcwd()
    os.chdir(kvm / "cpu0")
    try:
        assert Path("exits").read_text() == "0\n"
        shared.call(remove, "cpu0")
        assert is_gone(Path("exits"), mode)
        with pytest.raises(FileNotFoundError):
            os.listdir()
        assert run("cat", "exits", status=1).stderr == "cat: exits: No such file or directory\n"
        with pytest.raises(FileNotFoundError):
            os.getcwd()
        shared.call(add, "cpu0", 5)
        assert not exists(Path("exits"))
        assert Path("../cpu0/exits").read_text() == "5\n"
    finally:
        os.chdir(before)


def test_standing_deep_in_a_removed_subtree(shared: Server, kvm: Path, mode: str) -> None:
    """Names between what is held and what was removed are gone as well."""
    shared.call(add, "cpu0")
    with descriptor(kvm) as top, descriptor(kvm / "cpu0") as deep:
        assert os.stat("cpu0/exits", dir_fd=top)
        shared.call(unregister)
        for name in (f"{top}/cpu0", f"{top}/cpu0/exits", f"{top}/exits", f"{deep}/exits"):
            assert is_gone(Path(f"/proc/self/fd/{name}"), mode)
        shared.call(register)
        assert exists(kvm / "cpu0/exits")
        # What is held is what was there before, and that is gone for good.
        assert not exists(Path(f"/proc/self/fd/{top}/cpu0"))


# Names whose meaning changes


def test_a_subdirectory_that_shadows_a_file(shared: Server, kvm: Path) -> None:
    """At the first look the name is a directory; and a file again when that has gone."""
    shared.call(add, "cpu0")
    shared.call(expect_losses)
    for _ in range(100):
        assert (kvm / "exits").is_file()
        shared.call(add_empty, "exits")
        assert (kvm / "exits").is_dir()
        shared.call(remove, "exits")
        assert (kvm / "exits").is_file()
        assert (kvm / "exits").read_text() == "0\n"


def test_revoked_and_restored(shared: Server, kvm: Path, mode: str) -> None:
    """Own values give way to totals of nothing, and the other way round; those above stay."""
    shared.call(add, "cpu0", 9)
    above = os.stat(kvm / "exits").st_ino
    for _ in range(50):
        own = os.stat(kvm / "cpu0/exits").st_ino
        assert (kvm / "cpu0/wait").is_file()
        with open(kvm / "cpu0/exits", "rb", buffering=0) as file:
            shared.call(revoke, "cpu0")
            assert file.read() == b"0\n"
        assert is_gone(kvm / "cpu0/wait", mode)
        assert os.stat(kvm / "cpu0/exits").st_ino != own
        assert (kvm / "cpu0/wait.max").read_text() == "0\n"
        assert os.stat(kvm / "exits").st_ino == above
        assert (kvm / "exits").read_text() == "0\n"
        shared.call(restore, "cpu0")
        assert os.stat(kvm / "cpu0/exits").st_ino == own
        assert is_gone(kvm / "cpu0/wait.max", mode)
        assert (kvm / "exits").read_text() == "9\n"


def test_values_that_are_added_later(shared: Server, kvm: Path) -> None:
    """They are there at once, in the source and above it."""
    for number in range(20):
        shared.call(add, f"cpu{number}")
        assert not exists(kvm / f"cpu{number}/count")
        shared.call(add_count, f"cpu{number}")
        assert (kvm / f"cpu{number}/count").read_text() == "3\n"
        assert (kvm / "count").read_text() == f"{3 * (number + 1)}\n"

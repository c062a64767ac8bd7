"""Sources and values that come and go on a real mount: there at once, gone at the first look.

The server makes each change when it is told to and answers when the call has returned, so what a
test sees then is what any program would see after the change.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support import mount_calls as calls
from tests.support.deadlines import wait_until
from tests.support.mount_server import World
from tests.support.mounts import Server, exists, one_cpu, run, serving

pytestmark = pytest.mark.mount

FILES = {"exits", "busy", "wait.min", "wait.max", "wait.avg"}


# What the test sees


@pytest.fixture(scope="module", params=["thread", "trio"])
def mode(request: pytest.FixtureRequest) -> str:
    """How the server mounts: in the second case the serving thread itself makes the changes."""
    return str(request.param)


@pytest.fixture(scope="module")
def shared(mode: str) -> Iterator[Server]:
    """A server for all tests of this module."""
    with one_cpu(), serving(mode) as server:
        server.call(calls.clear)
        yield server


@pytest.fixture
def kvm(shared: Server) -> Iterator[Path]:
    """Its directory, empty at the beginning and at the end of each test."""
    assert os.listdir(shared / "kvm") == []
    yield shared / "kvm"
    shared.call(calls.clear)


def at_once(condition: Callable[[], object], mode: str) -> bool:
    """Tell whether something is so at the first look.

    A change made on the serving thread can be told the kernel by another thread only. It returns
    when that is done; or 2 ms later if somebody waits for the serving thread, be it the kernel that
    forgets something, and on a busy machine that may come first. So there it is looked at until it
    is so.
    """
    if mode != "thread":
        wait_until(condition, "the change")
    return bool(condition())


def is_inode(path: Path, inode: int) -> bool:
    """Tell whether a path leads to an inode."""
    return os.stat(path).st_ino == inode


def are_others(paths: Sequence[Path], inodes: set[int]) -> bool:
    """Tell whether paths lead to none of these inodes."""
    return not inodes & {os.stat(path).st_ino for path in paths}


def is_newer(path: Path, moment: int) -> bool:
    """Tell whether something changed after a moment."""
    return os.stat(path).st_mtime_ns > moment


def is_gone(path: Path, mode: str) -> bool:
    """Tell whether a name is gone at the first look."""
    return at_once(lambda: not exists(path), mode)


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
        shared.call(calls.add, name, number)
        assert (kvm / name / "exits").read_text() == f"{number}\n"
        assert name in os.listdir(kvm)
        assert int((kvm / "exits").read_text()) == sum(range(number + 1))


@pytest.mark.parametrize("first", ["directory", "file"])
def test_removed_names_are_gone_at_the_first_look(
    shared: Server, kvm: Path, mode: str, first: str
) -> None:
    """Hundreds of times, with everything about them cached."""
    for number in range(600):
        name = f"cpu{number}"
        shared.call(calls.add, name)
        directory, file = kvm / name, kvm / name / "exits"
        assert exists(file)
        shared.call(calls.remove, name)
        looks = (directory, file) if first == "directory" else (file, directory)
        assert all(is_gone(path, mode) for path in looks)


def test_names_that_vanish_from_ancestors(shared: Server, kvm: Path, mode: str) -> None:
    """With the last source that counts its totals go, at the first look; and they come back."""
    for _ in range(300):
        shared.call(calls.add, "cpu0")
        assert {path.name for path in kvm.iterdir()} == {"cpu0", *FILES}
        assert all(exists(kvm / name) for name in FILES)
        shared.call(calls.remove, "cpu0")
        assert all(is_gone(kvm / name, mode) for name in FILES)
        assert os.listdir(kvm) == []


def test_a_removed_subtree(shared: Server, kvm: Path, mode: str) -> None:
    """All names below a source go with it, and come back under new inode numbers."""
    names = [f"cpu{number}" for number in range(10)]
    for name in names:
        shared.call(calls.add, name)
    paths = [kvm, *(kvm / name for name in names), *(kvm / name / "busy" for name in names)]
    seen: set[int] = set()
    for _ in range(100):
        inodes = {os.stat(path).st_ino for path in paths}
        assert len(inodes) == len(paths)
        assert not inodes & seen
        seen |= inodes
        shared.call(calls.unregister)
        assert all(is_gone(path, mode) for path in reversed(paths))
        shared.call(calls.register)


def test_a_name_that_is_replaced(shared: Server, kvm: Path, mode: str) -> None:
    """Removed and added again between two looks: it is another directory, with other files."""
    shared.call(calls.add, "cpu0", 5)
    paths = (kvm / "cpu0", kvm / "cpu0/exits")
    for _ in range(300):
        before = {os.stat(path).st_ino for path in paths}
        shared.call(calls.replace, "cpu0")
        assert at_once(partial(are_others, paths, before), mode)
        assert (kvm / "cpu0/exits").read_text() == "0\n"


def test_link_counts_are_fresh(shared: Server, kvm: Path, mode: str) -> None:
    """A directory's, and the root's, right after a subdirectory came or went."""

    def has_links(path: Path, links: int) -> bool:
        return at_once(lambda: os.stat(path).st_nlink == links, mode)

    for number in range(50):
        assert has_links(kvm, 2 + number)
        shared.call(calls.add_empty, f"cpu{number}")
    for number in reversed(range(50)):
        shared.call(calls.remove, f"cpu{number}")
        assert has_links(kvm, 2 + number)
    assert has_links(kvm.parent, 3)
    shared.call(calls.unregister)
    assert has_links(kvm.parent, 2)
    shared.call(calls.register)
    assert has_links(kvm.parent, 3)


def test_times_are_fresh(shared: Server, kvm: Path, mode: str) -> None:
    """A directory is newer when something came or went in it."""
    for change in (calls.add, calls.add_count, calls.remove):
        before = os.stat(kvm).st_mtime_ns
        shared.call(change, "cpu0")
        assert at_once(partial(is_newer, kvm, before), mode)


# Names that are held


@pytest.mark.parametrize("change", [calls.remove, calls.replace])
def test_a_directory_that_is_held_open(
    shared: Server, kvm: Path, mode: str, change: Callable[[World, str], None]
) -> None:
    """Through its descriptor nothing is to be found any more, whatever was cached."""
    for _ in range(50):
        shared.call(calls.add, "cpu0")
        with descriptor(kvm / "cpu0") as held:
            assert os.stat("exits", dir_fd=held).st_nlink == 1
            shared.call(change, "cpu0")
            assert is_gone(Path(f"/proc/self/fd/{held}/exits"), mode)
            with pytest.raises(FileNotFoundError):
                os.open("exits", os.O_RDONLY, dir_fd=held)
            with pytest.raises(FileNotFoundError):
                os.listdir(f"/proc/self/fd/{held}")
        if change is calls.replace:
            shared.call(calls.remove, "cpu0")


def test_an_open_file_goes_on_and_its_name_does_not(shared: Server, kvm: Path, mode: str) -> None:
    """Its source counts on; but neither its path nor its directory's descriptor leads to it."""
    for _ in range(50):
        shared.call(calls.add, "cpu0", 7)
        directory = kvm / "cpu0"
        with descriptor(directory) as held, open(directory / "exits", "rb", buffering=0) as file:
            assert file.read() == b"7\n"
            shared.call(calls.remove, "cpu0")
            shared.call(calls.count_up, "cpu0")
            assert is_gone(directory / "exits", mode)
            assert is_gone(Path(f"/proc/self/fd/{held}/exits"), mode)
            with pytest.raises(FileNotFoundError):
                os.open("exits", os.O_RDONLY, dir_fd=held)
            with pytest.raises(FileNotFoundError):
                os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
            assert os.pread(file.fileno(), 99, 0) == b"8\n"


def test_standing_in_a_removed_directory(shared: Server, kvm: Path, mode: str) -> None:
    """A shell in it sees nothing; a shell above it neither, though it may leave by `..`."""
    shared.call(calls.add, "cpu0")
    before = os.getcwd()
    os.chdir(kvm / "cpu0")
    try:
        assert Path("exits").read_text() == "0\n"
        shared.call(calls.remove, "cpu0")
        assert is_gone(Path("exits"), mode)
        with pytest.raises(FileNotFoundError):
            os.listdir()
        assert run("cat", "exits", status=1).stderr == "cat: exits: No such file or directory\n"
        with pytest.raises(FileNotFoundError):
            os.getcwd()
        shared.call(calls.add, "cpu0", 5)
        assert not exists(Path("exits"))
        assert Path("../cpu0/exits").read_text() == "5\n"
    finally:
        os.chdir(before)


def test_standing_deep_in_a_removed_subtree(shared: Server, kvm: Path, mode: str) -> None:
    """Names between what is held and what was removed are gone as well."""
    shared.call(calls.add, "cpu0")
    with descriptor(kvm) as top, descriptor(kvm / "cpu0") as deep:
        assert os.stat("cpu0/exits", dir_fd=top)
        shared.call(calls.unregister)
        for name in (f"{top}/cpu0", f"{top}/cpu0/exits", f"{top}/exits", f"{deep}/exits"):
            assert is_gone(Path(f"/proc/self/fd/{name}"), mode)
        shared.call(calls.register)
        assert exists(kvm / "cpu0/exits")
        # What is held is what was there before, and that is gone for good.
        assert not exists(Path(f"/proc/self/fd/{top}/cpu0"))


# Names whose meaning changes


def test_a_subdirectory_that_shadows_a_file(shared: Server, kvm: Path, mode: str) -> None:
    """At the first look the name is a directory; and a file again when that has gone."""
    shared.call(calls.add, "cpu0")
    shared.call(calls.expect_losses)
    for _ in range(100):
        assert (kvm / "exits").is_file()
        shared.call(calls.add_empty, "exits")
        assert at_once((kvm / "exits").is_dir, mode)
        shared.call(calls.remove, "exits")
        assert at_once((kvm / "exits").is_file, mode)
        assert (kvm / "exits").read_text() == "0\n"


def test_revoked_and_restored(shared: Server, kvm: Path, mode: str) -> None:
    """Own values give way to totals of nothing, and the other way round; those above stay."""
    shared.call(calls.add, "cpu0", 9)
    above = os.stat(kvm / "exits").st_ino
    for _ in range(50):
        own = os.stat(kvm / "cpu0/exits").st_ino
        assert (kvm / "cpu0/wait").is_file()
        with open(kvm / "cpu0/exits", "rb", buffering=0) as file:
            shared.call(calls.revoke, "cpu0")
            assert file.read() == b"0\n"
        assert is_gone(kvm / "cpu0/wait", mode)
        assert at_once(partial(are_others, [kvm / "cpu0/exits"], {own}), mode)
        assert (kvm / "cpu0/wait.max").read_text() == "0\n"
        assert os.stat(kvm / "exits").st_ino == above
        assert (kvm / "exits").read_text() == "0\n"
        shared.call(calls.restore, "cpu0")
        assert at_once(partial(is_inode, kvm / "cpu0/exits", own), mode)
        assert is_gone(kvm / "cpu0/wait.max", mode)
        assert (kvm / "exits").read_text() == "9\n"


def test_values_that_are_added_later(shared: Server, kvm: Path) -> None:
    """They are there at once, in the source and above it."""
    for number in range(20):
        shared.call(calls.add, f"cpu{number}")
        assert not exists(kvm / f"cpu{number}/count")
        shared.call(calls.add_count, f"cpu{number}")
        assert (kvm / f"cpu{number}/count").read_text() == "3\n"
        assert (kvm / "count").read_text() == f"{3 * (number + 1)}\n"

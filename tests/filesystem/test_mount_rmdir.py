"""rmdir on a real mount: directories that a program lets its clients remove."""

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.model.values import Aggregate, Value
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mount_server import World
from tests.support.mounts import Server, exists, run, serving

pytestmark = pytest.mark.mount

JOBS = (Value("jobs", aggregate=Aggregate.SUM),)
PATHS = ("app", "app/a", "app/a/b", "app/a/b/c", "app/a/b/d")


def build(world: World) -> None:
    """Make directories in which each retains 1, and can be removed if nothing is in it."""
    world.kept["gate"] = gate = threading.Event()
    world.kept["begun"] = begun = threading.Event()
    gate.set()

    def rmdir(source: Source) -> bool:
        begun.set()
        gate.wait()
        if source.subordinates:
            return False
        parent = source.parent
        if isinstance(parent, Source):
            parent.remove_subordinate(source)
        else:
            world.registry.unregister(source)
        return True

    for path in PATHS:
        above, _, name = path.rpartition("/")
        source = Source(name, retain=True, rmdir=rmdir)
        source.restore(JOBS, [1])
        source.add_values([Value(f"{name}_level", aggregate=Aggregate.SUM)], None)
        parent = world.registry.find(above)
        if parent is None:
            world.registry.register(source)
        else:
            parent.add_subordinate(source)


def shut(world: World, closed: bool) -> None:
    """Have removals wait, or go on."""
    gate = world.kept["gate"]
    if closed:
        gate.clear()
    else:
        gate.set()


def wait_for_removals(world: World) -> None:
    """Wait until one has begun."""
    assert world.kept["begun"].wait(DEADLINE)


def close(world: World) -> None:
    """End the mount."""
    world.mount.close()


def add_in_threads(world: World, paths: tuple[str, ...]) -> None:
    """Put a source `new` into several, each in a thread of its own."""
    world.kept["threads"] = [threading.Thread(target=add, args=(world, p, "new")) for p in paths]
    for thread in world.kept["threads"]:
        thread.start()


def join_threads(world: World) -> None:
    """Wait for their ends."""
    for thread in world.kept["threads"]:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def add(world: World, path: str, name: str) -> None:
    """Put a source into another, with a value of its own name that is in no other."""
    parent = world.registry.find(path)
    assert parent is not None
    source = Source(name)
    source.add_values([Value(f"{name}_done", aggregate=Aggregate.SUM)], {f"{name}_done": 1})
    parent.add_subordinate(source)


def error_of(path: Path) -> int:
    """Remove a directory; return the errno, or 0."""
    try:
        os.rmdir(path)
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.fixture
def server() -> Iterator[Server]:
    """A mount of such directories."""
    with serving() as server:
        server.call(build)
        yield server


def test_the_name_is_gone(server: Server) -> None:
    """For every cached lookup, with the link count; what it had is above; open files read on."""
    path = server / "app/a/b/c"
    assert os.stat(server / "app/a/b").st_nlink == 4
    inside = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with open(path / "jobs") as file:
        os.rmdir(path)
        assert not exists(path)
        assert not exists(path / "jobs")
        assert sorted(os.listdir(server / "app/a/b")) == ["b_level", "d", "d_level", "jobs"]
        assert os.stat(server / "app/a/b").st_nlink == 3
        assert file.read() == "1\n"
        assert os.pread(file.fileno(), 10, 0) == b"1\n"
        assert (server / "app/jobs").read_text() == "5\n"
        with pytest.raises(FileNotFoundError):
            os.open("jobs", os.O_RDONLY, dir_fd=inside)
        assert os.listdir(inside) == []
    os.close(inside)
    assert error_of(path) == errno.ENOENT
    server.call(add, "app/a/b", "c")
    assert (path / "c_done").read_text() == "1\n"


def test_from_the_leaves_up(server: Server) -> None:
    """As cgroups: what is not empty is busy, whatever is in it."""
    for path in PATHS[:3]:
        assert error_of(server / path) == errno.EBUSY
    run("rmdir", server / "app/a/b/d")
    run("find", server / "app", "-depth", "-type", "d", "-delete")
    assert os.listdir(server.mountpoint) == []
    assert os.stat(server.mountpoint).st_nlink == 2


def test_with_parents(server: Server) -> None:
    """`rmdir -p` takes what has become empty."""
    run("rmdir", server / "app/a/b/c")
    done = run("rmdir", "-p", "app/a/b/d", cwd=server.mountpoint)
    assert done.stderr == ""
    assert os.listdir(server.mountpoint) == []


def test_files_stay(server: Server) -> None:
    """`rm -r` removes nothing: the files of a directory are not its reader's."""
    done = run("rm", "-r", server / "app", status=1)
    assert "Operation not permitted" in done.stderr
    assert (server / "app/a/b/c/jobs").read_text() == "1\n"
    with pytest.raises(NotADirectoryError):
        os.rmdir(server / "app/jobs")


def test_others_are_answered_meanwhile(server: Server) -> None:
    """Whoever changes the tree where the kernel has locked directories: nobody waits for ever."""
    above = ("app/a/b", "app/a", "app")
    for path in above:
        # A name that goes with the directory is known in those that are locked.
        assert (server / path / "c_level").read_text() == "0\n"
    assert (server / "app/a/b/d/d_level").read_text() == "0\n"  # nor can new names be looked for
    server.call(shut, True)
    removals = [subprocess.Popen(["rmdir", server / "app/a/b/c"], stderr=subprocess.PIPE)]
    try:
        server.call(wait_for_removals)
        # These have the locks of `app` and `app/a`, and wait for that of `app/a/b`.
        removals += [
            subprocess.Popen(["rmdir", server / path], stderr=subprocess.PIPE) for path in above[:2]
        ]
        server.call(add_in_threads, above)
        for name in ("jobs", ".stats.json"):
            assert run("cat", server / "app/a/b/d" / name).stdout
    finally:
        server.call(shut, False)
        errors = [removal.communicate(timeout=DEADLINE)[1] for removal in removals]
    assert errors[0] == b""
    assert all(b"Device or resource busy" in error for error in errors[1:])
    server.call(join_threads)
    for path in above:
        # A thread for which nobody waits tells the kernel, once the locks are gone.
        wait_until(lambda: not exists(server / path / "c_level"), "the end of the name")  # noqa: B023
        assert (server / path / "new/new_done").read_text() == "1\n"
    assert (server / "app/jobs").read_text() == "5\n"


def test_the_mount_ends_meanwhile(server: Server) -> None:
    """Whoever waits for a removal is told so."""
    server.call(shut, True)
    with subprocess.Popen(["rmdir", server / "app/a/b/c"], stderr=subprocess.PIPE) as removal:
        server.call(wait_for_removals)
        server.call(close)
        assert b"not connected" in removal.communicate(timeout=DEADLINE)[1]
    server.call(shut, False)

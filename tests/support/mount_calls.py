"""What tests have a server do: functions of its `World`, called by `Server.call`.

They stand here and not beside the tests because a server imports the module of what it is to call,
and pytest, which it does not need, would double the time that it takes to start.
"""

import asyncio
import contextlib
import errno
import gc
import importlib
import logging
import os
import resource
import select
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from statsfs.exceptions import MountError
from statsfs.filesystem.mounting import mount, mounted
from statsfs.model.values import Aggregate, Value
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE
from tests.support.mount_server import World, mount_here, try_to_mount
from tests.support.mounts import NOBODY, is_mounted
from tests.support.trees import Cpu, add_cpu, make_kvm, subordinate

COUNT = (Value("count", aggregate=Aggregate.SUM, description="mount_calls"),)

# The tree


def build(world: World, cpus: int = 2) -> None:
    """Make `kvm` with `cpu0` and so on."""
    make_kvm(world.registry, cpus)


def kvm_of(world: World) -> Source:
    """Return the one top-level source."""
    return world.registry.by_name["kvm"]


def clear(world: World) -> None:
    """Have an empty `kvm`, whatever became of the one before."""
    for source in world.registry.sources:
        world.registry.unregister(source)
    build(world, cpus=0)


def add(world: World, name: str, exits: int = 0) -> None:
    """Add a CPU that has counted some exits."""
    world.kept[name] = add_cpu(kvm_of(world), name)
    world.kept[name].exits = exits


def count_up(world: World, name: str) -> None:
    """Count one exit, removed or not."""
    world.kept[name].exits += 1


def set_exits(world: World, names: list[str], exits: int) -> None:
    """Have CPUs hold a number of exits."""
    for name in names:
        world.kept[name].exits = exits


def remove(world: World, name: str) -> None:
    """Remove a CPU."""
    kvm_of(world).remove_subordinate(subordinate(kvm_of(world), name))


def replace(world: World, name: str) -> None:
    """Remove a CPU and add another of that name, with nothing in between."""
    remove(world, name)
    add(world, name)


def add_many(world: World, count: int) -> None:
    """Add CPUs."""
    for number in range(count):
        add_cpu(kvm_of(world), f"many{number}")


def remove_many(world: World, count: int) -> None:
    """Remove them."""
    for number in range(count):
        remove(world, f"many{number}")


def add_empty(world: World, name: str) -> None:
    """Add a source without values."""
    kvm_of(world).add_subordinate(Source(name))


def unregister(world: World) -> None:
    """Take `kvm` away; keep it."""
    world.kept["source"] = kvm_of(world)
    world.registry.unregister(world.kept["source"])


def register(world: World) -> None:
    """Put it back."""
    world.registry.register(world.kept["source"])


def revoke(world: World, name: str) -> None:
    """Revoke the values of a CPU."""
    subordinate(kvm_of(world), name).revoke()


def restore(world: World, name: str) -> None:
    """Add the values of a CPU again."""
    subordinate(kvm_of(world), name).add_values(Cpu, world.kept[name])


def add_count(world: World, name: str) -> None:
    """Add one more array to a CPU."""
    subordinate(kvm_of(world), name).add_values(COUNT, {"count": 3})


def expect_losses(world: World) -> None:
    """Do not log that a name is taken, which is what a test is about."""
    logging.getLogger("statsfs.tree.directory").setLevel(logging.ERROR)


# The mount


def state(world: World) -> tuple[str, bool, str]:
    """Return what a mount says of itself."""
    return world.mount.mountpoint, world.mount.closed, repr(world.mount)


def wait(world: World, timeout: float) -> bool:
    """Wait for the end of the mount."""
    return world.mount.wait(timeout)


def close(world: World, times: int = 1) -> bool:
    """Close the mount, perhaps more than once; tell whether it is closed."""
    for _ in range(times):
        world.mount.close()
    return world.mount.closed


def close_all(world: World) -> None:
    """Close whatever is mounted."""
    for live in world.mounts:
        live.close()


def close_older(world: World) -> bool:
    """Close once more the mount before this one; tell whether this one goes on."""
    world.mounts[-2].close()
    return not world.mount.closed


def close_in_threads(world: World, count: int) -> list[bool]:
    """Close the mount in many threads at once; return what each saw afterwards."""
    begin = threading.Barrier(count)
    seen: list[bool] = []

    def work() -> None:
        begin.wait()
        world.mount.close()
        seen.append(world.mount.closed and not is_mounted(world.mount.mountpoint))

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    return seen


def cycle(world: World, mountpoint: Path, times: int) -> None:
    """Mount and unmount, so many times, with a look in between."""
    for _ in range(times):
        with mount(world.registry, mountpoint) as live:
            assert os.listdir(mountpoint) == ["kvm"]
            seen = [live.closed]
        assert [*seen, live.closed] == [False, True]
        assert not is_mounted(mountpoint)


def cycle_in_haste(world: World, mountpoint: Path, times: int) -> None:
    """Mount and unmount at once, so many times."""
    for _ in range(times):
        mount(world.registry, mountpoint).close()
        assert not is_mounted(mountpoint)


def try_outside_of_trio(world: World, mountpoint: Path) -> str:
    """Use `mounted` in a program without trio; return why it is refused."""

    async def use() -> None:
        async with mounted(world.registry, mountpoint):
            raise AssertionError("it was mounted")

    try:
        asyncio.run(use())
    except MountError as error:
        return str(error)
    raise AssertionError("it was not refused")


def try_without_threads(world: World, mountpoint: Path) -> tuple[str, int | None]:
    """Mount where no thread can be started; return the refusal."""
    error = RuntimeError("can't start new thread")
    with mock.patch.object(threading.Thread, "start", side_effect=error):
        return try_to_mount(world, mountpoint)


def try_without_trio(world: World, mountpoint: Path) -> tuple[str, int | None]:
    """Mount where trio cannot begin; return the refusal."""
    error = OSError(errno.EMFILE, "Too many open files")
    with mock.patch("trio.run", side_effect=error):
        return try_to_mount(world, mountpoint)


@contextlib.contextmanager
def spare_descriptors(spare: int) -> Iterator[None]:
    """Have so many descriptors to spare during a block."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    for descriptor in taken[:spare]:
        os.close(descriptor)
    try:
        yield
    finally:
        for descriptor in taken[spare:]:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def fill_descriptors(world: World) -> None:
    """Have no descriptor to spare from now on."""
    world.kept["filled"] = stack = contextlib.ExitStack()
    stack.enter_context(spare_descriptors(0))


def free_descriptors(world: World) -> None:
    """Have as many as before."""
    world.kept.pop("filled").close()


def try_with_descriptors(world: World, mountpoint: Path, spare: int) -> str:
    """Mount with so many descriptors to spare; return the refusal, or nothing if it was mounted."""
    try:
        with spare_descriptors(spare):
            mount_here(world, mountpoint)
    except MountError as error:
        return str(error)
    world.mount.close()
    return ""


def close_without_descriptors(world: World) -> bool:
    """Close the mount with no descriptor to spare; tell whether it is closed."""
    with spare_descriptors(0):
        world.mount.close()
    return world.mount.closed


def serve_badly(world: World, mountpoint: Path) -> bool:
    """Mount where the device cannot be read; tell whether the mount ends by itself."""
    logging.getLogger("statsfs.filesystem.session").setLevel(logging.CRITICAL)
    with mock.patch(
        "statsfs.filesystem.request_loop._OwnLoop.serve", side_effect=OSError(errno.EIO, "broken")
    ):
        mount_here(world, mountpoint)
        return world.mount.wait(DEADLINE)


def mount_no_registry(world: World, mountpoint: Path) -> None:
    """Mount something that is no registry."""
    mount("registry", mountpoint)  # type: ignore[arg-type]  # that is what is tested


# The program


def block_import(world: World, name: str) -> None:
    """Have a module not be installed."""
    sys.modules[name] = None  # type: ignore[assignment]  # this is how it is said


def break_import(world: World, name: str, text: str) -> None:
    """Have a module be installed, and fail."""

    class Broken:
        @staticmethod
        def find_spec(found: str, path: object, target: object = None) -> None:
            if found == name:
                raise ImportError(text)

    sys.meta_path.insert(0, Broken)


def become_nobody(world: World) -> None:
    """Give up all rights, for good."""
    # What is imported when something is mounted may be in a directory that nobody may enter.
    importlib.import_module("statsfs.filesystem.session")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def descriptors(world: World) -> dict[int, str]:
    """Return the descriptors of the program, and what kind of file each is."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}").split(":")[0]
    return found


def resources(world: World) -> tuple[list[str], list[str], str]:
    """Return the descriptors, the threads and the children of the program."""
    gc.collect()  # what trio has when it cannot begin is closed by nobody else
    threads = [thread.name for thread in threading.enumerate()]
    # Trio keeps threads of its own for a while; they are not the mount's.
    ours = [name for name in threads if not name.startswith("Trio thread")]
    tasks = Path("/proc/self/task")
    children = "".join((tasks / task / "children").read_text() for task in os.listdir(tasks))
    return sorted(descriptors(world).values()), sorted(ours), children


def memory(world: World) -> int:
    """Return how much memory is resident, in bytes, without garbage."""
    gc.collect()  # when that is done by itself differs between Pythons
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def known_inodes(world: World) -> int:
    """Return how many inodes the filesystem believes that the kernel knows."""
    return len(world.mount._session.vfs._inodes)


def refcount(world: World) -> int:
    """Return how many references `kvm` has."""
    return kvm_of(world).refcount


def sources_alive(world: World) -> int:
    """Return how many sources there are in the process, in the tree or not."""
    gc.collect()
    return sum(type(found) is Source for found in gc.get_objects())


# The device


def is_blocking(world: World) -> list[bool]:
    """Return whether the descriptors on the device block."""
    from statsfs.filesystem import request_loop

    return [os.get_blocking(descriptor) for descriptor in request_loop.find_descriptors()]


def count_restarts(world: World) -> None:
    """Count how often a request was taken back."""

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            world.kept["restarts"] += 1

    world.kept["restarts"] = 0
    logger = logging.getLogger("statsfs.filesystem.request_loop")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(Counting())


def sign_of_life(world: World) -> tuple[bool, bool, bool]:
    """Ask the loop for a sign while it hangs, then when it does not, then when it has ended."""
    hangs, sign, late = threading.Event(), threading.Event(), threading.Event()
    world.mount.run_soon(hangs.wait)
    world.mount.run_soon(sign.set)
    before = sign.is_set()
    hangs.set()
    after = sign.wait(DEADLINE)
    world.mount.close()
    world.mount.run_soon(late.set)
    return before, after, late.is_set()


def restarts(world: World) -> int:
    """Return how often that was."""
    count: int = world.kept["restarts"]
    return count


def wake_for_nothing(world: World, times: int) -> None:
    """Have pyfuse3 read the device when there is nothing to read, as after a client's death.

    It goes on until so many reads found nothing: a request may come in the last moment.
    """
    import trio

    from statsfs.filesystem import request_loop

    original, end = trio.lowlevel.wait_readable, world.kept["restarts"] + times
    poll, devices = request_loop._poll, request_loop.find_descriptors()

    def is_over() -> bool:
        return bool(world.kept["restarts"] >= end)

    async def wait_readable(descriptor: Any) -> None:
        # The program's own connection is none of the devices.
        if descriptor in devices and not is_over():
            await trio.lowlevel.checkpoint()
            if not (is_over() or select.select([descriptor], [], [], 0)[0]):
                return
        # In the end without a checkpoint: the end of serving wakes only a task that waits already.
        await original(descriptor)

    # pyfuse3's own loop waits with the one, ours looks with the other.
    patched: Any = trio.lowlevel
    patched.wait_readable = wait_readable
    patched = request_loop
    patched._poll = lambda *args: poll(*args) if is_over() else 1

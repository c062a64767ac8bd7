"""What tests have a server do with children that it forks; called by `Server.call`."""

import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from statsfs.filesystem import request_loop
from statsfs.filesystem.mounting import mount
from statsfs.tree.registry import Registry
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mount_calls import descriptors, kvm_of, remove
from tests.support.mount_server import World
from tests.support.mount_threads import churning
from tests.support.trees import add_cpu, make_kvm


def in_child(function: Callable[[], Any]) -> Any:
    """Fork, have the child do something, and return what came of it when the child has ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            result = function()
        except BaseException as error:
            result = repr(error)
        os.write(writing, pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    wait_for_child(pid)
    with open(reading, "rb") as file:
        return pickle.load(file)


def wait_for_child(pid: int) -> int:
    """Wait for a child with a deadline; return its status."""
    statuses: list[int] = []

    def is_over() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        statuses.append(status)
        return bool(found)

    try:
        wait_until(is_over, "the child's end")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return os.waitstatus_to_exitcode(statuses[-1])


def what_a_child_has(world: World) -> Any:
    """Return what a forked child has of the mount: descriptors, and what the mount says."""
    before = descriptors(world)

    def look() -> Any:
        after = descriptors(world)
        lost = sorted(kind for number, kind in before.items() if number not in after)
        return len(request_loop.find_descriptors()), lost, world.mount.closed, world.mount.wait(5)

    return in_child(look)


def change_in_a_child(world: World) -> list[str]:
    """Have a child take its copy of the tree apart, and close its copy of the mount."""

    def work() -> list[str]:
        kvm = kvm_of(world)
        remove(world, "cpu0")
        add_cpu(kvm, "childs")
        kvm.revoke()
        world.registry.unregister(kvm)
        world.mount.close()
        with world.mount:
            pass
        return [source.name for source in kvm.subordinates]

    names: list[str] = in_child(work)
    return names


def exit_in_a_child(world: World) -> int:
    """Have a child run to the end of the program, and through all that is done there."""
    pid = os.fork()
    if not pid:
        sys.exit(7)  # which unwinds the server's own `with` statement
    return wait_for_child(pid)


def use_multiprocessing(world: World) -> tuple[int | None, list[int]]:
    """Use the same in the clothes of multiprocessing."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=remove_and_close, args=(world,))
    process.start()
    process.join(DEADLINE)
    with context.Pool(2) as pool:
        squares = pool.map(square, range(5))
    return process.exitcode, squares


def square(number: int) -> int:
    """Return a square."""
    return number * number


def remove_and_close(world: World) -> None:
    """Change the tree and close the mount."""
    remove(world, "cpu1")
    world.mount.close()


def fork_under_load(world: World, times: int) -> list[object]:
    """Fork again and again while threads change the tree; the children change theirs."""

    def work() -> bool:
        kvm = kvm_of(world)
        add_cpu(kvm, "childs")
        kvm.snapshot().to_dict()
        world.registry.unregister(kvm)
        return world.mount.closed

    with churning(world, threads=2):
        return [in_child(work) for _ in range(times)]


def mount_in_a_child(world: World, mountpoint: Path) -> Any:
    """Have a child mount a tree of its own."""

    def work() -> list[str]:
        registry = Registry()
        make_kvm(registry, cpus=0)
        with mount(registry, mountpoint):
            return os.listdir(mountpoint)

    return in_child(work)


def fork_and_stay(world: World) -> int:
    """Fork a child that does nothing, for a long time; return its pid."""
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    return pid

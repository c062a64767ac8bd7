"""What the tests of sources that must be asked have a server do, called by `Server.call`."""

import logging
import threading
from typing import Any

from statsfs.model.external import Numbers
from statsfs.model.values import Aggregate, Value
from statsfs.tree import refresh
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE
from tests.support.mount_server import World

VALUES = (Value("exits", aggregate=Aggregate.SUM),)
BY_NAME = {value.name: value for value in VALUES}


class Vm:
    """Who is asked: answers, hangs, or has an error."""

    def __init__(self, exits: int) -> None:
        self.exits = exits
        self.numbers = Numbers(BY_NAME)
        self.answers = threading.Event()
        self.answers.set()
        self.broken = False
        self.asked = 0

    def refresh(self) -> None:
        self.asked += 1
        self.answers.wait(DEADLINE)
        if self.broken:
            raise OSError("gone")
        self.numbers.take((self.exits,))


def build(world: World, vms: int, blocking: bool = True) -> None:
    """Make `kvm` with `vm0` and so on, each of which has made as many exits as its number and 1."""
    # What is logged of those that do not answer is not this test's.
    logging.getLogger("statsfs.tree.refresh").addHandler(logging.NullHandler())
    kvm = Source("kvm")
    for number in range(vms):
        vm = Vm(number + 1)
        source = Source("vm%d", number, refresh=vm.refresh, blocking=blocking, label="vm")
        source.add_values(VALUES, vm.numbers)
        kvm.add_subordinate(source)
        world.kept[source.name] = vm
    world.registry.register(kvm)


def count(world: World, name: str, exits: int) -> None:
    """Have a VM make some exits."""
    vm: Vm = world.kept[name]
    vm.exits += exits


def set_deadline(world: World, seconds: float) -> None:
    """Have refreshes take so long from now on."""
    patched: Any = refresh
    patched.DEADLINE = seconds


def hang(world: World, name: str) -> None:
    """Have a VM answer nobody."""
    world.kept[name].answers.clear()


def go_on(world: World, name: str, exits: int | None = None, broken: bool = False) -> None:
    """Have it answer again, or have an error."""
    vm: Vm = world.kept[name]
    vm.exits = vm.exits if exits is None else exits
    vm.broken = broken
    vm.answers.set()


def asked(world: World, name: str) -> int:
    """Tell how often it was asked."""
    vm: Vm = world.kept[name]
    return vm.asked

"""What tests of `.events` have a server do: functions of its `World`."""

from statsfs.tree.source import Source
from tests.support.mount_calls import kvm_of
from tests.support.mount_server import World

__all__ = ["churn", "come", "keep_less", "leave", "reader_count"]


def come(world: World, *names: str) -> None:
    """Add sources to `kvm`."""
    for name in names:
        with Source(name) as source:
            kvm_of(world).add_subordinate(source)


def leave(world: World, *names: str) -> None:
    """Remove sources from `kvm`."""
    for name in names:
        source = kvm_of(world).find(name)
        assert source is not None
        kvm_of(world).remove_subordinate(source)


def churn(world: World, count: int) -> None:
    """Have so many sources come, eight in each directory, and leave again."""
    for number in range(0, count, 8):
        with Source("vm%d", number) as vm:
            kvm_of(world).add_subordinate(vm)
            for below in range(7):
                with Source("vcpu%d", below) as vcpu:
                    vm.add_subordinate(vcpu)
    for vm in kvm_of(world).subordinates:
        kvm_of(world).remove_subordinate(vm)


def keep_less(world: World, size: int) -> None:
    """Keep fewer bytes of lines."""
    from statsfs.tree import events

    vars(events)["TEXT_MAX"] = size


def reader_count(world: World) -> int:
    """How many changes are told to."""
    return len(world.registry.events)

"""What tests of roots and owners have a server do: functions of its `World`."""

from typing import Any

from statsfs.demo.mock_kvm import MockKvm
from statsfs.model.values import Aggregate, Value
from statsfs.tree.source import Source
from tests.support.mount_server import World
from tests.support.trees import add_cpu, make_kvm

SECOND = (Value("second", aggregate=Aggregate.SUM, description="mount_roots"),)
MODES = (0o600, 0o640, 0o644, 0o604)


def start_mock(world: World, vms: int, vcpus: int) -> dict[str, int]:
    """Have the mock KVM stand still; return what each VM has counted."""
    kvm = MockKvm(world.registry, rate=0)
    world.kept["mock"] = kvm
    made = [kvm.create_vm(vcpus) for _ in range(vms)]
    return {vm.name: vm.source.get_value("exits") for vm in made}


def replace_root(world: World, exits: int) -> None:
    """Put another source of the root's name in its place, with a CPU."""
    (old,) = world.registry.sources
    world.registry.unregister(old)
    add_cpu(make_kvm(world.registry, 0), "cpu0").exits = exits


def add_second(world: World, path: str = "") -> None:
    """Add a value to the root or to a source below it."""
    (source,) = world.registry.sources
    for name in filter(None, path.split("/")):
        found = source.find(name)
        assert found is not None
        source = found
    source.add_values(SECOND, {"second": 2})


def keep_missing_names(world: World, seconds: float) -> float:
    """Let the kernel cache names as missing for so long; return for how long it did before."""
    from statsfs.filesystem import fuse_handlers, inodes

    patched: Any = fuse_handlers
    before: float = patched.ABSENT_TIMEOUT
    patched.ABSENT_TIMEOUT = seconds
    patched = inodes
    patched._ABSENT_FOR = 2 * seconds
    return before


def count_lookups(world: World) -> None:
    """Count what the kernel looks for in vain from now on."""
    vfs: Any = world.mount._session.vfs
    lookup = vfs.lookup
    world.kept["missed"] = missed = []

    def note(parent: int, name: bytes) -> Any:
        found = lookup(parent, name)
        if not found.inode:
            missed.append(name)
        return found

    vfs.lookup = note


def missed(world: World) -> list[bytes]:
    """Return what that was, and forget it."""
    found = list(world.kept["missed"])
    world.kept["missed"].clear()
    return found


def build_owned(world: World, owner: tuple[int, int], other: tuple[int, int]) -> None:
    """Make `app` with `alice`, who owns it, `below` without an owner, `others` below that; `free`.

    Each but the top has values of four modes.
    """
    values = [Value(f"m{mode:o}", aggregate=Aggregate.SUM, mode=mode) for mode in MODES]
    app = Source("app", label="app")
    parent = app
    for name, whose in (("alice", owner), ("below", None), ("others", other)):
        source = Source(name, label=name, owner=whose)
        source.add_values(values, {value.name: 1 for value in values})
        parent.add_subordinate(source)
        parent = source
    free = Source("free", label="free")
    free.add_values(values, {value.name: 1 for value in values})
    app.add_subordinate(free)
    world.registry.register(app)

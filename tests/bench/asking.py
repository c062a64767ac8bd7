"""What it costs to ask a kernel: a vCPU's statistics read through statsfs, and with bare hands.

The guests stand still: what is measured is the reading. Where there is no /dev/kvm, a file with a
kernel's bytes stands in.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from statsfs.demo.mock_kvm import VcpuStats
from statsfs.demo.real_kvm import RealKvm
from statsfs.formats.binary import decode_layout
from statsfs.kvm import KvmStats
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.bench.measuring import Line, Loop, compare, show, take_turns, tell
from tests.support.mount_server import World
from tests.support.mounts import serving

ROUNDS = 31
TIMES = 200
VMS, VCPUS = 10, 8
KVM = Path("/dev/kvm")
DUMP = Path(__file__).parent.parent / "data" / "kvm_vcpu.stats.bin"


def repeat(function: Loop) -> Loop:
    """A loop that calls a function so many times."""

    def loop() -> None:
        for _ in range(TIMES):
            function()

    return loop


def read_bare(fd: int) -> Loop:
    """What a program would do that knows where `exits` is: one pread, one unpack."""
    encoded = os.pread(fd, 1 << 16, 0)
    layout = decode_layout(encoded)
    (offset,) = (one.offset for one in layout.descriptors if one.name == "exits")
    exits = struct.Struct(f"={offset}xQ")
    size, start = layout.data_size, layout.data_offset
    return lambda: exits.unpack_from(os.pread(fd, size, start))


def make_vms(registry: Registry, stack: ExitStack) -> Source:
    """Several VMs that never ran, or as many sources of the file."""
    if KVM.exists():
        kvm = stack.enter_context(RealKvm(registry, rate=0))
        for _ in range(VMS):
            kvm.create_vm(VCPUS)
        return kvm.source
    source = Source("kvm")
    registry.register(source)
    for number in range(VMS):
        with Source("%d-4", number, label="vm") as vm:
            for index in range(VCPUS):
                vm.add_subordinate(open_dump(stack).make_source("vcpu%d", index))
            source.add_subordinate(vm)
    return source


def open_dump(stack: ExitStack) -> KvmStats:
    """The statistics in the file."""
    with open(DUMP, "rb") as file:
        return stack.enter_context(KvmStats(file.fileno()))


def find_fd(stack: ExitStack) -> int:
    """A statistics descriptor of a vCPU, or the file."""
    what = "anon_inode:kvm-vcpu-stats:0" if KVM.exists() else str(DUMP)
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.lexists(path) and os.readlink(path) == what:
            fd = os.dup(int(name))
            stack.callback(os.close, fd)
            return fd
    raise LookupError(what)


def build(world: World) -> str:
    """Register the VMs, and plain counters of the same values; the path of a vCPU."""
    plain = Source("plain")
    plain.add_values(VcpuStats, VcpuStats())
    world.registry.register(plain)
    stack = world.kept["stack"] = ExitStack()
    return make_vms(world.registry, stack).subordinates[0].subordinates[0].path


def measure() -> Iterator[Line]:
    """One value, and the total of many."""
    with ExitStack() as stack:
        kvm = make_vms(Registry(), stack)
        vcpu = kvm.subordinates[0].subordinates[0]
        bare = read_bare(find_fd(stack))
        loops = [
            repeat(bare),
            repeat(lambda: vcpu.get_value("exits")),
            lambda: [bare() for _ in range(VMS * VCPUS)],
            lambda: kvm.get_value("exits"),
        ]
        one, value, all_bare, total = take_turns(loops, ROUNDS)
    one, value = ([each / TIMES for each in found] for found in (one, value))
    yield tell("bare: os.pread and unpack `exits`", one, "us")
    yield compare("a source of the descriptor: get_value", value, one, None, "us")
    yield tell(f"bare: {VMS * VCPUS} of them", all_bare, "us")
    yield compare(f"the total of {VMS * VCPUS} such sources", total, all_bare, None, "us")


def measure_files() -> Iterator[Line]:
    """One value as a file, of a mount that another process serves."""
    with serving(measured=False) as server:
        path = server.call(build)
        real, plain = (server / f"{directory}/exits" for directory in (path, "plain"))
        loops = [repeat(plain.read_bytes), repeat(real.read_bytes)]
        plain_read, real_read = ([each / TIMES for each in f] for f in take_turns(loops, ROUNDS))
    yield tell("a file of plain counters: open, read, close", plain_read, "us")
    yield compare("a file of the descriptor: open, read, close", real_read, plain_read, 2, "us")


def main() -> None:
    """Print what was measured."""
    where = "/dev/kvm" if KVM.exists() else "a file"
    title = f"asking {where} for one of a vCPU's 47 values (ratios: to the line above)"
    show(title, (*measure(), *measure_files()))

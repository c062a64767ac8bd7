"""A place for `top` whose numbers are made by a rule: the same at each run."""

import random
from typing import Any

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Path, Schema, parse_schema
from statsfs.eyes.samples import Sample

__all__ = ["BEGUN", "MadePlace", "describe", "node"]

BEGUN = 1_800_000_000.0


def describe(name: str, **more: Any) -> dict[str, Any]:
    """What a schema says of a value."""
    return {
        "name": name, "type": "u64", "kind": "cumulative", "unit": "none", "base": 10,
        "exponent": 0, "aggregate": ["sum"], "mode": 0o644, "description": "", **more,
    }  # fmt: skip


VALUES = [
    describe("exits", description="VM exits of every kind"),
    describe("io_exits", description="Exits at an instruction of I/O"),
    describe("halt_exits", description="Exits because the guest had nothing to do"),
    describe("hypercalls", description="Calls of the hypervisor by the guest"),
    describe("halt_wait_ns", unit="seconds", exponent=-9, description="Time slept in halts"),
    describe(
        "halt_wait_hist", kind="log_hist", unit="seconds", exponent=-9, size=24, bucket_size=1,
        description="How long each halt slept",
    ),
    describe("resident", kind="instant", unit="bytes", mode=0o444, description="Memory in use"),
    describe("guest_mode", kind="instant", unit="boolean", mode=0o444,
             description="In the guest now"),
    describe("rmap_max", kind="peak", aggregate=["max"], description="Longest list of mappings"),
]  # fmt: skip


def node(values: Any, **below: Any) -> dict[str, Any]:
    """A source of a view."""
    return {"values": values, "subordinates": below}


class MadePlace:
    """Virtual machines whose counters follow a rule.

    Attributes:
        second: which sample is read next.
        cleared: what was cleared.
        error: why nothing can be read, if so.
        gone: VMs that are not there.
    """

    partial = True

    def __init__(self, *, vms: int = 4, vcpus: int = 4, writable: bool = True) -> None:
        self.name = "/run/stats"
        self.writable = writable
        self.second = 0
        self.cleared: list[tuple[Path, str]] = []
        self.error = ""
        self.gone: set[str] = set()
        self._names = [f"{3287789 + 31 * index}-{11 + index}" for index in range(vms)]
        self._vcpus = vcpus

    def read_schema(self, path: Path = ()) -> Schema:
        """What is known of them."""
        import json

        def described(values: list[Any], **below: Any) -> dict[str, Any]:
            return {"labels": {}, **node(values, **below)}

        vcpus = {f"vcpu{index}": described(VALUES) for index in range(self._vcpus)}
        vms = {name: described(VALUES, **vcpus) for name in self._names}
        root = described([], kvm=described(VALUES, **vms))
        for name in path:
            if name not in root["subordinates"]:
                raise SampleError(f"{name}: no such source")
            root = root["subordinates"][name]
        return parse_schema(json.dumps(root).encode())

    def read_sample(self) -> Sample:
        """The numbers of the next second."""
        if self.error:
            raise SampleError(self.error)
        self.second += 1
        vms = {}
        for at, name in enumerate(self._names):
            if name in self.gone:
                continue
            vcpus = {f"vcpu{i}": node(self._count(4 * at + i)) for i in range(self._vcpus)}
            vms[name] = node(_add_up([one["values"] for one in vcpus.values()]), **vcpus)
        kvm = node(_add_up([one["values"] for one in vms.values()]), **vms)
        moment = float(self.second)
        return Sample(BEGUN + moment, moment, node({}, kvm=kvm))

    def clear(self, path: Path, name: str) -> None:
        """Note it, or refuse."""
        if name == "hypercalls":
            raise SampleError("/".join(("/run/stats", *path, name)) + ": Permission denied")
        self.cleared.append((path, name))

    def _count(self, vcpu: int) -> dict[str, Any]:
        rng = random.Random(vcpu)
        pace = 600 + rng.randrange(900)
        seconds = self.second
        burst = sum(150 for at in range(seconds) if (at // (7 + vcpu % 5)) % 3 == 0)
        exits = pace * seconds + burst * (1 + 4 * (vcpu % 4))
        halts = exits // 5
        wait = [0] * 24
        for bucket, share in ((13, 0.05), (14, 0.1), (15, 0.2), (16, 0.35), (17, 0.2), (18, 0.1)):
            wait[bucket] = int(halts * share)
        return {
            "exits": exits, "io_exits": exits // 4, "halt_exits": halts,
            "hypercalls": exits // 100 if vcpu % 2 else 0,
            "halt_wait_ns": halts * 48_211, "halt_wait_hist": wait,
            "resident": (300 + 40 * vcpu + 90 * ((seconds // 9) % 4)) << 20,
            "guest_mode": (seconds + vcpu) % 2, "rmap_max": 12 + vcpu,
        }  # fmt: skip


def _add_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for row in rows:
        for name, number in row.items():
            if isinstance(number, list):
                old = total.get(name, [0] * len(number))
                total[name] = [a + b for a, b in zip(old, number, strict=True)]
            elif name == "rmap_max":
                total[name] = max(total.get(name, 0), number)
            else:
                total[name] = total.get(name, 0) + number
    return total

"""The 47 values of a vCPU: what the benchmarks count."""

from types import new_class
from typing import Any

from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate

COUNT = 47


def _make_class() -> type[Stats]:
    fields: dict[str, Any] = {f"value_{number}": u64(Aggregate.SUM) for number in range(COUNT)}
    made = new_class("VcpuStats", (Stats,), exec_body=lambda space: space.update(fields))
    assert issubclass(made, Stats)
    return made


VcpuStats = _make_class()

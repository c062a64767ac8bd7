"""`.stats.openmetrics`: the text format of OpenMetrics, version 1.0, without timestamps.

It differs from Prometheus's own format in the names of families, in units, in the escapes of HELP
and in the mark at the end.

Threading: as `prometheus`.
"""

from typing import Final

from statsfs.formats.metric_names import Metric
from statsfs.formats.prometheus import Where, write_families
from statsfs.tree.access import Mask
from statsfs.tree.snapshot import Snapshot

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def render(snapshot: Snapshot, *, mask: Mask = 0o444, where: Where | None = None) -> bytes:
    """Return what a snapshot counted.

    Args:
        snapshot: of a source or of a registry.
        mask: only values whose mode has one of these bits; or for which reader.
        where: is filled: where each family is, by its name and those of its samples.
    """
    return write_families(snapshot, mask, where, _describe) + b"# EOF\n"


def _describe(metric: Metric) -> str:
    lines = [f"# TYPE {metric.name} {metric.type}\n"]
    if metric.unit:
        lines.append(f"# UNIT {metric.name} {metric.unit}\n")
    if metric.help:
        help = metric.help.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        lines.append(f"# HELP {metric.name} {help}\n")
    return "".join(lines)

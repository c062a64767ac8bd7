"""`.stats.openmetrics`: the text format of OpenMetrics, version 1.0, without timestamps.

Owns where that format differs from Prometheus's own: the names of families, units, the escapes of
HELP, the mark at the end. Histograms have buckets only, as `_count` may not be without `_sum`,
which nobody counted.

Threading: as `metrics`.
"""

from typing import Final

from statsfs.formats.metric_families import make_families
from statsfs.formats.prometheus import Writer
from statsfs.tree.access import Mask
from statsfs.tree.snapshot import Pause, Snapshot, no_pause

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def render(snapshot: Snapshot, *, mask: Mask = 0o444, pause: Pause = no_pause) -> bytes:
    """Return what a snapshot counted.

    Args:
        snapshot: of a source or of a registry.
        mask: only values whose mode has one of these bits; or for whom.
        pause: called every few hundred lines.
    """
    writer = Writer(pause, counts=False)
    for family in make_families(snapshot, mask=mask, pause=pause):
        metric = family.metric
        lines = [f"# TYPE {metric.name} {metric.type}\n"]
        if metric.unit:
            lines.append(f"# UNIT {metric.name} {metric.unit}\n")
        if metric.help:
            lines.append(f"# HELP {metric.name} {_escape(metric.help)}\n")
        writer.write("".join(lines), family)
    return writer.end("# EOF\n")


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

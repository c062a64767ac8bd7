"""`.stats.prom`: the text format of Prometheus, version 0.0.4, without timestamps.

Owns that format, and the lines of samples, which OpenMetrics writes the same way.

Threading: as `metrics`.
"""

import io
from collections.abc import Sequence
from itertools import accumulate, compress, islice
from typing import Final

from statsfs.formats.metric_families import Family, Home, make_families
from statsfs.formats.metric_names import Metric, make_edges
from statsfs.model.values import Value
from statsfs.tree.access import Mask
from statsfs.tree.snapshot import Pause, Snapshot, no_pause

__all__ = ["CONTENT_TYPE", "Writer", "render", "sample_name"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_MOST: Final = 400  # lines of histograms between two pauses, but for their counts

_NAME: Final = "\0"  # stands in templates for the metric's name; no label has it


def render(snapshot: Snapshot, *, mask: Mask = 0o444, pause: Pause = no_pause) -> bytes:
    """Return what a snapshot counted.

    Args:
        snapshot: of a source or of a registry.
        mask: only values whose mode has one of these bits; or for whom.
        pause: called every few hundred lines.
    """
    writer = Writer(pause, counts=True)
    for family in make_families(snapshot, mask=mask, pause=pause):
        metric = family.metric
        name = sample_name(metric)
        help = metric.help.replace("\\", r"\\").replace("\n", r"\n")
        head = f"# HELP {name} {help}\n" if help else ""
        writer.write(f"{head}# TYPE {name} {metric.type}\n", family)
    return writer.end()


class Writer:
    """Collects the text of families.

    A chunk of sources has one template of lines for all values of its array: a few hundred lines
    are then one call of C.

    Args:
        pause: called every few hundred lines.
        counts: whether a histogram has `_count` besides its buckets.
    """

    def __init__(self, pause: Pause, *, counts: bool) -> None:
        self._pause = pause
        self._counts = counts
        # It grows in place: joining 300,000 lines at last would take long for other threads.
        self._text = io.BytesIO()
        self._templates: dict[tuple[int, str], tuple[list[Home], str]] = {}

    def end(self, mark: str = "") -> bytes:
        """Return all that was written, with a mark at its end."""
        self._text.write(mark.encode())
        return self._text.getvalue()

    def write(self, head: str, family: Family) -> None:
        """Write a family's comments and samples; nothing, if there are no samples."""
        name = sample_name(family.metric)
        for part in family.parts:
            for homes, column in part.take():
                self._text.write(head.encode())
                head = ""
                if part.value.histogram:
                    self._write_histograms(name, part.value, homes, column)
                    continue
                template = self._template(homes, "%d" if part.scale.exact else "%s")
                lines = template.replace(_NAME, name) % tuple(column)
                self._text.write(lines.encode())
                self._pause()

    def _template(self, homes: list[Home], number: str) -> str:
        # The values of an array have the same lists of homes.
        known, template = self._templates.get((id(homes), number), (None, ""))
        if known is None:
            lines = (f"{_NAME}{_in_braces(home.text)} {number}\n" for home in homes)
            template = "".join(lines)
            self._templates[id(homes), number] = (homes, template)
        return template

    def _write_histograms(
        self, name: str, value: Value, homes: list[Home], column: Sequence[Sequence[int]]
    ) -> None:
        edges = make_edges(value)
        lines = [f'{_NAME}le="{text}"}} %d\n' for text in edges.texts]
        pieces = ["".join(lines[start : start + _MOST]) for start in range(0, len(lines), _MOST)]
        written = 0
        for home, buckets in zip(homes, column, strict=True):
            start = f"{name}_bucket{{{_double(home.text)}{',' if home.text else ''}"
            counts = compress(accumulate(buckets), edges.keep)
            for piece in pieces:
                some = tuple(islice(counts, _MOST))
                if written + len(some) > _MOST:
                    self._pause()
                    written = 0
                self._text.write((piece.replace(_NAME, start) % some).encode())
                written += len(some) + self._counts
            if self._counts:
                template = f"{name}_count{_in_braces(home.text)} %d\n"
                self._text.write((template % some[-1]).encode())
        self._pause()


def sample_name(metric: Metric) -> str:
    """Return what the samples of a metric are called; those of a histogram begin so."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _double(text: str) -> str:
    # In a template "%" is written twice.
    return text.replace("%", "%%")


def _in_braces(text: str) -> str:
    return f"{{{_double(text)}}}" if text else ""

"""`.stats.prom`: the text format of Prometheus, version 0.0.4, without timestamps.

The lines of samples are the same in OpenMetrics, which uses `write_families` as well. What has no
type there is `untyped` here.

Threading: pure, but for pauses.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from statsfs.formats.metric_families import make_families
from statsfs.formats.metric_names import Edges, Metric, Scale
from statsfs.formats.metric_samples import Home
from statsfs.tree.access import Mask
from statsfs.tree.pauses import pause
from statsfs.tree.snapshot import Snapshot

__all__ = ["CONTENT_TYPE", "Where", "render", "write_families"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Where = dict[str, tuple[int, int]]
"""Where in a text the family of a name is: its start and its end."""

_NAME: Final = "\0"  # stands in templates for the metric's name; no label has it


def render(snapshot: Snapshot, *, mask: Mask = 0o444, where: Where | None = None) -> bytes:
    """Return what a snapshot counted.

    >>> from statsfs.formats.prometheus import render
    >>> app = Source("app")
    >>> app.add_values([Value("jobs", description="Jobs done")], {"jobs": 5})
    >>> print(render(app.snapshot()).decode(), end="")
    # HELP app_jobs_total Jobs done
    # TYPE app_jobs_total counter
    app_jobs_total 5

    Args:
        snapshot: of a source or of a registry.
        mask: only values whose mode has one of these bits; or for which reader.
        where: is filled: where each family is, by its name and those of its samples.
    """
    return write_families(snapshot, mask, where, _describe)


def _describe(metric: Metric) -> str:
    name = metric.sample if metric.type == "counter" else metric.name
    type = "untyped" if metric.type == "unknown" else metric.type
    help = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    head = f"# HELP {name} {help}\n" if help else ""
    return f"{head}# TYPE {name} {type}\n"


def write_families(
    snapshot: Snapshot, mask: Mask, where: Where | None, describe: Callable[[Metric], str]
) -> bytes:
    """Return the text of the metric families of a snapshot.

    A chunk of sources has one template of lines for all values of its array: a few hundred lines
    are then one call of C.

    Args:
        snapshot, mask, where: as for `render`.
        describe: returns the comments of a metric.
    """
    # It grows in place: joining 300,000 lines at last would take long for other threads.
    text = io.BytesIO()
    templates: dict[tuple[int, str], tuple[list[Home], str]] = {}
    for family in make_families(snapshot, mask=mask):
        start = text.tell()
        name = family.metric.sample
        head = describe(family.metric)
        for part, (homes, column, sums) in family.take():
            text.write(head.encode())
            head = ""  # a metric without samples has no comments either
            if part.edges is not None:
                items = zip(homes, column, sums, strict=True)
                _write_histograms(text, family.metric, part.edges, part.scale, items)
                continue
            number = "%d" if part.scale.exact else "%s"
            # The values of an array have the same lists of homes.
            known, template = templates.get((id(homes), number), (None, ""))
            if known is None:
                template = _make_template(homes, number)
                templates[id(homes), number] = (homes, template)
            text.write((template.replace(_NAME, name) % tuple(column)).encode())
            pause()
        if where is not None:
            where.update(dict.fromkeys(family.metric.names, (start, text.tell())))
    return text.getvalue()


def _make_template(homes: list[Home], number: str) -> str:
    return "".join([f"{_NAME}{_in_braces(home.text)} {number}\n" for home in homes])


def _write_histograms(
    text: io.BytesIO,
    metric: Metric,
    edges: Edges,
    scale: Scale,
    items: Iterable[tuple[Home, Sequence[int], int | float | None]],
) -> None:
    template = "".join([f'{_NAME}le="{end}"}} %d\n' for end in edges.texts])
    number = "%d" if scale.exact else "%s"
    for home, counts, total in items:
        start = f"{metric.sample}{{{_double(home.text)}{',' if home.text else ''}"
        text.write((template.replace(_NAME, start) % tuple(counts)).encode())
        if total is not None:
            labels = _in_braces(home.text)
            ends = f"{metric.name}_sum{labels} {number}\n{metric.name}_count{labels} %d\n"
            text.write((ends % (total, counts[-1])).encode())
        pause()


def _double(text: str) -> str:
    # In a template "%" is written twice.
    return text.replace("%", "%%")


def _in_braces(text: str) -> str:
    return f"{{{_double(text)}}}" if text else ""

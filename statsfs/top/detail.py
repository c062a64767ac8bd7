"""The lines below the table: one value whole, and a histogram's buckets as bars.

Threading: pure.
"""

import math
from collections.abc import Sequence
from typing import Final

from statsfs.eyes.descriptions import Description
from statsfs.eyes.numbers import clean_text, find_edges, format_number
from statsfs.model.counts import count_of
from statsfs.top.table import Entry, describe_unit

__all__ = ["LINES", "describe_entry"]

LINES: Final = 10
_BLOCKS: Final = " ▏▎▍▌▋▊▉█"


def describe_entry(entry: Entry, width: int) -> list[str]:
    """Return what is known of a file, in at most `LINES` lines of a width."""
    what = entry.what
    path = clean_text("/".join((*entry.path, entry.name)))
    if what is None:
        return [path]
    number = entry.number
    unit = describe_unit(what)
    count = sum(number) if isinstance(number, list) else number
    whole = count_of(count, "observation", ",") if what.histogram else f"{count:,} {unit}".rstrip()
    facts = [what.kind, what.type, *(["read-only"] if not what.writable else [])]
    lines = [f"{path} = {whole}  ({', '.join(facts)})"]
    if what.description:
        lines.append(clean_text(what.description))
    if isinstance(number, list) and any(number):
        lines.append(entry.text)
        lines += _draw_histogram(number, what, width, LINES - len(lines))
    return lines


def _draw_histogram(
    buckets: Sequence[int], what: Description, width: int, height: int
) -> list[str]:
    # Neighbours share a bar where there are more than lines.
    edges = find_edges(len(buckets), what)
    held = [index for index, count in enumerate(buckets) if count]
    first, last = held[0], held[-1]
    each = math.ceil((last + 1 - first) / height)
    rows = []
    for at in range(first, last + 1, each):
        until = min(at + each, len(buckets))
        begin, end = format_number(edges[at], what), edges[until]
        name = f"{begin} …" if math.isinf(end) else f"{begin} – {format_number(end, what)}"
        rows.append((name, sum(buckets[at:until])))
    names = max(len(name) for name, _ in rows)
    counts = max(len(f"{count:,}") for _, count in rows)
    most = max(count for _, count in rows)
    bar = max(width - names - counts - 4, 1)
    return [
        f"{name:>{names}} {count:>{counts},} {_draw_bar(count / most * bar)}"
        for name, count in rows
    ]


def _draw_bar(length: float) -> str:
    eighths = math.ceil(length * 8)
    return _BLOCKS[8] * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")

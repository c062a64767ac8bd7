"""What the Prometheus views must say: trees to draw, and a naive model of their samples.

The model is written from docs/monitoring.md: it walks the tree for each number, computes
with fractions and knows nothing of columns, templates and chunks. What the views said is read by
prometheus_client's own parsers.
"""

import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from hypothesis import strategies as st
from prometheus_client import parser as text_parser
from prometheus_client.core import Metric as ParsedMetric
from prometheus_client.openmetrics import parser as openmetrics_parser

from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.model import Ages, belong_together, convert, find_sum

__all__ = [
    "AGES",
    "Node",
    "as_floats",
    "build",
    "export",
    "parse_openmetrics",
    "parse_text",
    "trees",
]

# Which of two arrays is older is a matter of the whole process.
AGES = Ages()

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]


class Exported(NamedTuple):
    """One family: what it is, and its samples by their name and labels."""

    type: str
    unit: str
    help: str
    samples: dict[Series, Any]


# Trees


@dataclass
class Node:
    """A source: what it is and counts, and what is below it."""

    name: str
    label: str | None
    hidden: bool
    # An array, its numbers, and whether the base is hidden.
    entries: list[tuple[tuple[Value, ...], tuple[Any, ...], bool]] = field(default_factory=list)
    below: list["Node"] = field(default_factory=list)


TOPS = ("kvm", "9-a:b", "é")
NAMES = ("a", "b", 'q"\\', "100%d", "é {1},", "le")
LABELS = (None, None, "vm", "vcpu", "Vm_9", "_x", "source", "quantile")
VALUES = (
    "n", "n_total", "n.count", "n_bucket", "n_sum", "n_ns", "n_seconds", "n_kb", "n:x", "n_created",
)  # fmt: skip
MODES = (0o644, 0o444, 0o600, 0o640)
HELPS = ("", "plain", 'a "quoted" back\\slash\\n', "two\nlines %d", " é ")
SCALES = (
    (Unit.NONE, 10, 0), (Unit.NONE, 10, 3), (Unit.NONE, 2, -1), (Unit.SECONDS, 10, -9),
    (Unit.SECONDS, 10, -6), (Unit.SECONDS, 10, 0), (Unit.BYTES, 2, 10), (Unit.BYTES, 10, 0),
    (Unit.BYTES, 10, -400), (Unit.CYCLES, 10, 400),
)  # fmt: skip
SOME = st.one_of(st.integers(0, 5), st.integers(-(1 << 63), (1 << 64) - 1))


@st.composite
def values(draw: st.DrawFn, name: str) -> Value:
    """Draw a value of any kind."""
    kind = draw(st.sampled_from([Kind.CUMULATIVE, *Kind]))
    type = draw(st.sampled_from(list(Type)))
    unit, base, exponent = draw(st.sampled_from(SCALES))
    shape: dict[str, Any] = {}
    kinds = [Aggregate.NONE, Aggregate.SUM, Aggregate.MAX | Aggregate.AVG]
    if kind in (Kind.LINEAR_HIST, Kind.LOG_HIST, Kind.HIST):
        type = Type.U64 if type is Type.BOOL else type
        shape["size"] = draw(st.integers(1, 4))
        shape["bucket_size"] = draw(st.integers(1, 3)) if kind is Kind.LINEAR_HIST else 0
        if kind is Kind.HIST:
            shape = {"bounds": draw(st.sampled_from(([0], [1, 3], [2, 5, 1 << 63])))}
        kinds.pop()
    mode = draw(st.sampled_from(MODES))
    return Value(
        name,
        type,
        draw(st.sampled_from(kinds)),
        mode & 0o444 if kind is Kind.INSTANT else mode,
        kind=kind,
        unit=unit,
        base=base,
        exponent=exponent,
        description=draw(st.sampled_from(HELPS)),
        hidden=draw(st.integers(0, 4)) == 0,
        **shape,
    )


@st.composite
def arrays(draw: st.DrawFn) -> tuple[Value, ...]:
    """Draw an array of one to three values."""
    names = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=3, unique=True))
    array: list[Value] = []
    for name in names:
        array.append(draw(values(name)))
        if array[-1].histogram and draw(st.booleans()):
            array.append(_sum_of(array[-1]))
    return tuple(array)


def _sum_of(value: Value) -> Value:
    # No other value here is called so.
    return Value(
        f"{value.name}.sum",
        aggregate=value.aggregate,
        mode=value.mode & 0o444,
        unit=value.unit,
        base=value.base,
        exponent=value.exponent,
        hidden=value.hidden,
    )


@st.composite
def nodes(draw: st.DrawFn, known: list[tuple[Value, ...]], depth: int, name: str) -> Node:
    """Draw a source over some of the known arrays, and up to three below it."""
    label = draw(st.sampled_from(LABELS))
    node = Node(name, label, draw(st.integers(0, 4)) == 0)
    for _ in range(draw(st.integers(0, 2))):
        array = draw(st.sampled_from(known))
        hidden = draw(st.integers(0, 3)) == 0
        if not hidden and any(array == other and not unseen for other, _, unseen in node.entries):
            continue
        counts = tuple(
            draw(st.lists(SOME, min_size=value.size, max_size=value.size))
            if value.histogram
            else draw(SOME)
            for value in array
        )
        node.entries.append((array, counts, hidden))
    if depth:
        below = draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
        node.below = [draw(nodes(known, depth - 1, name)) for name in below]
    return node


@st.composite
def trees(draw: st.DrawFn) -> list[Node]:
    """Draw the top-level sources of a registry."""
    known = draw(st.lists(arrays(), min_size=1, max_size=3))
    names = draw(st.lists(st.sampled_from(TOPS), min_size=1, max_size=2, unique=True))
    return [draw(nodes(known, 2, name)) for name in names]


def build(tops: list[Node]) -> Registry:
    """Make the tree that was drawn, and note the ages of its arrays."""
    registry = Registry()
    for node in tops:
        source = _build(node)
        registry.register(source)
        source.put()
    return registry


def _build(node: Node) -> Source:
    source = Source("%s", node.name, label=node.label, hidden=node.hidden)
    for array, counts, hidden in node.entries:
        base = {value.name: count for value, count in zip(array, counts, strict=True)}
        source.add_values(array, base, hidden=hidden)
        AGES.note(array)
    for below in node.below:
        child = _build(below)
        source.add_subordinate(child)
        child.put()
    return source


# The model


@dataclass
class _Point:
    # What the sources counted that share a home: the array's numbers of one value, and the sum of
    # each histogram or None.
    labels: Labels
    numbers: list[Any] = field(default_factory=list)
    sums: list[int | None] = field(default_factory=list)


def export(tops: list[Node], mask: int = 0o444) -> dict[str, Exported]:
    """The families that a view has; a sample is the set of the numbers that it may have.

    Which of several sources of one array with equal labels counts is left open, so there may be
    more than one; None stands for no sample.
    """
    points: dict[tuple[int, int, str], tuple[Value, dict[int, _Point]]] = {}
    for top in tops:
        if not top.hidden:
            _visit(top, top, True, {}, top, points)
    families: dict[str, Exported] = {}
    claimed: set[str] = set()
    for top_name, value, found in _join(points):
        if value.mode & mask:
            _export_value(top_name, value, list(found.values()), families, claimed)
    return families


def _join(
    points: dict[tuple[int, int, str], tuple[Value, dict[int, _Point]]],
) -> list[tuple[str, Value, dict[int, _Point]]]:
    # The oldest value of those that belong together has the points of all.
    joined: list[tuple[str, Value, dict[int, _Point]]] = []
    for (_, _, top), (value, found) in sorted(points.items(), key=lambda item: item[0][:2]):
        for other_top, other, known in joined:
            alike = belong_together(other, value) and _is_added(other) and _is_added(value)
            if other_top == top and alike:
                for home, point in found.items():
                    known.setdefault(home, _Point(point.labels)).numbers.extend(point.numbers)
                    known[home].sums.extend(point.sums)
                break
        else:
            joined.append((top, value, found))
    return joined


def _is_added(value: Value) -> bool:
    # Whether a series may be a sum of it, or the largest peak; not any other aggregate.
    peak = value.kind is Kind.PEAK and value.aggregate is not Aggregate.NONE
    return Aggregate.SUM in value.aggregate or peak


def _visit(
    node: Node, home: Node, seen: bool, labels: dict[str, str], top: Node, points: Any
) -> None:
    for array, counts, hidden in node.entries:
        for index, value in enumerate(array):
            if value.hidden and value.aggregate is Aggregate.NONE:
                continue
            if value.name.endswith(".sum"):
                continue
            if (not seen or hidden) and not _is_added(value):
                continue
            key = (AGES[array], index, _clean(top.name))
            _, found = points.setdefault(key, (value, {}))
            point = found.setdefault(id(home), _Point(frozenset(labels.items())))
            point.numbers.append(counts[index])
            place = find_sum(array, index)
            point.sums.append(None if place is None else counts[place])
    for below in node.below:
        if seen and not below.hidden:
            more = dict(labels)
            label = below.label or "source"
            more[label] = f"{more[label]}/{below.name}" if label in more else below.name
            _visit(below, below, True, more, top, points)
        else:
            _visit(below, home, False, labels, top, points)


def _clean(text: str) -> str:
    name = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in text)
    return "_" + name if name[0].isdigit() else name


def _name_family(top: str, value: Value) -> tuple[str, str]:
    # The family's name, and its type.
    type = "gauge"
    if value.histogram:
        type = "histogram"
    elif value.kind is Kind.CUMULATIVE and value.type is not Type.BOOL:
        type = "counter"
    name = top + "_" + re.sub("[^a-zA-Z0-9_]", "_", value.name)
    if type == "counter" and name.endswith("_total"):
        name = name[:-6]
    said = {
        (Unit.SECONDS, -9): "_ns", (Unit.SECONDS, 0): "_seconds", (Unit.BYTES, 10): "_kb",
    }.get((value.unit, value.exponent))  # fmt: skip
    if value.unit in (Unit.SECONDS, Unit.BYTES):
        ends = [f"_{value.unit}", *([said] if said else [])]
        for end in ends:
            if name.endswith(end):
                name = name[: -len(end)]
                break
        name += f"_{value.unit}"
    return name, type


_SUFFIXES = {
    "counter": ("", "_total", "_created"),
    "gauge": ("",),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
}


def _export_value(
    top: str, value: Value, points: list[_Point], families: dict[str, Exported], claimed: set[str]
) -> None:
    name, type = _name_family(top, value)
    family = families.get(name)
    if family is None:
        names = {name + suffix for suffix in _SUFFIXES[type]}
        if names & claimed:
            return
        claimed |= names
        unit = str(value.unit) if value.unit in (Unit.SECONDS, Unit.BYTES) else ""
        family = families[name] = Exported(type, unit, value.description.strip(), {})
    elif family.type != type:
        return
    older = {labels for _, labels in family.samples}
    for point in points:
        if point.labels in older:
            continue
        number = _total(value, point.numbers)
        if type == "histogram":
            bad = min(number) < 0
            buckets = None if bad else _cumulate(value, number)
            # One that counted nothing lacks no sum, if others have one.
            wanting = [
                any(convert(count, value.type) for count in counts)
                for counts, total in zip(point.numbers, point.sums, strict=True)
                if total is None
            ]
            without = bad or any(wanting) or len(wanting) == len(point.sums)
            total = convert(sum(one or 0 for one in point.sums), Type.U64)
            possible = {
                "bucket": buckets,
                "sum": None if without else scale(value, total),
                "count": None if without else sum(number),
            }
            for suffix, sample in possible.items():
                key = (f"{name}_{suffix}", point.labels)
                family.samples.setdefault(key, []).append(sample)
        else:
            bad = type == "counter" and number < 0
            key = (f"{name}_total" if type == "counter" else name, point.labels)
            family.samples.setdefault(key, []).append(None if bad else scale(value, number))


def _total(value: Value, numbers: list[Any]) -> Any:
    wide = Type.S64 if value.type.signed else Type.U64
    if value.histogram:
        rows = [[convert(count, value.type) for count in one] for one in numbers]
        return [convert(sum(column), wide) for column in zip(*rows, strict=True)]
    converted = [convert(number, value.type) for number in numbers]
    return max(converted) if value.kind is Kind.PEAK else convert(sum(converted), wide)


def scale(value: Value, number: int) -> int | float:
    """A number in the base unit: an integer, or the float that is nearest."""
    exact = number * Fraction(value.base) ** value.exponent
    if value.exponent >= 0 and abs(exact) < 1 << 1000:
        return int(exact)
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def _cumulate(value: Value, buckets: list[int]) -> dict[float, int]:
    # By the largest number of the bucket, as a float: if two have one, the later counts.
    ends = [scale(value, start - 1) for start in value.starts[1:]]
    return {
        float(end): sum(buckets[: index + 1]) for index, end in enumerate([*ends, float("inf")])
    }


# What a view said


def parse_text(text: bytes) -> dict[str, Exported]:
    """Read the text format; it has no units."""
    return _collect(list(text_parser.text_string_to_metric_families(text.decode())))


def parse_openmetrics(text: bytes) -> dict[str, Exported]:
    """Read OpenMetrics."""
    parse: Any = openmetrics_parser.text_string_to_metric_families
    return _collect(list(parse(text.decode())))


def _collect(families: list[ParsedMetric]) -> dict[str, Exported]:
    found: dict[str, Exported] = {}
    for family in families:
        assert family.name not in found, "a family in two pieces"
        samples: dict[Series, Any] = {}
        for sample in family.samples:
            assert sample.timestamp is None
            labels = dict(sample.labels)
            end = labels.pop("le", None)
            key = (sample.name, frozenset(labels.items()))
            if end is None:
                assert key not in samples, "a sample twice"
                samples[key] = sample.value
            else:
                buckets = samples.setdefault(key, {})
                assert float(end) not in buckets
                buckets[float(end)] = sample.value
        found[family.name] = Exported(family.type, family.unit, family.documentation, samples)
    return found


def as_floats(samples: dict[Any, Any]) -> dict[Any, Any]:
    """The samples as prometheus_client writes them."""
    return {
        key: as_floats(number) if isinstance(number, dict) else float(number)
        for key, number in samples.items()
    }

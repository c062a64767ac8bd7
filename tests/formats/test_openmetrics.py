"""OpenMetrics: its lines, byte for byte, where they are not those of the text format."""

import pytest

from statsfs.formats import openmetrics, prometheus
from statsfs.model.values import Kind, Unit, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.exported import parse_openmetrics


def make(registry: Registry, *values: Value, base: dict[str, object] | None = None) -> str:
    """What a source `top` with these values shows."""
    with Source("top") as top:
        top.add_values(values, base or {value.name: 1 for value in values})
        registry.register(top)
    return openmetrics.render(registry.snapshot()).decode()


def test_a_view(registry: Registry) -> None:
    """Families without `_total`, units, and a mark at the end; a sum comes with a count."""
    text = make(
        registry,
        Value("exits", description="VM exits"),
        Value("wait_ns", unit=Unit.SECONDS, exponent=-9, description="Waited"),
        Value("sizes", kind=Kind.LINEAR_HIST, size=2, bucket_size=5, unit=Unit.BYTES),
        Value("sizes.sum", unit=Unit.BYTES),
        Value("bare", kind=Kind.LOG_HIST, size=2, unit=Unit.BYTES, description="Without a sum"),
        base={
            "exits": 7, "wait_ns": 1_500_000_000, "sizes": [1, 2], "sizes.sum": 5, "bare": [3, 4],
        },
    )  # fmt: skip
    assert text == (
        "# TYPE top_exits counter\n"
        "# HELP top_exits VM exits\n"
        "top_exits_total 7\n"
        "# TYPE top_wait_seconds counter\n"
        "# UNIT top_wait_seconds seconds\n"
        "# HELP top_wait_seconds Waited\n"
        "top_wait_seconds_total 1.5\n"
        "# TYPE top_sizes_bytes histogram\n"
        "# UNIT top_sizes_bytes bytes\n"
        'top_sizes_bytes_bucket{le="4.0"} 1\n'
        'top_sizes_bytes_bucket{le="+Inf"} 3\n'
        "top_sizes_bytes_sum 5\n"
        "top_sizes_bytes_count 3\n"
        "# TYPE top_bare_bytes_bucket unknown\n"
        "# HELP top_bare_bytes_bucket Without a sum\n"
        'top_bare_bytes_bucket{le="0.0"} 3\n'
        'top_bare_bytes_bucket{le="+Inf"} 7\n'
        "# EOF\n"
    )


@pytest.mark.parametrize(
    ("description", "line"),
    [('say "no"', 'say \\"no\\"'), ("back\\slash", "back\\\\slash"), ("two\nlines", "two\\nlines")],
)
def test_help(registry: Registry, description: str, line: str) -> None:
    """Quotes are escaped here, too."""
    text = make(registry, Value("n", description=description))
    assert text.splitlines()[1] == f"# HELP top_n {line}"
    assert parse_openmetrics(text.encode())["top_n"].help == description


def test_both_formats_have_the_same_samples(registry: Registry) -> None:
    """Their lines are the same texts, so that a server that changes over goes on with a series."""
    values = [Value("n"), Value("b", unit=Unit.BYTES, base=2, exponent=-3), Value("m")]
    make(registry, *values, base={"n": 2**64 - 1, "b": 1, "m": 0})
    child = Source('é"{}', label="vm")
    child.add_values(values, {"n": 2, "b": 3, "m": 4})
    registry.sources[0].add_subordinate(child)

    def samples(text: bytes) -> list[bytes]:
        return [line for line in text.splitlines() if not line.startswith(b"#")]

    snapshot = registry.snapshot()
    one, other = prometheus.render(snapshot), openmetrics.render(snapshot)
    assert samples(one) == samples(other)
    assert len(samples(one)) == 6


def test_an_empty_registry(registry: Registry) -> None:
    """The mark is there even so."""
    assert openmetrics.render(registry.snapshot()) == b"# EOF\n"

"""The text format: its lines, byte for byte."""

import pytest

from statsfs.formats import prometheus
from statsfs.model.values import Kind, Unit, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.exported import parse_text


def render(registry: Registry, *values: Value, base: dict[str, object] | None = None) -> str:
    """What a source `top` with these values shows."""
    with Source("top") as top:
        top.add_values(values, base or {value.name: 1 for value in values})
        registry.register(top)
    return prometheus.render(registry.snapshot()).decode()


def test_a_view(registry: Registry) -> None:
    """Help, type and samples of each family, one after the other; neither times nor blank lines."""
    text = render(
        registry,
        Value("exits", description="VM exits"),
        Value("wait_ns", unit=Unit.SECONDS, exponent=-9, kind=Kind.INSTANT),
        Value("sizes", kind=Kind.LOG_HIST, size=2, unit=Unit.BYTES, description="Sizes"),
        Value("sizes.sum", unit=Unit.BYTES),
        Value("bare", kind=Kind.LOG_HIST, size=2, description="Without a sum"),
        base={
            "exits": 7, "wait_ns": 1_500_000_000, "sizes": [1, 2], "sizes.sum": 5, "bare": [3, 4],
        },
    )  # fmt: skip
    assert text == (
        "# HELP top_exits_total VM exits\n"
        "# TYPE top_exits_total counter\n"
        "top_exits_total 7\n"
        "# TYPE top_wait_seconds gauge\n"
        "top_wait_seconds 1.5\n"
        "# HELP top_sizes_bytes Sizes\n"
        "# TYPE top_sizes_bytes histogram\n"
        'top_sizes_bytes_bucket{le="0.0"} 1\n'
        'top_sizes_bytes_bucket{le="+Inf"} 3\n'
        "top_sizes_bytes_sum 5\n"
        "top_sizes_bytes_count 3\n"
        "# HELP top_bare_bucket Without a sum\n"
        "# TYPE top_bare_bucket untyped\n"
        'top_bare_bucket{le="0.0"} 3\n'
        'top_bare_bucket{le="+Inf"} 7\n'
    )


@pytest.mark.parametrize(
    ("description", "line"),
    [
        ('say "no"', 'say "no"'),
        ("back\\slash\\n", "back\\\\slash\\\\n"),
        ("two\nlines", "two\\nlines"),
        ("  around\t", "around"),
        ("100 % d\0\r\x1b[m é\u2028", "100 % d   [m é"),
        ("not\ud800valid", "not?valid"),
    ],
)
def test_help(registry: Registry, description: str, line: str) -> None:
    """It is one line; a backslash stands for itself, and quotes need none."""
    text = render(registry, Value("n", description=description))
    assert text.splitlines()[0].removeprefix("# HELP top_n_total ") == line
    parsed = parse_text(text.encode())["top_n"].help
    assert parsed == line.replace("\\n", "\n").replace("\\\\", "\\").replace("\\\n", "\\n")


@pytest.mark.parametrize("description", ["", " \n\t", "\0"])
def test_no_help(registry: Registry, description: str) -> None:
    """No description, no line."""
    assert render(registry, Value("n", description=description)).startswith("# TYPE")


def test_numbers_that_are_booleans(registry: Registry) -> None:
    """A producer may assign True to an integer; it counts as 1 in every column."""
    fields = Value("n"), Value("ns", unit=Unit.SECONDS, exponent=-9)
    text = render(registry, *fields, base={"n": True, "ns": True})
    assert [line for line in text.splitlines() if "#" not in line] == [
        "top_n_total 1",
        "top_seconds_total 1e-09",
    ]


def test_an_empty_registry(registry: Registry) -> None:
    """Nothing is shown of nothing."""
    assert prometheus.render(registry.snapshot()) == b""

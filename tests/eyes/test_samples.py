"""Samples: what is one, and what is something else."""

import json

import pytest

from statsfs.exceptions import SampleError
from statsfs.eyes.samples import parse_sample

LEAF = '{"values": {"n": 1, "h": [1, 2]}, "subordinates": {}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "{}",
        '{"values": {}}',
        '{"values": [], "subordinates": {}}',
        '{"values": {}, "subordinates": []}',
        '{"values": {}, "subordinates": {"a": 5}}',
        '{"values": {}, "subordinates": {"a": {"values": {}, "subordinates": 2}}}',
        '{"values": {}, "subordinates": {"a": {"values": {}}}}',
        *(
            f'{{"values": {{"n": {wrong}}}, "subordinates": {{}}}}'
            for wrong in (
                '"x"',
                "null",
                "1.5",
                "true",
                "{}",
                "[1, 2.5]",
                '["x"]',
                "[[1]]",
                "NaN",
                "18446744073709551616",
                "-9223372036854775809",
                "1" * 309,
                "9" * 5000,
                "[0, 18446744073709551616]",
            )
        ),
    ],
)
def test_what_is_no_sample(text: str) -> None:
    """At any depth: any server may be named, and any file has the name of a view."""
    with pytest.raises(SampleError, match=r"it is not a \.stats\.json of statsfs"):
        parse_sample(text.encode(), 0, 0)
    if text:
        with pytest.raises(SampleError, match="it is not"):
            parse_sample(f'{{"values": {{}}, "subordinates": {{"a": {text}}}}}'.encode(), 0, 0)


def test_what_is_one() -> None:
    """Integers and lists of integers, in sources in sources."""
    text = f'{{"values": {{"h": []}}, "subordinates": {{"a": {LEAF}, "b": {LEAF}}}}}'
    sample = parse_sample(text.encode(), 2, 1)
    assert [path for path, _ in sample.walk()] == [(), ("a",), ("b",)]
    assert (sample.number(("b",), "n"), sample.number(("a",), "h")) == (1, [1, 2])
    assert (sample.number((), "h"), sample.number((), "x")) == ([], None)


def test_64_bits() -> None:
    """All that a file can have; a name may be a longer number."""
    ends = [-(1 << 63), (1 << 64) - 1]
    root = {"values": {"9" * 30: ends[0], "b": ends}, "subordinates": {}}
    assert parse_sample(json.dumps(root).encode(), 0, 0).root == root

"""Counts and their nouns."""

import ast
import re
from pathlib import Path

import pytest

import statsfs
from statsfs.model.counts import count_of


@pytest.mark.parametrize(
    ("count", "form", "text"),
    [
        (0, "", "0 bytes"),
        (1, "", "1 byte"),
        (2, "", "2 bytes"),
        (1000, ",", "1,000 bytes"),
        (-1, "", "-1 bytes"),
    ],
)
def test_a_noun_agrees_with_its_count(count: int, form: str, text: str) -> None:
    """One is singular, everything else plural."""
    assert count_of(count, "byte", form) == text


# Counts that are never 1: constants, sizes of what is too large, rests of sentences.
NEVER_ONE = """
    {length} bytes, not 1 to 255
    {len(bounds)} bounds, not 1 to
    {len(block)} of {self._size} bytes
    {len(data)} of {layout.data_size} bytes
    {layout.data_size} bytes of
    {size} bytes of statistics in
    {len(files.vms)} VMs
    {_VCPUS} vCPUs
    {_VMS} VMs
    {_WAITING} questions
    {status.st_size} bytes, not at most
    {size} bytes, not at most
    {len(encoded)} bytes, not at most
    {TEXT_MAX} bytes
    {_DESCRIPTION_MAX} bytes
    {LINES_MAX} lines and {BYTES_MAX} bytes
    {limit} open files
    {size} integers would
    {len(components)} components, not 1 to
    {len(descriptors)} values, not 1 to
    {count} values, not 1 to
    {len(digits)} digits
    {len(listed)} values.
    {len(kept)} bytes of VMs
    {_MOST} vCPUs
    {len(array)} values
    {len(panels)} values the first
"""
NOUNS = re.compile(
    r"\} (?:open )?(?:bytes|views|sources|files|values|names|lines|users|VMs|vCPUs|readers|labels"
    r"|digits|characters|numbers|segments|directories|integers|metrics|series|buckets|bounds|descriptors"
    r"|requests|opens|reads|clears|rows|scrapes|threads|members|observations|components|questions)\b"
)


def test_each_noun_behind_a_count_agrees_with_it() -> None:
    """`1 bytes` was in a dozen lines; a new one is by `count_of`, or known never to be 1."""
    known = [line.strip() for line in NEVER_ONE.strip().splitlines()]
    wrong = []
    for path in sorted(Path(statsfs.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = ast.unparse(node)
                if NOUNS.search(text) and not any(one in text for one in known):
                    wrong.append(f"{path}: {text}")
    assert wrong == []

"""Names of files for any text."""

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.model.names import safe_name
from statsfs.model.values import check_name

NAMES = {
    "GET": "GET",
    "/item/{id}": "%2Fitem%2F{id}",
    "..": "%2E.",
    "a.b": "a.b",
    ".stats.json": "%2Estats.json",
    "100%": "100%25",
    "": "%",
    "%": "%25",
    "a\nb": "a%0Ab",
    "\x85": "%C2%85",
    "é": "é",
    "\udc80": "%ED%B2%80",
}


@pytest.mark.parametrize("text", NAMES)
def test_names(text: str) -> None:
    """What a file cannot have is quoted, and nothing else."""
    assert safe_name(text) == NAMES[text]


@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_every_text_has_a_name(text: str) -> None:
    """From which the text comes back."""
    name = check_name(safe_name(text), "a name")
    assert (unquote(name) if name != "%" else "") == text


@given(st.lists(st.text(st.sampled_from("/%.~é\n\ud800a2F"), max_size=300), unique=True))
def test_no_two_texts_have_one_name(texts: list[str]) -> None:
    """Not even those that are too long."""
    assert len({check_name(safe_name(text), "a name") for text in texts}) == len(texts)


def test_long_texts_are_cut() -> None:
    """Between characters; what follows tells them apart."""
    one, other = ("é" * 200 + end for end in "ab")
    assert safe_name(one) != safe_name(other)
    assert safe_name(one).startswith("é" * 118 + "%~")
    assert safe_name("x" * 255) == "x" * 255
    assert len(safe_name("x" * 256)) == 255

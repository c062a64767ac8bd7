"""The picture of the manual."""

import pytest

from tests.top.picture import PICTURE, draw, words_of


@pytest.mark.slow
def test_the_picture_is_that_of_today() -> None:
    """`python -m tests.top.picture` draws it anew; it asks for nothing from elsewhere."""
    committed = PICTURE.read_text()
    assert words_of(committed) == words_of(draw())
    assert "url(" not in committed.replace("url(#", "")

"""Draw `docs/top.svg`, the picture of docs/looking.md: `python -m tests.top.picture`.

The numbers are made by a rule, so it is the same at each run.
"""

import asyncio
import os
import re
import time
from pathlib import Path
from unittest import mock

from tests.support.mounts import ROOT
from tests.top.driving import driving

__all__ = ["PICTURE", "draw", "words_of"]

PICTURE = ROOT / "docs" / "top.svg"
_SECONDS = 130


async def _draw() -> str:
    class Patch:
        # As pytest's monkeypatch, which is not here.
        setattr = staticmethod(lambda target, name, value: setattr(target, name, value))

    from statsfs.top.feed import Feed

    with mock.patch.object(Feed, "start"):
        async with driving(Patch(), size=(132, 34)) as driven:
            await driven.tick(_SECONDS)
            await driven.press(*["down"] * 5, "tab", *["down"] * 5)
            await driven.tick()
            return driven.app.export_screenshot(title="statsfs top /run/stats")


def draw() -> str:
    """Return the picture: no font is brought from elsewhere."""
    with mock.patch.dict(os.environ, {"TZ": "UTC"}):
        time.tzset()
        svg = asyncio.run(_draw())
    time.tzset()
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    return re.sub(r"^ +$", "", svg.replace("Fira Code, monospace", "monospace"), flags=re.MULTILINE)


def words_of(svg: str) -> list[str]:
    """Return the texts in a picture; what versions of textual do about them differs."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


if __name__ == "__main__":
    Path(PICTURE).write_text(draw())

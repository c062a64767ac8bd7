"""The page at `/`: one file of ours, with its script and its style inside.

Owns its policy: a browser may use this script and this style, named by their hashes, and send
requests to this server. It runs no other script that gets into the page.

Threading: pure.
"""

import gzip
import re
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final

__all__ = ["CONTENT_TYPE", "Page", "load_page"]

CONTENT_TYPE: Final = "text/html; charset=utf-8"

_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """The page.

    Attributes:
        text: in HTML.
        packed: the text, compressed.
        digest: of the text.
        headers: its policy, for the browser.
    """

    text: bytes
    packed: bytes
    digest: str
    headers: tuple[tuple[str, str], ...]


@cache
def load_page() -> Page:
    """Return the page."""
    text = (files("statsfs") / "data" / "page.html").read_text(encoding="utf-8")
    inline = dict(_INLINE.findall(text))
    policy = [
        "default-src 'self'",
        *(f"{tag}-src 'sha256-{_hash(inline[tag])}'" for tag in ("script", "style")),
        "img-src data:",  # its icon
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    headers = (("Content-Security-Policy", "; ".join(policy)), ("Referrer-Policy", "no-referrer"))
    encoded = text.encode()
    return Page(encoded, gzip.compress(encoded, mtime=0), sha256(encoded).hexdigest()[:32], headers)


def _hash(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()

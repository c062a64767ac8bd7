"""The page at `/` as bytes: where its parts come from, and what a browser may do with it."""

import base64
import gzip
import hashlib
import re

import pytest

from statsfs.monitoring.http_server import MetricsServer
from statsfs.monitoring.page import load_page
from tests.support.scrapes import ask

TEXT = load_page().text.decode()


def test_the_page(server: MetricsServer) -> None:
    """It is HTML, compressed if the browser wants that, and sent once."""
    response, body = ask(server, path="/")
    assert (response.status, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body.decode() == TEXT
    packed, compressed = ask(server, path="/?x#y", Accept_Encoding="gzip")
    assert gzip.decompress(compressed) == body
    tags = [response.headers["ETag"], packed.headers["ETag"]]
    assert len(set(tags)) == 2
    for tag, encoding in zip(tags, ("identity", "gzip"), strict=True):
        again, nothing = ask(server, path="/", If_None_Match=tag, Accept_Encoding=encoding)
        assert (again.status, nothing) == (304, b"")
        assert again.headers["ETag"] == tag
    head, nothing = ask(server, "HEAD", "/")
    assert (head.status, head.headers["Content-Length"], nothing) == (200, str(len(body)), b"")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", 200),
        ("*/*", 200),
        ("text/*", 200),
        ("", 200),
        ("application/json", 406),
        ("text/html;q=0, text/plain", 406),
    ],
)
def test_who_gets_it(server: MetricsServer, accept: str, status: int) -> None:
    """Who accepts HTML."""
    assert ask(server, path="/", Accept=accept)[0].status == status


def test_its_policy(server: MetricsServer) -> None:
    """Its own script and style may be used, and this server asked; nothing else."""
    headers = ask(server, path="/")[0].headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'self'"
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    none = {name for name, allowed in policy.items() if allowed == "'none'"}
    assert none == {"object-src", "base-uri", "form-action", "frame-ancestors"}
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_nothing_comes_from_outside() -> None:
    """No address but that of the namespace of SVG, and no text is made HTML."""
    addresses = {found.rstrip("'") for found in re.findall(r"https?://[^\s\"]+", TEXT)}
    assert addresses == {"http://www.w3.org/2000/svg"}
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in TEXT
    assert re.findall(r"\son[a-z]+=|\sstyle=", TEXT) == []

"""Places: directories with views, and servers over a real socket."""

import gzip
import json
import re
from pathlib import Path

import pytest

from statsfs.exceptions import SampleError
from statsfs.eyes import places
from statsfs.eyes.places import Directory, Server, open_place
from statsfs.eyes.samples import parse_sample
from tests.support.answers import answering

STATS = {"values": {}, "subordinates": {"a b": {"values": {"n": 7}, "subordinates": {}}}}
SCHEMA = {
    "labels": {}, "values": [],
    "subordinates": {"a b": {
        "labels": {}, "subordinates": {},
        "values": [{"name": "n", "type": "u64", "kind": "cumulative", "unit": "none",
                    "aggregate": [], "mode": 420}],
    }},
}  # fmt: skip


def test_a_directory_is_read_by_its_views(tmp_path: Path) -> None:
    """Both views, of the directory or of one source; clearing writes 0."""
    (tmp_path / ".stats.json").write_text(json.dumps(STATS))
    source = tmp_path / "a b"
    source.mkdir()
    (source / ".schema.json").write_text(json.dumps(SCHEMA["subordinates"]["a b"]))  # type: ignore[index]
    (source / "n").write_text("7")
    place = open_place(str(tmp_path))
    assert isinstance(place, Directory)
    sample = place.read_sample()
    assert sample.number(("a b",), "n") == 7
    assert (sample.number(("a b",), "m"), sample.number(("c",), "n")) == (None, None)
    assert [*sample.walk()] == [((), {}), (("a b",), {"n": 7})]
    found = place.read_schema(("a b",)).find(())
    assert found is not None
    assert found["n"].writable
    place.clear(("a b",), "n")
    assert (source / "n").read_text() == "0"
    with pytest.raises(SampleError, match=r"a b/m: No such file"):
        place.clear(("a b",), "m")


def test_what_is_no_directory_of_a_mount_is_told_in_one_line(tmp_path: Path) -> None:
    """Nothing there, no statsfs, a file, a name that cannot be, a view that is none."""
    (tmp_path / "file").write_text("7")
    for name, reason in (
        ("", "not a directory of a statsfs"),
        ("none", "No such file"),
        ("file", "not a directory; give the one"),
        ("a\0b", "null"),
        ("x" * 300, "too long"),
    ):
        with pytest.raises(SampleError, match=reason):
            Directory(str(tmp_path / name)).read_sample()
    (tmp_path / ".stats.json").write_text("{}")
    with pytest.raises(SampleError, match="invalid sample"):
        Directory(str(tmp_path)).read_sample()


@pytest.mark.parametrize(
    "text", [b"", b"7", b"[1]", b'{"values": 1, "subordinates": {}}', b"[" * 99999]
)
def test_what_is_no_sample_is_refused(text: bytes) -> None:
    """In one line."""
    with pytest.raises(SampleError, match="invalid sample"):
        parse_sample(text, 0, 0)


def test_a_server_is_asked_for_both_views() -> None:
    """With gzip or without; a path in the URL is a source."""
    answers = {
        "/api/stats": (
            200,
            gzip.compress(json.dumps(STATS).encode()),
            {"Content-Encoding": "gzip"},
        ),
        "/api/schema": (200, json.dumps(SCHEMA).encode(), {}),
    }
    with answering(answers) as url:
        place = open_place(url)
        assert isinstance(place, Server)
        for _ in range(3):
            assert place.read_sample().number(("a b",), "n") == 7
        assert place.read_schema().find(("a b",)) is not None
        below = Server(f"{url}/a%20b")
        assert below.read_sample().number((), "n") == 7
        assert below.read_schema().find(()) is not None
        for ask in (Server(f"{url}/c").read_sample, Server(f"{url}/c").read_schema):
            with pytest.raises(SampleError, match="no source c"):
                ask()
        with pytest.raises(SampleError, match="read-only"):
            place.clear((), "n")
    with pytest.raises(SampleError, match="refused"):
        place.read_sample()


def test_a_server_that_answers_something_else_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another status, another text, broken gzip."""
    answers: dict[str, tuple[int, bytes, dict[str, str]]] = {
        "/api/stats": (404, b"", {}),
        "/api/schema": (200, b"no gzip", {"Content-Encoding": "gzip"}),
    }
    with answering(answers) as url:
        with pytest.raises(SampleError, match="404 Not Found for /api/stats"):
            Server(url).read_sample()
        with pytest.raises(SampleError, match="incorrect header"):
            Server(url).read_schema()
        answers["/api/stats"] = (200, gzip.compress(b"{}")[:-9], {"Content-Encoding": "gzip"})
        with pytest.raises(SampleError, match="ended"):
            Server(url).read_sample()
        monkeypatch.setattr(places, "_ANSWER_MAX", 1 << 16)
        answers["/api/stats"] = (200, gzip.compress(bytes(1 << 20)), {"Content-Encoding": "gzip"})
        with pytest.raises(SampleError, match="too large"):
            Server(url).read_sample()


@pytest.mark.parametrize("url", ["http://a b:1", "http://a..b:1", f"http://{'a' * 64}:1"])
def test_a_host_that_has_no_name_of_dns_is_told_in_one_line(url: str) -> None:
    """An InvalidURL or a UnicodeError once came out of it."""
    with pytest.raises(SampleError, match=re.escape(url)):
        Server(url).read_sample()


@pytest.mark.parametrize(
    "url",
    ["https://a", "http://", "http://a:b", "http://a?b", "http://u@a", "http://[::1", "http://[a]"],
)
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    """In one line."""
    with pytest.raises(SampleError, match="not http://HOST:PORT"):
        open_place(url)

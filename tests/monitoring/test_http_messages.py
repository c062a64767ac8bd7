"""The bytes of requests and answers."""

import contextlib
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.monitoring.http_messages import (
    HEAD_MAX,
    Answer,
    Exchange,
    Refusal,
    find_end,
    make_error,
)

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: b\r\naccept: c\r\n\r\n"


def test_a_request() -> None:
    """Its method, its target and its headers, those of one name together."""
    request = Exchange().read(REQUEST)
    assert (request.method, request.target, request.has_body) == ("GET", "/metrics", False)
    assert request.headers == {"host": "a", "accept": "b,c"}


@given(st.integers(0, len(REQUEST) - 1), st.binary())
def test_where_a_request_ends(start: int, more: bytes) -> None:
    """At its empty line, whatever follows it; before that it has not come whole."""
    assert find_end(REQUEST[:start]) is None
    assert find_end(REQUEST + more) == len(REQUEST)
    assert find_end(bytearray(REQUEST.replace(b"\r", b"")) + more) == len(REQUEST) - 5


@given(st.binary())
def test_whatever_comes(text: bytes) -> None:
    """It is a request, none, or not yet one."""
    with contextlib.suppress(Refusal):
        end = find_end(text)
        if end is not None:
            assert Exchange().read(text[:end]).method


@pytest.mark.parametrize("fill", [b"a", b"a: b\r\n", b"\r\n"])
def test_what_does_not_end_is_refused(fill: bytes) -> None:
    """No more is kept than the largest request has."""
    line = b"GET / HTTP/1.1\r\na: "
    with pytest.raises(Refusal) as caught:
        find_end((line + b"x" * HEAD_MAX)[:HEAD_MAX])
    assert caught.value.status == 431
    assert find_end((line + b"x" * HEAD_MAX)[: HEAD_MAX - 1]) is None


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", False),
        (b"GET /\r\n", False),
    ],
)
def test_what_may_follow(request_: bytes, expected: bool) -> None:
    """Another request, after one whose end is known, of a client that wants so."""
    exchange = Exchange()
    exchange.read(request_)
    pieces = exchange.write(make_error(HTTPStatus.NOT_FOUND), last=False)
    assert exchange.goes_on is expected
    assert b"".join(pieces).endswith(b"404 Not Found\n")


def test_pieces() -> None:
    """A body is passed on as it is, and what is empty is left out."""
    exchange = Exchange()
    exchange.read(REQUEST)
    body: list[bytes | memoryview] = [memoryview(b"abc"), b"", b"d"]
    head, *pieces = exchange.write(Answer(HTTPStatus.OK, [], body), last=True)
    assert bytes(head).startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 4\r\n" in bytes(head)
    assert b"\r\nConnection: close\r\n" in bytes(head)
    assert pieces == [b"abc", b"d"]
    assert pieces[0] is body[0]
    assert not exchange.goes_on

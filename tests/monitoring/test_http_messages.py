"""The bytes of requests and answers."""

from http import HTTPStatus

import pytest
from hypothesis import example, given
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


PIECES = [
    b"GET", b"POST", b" ", b"\t", b"\x85", b"\xa0", b"\0", b"/", b"/metrics", b"HTTP/1.1",
    b"\r", b"\n", b"\r\n", b"Host: a\r\n", b"Content-Length: 1\r\n", b"Content-Length: x\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n", b"Connection: close\r\n",
    b"Upgrade: a\r\n", b"a: b\r\n", b" b\r\n", b":", b"\r\n\r\n", b"x" * 9000,
]  # fmt: skip


@example(b"GET /\xa0a\r\n")  # a space, for `str`
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=3)).map(b"".join))
def test_whatever_comes(text: bytes) -> None:
    """It is a request, none, or not yet one; the client is answered, and nothing else happens."""
    exchange, status = Exchange(), HTTPStatus.NOT_FOUND
    try:
        end = find_end(text)
        if end is None:
            return
        exchange.read(text[:end])
    except Refusal as refusal:
        status = refusal.status
    assert b"".join(exchange.write(make_error(status), last=True)) != b""
    assert not exchange.goes_on


def test_what_does_not_end_is_refused() -> None:
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

"""Requests and answers as bytes: HTTP/1.1, 1.0 and 0.9, by h11, and what a request may have.

Owns the bytes of one exchange; the socket and the time that it takes belong to `http_connections`.
Requests should have no body: one with a body is answered, and ends its connection.

Threading: pure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import h11

__all__ = ["HEAD_MAX", "Answer", "Exchange", "Refusal", "Request", "find_end", "make_error"]

HEAD_MAX: Final = 16 << 10
"""Bytes of a request."""

_LINE_MAX: Final = 8 << 10  # bytes of its first line
_HEADERS_MAX: Final = 100

_END: Final = re.compile(rb"\n\r?\n")


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request.

    Attributes:
        method, target: as they came.
        headers: by their names, in lower case; several of one name are joined by commas.
        has_body: whether a body follows.
    """

    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    has_body: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request.

    Attributes:
        status: of HTTP.
        headers: without those that every answer has.
        body: in pieces.
        text: the bytes that the pieces keep in memory.
    """

    status: HTTPStatus
    headers: Sequence[tuple[str, str]]
    body: Sequence[bytes | memoryview]
    text: bytes = b""


def make_error(status: HTTPStatus, *headers: tuple[str, str], reason: str = "") -> Answer:
    """Return the answer for an error, with its status and the reason as text."""
    text = f"{status.value} {status.phrase}{reason and ': '}{reason}\n".encode()
    return Answer(status, [("Content-Type", "text/plain; charset=utf-8"), *headers], [text])


class Refusal(Exception):
    """A request is invalid or too large; nothing after it can be read.

    Args:
        status: the status of the answer, as a number.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = HTTPStatus(status)


def find_end(received: bytes | bytearray) -> int | None:
    """Return where the first request ends; None if it has not come whole.

    Raises:
        Refusal: it is too large, or invalid.
    """
    end = received.find(b"\n") + 1
    if (end or len(received)) > _LINE_MAX:
        raise Refusal(414)
    if received[:1] < b"!" and received:
        raise Refusal(400)  # TLS, for instance, which would never end
    if not end or _is_old(received[:end]):
        return end or None
    found = _END.search(received, end - 1, HEAD_MAX)
    if found is None and len(received) >= HEAD_MAX:
        raise Refusal(431)
    return found.end() if found else None


def _is_old(line: bytes | bytearray) -> bool:
    # HTTP/0.9, which has one line, and no version in it.
    return len(line.split()) == 2


class Exchange:
    """A request and the answer to it."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER)
        self._old = False
        self._asks_for_head = False

    def read(self, head: bytes) -> Request:
        """Return the request in these bytes, which end with it.

        Raises:
            Refusal: they are invalid.
        """
        if _is_old(head):
            verb, path = head.split()
            if verb != b"GET":
                raise Refusal(400)
            self._old = True
            return Request("GET", path.decode("latin-1"))
        if head.count(b"\n") > _HEADERS_MAX + 2:
            raise Refusal(431)
        try:
            self._http.receive_data(head)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise Refusal(error.error_status_hint) from error
        assert isinstance(event, h11.Request)
        if not event.http_version.startswith(b"1."):
            raise Refusal(505)
        headers: dict[str, str] = {}
        for name, text in event.headers:
            one, more = name.decode("latin-1"), text.decode("latin-1")
            headers[one] = f"{headers[one]},{more}" if one in headers else more
        method, target = event.method.decode("latin-1"), event.target.decode("latin-1")
        self._asks_for_head = method == "HEAD"
        has_body = not isinstance(self._http.next_event(), h11.EndOfMessage)
        return Request(method, target, headers, has_body)

    def write(self, answer: Answer, *, last: bool) -> list[bytes | memoryview]:
        """Return the bytes of an answer, in pieces; none is empty.

        Args:
            answer: to the request that was read, or to one that was refused.
            last: whether the client is told that the connection ends.
        """
        pieces = [*answer.body]
        if not self._old:
            status, length = answer.status, str(sum(map(len, pieces)))
            headers = [
                ("Server", "statsfs"),
                ("Date", formatdate(usegmt=True)),
                *answer.headers,
                # A 304 has no body; the length would be that of the text.
                *([] if status == HTTPStatus.NOT_MODIFIED else [("Content-Length", length)]),
                *([("Connection", "close")] if last else []),
            ]
            head = h11.Response(status_code=status, reason=status.phrase, headers=headers)
            written = [self._http.send(head) or b""]
            for piece in [] if self._asks_for_head else pieces:
                data = h11.Data(data=piece)  # type: ignore[arg-type]  # it passes whatever it gets
                written += self._http.send_with_data_passthrough(data) or []
            self._http.send(h11.EndOfMessage())
            pieces = [*written]
        return [piece for piece in pieces if piece]

    @property
    def goes_on(self) -> bool:
        """Whether another exchange may follow, once the answer is written."""
        return self._http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

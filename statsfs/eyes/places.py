"""Places that samples are taken at: a directory of a mount, or a server of metrics.

Owns how the views are read, and the one line of each error. Reading needs no rights but to read.
Threading: a place is used by one thread at a time.
"""

import contextlib
import errno
import http.client
import os
import re
import time
import zlib
from collections.abc import Iterator
from typing import Final, Protocol, runtime_checkable
from urllib.parse import quote, unquote, urlsplit

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Path, Schema, find_node, parse_schema
from statsfs.eyes.samples import Sample, parse_sample

__all__ = ["Directory", "Place", "Player", "Server", "explain", "open_place"]

_PATIENCE: Final = 10.0  # seconds
_ANSWER_MAX: Final = 1 << 30
_DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)  # of a mount; no client's socket has them
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_ADDRESS: Final = re.compile(r"(\[[^]/\s]+\]|[^][:/\s]+):[0-9]{1,5}(/.*)?")


class Place(Protocol):
    """Where samples come from: a directory, a server, or a recording.

    Attributes:
        name: what people call it.
        writable: whether values may be cleared there.
        partial: whether the schema of one source can be read without all others.
    """

    name: str
    writable: bool
    partial: bool

    def read_schema(self, path: Path = ()) -> Schema:
        """Return what is known of a source and those below it; SampleError if it cannot be had."""

    def read_sample(self) -> Sample | None:
        """Return the numbers of now, None at the end of a recording; SampleError if they cannot."""

    def clear(self, path: Path, name: str) -> None:
        """Write 0 to a file; SampleError if it is refused."""


@runtime_checkable
class Player(Place, Protocol):
    """A recording: a place that can be played, stopped and searched.

    Attributes:
        paused: whether time stands still.
        speed: how many seconds of the recording pass in one.
        begin: the time of the first sample, in seconds since 1970.
        end: the time of the last one.
    """

    paused: bool
    speed: float
    begin: float
    end: float

    def step(self, count: int) -> None:
        """Stand still, so many samples further on, or back."""

    def skip(self, seconds: float) -> None:
        """Go some seconds further on, or back."""

    def seek(self, share: float) -> None:
        """Go to a part of the recording: 0 is its beginning, 1 its end."""

    def accelerate(self, factor: float) -> None:
        """Play so many times as fast."""

    def start_of(self, sample: Sample) -> Sample | None:
        """Return the sample before one that was jumped to, for rates; None if it was not."""

    def replay(self, last: int | None = None) -> Iterator[Sample]:
        """Yield all samples, or so many of the last."""


class Directory:
    """A directory of a mount.

    Args:
        name: its path. It is looked up anew for each sample, so a mount may come back.
    """

    writable = True
    partial = True

    def __init__(self, name: str) -> None:
        self.name = name

    def read_schema(self, path: Path = ()) -> Schema:
        """Return what is known of a source and those below it."""
        text = self._read(os.path.join(self.name, *path, ".schema.json"))
        with _naming(self.name):
            return parse_schema(text)

    def read_sample(self) -> Sample:
        """Return the numbers of now."""
        text = self._read(os.path.join(self.name, ".stats.json"))
        with _naming(self.name):
            return parse_sample(text, time.time(), time.monotonic())

    def clear(self, path: Path, name: str) -> None:
        """Write 0 to a file."""
        file = os.path.join(self.name, *path, name)
        try:
            descriptor = os.open(file, os.O_WRONLY)
            try:
                os.write(descriptor, b"0")
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SampleError(f"{file}: {explain(error)}", file) from error

    def _read(self, path: str) -> bytes:
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read()
        except FileNotFoundError as error:
            reason = explain(error)
            if os.path.isdir(self.name):
                reason = "not a directory of a statsfs"
            elif _ADDRESS.fullmatch(self.name):
                reason += f"; a server is http://{self.name}"
        except NotADirectoryError:
            reason = "not a directory; give the one that it is in"
        except (OSError, ValueError) as error:
            reason = explain(error)
        raise SampleError(f"{self.name}: {reason}", self.name)


class Server:
    """The tree behind `--listen` of a daemon: `/api/stats` and `/api/schema`.

    Args:
        url: `http://host:port`; a path behind it is that of the source to look at.
    """

    writable = False
    partial = False

    def __init__(self, url: str) -> None:
        self.name = url
        found = _parse_url(url)
        if found is None:
            raise SampleError(f"{url}: not http://HOST:PORT", url)
        self._host, self._port, self._path = found

    def read_schema(self, path: Path = ()) -> Schema:
        """Return what is known of all sources; of one alone the server does not tell."""
        text = self._get("/api/schema")
        with _naming(self.name):
            schema = parse_schema(text).below((*self._path, *path))
        if schema is None:
            raise self._gone()
        return schema

    def read_sample(self) -> Sample:
        """Return the numbers of now."""
        text = self._get("/api/stats")
        with _naming(self.name):
            sample = parse_sample(text, time.time(), time.monotonic())
        if not self._path:
            return sample
        node = find_node(sample.root, self._path)
        if node is None:
            raise self._gone()
        return Sample(sample.time, sample.moment, node)

    def clear(self, path: Path, name: str) -> None:
        """Refuse: a server of metrics only tells."""
        raise SampleError(f"{self.name}: a server of metrics is read-only", self.name)

    def _gone(self) -> SampleError:
        return SampleError(f"{self.name}: no source {'/'.join(map(quote, self._path))}", self.name)

    def _get(self, target: str) -> bytes:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_PATIENCE)
        with contextlib.closing(connection):
            try:
                connection.request("GET", target, headers={"Accept-Encoding": "gzip"})
                answer = connection.getresponse()
                reason = f"{answer.status} {answer.reason} for {target}"
                body = answer.read(_ANSWER_MAX)
                if answer.headers.get("Content-Encoding") == "gzip":
                    body = _unpack(body)
                if answer.status == 200:
                    return body
            except (OSError, http.client.HTTPException, EOFError, zlib.error) as error:
                reason = explain(error)
        raise SampleError(f"{self.name}: {reason}", self.name)


def _unpack(body: bytes) -> bytes:
    # Not more than an answer may have: a few bytes may be made to be many.
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
    text = unpacking.decompress(body, _ANSWER_MAX)
    if not unpacking.eof:
        raise EOFError("the compressed answer ended too early, or is too large")
    return text


def open_place(name: str) -> Place:
    """Return the place that a user names: a path, or `http://host:port`."""
    return Server(name) if "://" in name else Directory(name)


def explain(error: Exception) -> str:
    """Return in a few words why a place could not be read."""
    if isinstance(error, OSError) and error.errno in _DEAD:
        return "its server is dead; fusermount3 -uz removes the mount"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _parse_url(url: str) -> tuple[str, int, Path] | None:
    # Returns the host, the port and the path of a source; None if no server can be asked there.
    # urlsplit() drops control characters, and the encoding refuses what no name server knows.
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", 80 if parts.port is None else parts.port
        host.encode("idna")
    except ValueError:
        return None
    more = parts.query or parts.fragment or "@" in parts.netloc or " " in host
    if parts.scheme != "http" or not host or not port or more or _CONTROL.search(url):
        return None
    return host, port, tuple(unquote(name) for name in parts.path.split("/") if name)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    # Has an error of a read there begin with the place.
    try:
        yield
    except SampleError as error:
        raise SampleError(f"{name}: {error}", name) from error

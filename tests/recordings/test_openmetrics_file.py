"""A recording as OpenMetrics text."""

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from statsfs.exceptions import SampleError
from statsfs.recordings.openmetrics_file import MetricsRecorder
from tests.support.answers import answering

VIEW = b'# HELP a_total A\n# TYPE a counter\na_total{b="c"} %d\n# EOF\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / ".stats.openmetrics").write_bytes(VIEW % 1)
    return tmp_path


def test_each_sample_has_its_time(place: Path) -> None:
    """What describes a family is there once; the end is an end after each interval."""
    made = MetricsRecorder(str(place / "out"), [str(place)])
    assert made.record(1.5) == {}
    (place / ".stats.openmetrics").write_bytes(VIEW % 2)
    assert made.record(2.5) == {}
    text = (place / "out").read_text()
    assert text == (
        "# HELP a_total A\n# TYPE a counter\n"
        'a_total{b="c"} 1 1.500\na_total{b="c"} 2 2.500\n# EOF\n'
    )
    assert (made.intervals, made.rows, made.size) == (2, 2, len(text))
    made.close()


def test_a_place_without_samples_is_told(place: Path) -> None:
    """The others are recorded."""
    places = [str(place / "none"), str(place), "http://127.0.0.1:9", "x://y", str(place / "out")]
    made = MetricsRecorder(str(place / "out"), places)
    errors = [str(error) for error in made.record(1.0).values()]
    made.close()
    assert errors[0] == f"{place}/none: not a directory of a statsfs"
    assert errors[1] == "http://127.0.0.1:9: [Errno 111] Connection refused"
    assert errors[2].startswith("x://y: ")
    assert errors[3] == f"{place}/out: Not a directory"
    assert "a_total" in (place / "out").read_text()


def test_a_server_is_asked_for_openmetrics(tmp_path: Path) -> None:
    """At /metrics."""
    with answering({"/metrics": (200, VIEW % 3, {})}) as url:
        made = MetricsRecorder(str(tmp_path / "out"), [url])
        assert made.record(1.0) == {}
        made.close()
    assert 'a_total{b="c"} 3 1.000' in (tmp_path / "out").read_text()


def test_what_does_not_answer_with_http_is_told(place: Path) -> None:
    """An exception of http.client escaped, which is no OSError."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        made = MetricsRecorder(str(place / "out"), [url])
        errors = [str(error) for error in made.record(1.0).values()]
        thread.join()
        made.close()
    assert errors == [f"{url}: SSH-2.0-OpenSSH\r\n"]


def test_a_full_disk_at_the_beginning_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed open."""

    def write(_descriptor: int, data: Any, _at: int) -> int:
        if data:
            raise OSError(28, "No space left on device")
        return 0

    monkeypatch.setattr(os, "pwrite", write)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SampleError, match="No space left on device"):
        MetricsRecorder(str(tmp_path / "out"), [])
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_what_was_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The text has its end, if it had begun."""
    real = os.pwrite
    left = 10

    def write(descriptor: int, data: Any, at: int) -> int:
        nonlocal left
        if bytes(data) == b"# EOF\n"[: len(data)]:  # for this there is room
            return real(descriptor, data, at)
        if not left:
            raise OSError(28, "No space left on device")
        count = min(left, len(data))
        left -= count
        return real(descriptor, data[:count], at)

    made = MetricsRecorder(str(place / "out"), [str(place)])
    if after:
        made.record(1.0)
    before = (place / "out").read_bytes()
    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(SampleError, match="out: No space left on device"):
        made.record(2.0)
    assert (place / "out").read_bytes() == before
    made.close()

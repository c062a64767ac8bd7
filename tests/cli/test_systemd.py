"""What systemd is told, at real sockets, and what its journal is."""

import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.cli import logs
from statsfs.cli.systemd import notify, prioritize, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket at which systemd would listen, of both kinds."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path if request.param == "path" else f"\0{path}")
        monkeypatch.setenv("NOTIFY_SOCKET", path if request.param == "path" else f"@{path}")
        yield manager


def test_telling(manager: socket.socket) -> None:
    """One datagram, with a line for each state."""
    notify("READY=1", "STATUS=mounted at /run/stats")
    assert manager.recv(1000) == b"READY=1\nSTATUS=mounted at /run/stats"


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without systemd nothing happens; where its socket is gone, that is logged."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert caplog.messages == []
    monkeypatch.setenv("NOTIFY_SOCKET", "/not/there")
    notify("READY=1")
    (message,) = caplog.messages
    assert message.startswith("cannot notify systemd of READY=1: /not/there: ")


def test_nobody_reads(manager: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    """A sign of life does not wait for systemd, and that it is late is logged."""
    while not caplog.messages:
        notify("WATCHDOG=1", wait=False)
    assert caplog.messages[0].startswith("cannot notify systemd of WATCHDOG=1: ")


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, math.inf),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
        ({"WATCHDOG_USEC": "soon"}, math.inf),
    ],
)
def test_the_watchdog(
    variables: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told twice as often as it asks, by the process that it asks."""
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert watchdog_interval() == seconds


def test_priorities(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Each line has one, of a traceback too, if stderr is the journal's."""
    formatter = logs._Text(dated=False, prioritized=False)
    try:
        raise ValueError("no")
    except ValueError:
        raised = sys.exc_info()
    record = logging.LogRecord("a", logging.ERROR, "", 0, "one\ntwo", (), raised)
    plain = formatter.format(record)
    assert plain.startswith("one\ntwo\nTraceback")
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    lines = formatter.format(record).split("\n")
    assert lines == [f"<3>{line}" for line in plain.split("\n")]
    assert prioritize("a", logging.CRITICAL) == "<3>a"
    assert prioritize("a", logging.WARNING) == "<4>a"
    assert prioritize("a", logging.INFO) == "<6>a"
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
    assert prioritize("a", logging.ERROR) == "a"

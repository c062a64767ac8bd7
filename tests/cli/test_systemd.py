"""What systemd is told, at real sockets."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.cli.systemd import notify


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

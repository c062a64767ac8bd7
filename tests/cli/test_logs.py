"""The log of a server: its formats, where it goes, what SIGHUP does."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.commands import STATSFS, find_server, is_mounted
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT, directory_for_a_mount, run

pytestmark = pytest.mark.mount

# Logs in a thread of its own; what is written into its file is logged, and it ends with a line.
TALKER = """
import logging, os, sys, threading

def setup(registry):
    path = os.path.abspath("talk")
    os.path.exists(path) or os.mkfifo(path)
    threading.Thread(target=talk, args=(path,), daemon=True).start()

def talk(path):
    while True:
        with open(path) as lines:
            for line in lines:
                logging.getLogger("statsfs.talker").info("heard %s", line.strip())
                try:
                    int(line)
                except ValueError:
                    logging.getLogger("talker").exception("two\\nlines")
                logging.getLogger("talker").warning("said %s", line.strip())

def with_logging(registry):
    logging.basicConfig(format="OURS %(message)s")
    setup(registry)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the talker, which is the current one."""
    (tmp_path / "talker.py").write_text(TALKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@contextmanager
def foreground(place: Path, *options: str, **more: str) -> Iterator[Path]:
    """Serve; the lines that are logged are in the file that is returned."""
    environment = {**os.environ, **more}
    log = place / "log"
    with directory_for_a_mount() as path, open(log, "wb") as errors:
        if "JOURNAL_STREAM" in more:
            status = os.fstat(errors.fileno())
            environment["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        command = [*STATSFS, "mount", str(path), "--load", "talker:setup", *options]
        with subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            wait_until(lambda: is_mounted(path), "it is mounted")
            yield log
            process.terminate()
            process.communicate(timeout=DEADLINE)
        assert process.returncode == 0


def say(place: Path, log: Path, text: str) -> str:
    """Have the talker log something; return the log once it is there."""
    with open(place / "talk", "w") as lines:
        lines.write(f"{text}\n")
    wait_until(lambda: f"said {text}" in log.read_text(), "it is logged")
    return log.read_text()


def test_text(place: Path) -> None:
    """A line for people, without a date, as whoever runs it looks at it now."""
    with foreground(place) as log:
        assert say(place, log, "5") == "heard 5\nsaid 5\n"


def test_a_program_that_logs_itself(place: Path) -> None:
    """It has the last word."""
    with foreground(place, "--load", "talker:with_logging") as log:
        assert "OURS said 5\n" in say(place, log, "5")


def test_the_journal(place: Path) -> None:
    """Each line has its priority, those of a traceback too."""
    with foreground(place, JOURNAL_STREAM="") as log:
        lines = say(place, log, "no number").splitlines()
    assert lines[:3] == ["<6>heard no number", "<3>two", "<3>lines"]
    assert lines[-1] == "<4>said no number"
    assert all(line.startswith("<3>") for line in lines[1:-1])


def test_another_stream_than_the_journal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a service that redirects its stderr: no priorities."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    with foreground(place) as log:
        assert "<" not in say(place, log, "5")


def test_json(place: Path) -> None:
    """An object a line, for errors with their traceback as well."""
    with foreground(place, "--log-format", "json") as log:
        wait_until(lambda: "mounted at" in log.read_text(), "its first line")
        say(place, log, "no number")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["level"] for line in lines] == ["info", "info", "error", "warning", "info"]
    assert [line["logger"] for line in lines[1:4]] == ["statsfs.talker", "talker", "talker"]
    assert lines[0]["message"].startswith("mounted at ")
    assert lines[1]["message"] == "heard no number"
    time.strptime(lines[1]["time"], "%Y-%m-%dT%H:%M:%S.%fZ")
    assert lines[2]["message"] == "two\nlines"
    assert lines[2]["traceback"].startswith("Traceback (most recent call last):\n")
    assert lines[4]["message"].startswith("unmounted ")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_that_is_rotated(form: str, place: Path) -> None:
    """SIGHUP opens it anew; where that fails the old one is written to, and says so."""
    log = place / "log"
    with directory_for_a_mount() as path:
        options = ("--background", "--log", "log", "--log-format", form)
        run(*STATSFS, "mount", path, "--load", "talker:setup", *options)
        server = find_server(path)
        say(place, log, "1")
        log.rename(place / "old")
        os.kill(server, signal.SIGHUP)
        wait_until(log.exists, "the new one")
        say(place, log, "2")
        log.unlink()
        log.mkdir()
        os.kill(server, signal.SIGHUP)
        moved = Path(f"/proc/{server}/fd/2")
        wait_until(lambda: "cannot be opened anew: Is a directory" in moved.read_text(), "that")
        run("fusermount3", "-u", path)
    assert "said 2" not in (place / "old").read_text()
    first = (place / "old").read_text().splitlines()[0]
    if form == "text":
        assert "INFO statsfs.talker: heard 1" in first
    else:
        assert json.loads(first)["message"] == "heard 1"

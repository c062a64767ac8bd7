"""A daemon whose files an upgrade replaces, before a new daemon takes over."""

import contextlib
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.model.fields import counter, hist, log_hist
from statsfs.model.stats import Stats
from statsfs.segments import publish
from tests.support.collecting import Producer
from tests.support.commands import STATSFS, find_server, run
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import detach
from tests.support.prometheus_server import free_port

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.tools]

# Notes each module that is looked for, and each file of the installation that is opened.
_NOTE = """\
import os, sys

_notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_ours = (sys.prefix, sys.base_prefix, os.environ["ROOT"] + "/statsfs")

def _note(event, arguments):
    if event == "import" or event == "open" and str(arguments[0]).startswith(_ours):
        os.write(_notes, f"{os.getpid()} {event} {arguments[0]}\\n".encode())

sys.addaudithook(_note)
"""
ROOT = Path(__file__).parent.parent.parent


class LateStats(Stats):
    requests = counter()
    sizes = log_hist(8)
    waits = hist(bounds=[1, 10])


@contextlib.contextmanager
def daemon(place: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A daemon that notes what it imports, once it serves."""
    (place / "site").mkdir(exist_ok=True)
    (place / "site/sitecustomize.py").write_text(_NOTE)
    # Without coverage, which has imports and files of its own.
    env = {name: text for name, text in os.environ.items() if not name.startswith("COV")}
    env |= {"PYTHONPATH": str(place / "site"), "NOTES": str(place / "notes"), "ROOT": str(ROOT)}
    where: list[str | Path] = [place / "stats", "--create", "--segments", place / "segments"]
    process = subprocess.Popen(
        [*STATSFS, "mount", *where, *options], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("statsfs: mounted at ")
        assert process.stdout.readline().startswith("statsfs: metrics at ")
        yield process
    finally:
        process.kill()
        process.communicate()
        detach(place / "stats")


def ask(port: int, path: str, **headers: str) -> int:
    """Return the status of an answer, once it is read."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def use_everything(place: Path, port: int) -> None:
    """Do with a daemon what clients, producers and scrapers do, also what is refused."""
    stats, segments = place / "stats", place / "segments"
    producer = Producer(segments, "app/dies")
    producer.count(3)
    with publish("app/lives", values=LateStats, directory=segments) as segment:
        segment.stats.requests += 5
        segment.stats.sizes.observe(3)
        wait_until((stats / "app/lives/sizes").exists, "the segment")
        wait_until((stats / "app/dies").exists, "the producer")
        for directory in (stats, stats / "app", stats / "app/lives"):
            for view in (".stats.json", ".stats.prom", ".stats.openmetrics", ".schema.json"):
                assert (directory / view).read_bytes()
        assert (stats / "app/.stats.bin").read_bytes()
        (stats / ".events").read_bytes()
        for command in ("ls -lR", "grep -r .", "getfattr -R -d -m -"):
            subprocess.run([*command.split(), str(stats)], capture_output=True)
        (stats / "app/lives/requests").write_text("0\n")
        for wrong in (b"1\n", b"\xff"):
            with pytest.raises(OSError, match="Invalid argument"):
                (stats / "app/lives/requests").write_bytes(wrong)
        with pytest.raises(PermissionError):
            (stats / "new").mkdir()
        kinds = {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}
        for path in ("/", "/metrics", "/metrics?name[]=x", "/api/stats", "/api/schema?depth=1"):
            assert ask(port, path) == 200
            assert ask(port, path, **kinds) in (200, 406)
        assert ask(port, "/missing") == 404
        producer.kill()
        wait_until(lambda: not (stats / "app/dies").exists(), "its end")
        for name in ("short", "wrong"):
            (segments / f"{name}.stats").write_bytes(b"x" * (4 if name == "short" else 100))
        refused = stats / "statsfs/user-0/refused_files"
        wait_until(lambda: refused.exists() and refused.read_text() == "2\n", "the refusals")
        assert json.loads(run("status", str(stats), "--json").stdout)
        for name in ("short", "wrong"):
            (segments / f"{name}.stats").unlink()
    wait_until(lambda: not (stats / "app/lives").exists(), "the end of all")
    (stats / "app").rmdir()


def test_late_imports(tmp_path: Path) -> None:
    """A daemon that serves reads no file of its installation, whatever happens to it."""
    port = free_port()
    (tmp_path / "segments").mkdir()
    with daemon(tmp_path, "--listen", str(port)) as old:
        notes = tmp_path / "notes"
        assert f"{old.pid} import statsfs.filesystem.session\n" in notes.read_text(), "no notes"
        before = len(notes.read_text())
        use_everything(tmp_path, port)
        with (
            open(tmp_path / "stats/statsfs/sources") as held,
            daemon(tmp_path, "--listen", str(port), "--replace") as new,
        ):
            assert find_server(tmp_path / "stats") == new.pid
            assert int(os.pread(held.fileno(), 100, 0)) > 0
            held.close()
            assert old.wait(DEADLINE) == 0
            new.send_signal(signal.SIGTERM)
            assert new.wait(DEADLINE) == 0
        late = [line for line in notes.read_text()[before:].splitlines() if f"{old.pid} " in line]
        assert late == []

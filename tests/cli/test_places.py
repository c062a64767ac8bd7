"""What `top`, `stat` and `record` say of places that cannot be read: one line, with the place."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.answers import answering
from tests.support.commands import assert_error, mounting, run, run_here, serving
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import NOBODY, ROOT, children, directory_for_a_mount

COMMANDS = {
    "top": ["top", "--once", "-i", "0.1", "PLACE"],
    "stat": ["stat", "-p", "PLACE", "--", "touch", "begun"],
    "record": ["record", "-o", "new", "-p", "PLACE", "--", "touch", "begun"],
    "openmetrics": ["record", "--openmetrics", "-o", "new", "-p", "PLACE", "--", "touch", "begun"],
}
AS_NOBODY = f"""
import difflib, sys  # click imports it late
from statsfs.cli.commands import run
from tests.support.collecting import become
become({NOBODY})
sys.exit(run(sys.argv[1:]))
"""
NO_URL = "not http://HOST:PORT"
NO_PATH = "No such file or directory"


def refused(command: str, place: str, directory: Path, *words: str) -> None:
    """The command ends with one line, and has begun nothing."""
    arguments = [place if one == "PLACE" else one for one in COMMANDS[command]]
    tried = run if command == "top" else run_here  # it handles signals, and then looks
    assert_error(tried(*arguments, cwd=directory), 1, *words)
    assert not (directory / "begun").exists()
    assert not (directory / "new").exists()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("http://[::1", NO_URL),
        ("http://::1:9464", NO_URL),
        ("http://a b", NO_URL),
        ("http://a\x01b", NO_URL),
        ("http://127.0.0.1\n:1", NO_URL),
        ("http://127.0.0.1:1\t", NO_URL),
        (f"http://{'a' * 64}", NO_URL),
        (f"http://a.{'a' * 64}.b:9464/kvm", NO_URL),
        ("http://a..b", NO_URL),
        ("http://\N{ACCOUNT OF}.example", NO_URL),
        ("http://\udcff", NO_URL),
        ("http://a:b", NO_URL),
        ("http://a:0", NO_URL),
        ("http://a:-1", NO_URL),
        ("http://a:65536", NO_URL),
        ("http://user@127.0.0.1:1", NO_URL),
        ("http://:secret@127.0.0.1:1", NO_URL),
        ("http://127.0.0.1:1?a=b", NO_URL),
        ("http://127.0.0.1:1#a", NO_URL),
        ("http://", NO_URL),
        ("ftp://x", NO_URL),
        ("://x", NO_URL),
        ("http://127.0.0.1:1", "http://127.0.0.1:1: Connection refused"),
        ("127.0.0.1:1", f"127.0.0.1:1: {NO_PATH}; a server is http://127.0.0.1:1\n"),
        ("[::1]:1/kvm", f"[::1]:1/kvm: {NO_PATH}; a server is http://[::1]:1/kvm\n"),
        ("host:9464", f"host:9464: {NO_PATH}; a server is http://host:9464\n"),
        ("none/host:9464", f"none/host:9464: {NO_PATH}\n"),
        ("host", f"host: {NO_PATH}\n"),
    ],
)  # fmt: skip
def test_what_is_no_place(place: str, reason: str, tmp_path: Path) -> None:
    """Whatever is in a URL, it is not looked up if no server can be there."""
    words = [reason]
    if reason == NO_URL and "\udcff" not in place:
        words = [" ".join(f"{place}: {reason}".split()) + "\n"]
    refused("stat", place, tmp_path, *words)


@pytest.mark.parametrize("command", ["top", "record", "openmetrics"])
@pytest.mark.parametrize("place", ["http://[::1", "http://a\x01b", f"http://{'a' * 64}", "host:1"])
def test_each_command_names_the_place(command: str, place: str, tmp_path: Path) -> None:
    """As `stat` does."""
    reason = NO_PATH if place == "host:1" else NO_URL
    refused(command, place, tmp_path, f"{place}: {reason}")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_has_no_numbers_of_a_statsfs(command: str, tmp_path: Path) -> None:
    """A server that answers something else, a file that has the name."""
    with answering({"/api/stats": (200, b"{}", {}), "/api/schema": (200, b"{}", {})}) as url:
        refused(command, url, tmp_path, f"{url}: invalid sample: ")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.stats.json").write_text("[]")
    refused(command, "other", tmp_path, "/other: " if command != "top" else "other: ", "invalid")


@pytest.mark.parametrize("command", ["top", "stat"])
def test_what_has_no_schema_of_a_statsfs(command: str, tmp_path: Path) -> None:
    """That is read after the numbers."""
    (tmp_path / ".stats.json").write_text('{"values": {"n": 1}, "subordinates": {}}')
    (tmp_path / ".schema.json").write_text("[]")
    arguments = [str(tmp_path) if one == "PLACE" else one for one in COMMANDS[command]]
    assert_error(run(*arguments, cwd=tmp_path), 1, f"{tmp_path}: invalid schema: ")


@pytest.mark.mount
def test_a_mount_whose_server_was_killed(tmp_path: Path) -> None:
    """With its watcher, which would clear the mount: also of directories in it."""
    stats = tmp_path / "stats"
    command: list[str | Path] = [sys.executable, "-m", "statsfs", "demo", stats, "--vms", "1"]
    with mounting(command, stats, cwd=ROOT) as program:
        for child in children(program.pid):
            os.kill(child, signal.SIGKILL)
        program.kill()
        program.wait(DEADLINE)

        def is_dead() -> bool:
            try:
                os.statvfs(stats)
            except OSError as error:
                return error.errno == errno.ENOTCONN
            return False

        wait_until(is_dead, "ENOTCONN")
        for one in COMMANDS:
            for place in (stats, stats / "kvm"):
                refused(one, str(place), tmp_path, f"{place}: its server is dead; fusermount3 -uz")


@pytest.mark.root
def test_a_mount_that_lets_no_other_user_in() -> None:
    """Each command says so."""
    with (
        directory_for_a_mount() as stats,
        serving("mount", stats, "--no-allow-other") as server,
    ):
        for arguments in COMMANDS.values():
            named = [str(stats) if one == "PLACE" else one for one in arguments]
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, *named],
                capture_output=True,
                text=True,
                cwd=ROOT,
                # Coverage would write a file here, where nobody may not.
                env={k: text for k, text in os.environ.items() if not k.startswith("COVERAGE_")},
                timeout=DEADLINE,
                check=False,
            )
            assert_error(done, 1, f"{stats}: Permission denied")
        server.stop()

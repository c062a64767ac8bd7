"""`statsfs status`, and what it reads: the daemon's own numbers, in `statsfs/`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import statsfs
from statsfs.segments import publish
from tests.support.collecting import Producer, WorkerStats
from tests.support.commands import STATSFS, assert_error, on_terminal, run
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.machine import private_machine
from tests.support.mounts import NOBODY, ROOT, children, directory_for_a_mount, is_mounted, serving
from tests.support.mounts import run as run_client
from tests.support.other_users import USER, shared_directory

pytestmark = pytest.mark.mount

# As `statsfs mount --kvm` makes them, where there is no KVM.
PROGRAM = r"""
from statsfs import Source

def setup(registry):
    kvm = registry.register(Source("kvm"))
    kvm.add_subordinate(Source("12-3", label="vm", info={"kvm.source": "bpf", "kvm.name": "w\33b"}))
    kvm.add_subordinate(Source("45-6", label="vm", info={"kvm.source": "debugfs"}))
    kvm.add_subordinate(Source("other"))
"""


AS = """
import io, sys
from rich.console import Console
from rich.table import Table
from statsfs.cli.commands import run
from tests.support.collecting import become
table = Table("imports", "what rich imports late")
table.add_row("a", "b")
Console(file=io.StringIO()).print(table)
become(int(sys.argv[1]))
sys.exit(run(sys.argv[2:]))
"""


class Daemon:
    """A running `statsfs mount`, and where its metrics are."""

    def __init__(self, mountpoint: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.mountpoint = mountpoint
        self.process = process
        self.log = log

    def scrape(self) -> str:
        """What Prometheus gets."""
        url = re.search(r"metrics at (\S+)", self.log.read_text())
        assert url is not None
        with urllib.request.urlopen(url[1], timeout=DEADLINE) as answer:
            return str(answer.read().decode())

    def number(self, name: str) -> int | None:
        """The number of a file in `statsfs/`; None before the collector has seen its user."""
        try:
            return int((self.mountpoint / "statsfs" / name).read_text())
        except FileNotFoundError:
            return None


@contextmanager
def daemon(log: Path, *options: str | Path) -> Iterator[Daemon]:
    """Run `statsfs mount`, whatever it logs; the mount is gone at the end."""
    with directory_for_a_mount() as path, open(log, "wb") as said:
        command = [*STATSFS, "mount", path, *options]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=log.parent
        ) as process:
            try:
                wait_until(lambda: process.poll() is not None or b"mounted at" in log.read_bytes())
                assert is_mounted(path), log.read_text()
                yield Daemon(path, process, log)
            finally:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.wait(DEADLINE)
        wait_until(lambda: not is_mounted(path), "the end of the mount")


def status_of(path: Path) -> Any:
    """What `status --json` tells."""
    done = run("status", str(path), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def run_as(
    user: int, *arguments: str | Path, status: int = 0
) -> "subprocess.CompletedProcess[str]":
    """Run a command as another user, who may not enter this clone."""
    return run_client(sys.executable, "-c", AS, str(user), *arguments, status=status, cwd=ROOT)


def fail(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """It is one line, and 1."""
    assert_error(done, 1, *words)


@pytest.mark.root
def test_users_and_refusals(tmp_path: Path) -> None:
    """Segments and refusals by user; the reasons are for their owner and root."""
    with shared_directory() as directory:
        (directory / "open").mkdir()
        (directory / "open").chmod(0o777)
        (directory / "mine.stats").write_bytes(b"short")
        theirs = directory / "www" / "theirs.stats"
        theirs.write_bytes(b"x")
        os.chown(theirs, USER, USER)
        with (
            daemon(tmp_path / "log", "--segments", directory, "--listen", "0") as served,
            Producer(directory, "app/a"),
            Producer(directory / "www", "www/a", user=USER),
            Producer(directory / "www", "www/b", user=USER),
        ):
            mountpoint = served.mountpoint
            wait_until((mountpoint / "www" / "b").exists, "the segments")
            wait_until((mountpoint / "app" / "a").exists, "the segments")
            served.scrape()

            found = status_of(mountpoint)
            root, user = found["users"]["0"], found["users"][str(USER)]
            assert (root["segments"], user["segments"]) == (1, 2)
            assert (root["refused_files"], user["refused_files"]) == (2, 1)
            assert (root["refusals"], user["refusals"]) == (1, 1)
            assert user["refusal_reasons"] == [
                f"{theirs} is refused: 1 byte, fewer than the 24 of the header"
            ]
            assert len(root["refusal_reasons"]) == 2
            assert f"{directory}/open is not read: " in root["refusal_reasons"][0]
            assert "mine.stats is refused: " in root["refusal_reasons"][1]
            numbers = found["numbers"]
            assert (found["version"], found["pid"]) == (statsfs.__version__, served.process.pid)
            assert abs(numbers["start_time"] - time.time()) < 3600
            assert (numbers["segments"], numbers["refused_files"]) == (3, 3)
            assert numbers["resident_memory"] > 1 << 20
            assert (numbers["scrapes"], numbers["failed_scrapes"]) == (1, 0)
            assert sum(numbers["scrape_duration_ns"]) == 1
            assert found["sources"] == {"app": 1, "statsfs": 2, "www": 2}
            # app, a, www, a, b, statsfs, and its two users.
            assert numbers["sources"] == 8

            text = run("status", str(mountpoint)).stdout
            assert text.startswith(f"{mountpoint}: statsfs {statsfs.__version__}, process ")
            assert "app 1, statsfs 2, www 2" in text
            assert "mine.stats is refused" in text
            assert "theirs.stats is refused" in text
            assert not re.search(r" $|\x1b", text, flags=re.MULTILINE)

            text = run_as(USER, "status", mountpoint).stdout
            assert "theirs.stats is refused" in text
            assert "mine.stats" not in text
            assert "refused, told to its owner and root alone: of root" in text
            text = run_as(NOBODY, "status", mountpoint).stdout
            assert "is refused" not in text
            assert re.search(rf"^{USER} +2 +\d.* 1$", text, flags=re.MULTILINE)

            theirs.unlink()
            wait_until(lambda: served.number(f"user-{USER}/refused_files") == 0, "the change")
            assert status_of(mountpoint)["users"][str(USER)]["refusal_reasons"] == []


def test_prometheus_watches_the_watcher(tmp_path: Path) -> None:
    """A scrape has the daemon's own numbers, but those that are not for all."""
    segments = tmp_path / "segments"
    with daemon(tmp_path / "log", "--segments", segments, "--listen", "0") as served:
        (segments / "broken.stats").write_bytes(b"short")
        wait_until(lambda: served.number("refused_files") == 1, "the refusal")
        served.scrape()
        metrics = served.scrape()
    assert "statsfs_scrapes_total 2\n" in metrics
    assert 'statsfs_scrape_duration_seconds_bucket{le="+Inf"} 1\n' in metrics
    assert "statsfs_scrape_duration_seconds_count 1\n" in metrics
    assert f'statsfs_refusals_total{{user="{os.geteuid()}"}} 1\n' in metrics
    assert f'statsfs_info{{version="{statsfs.__version__}"}} 1\n' in metrics
    for name in ("start_time_seconds", "resident_memory_bytes", "cpu_seconds_total", "opens_total"):
        assert float(metrics.partition(f"\nstatsfs_{name} ")[2].partition("\n")[0]) > 0
    assert "reasons" not in metrics


def test_the_name_is_the_daemons(tmp_path: Path) -> None:
    """What is published as `statsfs`, now or before, is refused; a program is told so."""
    segments = tmp_path / "segments"
    with (
        daemon(tmp_path / "log", "--segments", segments) as served,
        publish("statsfs", values=WorkerStats, directory=segments),
        publish("statsfs/opens", values=WorkerStats, directory=segments),
    ):
        wait_until(lambda: served.number("refused_files") == 2, "the refusals")
        reasons = status_of(served.mountpoint)["users"][str(os.geteuid())]["refusal_reasons"]
        assert all("statsfs is there already" in reason for reason in reasons)
        assert served.number("segments") == 0
    (tmp_path / "squatter.py").write_text(
        "from statsfs import Source\ndef setup(registry): registry.register(Source('statsfs'))\n"
    )
    with directory_for_a_mount() as path:
        done = run("mount", str(path), "--load", "squatter:setup", cwd=tmp_path)
        fail(done, "--load: the source 'statsfs' is the daemon's own")


def test_virtual_machines(tmp_path: Path) -> None:
    """By which way each is read; a name cannot talk to the terminal; the root may be `kvm`."""
    (tmp_path / "program.py").write_text(PROGRAM)
    load = ("--load", "program:setup")
    vms = {
        "12-3": {"name": r"w\x1bb", "source": "bpf"},
        "45-6": {"name": None, "source": "debugfs"},
    }
    with daemon(tmp_path / "log", *load) as served:
        assert status_of(served.mountpoint)["vms"] == vms
        text = run("status", str(served.mountpoint)).stdout
        assert re.search(r"^12-3 +w\\x1bb +bpf$", text, flags=re.MULTILINE)
        assert re.search(r"^45-6 +debugfs$", text, flags=re.MULTILINE)
        assert "\33" not in text
    with daemon(tmp_path / "log", *load, "--root", "kvm") as served:
        found = status_of(served.mountpoint)
        assert found["vms"] == vms
        assert found["numbers"] is found["users"] is found["version"] is None
        assert found["sources"] == {"12-3": 0, "45-6": 0, "other": 0}
        text = run("status", str(served.mountpoint)).stdout
        assert text.startswith(f"{served.mountpoint}: shows no numbers of its own\n")


def test_a_terminal(tmp_path: Path) -> None:
    """There the headings stand out."""
    with (
        daemon(tmp_path / "log", "--segments", tmp_path / "a") as served,
        on_terminal(tmp_path, "status", str(served.mountpoint)) as see,
    ):
        assert "\x1b[1mCPU time" in see("scrapes")


def test_a_server_that_hangs(tmp_path: Path) -> None:
    """It is a line after five seconds; nothing waits for what still asks, nor for its output."""
    with daemon(tmp_path / "log", "--segments", tmp_path / "a") as served:
        served.process.send_signal(signal.SIGSTOP)
        fail(run("status", str(served.mountpoint)), f"{served.mountpoint}: no answer within 5 s")
        served.process.send_signal(signal.SIGCONT)
        assert status_of(served.mountpoint)["pid"] == served.process.pid


@pytest.mark.root
def test_a_server_that_is_dead() -> None:
    """Where no watcher has unmounted it."""
    with serving(measured=False) as server:
        for watcher in children(server.pid):
            os.kill(watcher, signal.SIGKILL)
        server.kill()
        fail(run("status", str(server.mountpoint)), f"{server.mountpoint}: its server is dead")
        subprocess.run(["fusermount3", "-uz", server.mountpoint], check=True)


@pytest.mark.root
def test_a_mount_that_is_for_one_user(tmp_path: Path) -> None:
    """Another one is told so."""
    options = ("--no-allow-other", "--segments", tmp_path / "a")
    with daemon(tmp_path / "log", *options) as served:
        done = run_as(NOBODY, "status", served.mountpoint, status=1)
        assert "it is another user's, who lets nobody else in" in done.stderr


def test_what_is_no_statsfs(tmp_path: Path) -> None:
    """A directory, one that is not there, a directory in a mount, and a deleted one."""
    for path in (tmp_path, tmp_path / "none", Path("/proc")):
        fail(run("status", str(path)), f"{path}: not a mounted statsfs")
    with daemon(tmp_path / "log", "--segments", tmp_path / "a") as served:
        fail(run("status", str(served.mountpoint / "statsfs")), "not a mounted statsfs")
        link = tmp_path / "link"
        link.symlink_to(served.mountpoint)
        assert status_of(link)["pid"] == served.process.pid


@pytest.mark.root
def test_all_mounts_of_a_host(tmp_path: Path) -> None:
    """None, the one that there is, and a line for each of several, also if one hangs."""
    with private_machine() as machine:
        status = partial(machine.run, *STATSFS, "status")
        machine.run("sh", "-c", "umount -l -a -t fuse.statsfs || true")
        # What no path leads to is none.
        machine.run("mkdir", "-p", "/run/over/hidden")
        machine.run(*STATSFS, "mount", "/run/over/hidden", "--segments", "/run/s", "--background")
        assert status().startswith("/run/over/hidden: statsfs ")
        machine.run("mount", "-t", "tmpfs", "tmpfs", "/run/over")
        assert status(status=1) == "statsfs: error: no statsfs is mounted here\n"
        assert status("--json", status=1).startswith("[]\n")
        for name in ("a", "b"):
            where = ("--segments", f"/run/{name}-segments", "--background")
            machine.run(*STATSFS, "mount", f"/run/{name}", "--create", *where)
            if name == "a":
                assert status().startswith("/run/a: statsfs ")
                machine.run("sh", "-c", "mkdir /run/copy && mount --bind /run/a /run/copy")
        lines = status().splitlines()
        assert [line.split()[0] for line in lines] == ["/run/a", "/run/b"]
        assert all("statsfs " in line and " sources: 1, 1 at the top" in line for line in lines)
        found = json.loads(status("--json"))
        assert [one["mountpoint"] for one in found] == ["/run/a", "/run/b"]
        os.kill(found[0]["pid"], signal.SIGSTOP)
        said = status(status=1)
        os.kill(found[0]["pid"], signal.SIGCONT)
        assert re.search("^/run/a  no answer within 5 s", said, flags=re.MULTILINE)
        assert re.search("^/run/b  statsfs ", said, flags=re.MULTILINE)
        machine.run("umount", "/run/copy", "/run/over")
        machine.run(*STATSFS, "umount", "/run/over/hidden")
        for name in ("a", "b"):
            machine.run(*STATSFS, "umount", f"/run/{name}")


def test_a_program_shows_what_it_serves() -> None:
    """Only if it asks for that; its own source of the name is not taken for a daemon's."""
    program = """
import sys
from statsfs import Registry, Source, mount
registry = Registry()
own = registry.register(Source("statsfs"))
with mount(registry, sys.argv[1]) as mounted:
    print(flush=True)
    sys.stdin.readline()
    own.add_values(type(mounted.stats), mounted.stats)
    print(flush=True)
    sys.stdin.read()
"""
    with (
        directory_for_a_mount() as path,
        subprocess.Popen(
            [sys.executable, "-c", program, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert os.listdir(path / "statsfs") == []
        assert status_of(path)["numbers"] is None
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        assert (path / "statsfs" / "opens").read_text() == "1\n"
        assert (path / "statsfs" / "opens").read_text() == "2\n"
        process.stdin.close()
        assert process.wait(DEADLINE) == 0

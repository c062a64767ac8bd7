"""`.events` on a real mount: followed by tail, less and jq, by many at a time, and late."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support import mount_calls as calls
from tests.support import mount_events as events
from tests.support.mount_server import mount_here
from tests.support.mounts import Server, as_nobody, run, serving, shell

pytestmark = pytest.mark.mount

TAIL = ("tail", "-s", "0.05")


@pytest.fixture(scope="module", params=["thread", "trio"])
def shared(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server, in either mode; in the second the serving thread itself changes the tree."""
    with serving(request.param) as server:
        server.call(calls.build, 0)
        yield server


@contextmanager
def following(path: Path, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a client that follows a file, until the block ends."""
    with subprocess.Popen([*command, path], stdout=subprocess.PIPE, start_new_session=True) as one:
        try:
            yield one
        finally:
            os.killpg(one.pid, signal.SIGTERM)


def next_line(client: "subprocess.Popen[bytes]") -> str:
    """The next line that a client prints, as "event path"."""
    assert client.stdout is not None
    found = json.loads(client.stdout.readline())
    return f"{found['event']} {found['path']}"


def begin(server: Server) -> Path:
    """Have events told."""
    path = server / ".events"
    path.read_bytes()
    return path


@pytest.mark.parametrize("option", ["-f", "-F"])
def test_tail_follows(shared: Server, option: str) -> None:
    """Each line as it comes, by the descriptor or by the name."""
    path = begin(shared)
    with following(path, *TAIL, "-n", "+1", option) as tail:
        shared.call(events.come, "now")
        while next_line(tail) != "added kvm/now":
            pass
        for turn in range(3):
            shared.call(events.come, f"tail{turn}")
            assert next_line(tail) == f"added kvm/tail{turn}"
            shared.call(events.leave, f"tail{turn}")
            assert next_line(tail) == f"removed kvm/tail{turn}"
        shared.call(events.leave, "now")


def test_the_last_lines(shared: Server) -> None:
    """`tail -n` finds them from the end, `head` from the beginning; grep and wc read all."""
    path = begin(shared)
    names = [f"last{number}" for number in range(300)]
    shared.call(events.come, *names)
    shared.call(events.leave, *names)
    lines = path.read_text().splitlines()
    assert os.stat(path).st_size == len(path.read_bytes())
    assert run("tail", "-n", "7", path).stdout.splitlines() == lines[-7:]
    assert run("tail", "-c", "100", path).stdout == path.read_text()[-100:]
    assert run("head", "-n", "7", path).stdout.splitlines() == lines[:7]
    assert int(run("grep", "-c", "kvm/last", path).stdout) == 600
    assert run("wc", "-l", path).stdout.split()[0] == str(len(lines))
    assert shell('cp "$1" "$2"; cmp "$1" "$2"; rm "$2"', path, f"/tmp/events{os.getpid()}") == ""


def test_a_shell_reads_bytes(shared: Server) -> None:
    """One at a time."""
    path = begin(shared)
    shared.call(events.come, "byte")
    shared.call(events.leave, "byte")
    script = 'while read -r line; do last=$line; done <"$1"; echo "$last"'
    assert json.loads(shell(script, path))["path"] == "kvm/byte"


def test_less_follows(shared: Server) -> None:
    """`less +F` shows what comes."""
    path = begin(shared)
    terminal, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "LESS": ""}
    with subprocess.Popen(
        ["less", "+F", path], stdin=theirs, stdout=theirs, stderr=theirs, env=env,
        start_new_session=True,
    ) as less:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            for name in ("less0", "less1"):
                while b"Waiting for data" not in shown:
                    shown += os.read(terminal, 65536)
                shared.call(events.come, name)
                while name.encode() not in shown:
                    shown += os.read(terminal, 65536)
                shown = shown.rpartition(name.encode())[2]
                shared.call(events.leave, name)
        finally:
            less.kill()
            os.close(terminal)


def test_it_is_for_reading(shared: Server) -> None:
    """0444, not listed, and for all; nothing is written into it by anybody."""
    path = begin(shared)
    assert ".events" not in os.listdir(shared.mountpoint)
    assert run("find", shared.mountpoint, "-name", ".events").stdout == ""
    assert run("stat", "-c", "%A %U %F", path).stdout.startswith("-r--r--r-- root regular")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(PermissionError):
            os.open(path, flags)
    for call in (partial(os.truncate, path, 0), path.unlink):
        with pytest.raises(PermissionError):
            call()
    shared.call(events.come, "mine")
    assert "kvm/mine" in as_nobody("cat", path).stdout
    shared.call(events.leave, "mine")
    assert not (shared / "kvm/.events").exists()


def test_a_churn_of_ten_thousand() -> None:
    """Followed by three tails and a jq: each gets every line, in the order of the changes."""
    with serving() as server:
        server.call(calls.build, 0)
        path = begin(server)
        follow = (*TAIL, "-n", "+1", "-f")
        jq = (
            "sh",
            "-c",
            f'{" ".join(follow)} "$1" | jq --unbuffered -r \'"\\(.event) \\(.path)"\'',
        )
        with (
            following(path, *follow) as one,
            following(path, *follow) as two,
            following(path, *jq, "sh") as three,
        ):
            server.call(events.churn, 10_000)
            found = [[next_line(client) for _ in range(20_000)] for client in (one, two)]
            assert three.stdout is not None
            found.append([three.stdout.readline().decode().strip() for _ in range(20_000)])
        assert found[0] == found[1] == found[2]
        assert found[0][:2] == ["added kvm/vm0", "added kvm/vm0/vcpu0"]
        assert found[0][-2:] == ["removed kvm/vm9992/vcpu0", "removed kvm/vm9992"]
        there: set[str] = set()
        for line in found[0]:
            event, _, name = line.partition(" ")
            (there.add if event == "added" else there.remove)(name)
        assert not there
        counts = shell("jq -r .event \"$1\" | sort | uniq -c | tr -s ' '", path)
        assert counts == " 10000 added\n 10000 removed\n"


def test_a_reader_that_is_stopped() -> None:
    """It is told how many lines it lost, and reads on; no line is torn, and none is missed."""
    with serving() as server:
        server.call(calls.build, 0)
        server.call(events.keep_less, 20_000)
        path = begin(server)
        with following(path, *TAIL, "-n", "+1", "-f") as tail:
            server.call(events.come, "first")
            assert next_line(tail) == "added kvm/first"
            tail.send_signal(signal.SIGSTOP)
            server.call(events.leave, "first")
            for _ in range(3):
                server.call(events.churn, 400)
            server.call(events.come, "last")
            tail.send_signal(signal.SIGCONT)
            assert tail.stdout is not None
            lines, number = [json.loads(tail.stdout.readline())], 0
            while lines[-1].get("path") != "kvm/last":
                lines.append(json.loads(tail.stdout.readline()))
            for line in lines:
                number += line.get("count", 1)
            assert [line["event"] for line in lines].count("lost") == 1
            assert number == 1 + 3 * 800 + 1
            server.call(events.leave, "last")
            assert next_line(tail) == "removed kvm/last"
        whole = path.read_text().splitlines()
        assert json.loads(whole[0])["event"] == "lost"
        assert json.loads(whole[0])["count"] + len(whole) - 1 == number + 2
        assert run("tail", "-n", "3", path).stdout.splitlines() == whole[-3:]


def test_nothing_is_told_until_it_is_opened() -> None:
    """A look at it is not enough; what it told is gone with the mount."""
    with serving("later") as server:
        server.call(calls.build, 0)
        for _ in range(2):
            server.call(mount_here, server.mountpoint)
            server.call(events.come, "early")
            assert os.stat(server / ".events").st_size == 0
            assert server.call(events.reader_count) == 0
            begin(server)
            server.call(events.leave, "early")
            assert server.call(events.reader_count) == 1
            (line,) = (server / ".events").read_text().splitlines()
            assert json.loads(line)["path"] == "kvm/early"
            server.call(calls.close)
            assert server.call(events.reader_count) == 0


def test_where_one_source_is_the_root() -> None:
    """Paths are those from the root; the file stays while the root comes and goes."""
    with serving(options={"root": "kvm"}) as server:
        path = begin(server)
        with following(path, *TAIL, "-n", "+1", "-F") as tail:
            server.call(events.come, "cpu7")
            assert next_line(tail) == "added cpu7"
            inode = os.stat(path).st_ino
            server.call(calls.clear)
            assert next_line(tail) == "removed cpu7"
            server.call(events.come, "cpu8")
            assert next_line(tail) == "added cpu8"
            assert os.stat(path).st_ino == inode
        assert ".events" not in os.listdir(server.mountpoint)

"""`statsfs mount --replace`: daemons one after the other, and those who must notice nothing."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.exceptions import MountError
from statsfs.filesystem.mountpoints import find_device
from statsfs.filesystem.takeover import Predecessor
from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind
from statsfs.segments import Segment, publish
from tests.support.collecting import Producer
from tests.support.commands import STATSFS
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import (
    NOBODY,
    detach,
    is_mounted,
    run,
    serving,
)
from tests.support.prometheus_server import Job, fetch, free_port, scraping

pytestmark = [pytest.mark.mount, pytest.mark.root]


class AppStats(Stats):
    requests = u64(Aggregate.SUM)
    deepest = u64(Aggregate.MAX, kind=Kind.PEAK)


def count(segment: Segment[AppStats], number: int) -> None:
    """Have a producer of this process count."""
    segment.stats.requests += number


class Host:
    """A place for daemons: a mount point, a directory of segments, and all that was started.

    Attributes:
        stats, segments: those directories.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.stats = place / "stats"
        self.segments = place / "segments"
        self.segments.mkdir(0o755)
        self.daemons: list[subprocess.Popen[str]] = []

    def start(self, *options: str | Path, **environment: str) -> "subprocess.Popen[str]":
        """Start a daemon, and wait until it serves or has ended."""
        process = subprocess.Popen(
            [*STATSFS, "mount", self.stats, "--segments", self.segments, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.daemons.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == f"statsfs: mounted at {self.stats}\n", process.communicate()
        return process

    def replace(self, *options: str | Path, **environment: str) -> "subprocess.Popen[str]":
        """Have another daemon take over."""
        return self.start("--replace", *options, **environment)

    def try_to_replace(self, *options: str | Path, **environment: str) -> str:
        """Have a daemon take over that fails; return the one line that it says."""
        command = [*STATSFS, "mount", self.stats, "--replace", *options]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
            env={**os.environ, **environment},
        )
        assert (done.returncode, done.stdout) == (1, ""), done
        return done.stderr

    def read(self, name: str = "requests") -> int:
        """Read a total; -1 while there is none."""
        try:
            return int((self.stats / "app" / name).read_text())
        except FileNotFoundError:
            return -1

    def expect_replaced(self, process: "subprocess.Popen[str]") -> None:
        """Wait until a daemon that was replaced has ended well."""
        said, errors = process.communicate(timeout=DEADLINE)
        more = [line for line in errors.splitlines() if not line.endswith(" took over")]
        assert (process.returncode, more) == (0, [])
        assert said.endswith(f"statsfs: was replaced at {self.stats}\n")

    def end(self) -> None:
        """End the daemon that serves; it ends well, and unmounts."""
        process = self.daemons[-1]
        process.terminate()
        said, errors = process.communicate(timeout=DEADLINE)
        assert (process.returncode, errors) == (0, "")
        assert said.endswith(f"statsfs: unmounted {self.stats}\n")
        assert not is_mounted(self.stats)

    def clean_up(self) -> None:
        """Leave no process and no mount, whatever happened."""
        for process in self.daemons:
            process.kill()
            process.communicate()
        detach(self.stats)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host; at the end its daemon must end well."""
    host = Host(tmp_path)
    host.stats.mkdir()
    try:
        yield host
        if host.daemons and host.daemons[-1].poll() is None:
            host.end()
    finally:
        host.clean_up()


@contextlib.contextmanager
def counting(host: Host, path: str, number: int) -> Iterator[Producer]:
    """Have a process count; it is killed at the end."""
    producer = Producer(host.segments, path)
    try:
        producer.count(number)
        yield producer
    finally:
        producer.process.kill()
        producer.process.communicate()


# What is handed over


def test_what_is_handed_over(host: Host) -> None:
    """What the dead and the living counted, what was cleared, and the port."""
    port = free_port()
    old = host.start("--listen", str(port))
    with counting(host, "app/one", 5):
        wait_until(lambda: (host.stats / "app/one").exists(), "one")
    wait_until(lambda: not (host.stats / "app/one").exists(), "its end")
    with counting(host, "app/two", 7) as two:
        wait_until(lambda: (host.stats / "app/two").exists(), "two")
        (host.stats / "app/two/requests").write_text("0\n")
        two.count(20)
        assert host.read() == 25
        device = os.stat(host.stats).st_dev
        host.replace("--listen", str(port))
        assert os.stat(host.stats).st_dev != device
        assert host.read() == 25
        assert b"app_requests_total 25\n" in fetch(f"http://127.0.0.1:{port}/metrics")
        host.expect_replaced(old)
        two.count(1)
        assert host.read() == 26
    # It folds and records now.
    wait_until(lambda: not list(host.segments.glob("*.stats")), "the last fold")
    assert host.read() == 26
    host.end()
    host.start()
    assert host.read() == 26


def test_a_daemon_with_other_options(host: Host) -> None:
    """It does as it is told: another directory besides, no port, another root."""
    port = free_port()
    old = host.start("--listen", str(port))
    with counting(host, "app/one", 5):
        wait_until(lambda: (host.stats / "app/one").exists(), "one")
        (host.place / "more").mkdir(0o755)
        host.replace("--segments", host.place / "more", "--root", "app")
        host.expect_replaced(old)
        assert (host.stats / "one/requests").read_text() == "5\n"
        with pytest.raises(OSError, match="refused"):
            fetch(f"http://127.0.0.1:{port}/metrics")
        assert (host.place / "more/.collector").exists()


def test_what_was_made_is_removed_by_the_last(host: Host) -> None:
    """The directory that one daemon made is removed when the next one ends."""
    host.stats.rmdir()
    old = host.start("--create")
    host.replace("--create")
    host.expect_replaced(old)
    assert is_mounted(host.stats)
    host.end()
    assert not host.stats.exists()


# What is open


def test_what_is_open(host: Host) -> None:
    """A file of the old server is read and written as before; that ends when all is closed."""
    old = host.start()
    with counting(host, "app/one", 5) as one:
        file = host.stats / "app/requests"
        wait_until(file.exists, "one")
        with (
            open(file, "rb", 0) as reading,
            open(file, "wb", 0) as writing,
        ):
            directory = os.open(host.stats / "app", os.O_RDONLY)
            assert reading.read() == b"5\n"
            host.replace()
            one.count(3)
            assert os.pread(reading.fileno(), 10, 0) == b"8\n"
            # Who is born now is in both trees, and who dies is counted in both.
            with counting(host, "app/two", 100):
                wait_until(lambda: host.read() == 108, "two")
                wait_until(lambda: os.pread(reading.fileno(), 10, 0) == b"108\n", "two")
            wait_until(lambda: not list(host.segments.glob("app_two*.stats")), "its fold")
            assert os.pread(reading.fileno(), 10, 0) == b"108\n"
            wait_until(lambda: os.listdir(directory) == os.listdir(host.stats / "app"), "its fold")
            # A clear is the successor's, which is the one that records.
            writing.write(b"0\n")
            assert host.read() == 0
            with pytest.raises(OSError, match="Invalid argument"):
                writing.write(b"1\n")
            assert old.poll() is None
            os.close(directory)
    host.expect_replaced(old)


def test_a_clear_of_what_is_somebody_elses_now(host: Host) -> None:
    """What was written is passed on to the same file alone: of the same owner, and mode."""
    directory = host.segments / "app"
    directory.mkdir(0o755)
    os.chown(directory, NOBODY, NOBODY)
    file = host.stats / "app/one/requests"
    with publish("app/one", values=AppStats, directory=directory) as one:
        assert one.file is not None
        os.chown(one.file, NOBODY, NOBODY)
        count(one, 5)
        old = host.start()  # not before: it would refuse root's file there
        wait_until(file.exists, "one")
        with open(file, "wb", 0) as writing:
            host.replace()
            writing.write(b"0\n")
            assert file.read_text() == "0\n"
            os.chmod(one.file, 0o640)
            wait_until(lambda: file.stat().st_mode & 0o7777 == 0o640, "its new mode")
            with pytest.raises(OSError, match="Stale file handle"):
                writing.write(b"0\n")
    host.expect_replaced(old)


# Those who look


@pytest.mark.tools
def test_prometheus_misses_nothing(host: Host, tmp_path: Path) -> None:
    """A real one scrapes each second: it is answered within that, and no counter is reset."""
    port = free_port()
    host.start("--listen", str(port))
    with contextlib.ExitStack() as stack:
        stack.enter_context(counting(host, "app/one", 5))
        wait_until(lambda: (host.stats / "app/one").exists(), "one")
        job = Job(f"http://127.0.0.1:{port}/metrics", "1s")
        server = stack.enter_context(scraping(tmp_path, {"statsfs": job}))

        def scrapes() -> float:
            found = server.query("count_over_time(up[1h])")
            return next(iter(found.values()), 0.0)

        for number in range(4):
            with counting(host, f"app/dies{number}", 10):
                old = host.daemons[-1]
                host.replace("--listen", str(port))
                host.expect_replaced(old)
            before = scrapes()
            wait_until(lambda before=before: scrapes() > before + 1, "scrapes")  # type: ignore[misc]
        for query, expected in (
            ("min_over_time(up[1h])", 1),
            ("sum(resets(app_requests_total[1h]))", 0),
            ("max_over_time(app_requests_total[1h])", 45),
        ):
            wait_until(
                lambda query=query, expected=expected: (  # type: ignore[misc]
                    {*server.query(query).values()} == {expected}
                ),
                query,
            )


# Failures


def test_a_successor_that_fails(host: Host) -> None:
    """The old one goes on: it shows who comes, folds who goes, clears, and answers scrapes."""
    port = free_port()
    old = host.start("--listen", str(port))
    other = host.place / "other"
    taken = host.place / "taken"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        segments = ("--segments", host.segments)
        reasons: dict[str, tuple[str | Path, ...]] = {
            "is not": ("--listen", "192.0.2.1:1", *segments),
            "already in use": ("--listen", str(listener.getsockname()[1]), *segments),
            "has a collector already": (*segments, "--segments", taken),
            "cannot": ("--root", "nothing", *segments),
        }
        with contextlib.ExitStack() as stack:
            stack.callback(os.rmdir, other)
            other.mkdir()
            run(*STATSFS, "mount", other, "--segments", taken, "-b", "--log", host.place / "log")
            stack.callback(run, *STATSFS, "umount", other)
            for number, (why, options) in enumerate(reasons.items(), 1):
                said = host.try_to_replace(*options)
                assert said.startswith("statsfs: error: ")
                assert said.count("\n") == 1
                assert why in said or "could be the root" in said or "Cannot assign" in said
                with counting(host, f"app/number{number}", 10):
                    wait_until(lambda n=number: host.read() == 10 * n, "who came")  # type: ignore[misc]
                wait_until(lambda: not list(host.segments.glob("*.stats")), "the fold")
                text = f"app_requests_total {10 * number}\n".encode()
                assert text in fetch(f"http://127.0.0.1:{port}/metrics")
    (host.stats / "app/requests").write_text("0\n")
    assert host.read() == 0
    assert old.poll() is None
    old.terminate()
    said, errors = old.communicate(timeout=DEADLINE)
    assert errors.count("did not take over") == errors.count("\n")
    assert errors.count("\n") == len(reasons)


@pytest.mark.parametrize("steps", [("begin",), ("begin", "make_ready"), ("make_ready",)])
def test_a_successor_that_dies(steps: tuple[str, ...], host: Host) -> None:
    """However far it came: meanwhile clears wait, and then all is as before."""
    port = free_port()
    old = host.start("--listen", str(port))
    with counting(host, "app/one", 5):
        file = host.stats / "app/requests"
        wait_until(file.exists, "one")
        predecessor = Predecessor(str(host.stats), "daemon")
        for step in steps:
            getattr(predecessor, step)()
        clearing = subprocess.Popen(["sh", "-c", 'echo 0 > "$1"', "sh", file])
        with counting(host, "app/two", 7):
            predecessor.close()
            assert clearing.wait(DEADLINE) == 0
            wait_until(lambda: (host.stats / "app/two").exists(), "two")
        wait_until(lambda: not list(host.segments.glob("app_two*.stats")), "its fold")
        assert host.read() in (0, 7)  # cleared before two came, or after
        assert fetch(f"http://127.0.0.1:{port}/metrics")
    old.terminate()
    _, errors = old.communicate(timeout=DEADLINE)
    assert errors.count("\n") == 1
    assert "did not take over" in errors


def test_two_successors(host: Host) -> None:
    """One after the other, or one is refused; the path is served at every moment."""
    old = host.start()
    options: tuple[str | Path, ...] = ("--segments", host.segments, "--replace")
    logs = [host.place / "first", host.place / "second"]
    both = []
    for log in logs:
        with log.open("w") as said:
            command = [*STATSFS, "mount", host.stats, *options]
            both.append(subprocess.Popen(command, stdout=said, stderr=said, text=True))
    host.daemons += both

    def are_decided() -> bool:
        assert os.listdir(host.stats) == ["statsfs"]
        return all(log.read_text() for log in logs)

    wait_until(are_decided, "both")
    host.expect_replaced(old)
    # One was refused, or took over and was replaced: it ends by itself, before the other is told.
    wait_until(lambda: any(one.poll() is not None for one in both), "one of both")
    for one, log in zip(both, logs, strict=True):
        if one.poll() is None:
            one.terminate()
        # It took over and was unmounted, or was replaced as well; or it was refused.
        assert (one.wait(DEADLINE), log.read_text().count("\n")) in ((0, 2), (0, 3), (1, 1))
    assert not is_mounted(host.stats)


# Refusals


def refused(mountpoint: Path, *options: str | Path, wrapper: tuple[str, ...] = ()) -> str:
    """The reason in the one line in which `--replace` is refused."""
    done = run(*wrapper, *STATSFS, "mount", mountpoint, "--replace", *options, status=1)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"statsfs: error: {mountpoint}: "), done.stderr
    return done.stderr.removeprefix(f"statsfs: error: {mountpoint}: ")


def test_what_cannot_be_taken_over(tmp_path: Path) -> None:
    """Nothing, what is no statsfs, a dead one."""
    assert refused(tmp_path).startswith("nothing is mounted there to take over")
    stats = tmp_path / "stats"
    stats.mkdir()
    run("mount", "-t", "tmpfs", "none", stats)
    try:
        assert refused(stats) == "what is mounted there (tmpfs) is not a statsfs\n"
    finally:
        run("umount", stats)


def mount_as(user: int, path: Path) -> int:
    """Mount what looks like a statsfs of a user, which nobody serves; return its descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={device},rootmode=40000,user_id={user},group_id={user}".encode()
    mounted = libc.mount(b"statsfs", os.fsencode(path), b"fuse.statsfs", 6, data)
    assert mounted == 0, ctypes.get_errno()
    return device


def test_another_users_mount(tmp_path: Path) -> None:
    """Root does not take over what somebody else has mounted."""
    device = mount_as(NOBODY, tmp_path)
    try:
        assert refused(tmp_path) == f"it is user {NOBODY}'s; no other user can take it over\n"
    finally:
        os.close(device)
        detach(tmp_path)


def test_a_dead_mount(tmp_path: Path) -> None:
    """There is nobody to take over from."""
    device = mount_as(0, tmp_path)
    try:
        os.close(device)
        assert refused(tmp_path) == "its server is dead; mount without replace\n"
    finally:
        detach(tmp_path)


def test_a_programs_mount() -> None:
    """A daemon does not take over what a program has mounted, nor a program a daemon's mount."""
    with serving() as server:
        said = refused(server.mountpoint)
        assert said == f"process {server.pid} serves it, which is a program and no daemon\n"
        assert os.listdir(server.mountpoint) == []


def test_rights_are_lacking(host: Host) -> None:
    """Without CAP_SYS_ADMIN nothing happens."""
    old = host.start()
    wrapper = ("setpriv", "--bounding-set=-sys_admin")
    said = refused(host.stats, "--segments", host.segments, wrapper=wrapper)
    assert said == "taking over needs the right to mount (CAP_SYS_ADMIN)\n"
    assert old.poll() is None


def test_strangers(host: Host) -> None:
    """Another user who connects to the server is told nothing, and stops nobody."""
    old = host.start()
    # Servers of other tests may end meanwhile.
    device = find_device(str(host.stats))
    code = f"""
import os, socket
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
names = [line.split()[-1] for line in open("/proc/net/unix") if " @statsfs/{device}/" in line]
for name in names:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.settimeout(10)
        one.connect("\\0" + name[1:])
        print(one.recv(100))
"""
    said = run(sys.executable, "-c", code).stdout.splitlines()
    assert said
    assert {*said} == {"b''"}
    host.replace()
    host.expect_replaced(old)


def test_a_strangers_socket(host: Host) -> None:
    """Whoever has a socket with such a name is not asked, and hinders nobody."""
    old = host.start()
    status = os.stat(host.stats)
    name = f"statsfs/{os.major(status.st_dev)}:{os.minor(status.st_dev)}/0"
    code = f"""
import os, socket, sys
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
one.bind("\\0{name}")
one.listen(1)
print(flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        host.replace()
        host.expect_replaced(old)


def test_a_server_that_hangs(host: Host) -> None:
    """It is refused after some seconds, and the server goes on when it can."""
    old = host.start()
    old.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, old.pid, os.WSTOPPED | os.WNOWAIT)  # all of its threads
    try:
        with pytest.raises(MountError, match="does not answer"):
            Predecessor(str(host.stats), "daemon")
        # Nor does the command itself ask the mount for anything before, through links either.
        assert "does not answer" in host.try_to_replace("--segments", host.segments)
        link = host.place / "link"
        link.symlink_to("stats")
        options = ("--replace", "--segments", host.segments)
        assert "does not answer" in run(*STATSFS, "mount", link, *options, status=1).stderr
    finally:
        old.send_signal(signal.SIGCONT)
    host.replace()
    host.expect_replaced(old)


# The background, and systemd


def test_the_background(host: Host) -> None:
    """The command returns when the mount is the new one's."""
    old = host.start()
    log = host.place / "log"
    device = os.stat(host.stats).st_dev
    options = ("--segments", host.segments, "--replace", "-b", "--log", log)
    done = run(*STATSFS, "mount", host.stats, *options)
    assert (done.stdout, done.stderr) == (f"statsfs: mounted at {host.stats}\n", "")
    assert os.stat(host.stats).st_dev != device
    host.expect_replaced(old)
    run(*STATSFS, "umount", host.stats)
    wait_until(lambda: "unmounted" in log.read_text(), "the end")


def test_a_relative_directory(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the background the working directory is another, and the directory of segments is not."""
    monkeypatch.chdir(host.place)
    log = host.place / "log"
    options = ("--segments", "segments", "--log", str(log))
    command = (*STATSFS, "mount", "stats", "--background", *options)
    for done in (run(*command), run(*command, "--replace")):
        assert (done.stdout, done.stderr) == (f"statsfs: mounted at {host.stats}\n", "")
    run(*STATSFS, "umount", host.stats)
    wait_until(lambda: "unmounted" in log.read_text(), "the end")
    assert "was replaced" in log.read_text()


def test_systemd_is_told_who_serves(host: Host) -> None:
    """The old one says which process is the main one now, before it ends; the new one is ready."""
    path = host.place / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(DEADLINE)

        def hear() -> list[str]:
            return manager.recv(1000).decode().splitlines()

        ready = ["READY=1", f"STATUS=mounted at {host.stats}"]
        old = host.start(NOTIFY_SOCKET=str(path))
        assert hear() == ready
        # As ExecReload= does, without the socket of the service.
        new = host.replace()
        assert hear() == [f"MAINPID={new.pid}"]
        assert hear() == ready
        host.expect_replaced(old)
        # One that fails is not the main one any more.
        assert "could be the root" in host.try_to_replace(
            "--segments", host.segments, "--root", "nothing"
        )
        assert hear()[0].startswith("MAINPID=")
        assert hear() == [f"MAINPID={new.pid}"]
        new.terminate()
        assert hear() == ["STOPPING=1"]
        new.communicate(timeout=DEADLINE)
        manager.settimeout(0)
        with pytest.raises(BlockingIOError):
            manager.recv(1000)


def test_a_peak_is_kept(host: Host) -> None:
    """The largest of the dead and of the living."""
    old = host.start()
    with publish("app/one", values=AppStats, directory=host.segments) as one:
        one.stats.deepest = 9
        wait_until(lambda: (host.stats / "app/one").exists(), "one")
    wait_until(lambda: not (host.stats / "app/one").exists(), "its end")
    with publish("app/two", values=AppStats, directory=host.segments) as two:
        two.stats.deepest = 4
        wait_until(lambda: (host.stats / "app/two").exists(), "two")
        host.replace()
        host.expect_replaced(old)
        assert host.read("deepest") == 9
        (host.stats / "app/deepest").write_text("0\n")
        assert host.read("deepest") == 0
        two.stats.deepest = 3
        assert host.read("deepest") == 3


def test_a_daemon_that_is_told_to_end_while_it_is_replaced(host: Host) -> None:
    """It ends, and the successor is refused or serves; nothing is left."""
    old = host.start()
    predecessor = Predecessor(str(host.stats), "daemon")
    predecessor.begin()
    old.terminate()
    with contextlib.suppress(MountError):
        predecessor.make_ready()
    predecessor.close()
    assert old.wait(DEADLINE) == 0
    assert not is_mounted(host.stats)

"""`mount -t statsfs`, fstab and umount: the real mount(8), on a machine of one's own."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.cli.mount_helper import translate
from tests.support.deadlines import DEADLINE
from tests.support.machine import Machine, private_machine
from tests.support.mounts import NOBODY, run

pytestmark = [pytest.mark.mount, pytest.mark.root]

MOUNT = ("mount", "-t", "statsfs", "statsfs", "/run/stats", "-o")
STATSFS = str(Path(sys.executable).with_name("statsfs"))
# The log of the system is not there, which would be said on stderr.
LOG = "log=/run/log"


@pytest.fixture(scope="module")
def installed() -> Iterator[Machine]:
    """A machine on which mount(8) finds us."""
    with private_machine() as machine:
        machine.run(STATSFS, "install-mount-helper")
        yield machine


@pytest.fixture
def machine(
    installed: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    """That machine, where nothing is mounted before the test and nothing may be left by it."""
    monkeypatch.chdir(tmp_path)
    (installed.root / "run/log").unlink(missing_ok=True)
    (installed.root / "etc/fstab").write_text("")
    yield installed
    installed.wait_until_quiet()


def found(machine: Machine) -> str:
    """What is mounted, and how."""
    return machine.run("findmnt", "-n", "-o", "SOURCE,FSTYPE,OPTIONS", "/run/stats", status=None)


def test_mount_and_umount(machine: Machine) -> None:
    """It is there when mount(8) returns, without a word; plain umount(8) ends the daemon."""
    assert machine.run(*MOUNT, LOG) == ""
    assert found(machine).startswith("statsfs fuse.statsfs rw,nosuid,nodev,noexec,")
    assert "allow_other" in found(machine)
    assert os.listdir(machine.root / "run" / "stats") == ["statsfs"]
    (daemon,) = machine.processes("mount.statsfs")
    # It keeps nothing of its caller: no terminal, no group of processes, no directory, no pipe.
    assert os.getsid(daemon) == os.getpgid(daemon) == daemon
    assert os.readlink(f"/proc/{daemon}/cwd") == "/"
    ends = [os.readlink(f"/proc/{daemon}/fd/{number}") for number in range(3)]
    assert ends == ["/dev/null", "/run/log", "/run/log"]
    assert machine.run("umount", "/run/stats") == ""
    machine.wait_until_quiet()
    assert (machine.root / "run/log").read_text().endswith(": unmounted /run/stats\n")


@pytest.mark.parametrize("command", [("fusermount3", "-u"), (STATSFS, "umount")], ids=["u", "s"])
def test_other_ways_to_unmount(command: tuple[str, str], machine: Machine) -> None:
    """What unmounts a statsfs ends its daemon."""
    machine.run(*MOUNT, LOG)
    machine.run(*command, "/run/stats")
    machine.wait_until_quiet()


def test_fstab(machine: Machine) -> None:
    """A line of fstab is enough; `mount -a` twice does no harm, and `umount -a` ends it."""
    line = f"statsfs /run/stats statsfs {LOG},nofail,_netdev,x-systemd.after=a.service 0 0\n"
    (machine.root / "etc/fstab").write_text(line)
    assert machine.run("mount", "-a") == ""
    daemons = machine.processes("mount.statsfs")
    assert len(daemons) == 1
    assert "already mounted" in machine.run("mount", "-a", "-v")
    assert machine.processes("mount.statsfs") == daemons
    machine.run("umount", "-a", "-t", "fuse.statsfs")
    machine.wait_until_quiet()
    machine.run("mount", "/run/stats")
    machine.run("umount", "/run/stats")


def test_owners_and_read_only(machine: Machine) -> None:
    """Owners may be names; even root cannot clear a value in a read-only mount."""
    machine.run(*MOUNT, f"{LOG},uid={NOBODY},gid=daemon,ro,qmp=/run/vms/*.qmp,noallow_other")
    status = (machine.root / "run/stats/kvm").stat()
    assert (status.st_uid, status.st_gid) == (NOBODY, 1)
    assert found(machine).split()[2].startswith("ro,nosuid,nodev,noexec,")
    assert "allow_other" not in found(machine)
    script = "echo 0 > /run/stats/kvm/file"
    assert "Read-only file system" in machine.run("sh", "-c", script, status=None)
    machine.run("umount", "/run/stats")


def test_a_second_mount(machine: Machine) -> None:
    """Nothing is mounted over what is mounted."""
    machine.run(*MOUNT, LOG)
    assert "something is mounted there already" in machine.run(*MOUNT, LOG, status=32)
    machine.run("umount", "/run/stats")


def test_a_dead_mount(machine: Machine) -> None:
    """Where the daemon and the watcher were killed, the next mount clears what they left."""
    machine.run(*MOUNT, LOG)
    for word in ("statsfs-watcher", "mount.statsfs"):
        for process in machine.processes(word):
            os.kill(process, signal.SIGKILL)
    machine.wait_until_quiet()
    assert "connect" in machine.run("ls", "/run/stats", status=2)
    assert machine.run(*MOUNT, LOG) == ""
    machine.run("ls", "/run/stats")
    machine.run("umount", "/run/stats")
    assert found(machine) == ""


def test_mounting_again_at_once(machine: Machine) -> None:
    """The daemon that is about to end is waited for."""
    for _ in range(3):
        assert machine.run("sh", "-euc", f"{' '.join(MOUNT)} {LOG}; umount /run/stats") == ""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("statsfs", "/run/stats", "-o", "nonsense"), 1, "unknown option 'nonsense'"),
        (("statsfs", "/run/stats", "-o", "segments="), 1, "segments= needs a value"),
        (
            ("statsfs", "/run/stats", "-o", "log=stats.log"),
            1,
            "log=stats.log: not an absolute path",
        ),
        (
            ("statsfs", "/run/stats", "-o", "segments=/run/a:b"),
            1,
            "segments=b: not an absolute path",
        ),
        (("statsfs", "/run/stats", "-o", "qmp=./*.qmp"), 1, "qmp=./*.qmp: not an absolute path"),
        (("statsfs", "/run/stats", "-o", "switch_interval=0"), 1, "'--switch-interval'"),
        (("segments", "/run/stats"), 1, "segments=DIR"),
        (("statsfs", "/run/not-there"), 32, "/run/not-there: no such directory"),
        (("statsfs", "/run/stats", "-o", "log=/run/no/log"), 32, "--log: /run/no/log: No such"),
        (
            ("statsfs", "/run/stats", "-o", f"{LOG},segments=/run/no/dir"),
            32,
            "/run/no/dir: No such",
        ),
    ],
)
def test_refusals(arguments: tuple[str, ...], status: int, words: str, machine: Machine) -> None:
    """What goes wrong is one line, and an exit code of mount(8)'s."""
    said = machine.run("mount", "-t", "statsfs", *arguments, status=status)
    assert said.startswith("mount.statsfs: error: ")
    assert words in said
    assert said.count("\n") == 1
    assert found(machine) == ""


@pytest.mark.parametrize(("option", "what"), [("uid", "user"), ("gid", "group")])
def test_owners_that_nobody_knows(machine: Machine, option: str, what: str) -> None:
    """The helper says so itself, as mount(8) refuses them only since 2.41."""
    options = f"{option}=no-such"
    said = machine.run("/sbin/mount.statsfs", "statsfs", "/run/stats", "-o", options, status=1)
    assert said == f"mount.statsfs: error: option {options}: no such {what}\n"


def test_what_mount_passes_on(machine: Machine) -> None:
    """-f does nothing, -s overlooks what is unknown, -v says what was done."""
    assert machine.run(*MOUNT, LOG, "-f") == ""
    assert found(machine) == ""
    said = machine.run(*MOUNT, f"{LOG},nonsense", "-s", "-v", "-n")
    assert said == "statsfs: mounted at /run/stats\n"
    machine.run("umount", "/run/stats")


# Changes of what is mounted

LOAD = """
from statsfs import Source, Stats, counter

class AppStats(Stats):
    requests = counter("Requests")

STATS = AppStats(requests=5)
APP = Source("app")
APP.add_values(AppStats, STATS)

def setup(registry):
    registry.register(APP)
"""
CLEAR = ("sh", "-c", "echo 0 > /run/stats/app/requests")


@pytest.fixture
def mounted(machine: Machine) -> Iterator[Machine]:
    """The machine, on which something can be cleared."""
    Path("app.py").write_text(LOAD)
    Path(machine.root, "run/log").touch()
    machine.run(STATSFS, "mount", "-b", "--log", "/run/log", "--load", "app:setup", "/run/stats")
    yield machine
    machine.run("umount", "/run/stats")


def options_of(machine: Machine) -> set[str]:
    """How the mount is mounted, but for who may write."""
    return {*found(machine).split()[2].split(",")} - {"ro", "rw"}


@pytest.mark.parametrize(
    "command",
    [
        ("mount", "-o", "{}", "/run/stats"),
        ("mount", "-t", "statsfs", "-o", "{}", "statsfs", "/run/stats"),
        ("mount", "-t", "fuse.statsfs", "-o", "{}", "statsfs", "/run/stats"),
        ("mount.statsfs", "statsfs", "/run/stats", "-o", "{}"),
        ("mount", "-i", "-o", "{}", "/run/stats"),
        ("mount", "-o", "bind,{}", "/run/stats"),
    ],
    ids=["dir", "type", "fuse", "helper", "internal", "bind"],
)
def test_remount(command: tuple[str, ...], mounted: Machine) -> None:
    """Read-only nobody clears anything, and afterwards again; nothing else changes."""
    before = options_of(mounted)
    for _ in range(2):
        mounted.run(*(word.format("remount,ro") for word in command))
        assert found(mounted).split()[2].startswith("ro,")
        assert "Read-only file system" in mounted.run(*CLEAR, status=None)
        assert options_of(mounted) == before
        mounted.run(*(word.format("remount,rw") for word in command))
        assert found(mounted).split()[2].startswith("rw,")
        assert mounted.run(*CLEAR) == ""
        assert options_of(mounted) == before


def test_remount_of_a_mount_that_is_read_only(machine: Machine) -> None:
    """However it became so, it can be written again."""
    machine.run(*MOUNT, f"{LOG},ro")
    assert " ro," in found(machine)
    machine.run("mount.statsfs", "statsfs", "/run/stats", "-o", "remount")
    assert " ro," in found(machine)
    machine.run("mount", "-o", "remount,rw", "/run/stats")
    assert " rw," in found(machine)
    machine.run("umount", "/run/stats")


def test_remount_with_fstab(machine: Machine) -> None:
    """mount(8) passes its options as well, which do not change; others would have no effect."""
    line = (
        f"statsfs /run/stats statsfs nofail,x-systemd.automount,{LOG},segments=/run/a\\040b 0 0\n"
    )
    (machine.root / "etc/fstab").write_text(line)
    Path(machine.root, "run/a b").mkdir()
    machine.run("mount", "/run/stats")
    try:
        machine.run("mount", "-o", "remount,ro", "/run/stats")
        assert " ro," in found(machine)
        said = machine.run("mount", "-o", "remount,rw,segments=/run/b", "/run/stats", status=1)
        assert said.startswith("mount.statsfs: error: option 'segments=/run/b': remount changes")
        assert said.count("\n") == 1
        assert " ro," in found(machine)
        machine.run("mount", "-s", "-o", "remount,rw,segments=/run/b", "/run/stats")
        assert " rw," in found(machine)
    finally:
        machine.run("umount", "/run/stats")


def test_remounts_that_are_refused(mounted: Machine) -> None:
    """One line says why: it is in use, dead, not ours, or not there."""
    writer = mounted.start("sh", "-c", "exec 3> /run/stats/app/requests; echo open; read line")
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        said = mounted.run("mount", "-o", "remount,ro", "/run/stats", status=32)
        assert said == (
            "mount.statsfs: error: /run/stats: cannot be remounted: "
            "a file of it is open for writing; close it, then try again\n"
        )
        writer.kill()
    said = mounted.run("mount.statsfs", "statsfs", "/run", "-o", "remount,ro", status=32)
    assert said == "mount.statsfs: error: /run: no statsfs is mounted there\n"
    said = mounted.run("mount.statsfs", "statsfs", "-o", "remount,ro", status=1)
    assert "expected `statsfs`" in said


def test_the_type_in_the_table_of_mounts(machine: Machine) -> None:
    """`mount -t fuse.statsfs` is the same as `mount -t statsfs`."""
    machine.run("mount", "-t", "fuse.statsfs", "statsfs", "/run/stats", "-o", LOG)
    assert found(machine).startswith("statsfs fuse.statsfs ")
    machine.run("umount", "/run/stats")


def test_a_bind_mount(machine: Machine) -> None:
    """It can be mounted on if it is empty; and stays when that is unmounted."""
    run_directory = machine.root / "run"
    (run_directory / "other").mkdir(exist_ok=True)
    machine.run("mount", "--bind", "/run/other", "/run/stats")
    try:
        machine.run(*MOUNT, LOG)
        assert found(machine).count("fuse.statsfs") == 1
        assert "something is mounted there already (fuse" in machine.run(*MOUNT, LOG, status=32)
        machine.run("umount", "/run/stats")
        machine.wait_until_quiet()
        assert "fuse" not in found(machine)
        (run_directory / "other/file").touch()
        assert "the directory is not empty" in machine.run(*MOUNT, LOG, status=32)
        (run_directory / "other/file").unlink()
    finally:
        machine.run("umount", "/run/stats")


def test_where_the_current_directory_has_a_statsfs(machine: Machine) -> None:
    """mount(8) makes a path of the name then, which is not a directory of segments."""
    Path("statsfs").mkdir()
    machine.run(*MOUNT, LOG)
    machine.run("umount", "/run/stats")


def test_another_namespace(machine: Machine) -> None:
    """mount(8) can be told in which namespace it is to mount."""
    holder = str(machine.root).split("/")[2]
    helper = Path(STATSFS).with_name("mount.statsfs")
    run(helper, "statsfs", "/run/stats", "-N", holder, "-o", LOG)
    assert found(machine)
    assert not os.path.ismount("/run/stats")
    machine.run("umount", "/run/stats")


def test_wrong_calls(machine: Machine) -> None:
    """Called without mount(8), it says what it is for."""
    assert "Usage" in machine.run("mount.statsfs", "--help")
    assert "expected `statsfs`" in machine.run("mount.statsfs", status=1)
    assert "option -x" in machine.run("mount.statsfs", "-x", status=1)


def test_the_system_log(machine: Machine) -> None:
    """The later messages of a daemon are in the system's log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(machine.root / "run/system-log"))
        log.settimeout(DEADLINE)
        assert machine.run(*MOUNT, "rw") == ""
        (daemon,) = machine.processes("mount.statsfs")
        machine.run("umount", "/run/stats")
        message = log.recv(1000).decode()
    # daemon.info, as syslog(3) has it.
    assert message.startswith("<30>")
    assert message.removesuffix("\n").endswith(f"statsfs[{daemon}]: unmounted /run/stats")


def test_without_a_system_log(machine: Machine) -> None:
    """One line says that later messages may be lost, and how to keep them."""
    said = machine.run(*MOUNT, "rw")
    assert "no system log" in said
    assert "--log" in said
    assert said.count("\n") == 1
    machine.run("umount", "/run/stats")


# Options


@pytest.mark.parametrize(
    ("options", "translated"),
    [
        ("", ""),
        ("rw", "--no-read-only"),
        ("ro,noexec,auto,nofail,defaults,user=bob,x-systemd.automount,comment=a", "--read-only"),
        ("allow_other,uid=0,gid=12", "--allow-other --uid 0 --gid 12"),
        ("noallow_other,root=kvm,kvm", "--no-allow-other --root kvm --kvm"),
        ("segments=/run/a:/run/b,segments=/c", "--segments /run/a --segments /run/b --segments /c"),
        ("qmp=/run/*.qmp,listen=:9464", "--qmp /run/*.qmp --listen :9464"),
        ("switch_interval=0.001,log=/var/log/a", "--switch-interval 0.001 --log /var/log/a"),
    ],
)
def test_options(options: str, translated: str) -> None:
    """Each is one of `statsfs mount`, or asks for nothing."""
    assert translate(options) == translated.split()

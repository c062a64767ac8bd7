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
    assert os.listdir(machine.root / "run" / "stats") == []
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
    assert "remount is not supported" in machine.run(*MOUNT, "remount,ro", status=1)
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

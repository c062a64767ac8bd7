"""What is checked in the virtual machine of `make boot`, in order; each tells what it saw."""

import json
import shlex
from collections.abc import Callable
from typing import Final

from tests.boot.machine import Machine

__all__ = ["CHECKS"]

CHECKS: Final[dict[str, Callable[[Machine], str]]] = {}

_UNITS: Final = "/etc/systemd/system"
_PUBLISHER: Final = """\
import time
from statsfs import Aggregate, Stats, publish, u64

class AppStats(Stats):
    requests = u64(Aggregate.SUM)

segment = publish("app/worker", values=AppStats)
segment.stats.requests = 5
time.sleep(10_000)
"""
# Says how long it took from now on until a path was served again; nothing of it is slow to start.
_GAP: Final = """\
import os, signal, sys, time
os.kill(int(sys.argv[1]), signal.SIGKILL)
begun, path = time.monotonic(), "/run/stats/app/requests"
def served():
    try:
        with open(path) as file:
            return bool(file.read())
    except OSError:
        return False
while served(): pass
died = time.monotonic()
while not served(): time.sleep(0.001)
print(time.monotonic() - died)
"""
_PID: Final = "$(systemctl show -p MainPID --value statsfs)"


def _check(function: Callable[[Machine], str]) -> Callable[[Machine], str]:
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


def _do(machine: Machine, command: str, timeout: float = 100.0) -> str:
    # What must succeed.
    answer = machine.run(command, timeout)
    if answer.status:
        machine_says = machine.run("journalctl -b -n 15 --no-pager -o cat").output
        raise AssertionError(f"{command!r}: {answer.status}: {answer.output}\n{machine_says}")
    assert answer.status == 0, f"{command!r}: not within {timeout} s: {answer.output}"
    return answer.output


def _wait(machine: Machine, condition: str, timeout: float = 60.0) -> float:
    # Until a command succeeds; returns how long that took.
    script = f"until {condition}; do sleep 0.05; done >/dev/null 2>&1"
    answer = machine.run(script, timeout)
    assert answer.status == 0, f"{condition!r}: not within {timeout} s"
    return answer.seconds


def _write(machine: Machine, path: str, text: str) -> None:
    directory = path.rpartition("/")[0]
    _do(machine, f"mkdir -p {directory}; printf %s {shlex.quote(text)} >{path}")


def _change_unit(machine: Machine, settings: str, unit: str = "statsfs.service") -> None:
    # Until the next change; "" is the unit as it is shipped.
    path = f"{_UNITS}/{unit}.d/check.conf"
    _write(machine, path, settings)
    _do(machine, f"[ -s {path} ] || rm {path}; systemctl daemon-reload")


def _served(path: str = "/run/stats") -> str:
    return f"stat -f -c %T {path} | grep -q fuse"


def _said(machine: Machine, since: str) -> str:
    return _do(machine, f"journalctl -u statsfs -o cat --no-pager --since {since!r}")


def _now(machine: Machine) -> str:
    return _do(machine, "date '+%F %T'")


# The service


@_check
def the_unit_starts(machine: Machine) -> str:
    _do(machine, f"cp /srv/statsfs/examples/statsfs.service {_UNITS}/ && systemctl daemon-reload")
    _do(machine, "systemctl enable --now statsfs")
    assert _do(machine, f"readlink /proc/1/ns/mnt /proc/{_PID}/ns/mnt | sort -u | wc -l") == "1"
    names = ("DevicePolicy", "MemoryDenyWriteExecute", "ProtectClock", "ProtectHostname")
    shown = _do(machine, f"systemctl show -p {','.join(names)} statsfs").split()
    assert sorted(shown) == [
        "DevicePolicy=closed",
        *("MemoryDenyWriteExecute=yes", "ProtectClock=yes", "ProtectHostname=yes"),
    ], shown
    assert _do(machine, "findmnt -n -o FSTYPE /run/stats") == "fuse.statsfs"
    return "mounted in the namespace of the host"


@_check
def a_publisher_with_a_dynamic_user(machine: Machine) -> str:
    _write(machine, "/srv/publisher.py", _PUBLISHER)
    drop_in = _do(machine, "cat /srv/statsfs/examples/publisher.conf")
    command = "ExecStart=/opt/statsfs/bin/python /srv/publisher.py"
    _write(machine, f"{_UNITS}/app.service", f"{drop_in}\n{command}\n")
    _change_unit(machine, "[Service]\nDynamicUser=yes\n", "app.service")
    _do(machine, "systemctl start app")
    seconds = _wait(machine, "grep -qx 5 /run/stats/app/worker/requests")
    assert _do(machine, "readlink /run/statsfs/app") == "../private/statsfs/app"
    user = _do(machine, "stat -c %u /run/stats/app")
    assert int(user) >= 61184, user
    return f"shown after {seconds:.1f} s, as user {user}'s"


@_check
def its_user_becomes_another(machine: Machine) -> str:
    before = _do(machine, "stat -c %u /run/stats/app")
    _change_unit(machine, "[Service]\nUser=plain\n", "app.service")
    _do(machine, "systemctl restart app")
    after = _do(machine, "id -u plain")
    _wait(machine, f"[ $(stat -c %u /run/stats/app) = {after} ]")
    _wait(machine, "grep -qx 10 /run/stats/app/requests")
    clear = "sh -c 'echo 0 >/run/stats/app/requests'"
    as_user = "setpriv --clear-groups --regid={0} --reuid={0}"
    answer = machine.run(f"{as_user.format(before)} {clear}")
    assert "Permission denied" in answer.output, answer
    _do(machine, f"{as_user.format(after)} {clear}")
    assert _do(machine, "cat /run/stats/app/requests") == "0"
    return f"user {before} cannot clear any more, {after} can"


@_check
def a_restart_after_SIGSTOP(machine: Machine) -> str:
    answers = [machine.run(f"kill -STOP {_PID}; systemctl restart statsfs", 200) for _ in range(4)]
    assert [answer.status for answer in answers] == [0, 0, 0, 0], answers
    slowest = max(answer.seconds for answer in answers)
    assert slowest < 40, f"{slowest:.1f} s"
    plain = machine.run("systemctl restart statsfs", 200).seconds
    return f"{slowest:.1f} s at most of four; without it {plain:.1f} s"


@_check
def a_killed_daemon(machine: Machine) -> str:
    _write(machine, "/srv/gap.py", _GAP)
    _do(machine, "systemctl restart app; sleep 1")
    _wait(machine, "test -e /run/stats/app/worker/requests")
    gaps = [float(_do(machine, f"python3 /srv/gap.py {_PID}")) for _ in range(3)]
    start = machine.run("systemctl restart statsfs").seconds
    shown = ", ".join(f"{gap:.1f}" for gap in gaps)
    return f"not served for {shown} s; a restart takes {start:.1f} s"


@_check
def a_killed_control_group_eight_times(machine: Machine) -> str:
    for _ in range(8):
        _wait(machine, f"systemctl is-active -q statsfs && {_served()}")
        _do(machine, "systemctl kill -s KILL statsfs")
        _wait(machine, "! systemctl is-active -q statsfs")
    seconds = _wait(machine, f"systemctl is-active -q statsfs && {_served()}")
    _wait(machine, "test -e /run/stats/app/worker/requests")
    count = _do(machine, "systemctl show -p NRestarts --value statsfs")
    return f"served again after {seconds:.1f} s, the {count}th time"


@_check
def what_is_dead_is_cleared(machine: Machine) -> str:
    _change_unit(machine, "[Service]\nRestart=no\n")
    _do(machine, "systemctl kill -s KILL statsfs")
    _wait(machine, "systemctl is-failed -q statsfs")
    left = machine.run("grep -c fuse.statsfs /proc/self/mountinfo").output
    assert left == "0", left
    _change_unit(machine, "")
    _do(machine, "systemctl start statsfs")
    return "no mount is left where nothing is started again"


@_check
def an_unmount_by_others(machine: Machine) -> str:
    since = _now(machine)
    _do(machine, "umount /run/stats")
    seconds = _wait(machine, f"systemctl is-active -q statsfs && {_served()}")
    assert "unmounted by somebody else" in _said(machine, since)
    return f"served again after {seconds:.1f} s"


@_check
def the_watchdog(machine: Machine) -> str:
    _change_unit(machine, "[Service]\nWatchdogSec=4\nTimeoutAbortSec=1\n")
    _do(machine, "systemctl restart statsfs")
    before = _do(machine, f"sleep 10; echo {_PID}")
    since = _now(machine)
    _do(machine, f"kill -STOP {before}")
    seconds = _wait(machine, f"[ {_PID} != {before} ] && systemctl is-active -q statsfs")
    assert "Watchdog timeout" in _said(machine, since)
    _change_unit(machine, "")
    _do(machine, "systemctl restart statsfs")
    return f"it lives while it serves; stopped, it is another after {seconds:.1f} s"


@_check
def settings_that_hide_the_mount(machine: Machine) -> str:
    settings = ("ProtectSystem=yes", "ProtectHome=yes", "PrivateTmp=yes", "MountFlags=slave")
    for setting in settings:
        _change_unit(machine, f"[Service]\nRestart=no\n{setting}\n")
        since = _now(machine)
        answer = machine.run("systemctl restart statsfs")
        assert answer.status, f"{setting}: it starts"
        said = _said(machine, since)
        assert said.count("statsfs: error: /run/stats: the host would not see the mount") == 1, said
        assert "statsfs: mounted" not in said, said
    _change_unit(machine, "")
    _do(machine, "systemctl restart statsfs")
    return f"{', '.join(settings)}: each fails with one line"


@_check
def priorities_in_the_journal(machine: Machine) -> str:
    since = _now(machine)
    _do(machine, "mkfifo /run/statsfs/.pipe; mv /run/statsfs/.pipe /run/statsfs/pipe.stats")
    fields = f"journalctl -u statsfs -o json --no-pager --since {since!r}"
    _wait(machine, f"{fields} | grep -q 'pipe.stats is refused'")
    _do(machine, "rm /run/statsfs/pipe.stats; umount /run/stats")
    _wait(machine, f"{fields} | grep -q 'by somebody else'")
    lines = [json.loads(line) for line in _do(machine, fields).splitlines()]
    priorities = {line["MESSAGE"]: line["PRIORITY"] for line in lines}
    found = {
        word: next(number for text, number in priorities.items() if word in text)
        for word in ("refused", "by somebody else")
    }
    assert found == {"refused": "4", "by somebody else": "3"}, found
    _wait(machine, f"systemctl is-active -q statsfs && {_served()}")
    return "a refusal is a warning, an error is an error"


# mount(8)


@_check
def mount_and_remount(machine: Machine) -> str:
    _do(machine, "statsfs install-mount-helper; mkdir -p /run/s1 /run/a")
    for kind in ("statsfs", "fuse.statsfs"):
        _do(machine, f"mount -t {kind} statsfs /run/s1 -o segments=/run/a")
        for change in ("ro", "rw", "ro"):
            _do(machine, f"mount -o remount,{change} /run/s1")
            options = _do(machine, "findmnt -n -o OPTIONS /run/s1").split(",")
            assert options[:4] == [change, "nosuid", "nodev", "noexec"], options
        _do(machine, "umount /run/s1")
    answer = machine.run("mount -o remount,ro /run/s1")
    assert answer.status, answer
    _do(machine, "mount --bind /run/a /run/s1 && rm -rf /run/a/.[a-z]*")
    _do(machine, "mount -t statsfs statsfs /run/s1 -o segments=/run/b && umount /run/s1")
    _do(machine, "umount /run/s1")
    return "by either type, ro and rw, and on a bind mount"


@_check
def a_mount_unit(machine: Machine) -> str:
    text = "[Mount]\nWhat=statsfs\nWhere=/run/s2\nType=statsfs\nOptions=segments=/run/a\n"
    _write(machine, f"{_UNITS}/run-s2.mount", text)
    _do(machine, f"systemctl daemon-reload; systemctl start run-s2.mount; {_served('/run/s2')}")
    _do(machine, "systemctl stop run-s2.mount")
    _wait(machine, "! pgrep -f '^[^ ]*python.* statsfs /run/s2'")
    assert machine.run("grep -c ' /run/s2 ' /proc/self/mountinfo").output == "0"
    return "starts and stops"


@_check
def an_automount_unit(machine: Machine) -> str:
    text = "[Automount]\nWhere=/run/s2\nTimeoutIdleSec=3\n"
    _write(machine, f"{_UNITS}/run-s2.automount", text)
    _do(machine, "systemctl daemon-reload; systemctl start run-s2.automount")
    seconds = []
    # The table alone: to look at the directory is to use it.
    only_autofs = "grep -c ' /run/s2 ' /proc/self/mountinfo | grep -qx 1"
    for _ in range(2):
        _do(machine, only_autofs)
        answer = machine.run(f"ls /run/s2; {_served('/run/s2')}", 60)
        assert answer.status == 0, answer
        seconds.append(answer.seconds)
        # After 3 s in which nobody uses it, it is unmounted; the next use mounts it again.
        _wait(machine, only_autofs)
    _do(machine, "systemctl stop run-s2.automount")
    return f"mounted by the first use after {seconds[0]:.1f} s, by a later one {seconds[1]:.1f} s"


@_check
def fstab_with_an_automount(machine: Machine) -> str:
    options = "nofail,x-systemd.automount,X-mount.mkdir,segments=/run/a"
    _do(machine, f"echo 'statsfs /run/s3 statsfs {options} 0 0' >>/etc/fstab")
    _do(machine, "echo 'statsfs /srv/s4 statsfs nofail,segments=/srv/a 0 0' >>/etc/fstab")
    _do(machine, "mkdir -p /srv/s4 /srv/a")
    stopped, _ = machine.reboot()
    _wait(machine, f"systemctl is-active -q statsfs && {_served()}", 120)
    _wait(machine, f"{_served('/srv/s4')}", 120)
    answer = machine.run(f"mkdir -p /run/a; ls /run/s3; {_served('/run/s3')}", 60)
    assert answer.status == 0, answer
    return f"mounted after a boot in {answer.seconds:.1f} s; a reboot stopped in {stopped:.1f} s"


@_check
def a_reboot_with_a_mount_that_is_held(machine: Machine) -> str:
    holder = "cd /srv/s4; exec 3</srv/s4/.stats.json; exec sleep infinity"
    _do(machine, f"systemd-run --unit=holder -p DefaultDependencies=no sh -c '{holder}'")
    _wait(machine, "fuser -m /srv/s4")
    seconds, _ = machine.reboot()
    assert seconds < 60, f"{seconds:.1f} s"
    return f"stopped in {seconds:.1f} s"

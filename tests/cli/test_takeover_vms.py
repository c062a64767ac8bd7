"""`statsfs mount --replace` of daemons that show VMs: real guests and QEMUs, and a reader."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from statsfs.demo.real_kvm import RealKvm, RealVm
from statsfs.filesystem.takeover import Predecessor
from statsfs.tree.registry import Registry
from tests.support.commands import STATSFS
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.kvm_mounts import has_counted, number
from tests.support.mounts import detach, is_mounted
from tests.support.prometheus_server import fetch, free_port
from tests.support.qemus import WITHOUT_BPF, find_qemu, running
from tests.support.repeating import repeating

pytestmark = [
    pytest.mark.mount,
    pytest.mark.root,
    pytest.mark.kvm,
    pytest.mark.host,
    pytest.mark.alone,  # the totals are of all VMs of the host
]

# More exits than the VMs of other tests end with meanwhile.
MANY = 30_000
# What the kernel may have for one exit: an interrupt is one more.
EXITS = range(1, 10)


class Daemons:
    """Daemons one after the other, with the same options.

    Attributes:
        stats: the mount point.
    """

    def __init__(self, place: Path, options: Sequence[str]) -> None:
        self.stats = place / "stats"
        self.stats.mkdir()
        self._place = place
        self._options = options
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *options: str, command: Sequence[str] = STATSFS) -> "subprocess.Popen[str]":
        """Start one, and wait until it serves."""
        log = self._place / f"log{len(self._started)}"
        with log.open("w") as said:
            process = subprocess.Popen(
                [*command, "mount", self.stats, *self._options, *options],
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        self._started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("statsfs: mounted at "), log.read_text()
        return process

    def replace(self, command: Sequence[str] = STATSFS) -> None:
        """Have another one take over; the old one ends well."""
        old = self._started[-1]
        self.start("--replace", command=command)
        assert old.wait(DEADLINE) == 0

    def said(self, which: int = -1) -> str:
        """The log of one."""
        which %= len(self._started)
        return (self._place / f"log{which}").read_text()

    def get(self, path: str) -> int:
        """A number in `kvm`."""
        return int((self.stats / "kvm" / path).read_text())

    def clear(self, path: str) -> None:
        """Clear a file in `kvm`."""
        (self.stats / "kvm" / path).write_text("0\n")

    def wait_for(self, name: str, *, there: bool = True) -> None:
        """Wait for a VM, or its end."""
        wait_until(lambda: (self.stats / "kvm" / name).exists() is there, name)

    @property
    def retained(self) -> int:
        """The exits of VMs that ended: what the total has besides the VMs."""
        whole = shown_below(self.stats / "kvm")
        return whole["exits"] - sum(exits for name, exits in whole.items() if name != "exits")

    def end(self) -> None:
        """End the last one, well."""
        self._started[-1].terminate()
        assert self._started[-1].wait(DEADLINE) == 0
        assert not is_mounted(self.stats)

    def clean_up(self) -> None:
        """Leave nothing."""
        for process in self._started:
            process.kill()
            process.communicate()
        detach(self.stats)


def shown_below(kvm: Path) -> dict[str, int]:
    """The exits of `kvm` and of each VM, at one moment."""
    view = json.loads((kvm / ".stats.json").read_text())
    vms = {name: one["values"]["exits"] for name, one in view["subordinates"].items()}
    return {"exits": view["values"]["exits"], **vms}


@contextlib.contextmanager
def daemons(place: Path, *options: str) -> Iterator[Daemons]:
    """Daemons; the last one must end well."""
    made = Daemons(place, options)
    try:
        yield made
        made.end()
    finally:
        made.clean_up()


@pytest.fixture
def guests() -> Iterator[RealKvm]:
    """VMs of this process, which run when a test says so."""
    with RealKvm(Registry(), rate=0) as kvm:
        yield kvm


@contextlib.contextmanager
def never_falling(made: Daemons, *paths: str, patient: bool = False) -> Iterator[None]:
    """Read files all the time: none fails, and no number is less than before.

    Patient, it may be that there are no data: a QEMU that is slow to answer a new client.
    """
    most = dict.fromkeys(paths, 0)
    wrong: list[object] = []

    def read() -> None:
        for path, before in most.items():
            now = number(made.stats / "kvm" / path)
            if patient and now == "ENODATA":
                continue
            if isinstance(now, str) or now < before:
                wrong.append((path, before, now))
            else:
                most[path] = now

    with repeating(read, 0.001):
        yield
    assert wrong == []


def make(guests: RealKvm, exits: int, vcpus: int = 1) -> RealVm:
    """A VM whose first vCPU made so many exits."""
    vm = guests.create_vm(vcpus)
    vm.vcpus[0].make_exits(exits)
    return vm


def test_vms_before_during_and_after(guests: RealKvm, tmp_path: Path) -> None:
    """Of VMs that end at any moment all is counted, once, for scrapes too; clears are as they were.

    Three daemons take over, one after the other.
    """
    port = free_port()
    with daemons(tmp_path, "--kvm", "--listen", str(port)) as made:
        living, before = make(guests, 500, 2), make(guests, MANY)
        made.start()
        for vm in (living, before):
            made.wait_for(vm.name)
        guests.destroy_vm(before)
        made.wait_for(before.name, there=False)
        made.clear(f"{living.name}/vcpu0/exits")
        made.clear(f"{living.name}/halt_exits")
        retained = made.retained
        assert retained >= MANY
        ending: list[threading.Thread] = []
        with never_falling(made, "exits", "halt_exits"):
            for turn in range(3):
                for delay in (0.2, 0.5, 0.8, 1.1):
                    vm = make(guests, 100)
                    ending.append(threading.Timer(delay, guests.destroy_vm, [vm]))
                    ending[-1].start()
                made.replace()
                assert made.get(f"{living.name}/vcpu0/exits") == 0, turn
                assert made.get(f"{living.name}/halt_exits") == 0
                assert (made.stats / "kvm" / living.name / "vcpu1").is_dir()
                assert (
                    f'kvm_exits_total{{vcpu="vcpu0",vm="{living.name}"}} 0\n'
                    in fetch(f"http://127.0.0.1:{port}/metrics").decode()
                )
            for thread in ending:
                thread.join()
            after = make(guests, MANY)
            made.wait_for(after.name)
            # All of them are read: of what follows the last pass before its end nothing is known.
            wait_until(lambda: made.get(f"{after.name}/exits") >= MANY, "the exits")
            guests.destroy_vm(after)
            made.wait_for(after.name, there=False)
        ended = MANY + len(ending) * 100
        # Of a VM that ends before anything reads it nothing is known.
        assert retained + MANY <= made.retained < retained + ended + MANY // 2
        made.clear("exits")
        made.replace()
        assert made.retained < MANY // 2


def test_a_clear_while_it_is_decided(guests: RealKvm, tmp_path: Path) -> None:
    """It waits; the old daemon makes it if the successor dies. Nothing is lost."""
    with daemons(tmp_path, "--kvm") as made:
        vm = make(guests, 500)
        made.start()
        made.wait_for(vm.name)
        for steps in (("begin",), ("begin", "make_ready")):
            before = made.get(f"{vm.name}/exits")
            vm.vcpus[0].make_exits(100)
            # A number of 20 ms before is as good to readers.
            wait_until(lambda: made.get(f"{vm.name}/exits") >= before + 100, "the exits")  # noqa: B023
            predecessor = Predecessor(str(made.stats), "daemon")
            for step in steps:
                getattr(predecessor, step)()
            file = made.stats / "kvm" / vm.name / "exits"
            clearing = subprocess.Popen(["sh", "-c", 'echo 0 > "$1"', "sh", file])
            if "make_ready" in steps:
                with pytest.raises(subprocess.TimeoutExpired):
                    clearing.wait(0.3)
            predecessor.close()
            assert clearing.wait(DEADLINE) == 0
            assert made.get(f"{vm.name}/exits") == 0
            vm.vcpus[0].make_exits(1)
            wait_until(lambda: made.get(f"{vm.name}/exits"), "the exit")
            assert made.get(f"{vm.name}/exits") in EXITS
        later = make(guests, 10)
        made.wait_for(later.name)
        made.replace()
        assert made.get(f"{vm.name}/exits") in EXITS


def test_open_files(guests: RealKvm, tmp_path: Path) -> None:
    """The old daemon reads on, and a clear of its file is passed on to the new one."""
    with daemons(tmp_path, "--kvm") as made:
        vm = make(guests, 500)
        old = made.start()
        made.wait_for(vm.name)
        path = made.stats / "kvm" / vm.name / "exits"
        with open(path, "rb", 0) as reading, open(path, "wb", 0) as writing:
            made.start("--replace")
            vm.vcpus[0].make_exits(100)
            wait_until(lambda: int(os.pread(reading.fileno(), 100, 0)) >= 600, "its number")
            writing.write(b"0\n")
            assert path.read_text() == "0\n"
        assert old.wait(DEADLINE) == 0


def test_a_daemon_that_is_killed_while_it_takes_over(guests: RealKvm, tmp_path: Path) -> None:
    """At whatever moment: the old one goes on with its numbers, or the new one has them."""
    with daemons(tmp_path, "--kvm") as made:
        vm, ended = make(guests, 500), make(guests, MANY)
        made.start()
        for one in (vm, ended):
            made.wait_for(one.name)
        guests.destroy_vm(ended)
        made.wait_for(ended.name, there=False)
        made.clear(f"{vm.name}/exits")
        said = "taking"
        code = f"""
import os, sys
from statsfs.cli import main
from statsfs.kvm.handing_over import KvmHandover
begin = KvmHandover.begin
def die(self, kept):
    begin(self, kept)
    print({said!r}, flush=True)
    os.kill(os.getpid(), 9)
KvmHandover.begin = die
sys.exit(main())
"""
        with never_falling(made, "exits"):
            for _ in range(2):
                done = subprocess.run(
                    [sys.executable, "-c", code, "mount", made.stats, "--kvm", "--replace"],
                    capture_output=True,
                    text=True,
                    timeout=DEADLINE,
                    check=False,
                )
                assert (done.returncode, done.stdout) == (-9, f"{said}\n")
                assert made.get(f"{vm.name}/exits") == 0
            wait_until(lambda: made.said().count("did not take over") == 2, "its end")
            made.replace()
        assert made.get(f"{vm.name}/exits") == 0
        assert made.retained >= MANY


# Other releases

OLD_SERVER = """
import sys
from statsfs.cli import main, takeover
stop = takeover.DaemonHandover.stop
def stop_only(self, successor, wish):
    self.vms = None
    stop(self, successor, {})
    return {}, []
takeover.DaemonHandover.stop = stop_only
sys.exit(main())
"""
OLD_SUCCESSOR = """
import sys
from statsfs.cli import main, takeover
ask, make_ready = takeover.Predecessor.make_ready, takeover.Inheritance.make_ready
def make_ready_without_vms(self, vms):
    make_ready(self)
    vms.begin(None)
takeover.Predecessor.make_ready = lambda self, **wish: ask(self)
takeover.Inheritance.make_ready = make_ready_without_vms
sys.exit(main())
"""
OTHER_VERSION = """
import sys
from statsfs.cli import main
from statsfs.kvm import kept
kept.VERSION = 99
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (OLD_SERVER, None, "process \\d+ is of another release"),
        (None, OLD_SUCCESSOR, "another release"),
        (OTHER_VERSION, None, "version 99, not 1"),
        (None, OTHER_VERSION, "version 1, not 99"),
    ],
)
def test_another_release(
    first: str | None, second: str | None, why: str, guests: RealKvm, tmp_path: Path
) -> None:
    """It takes over without, and one line says so; numbers are those of a start."""
    commands = [
        STATSFS if code is None else (sys.executable, "-c", code) for code in (first, second)
    ]
    with daemons(tmp_path, "--kvm") as made:
        vm, ended = make(guests, 500), make(guests, MANY)
        made.start(command=commands[0])
        for one in (vm, ended):
            made.wait_for(one.name)
        guests.destroy_vm(ended)
        made.wait_for(ended.name, there=False)
        made.clear(f"{vm.name}/exits")
        made.replace(command=commands[1])

        def find_lines() -> list[str]:
            lines = [*made.said(0).splitlines(), *made.said(1).splitlines()]
            return [line for line in lines if "taken over without" in line]

        wait_until(find_lines, "the line")  # the old daemon tells when the new one serves
        (line,) = find_lines()
        assert re.search(why, line), line
        assert 500 <= made.get(f"{vm.name}/exits") < 600
        assert made.retained < MANY


def test_a_successor_without_vms(guests: RealKvm, tmp_path: Path) -> None:
    """And one with VMs after one without: nothing is said."""
    with daemons(tmp_path) as made:
        segments = tmp_path / "segments"
        made.start("--kvm")
        made.start("--segments", str(segments), "--replace")
        assert not (made.stats / "kvm").exists()
        made.start("--kvm", "--replace")
        assert made.get("exits") >= 0
        for which in range(3):
            assert "taken over without" not in made.said(which)


# QEMUs


@pytest.mark.parametrize(
    ("version", "way"), [("installed", "qmp"), ("debian13", "qmp"), ("debian13", "descriptors")]
)
def test_qemus(version: str, way: str, tmp_path: Path) -> None:
    """Read by QMP, and by their descriptors: clears stay, and files are there at each moment."""
    program = find_qemu(version)
    vms = tmp_path / "vms"
    vms.mkdir(mode=0o700)
    command = STATSFS if way == "qmp" else (sys.executable, "-c", WITHOUT_BPF)
    options = ["--qmp", str(vms / "*.qmp")] if way == "qmp" else ["--kvm"]
    with (
        running(vms / "a.qmp", program) as vm,
        running(vms / "b.qmp", program) as ending,
        daemons(tmp_path, *options) as made,
    ):
        made.start(command=command)
        file = f"{vm.name}/vcpu0/exits"
        for one in (vm, ending):
            wait_until(lambda: number(made.stats / "kvm" / one.name / "vcpu0/exits") not in (0, 1))  # noqa: B023
            wait_until(lambda: has_counted(made.stats / "kvm" / one.name / "exits"))  # noqa: B023
            one.execute("stop")
        made.clear(file)
        made.clear(f"{vm.name}/vcpu1/halt_wait_hist")
        low = made.get(file)
        totals = [] if way == "qmp" else ["exits"]
        with never_falling(made, *totals, file, patient=way == "qmp"):
            for _ in range(3):
                made.replace(command=command)
                wait_until(lambda: number(made.stats / "kvm" / file) != "ENODATA")
                # QEMU 7.2 makes some exits to answer.
                assert low <= made.get(file) < low + 300
        ending.end()
        made.wait_for(ending.name, there=False)
        exits = made.get("exits")
        made.replace(command=command)
        assert exits <= made.get("exits") < exits + 1000


def test_a_qemu_that_is_stopped(tmp_path: Path) -> None:
    """It does not answer the new daemon: its files have no data, and totals what it had."""
    vms = tmp_path / "vms"
    vms.mkdir(mode=0o700)
    with (
        running(vms / "a.qmp") as vm,
        daemons(tmp_path, "--qmp", str(vms / "*.qmp")) as made,
    ):
        made.start()
        path = made.stats / "kvm" / vm.name / "exits"
        wait_until(lambda: has_counted(path))
        vm.execute("stop")
        made.clear(f"{vm.name}/vcpu0/exits")
        exits = made.get("exits")
        vm.send_signal(signal.SIGSTOP)
        made.replace()
        assert number(path) == "ENODATA"
        assert number(made.stats / "kvm" / vm.name / "vcpu0/exits") == "ENODATA"
        total = made.get("exits")
        assert exits <= total < exits + 100
        vm.send_signal(signal.SIGCONT)
        wait_until(lambda: isinstance(number(path), int), "its answer")
        assert total <= made.get("exits") < total + 300
        vm.send_signal(signal.SIGSTOP)
        made.replace()
        vm.end()
        made.wait_for(vm.name, there=False)
        assert made.get("exits") == 0

"""`statsfs demo --real`: real guests, real mounts, real signals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import assert_error, is_mounted, on_terminal, run, serving
from tests.support.deadlines import DEADLINE, wait_until

KVM = pytest.mark.kvm


@KVM
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_real_guests(number: signal.Signals, tmp_path: Path) -> None:
    """Each vCPU is there and makes exits; a signal ends all without a trace."""
    mountpoint = tmp_path / "stats"
    with serving("demo", mountpoint, "--real", "--vms", "2", "--vcpus", "3") as server:
        vms = sorted(path.name for path in (mountpoint / "kvm").iterdir() if path.is_dir())
        assert len(vms) == 2
        for vm in vms:
            _, fd = vm.split("-")
            link = f"/proc/{server.process.pid}/fd/{fd}"
            assert os.readlink(link) == "anon_inode:kvm-vm"
        halts = [f"kvm/{vm}/vcpu{number}/halt_exits" for vm in vms for number in range(3)]
        wait_until(lambda: all(server.read(path) > 5 for path in halts))
        server.stop(number)
    assert not mountpoint.exists()


@KVM
def test_real_vms_come_and_go(tmp_path: Path) -> None:
    """Besides those that stay, one VM more is made, destroyed and made again."""
    mountpoint = tmp_path / "stats"
    options = ("--real", "--vms", "1", "--vcpus", "1", "--churn", "0.2", "--rate", "200")
    with serving("demo", mountpoint, *options) as server:
        kvm = mountpoint / "kvm"
        # The kernel gives the next one the same descriptor, and so the same name.
        seen: list[int] = []

        def enough() -> bool:
            there = [path.stat().st_ino for path in kvm.glob("*-*") if path.is_dir()]
            seen.extend(set(there) - set(seen))
            return len(seen) >= 5

        wait_until(enough)
        server.stop()


@KVM
def test_lines_and_scrapes_of_real_guests(tmp_path: Path) -> None:
    """The lines tell what such guests move, and --listen has their exits."""
    options = ("--real", "--vms", "2", "--vcpus", "1", "--for", "1.5", "--listen", "0")
    done = run("demo", "stats", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, metrics, page, *_, line, last = done.stdout.splitlines()
    assert first == f"statsfs: mounted at {tmp_path}/stats"
    assert metrics.startswith("statsfs: metrics at http://")
    assert page.startswith("statsfs: page at http://")
    assert re.match(r"2 VMs  exits [0-9]+ \(\+[0-9]+/s\)  (io_exits .*)?halt_exits [0-9]+ ", line)
    assert last == f"statsfs: unmounted {tmp_path}/stats"


@KVM
def test_real_guests_on_a_terminal(tmp_path: Path) -> None:
    """The tree has each VM, and beside it what this kernel counts; Ctrl-C ends it."""
    with on_terminal(tmp_path, "demo", "stats", "--real", "--vms", "2") as until:
        for vm in (tmp_path / "stats" / "kvm").glob("*-*"):
            until(vm.name)
        until("pf_mmio_spte_created")  # among the totals
        assert "Traceback" not in until("unmounted", keys=b"\x03")
    assert not is_mounted(tmp_path / "stats")


UNUSABLE = {
    "missing": ("{path}/none", "No such file"),
    "no device": ("{path}/file", "Inappropriate ioctl"),
    "a directory": ("{path}", "Is a directory"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("device", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_where_kvm_cannot_be_used(tmp_path: Path, device: str, words: str) -> None:
    """One line that says why, status 1, nothing mounted."""
    (tmp_path / "file").write_text("")
    program = (
        "import os, sys\n"
        "os.uname = lambda: os.uname_result(('Linux', '', '', '', 'x86_64'))\n"
        "from statsfs.demo import real_kvm\n"
        f"real_kvm._DEVICE = {device.format(path=tmp_path)!r}\n"
        "from statsfs.cli import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "demo", "stats", "--real"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert_error(done, 1, "--real", "/dev/kvm", words)
    assert os.listdir(tmp_path) == ["file"]


@KVM
def test_no_more_real_vms(tmp_path: Path) -> None:
    """Without more descriptors, one line says how many vCPUs there can be."""
    command = f"ulimit -n 64; exec {sys.executable} -m statsfs demo stats --real --vms 9"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert_error(done, 1, "Too many open files")
    assert re.search(r"no more than (8|12|16) vCPUs", done.stderr)
    assert os.listdir(tmp_path) == []


@KVM
def test_more_vcpus_than_kvm_has(tmp_path: Path) -> None:
    """It is said that the first VM is refused already."""
    done = run("demo", "stats", "--real", "--vms", "1", "--vcpus", "5000", cwd=tmp_path)
    assert_error(done, 1, "no VM of 5000 vCPUs: ")
    assert os.listdir(tmp_path) == []

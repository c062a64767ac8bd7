"""The examples for systemd: nothing in them hides the mount from the host, and systemd agrees."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.confined import read_settings
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.kvm_mounts import mounted
from tests.support.mounts import children, detach, is_mounted
from tests.support.other_users import shared_directory
from tests.support.qemus import (
    WITHOUT_BPF,
    confined,
    find_qemu,
    for_another_user,
    of_another_user,
    running,
)

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
UNIT = EXAMPLES / "statsfs.service"
DROP_IN = EXAMPLES / "publisher.conf"

# systemd.exec(5): each gives the service a mount namespace of its own.
NAMESPACED = {
    "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionDirectories",
    "ExtensionImages", "InaccessiblePaths", "LogNamespace", "MountAPIVFS", "MountFlags",
    "MountImages", "NoExecPaths", "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateNetwork",
    "PrivateTmp", "ProcSubset", "ProtectControlGroups", "ProtectHome",
    "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc",
    "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "RootImage",
    "TemporaryFileSystem",
}  # fmt: skip


@pytest.mark.parametrize("file", [UNIT, DROP_IN], ids=lambda file: file.name)
def test_nothing_hides_the_mount(file: Path) -> None:
    """No setting makes a mount namespace, and a stop leaves the segments."""
    said = read_settings(file)
    assert not NAMESPACED & said.keys()
    assert said["RuntimeDirectoryPreserve"] == "yes"
    assert said["RuntimeDirectory"].partition("/")[0] == "statsfs"


def test_what_the_unit_runs() -> None:
    """The command of the unit is one that we have."""
    settings = read_settings(UNIT)
    command, *arguments = settings["ExecStart"].split()
    assert Path(command).name == "statsfs"
    assert arguments == ["mount", "--create", "/run/stats", "$OPTIONS"]
    assert (settings["Type"], settings["Environment"]) == ("notify", "OPTIONS=")
    # The package looks for the first command in the second.
    assert settings["ExecReload"] == f"{settings['ExecStart']} --replace --background"


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.tools
def test_a_reload_under_the_unit(tmp_path: Path) -> None:
    """What the unit permits is enough to take over."""
    mountpoint = tmp_path / "stats"
    options: tuple[str | Path, ...] = ("--create", "--segments", tmp_path / "segments")
    with mounted_under(UNIT, mountpoint, *options) as old:
        device = os.stat(mountpoint).st_dev
        start = (*confined(UNIT), sys.executable, "-m", "statsfs", "mount", str(mountpoint))
        log: tuple[str | Path, ...] = ("--replace", "-b", "--log", tmp_path / "log")
        subprocess.run([*start, *options, *log], check=True, timeout=DEADLINE)
        assert os.stat(mountpoint).st_dev != device
        assert old.wait(DEADLINE) == 0
        subprocess.run([sys.executable, "-m", "statsfs", "umount", mountpoint], check=True)
        wait_until(lambda: not mountpoint.exists(), "the end")


@pytest.mark.mount
@pytest.mark.root
def test_what_it_does_when_it_ends(tmp_path: Path, mountpoint: Path) -> None:
    """A dead mount of ours is cleared, and only that."""
    line = read_settings(UNIT)["ExecStopPost"].removeprefix("-")
    command = shlex.split(line.replace("/run/stats", str(mountpoint)))
    options = ("--segments", str(tmp_path / "a"))
    arguments = [sys.executable, "-m", "statsfs", "mount", str(mountpoint), *options]
    subprocess.run(command, check=False)
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: is_mounted(mountpoint), "the mount")
            subprocess.run(command, check=False)
            assert is_mounted(mountpoint)
            (watcher,) = children(process.pid)
            os.kill(watcher, signal.SIGKILL)
            process.kill()
            process.wait()
            assert is_mounted(mountpoint)
            subprocess.run(command, check=True)
            assert not is_mounted(mountpoint)
        finally:
            process.kill()
            detach(mountpoint)


def mounted_under(
    unit: Path, mountpoint: Path, *arguments: str | Path, program: Sequence[str] = ("-m", "statsfs")
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run `statsfs mount` with what a unit permits, and see that it ends well; or the test ends it.

    Args:
        unit: it.
        mountpoint: where.
        arguments: of `statsfs mount`.
        program: what Python executes.
    """
    return mounted(mountpoint, *arguments, statsfs=(*confined(unit), sys.executable, *program))


@pytest.mark.kvm
@pytest.mark.host
@pytest.mark.mount
@pytest.mark.root
@pytest.mark.parametrize(
    ("way", "version", "program"),
    [
        ("bpf", "installed", ["-m", "statsfs"]),
        ("descriptors", "debian13", ["-c", WITHOUT_BPF]),
    ],
)
def test_every_vm_under_the_unit(
    way: str, version: str, program: list[str], mountpoint: Path
) -> None:
    """What the unit permits is enough for each way of --kvm, and VMs of other users."""
    with (
        shared_directory() as shared,
        running(
            shared / "www" / "a.qmp",
            for_another_user(find_qemu(version), shared),
            prefix=of_another_user(shared),
        ) as vm,
        mounted_under(UNIT, mountpoint, "--kvm", program=program),
    ):
        directory = mountpoint / "kvm" / vm.name
        wait_until((directory / "vcpu0" / "exits").exists, "the VM")
        assert os.getxattr(directory, "user.statsfs.kvm.source") == way.encode()
        assert int((directory / "vcpu0" / "exits").read_text()) > 0
        assert int((directory / "vcpu0" / "run_ns").read_text()) > 0


@pytest.mark.kvm
@pytest.mark.mount
@pytest.mark.root
@pytest.mark.parametrize("capability", ["CAP_SYS_PTRACE", ""])
def test_vms_under_the_unit(capability: str, mountpoint: Path, tmp_path: Path) -> None:
    """What the unit permits is enough for the VMs of other users; what it lacks is said once."""
    unit = tmp_path / "statsfs.service"
    unit.write_text(UNIT.read_text().replace(" CAP_SYS_PTRACE\n", f" {capability}\n"))
    with (
        shared_directory() as shared,
        running(shared / "www" / "a.qmp", prefix=of_another_user(shared)) as vm,
        mounted_under(unit, mountpoint, "--qmp", shared / "www" / "*") as process,
    ):
        if capability:
            exits = mountpoint / "kvm" / vm.name / "vcpu0" / "exits"
            wait_until(exits.exists, "the VM")
            assert int(exits.read_text()) > 0
        else:
            assert process.stderr is not None
            lacks = f"no permission to read /proc/{vm.pid}/fd: needs CAP_SYS_PTRACE"
            while lacks not in process.stderr.readline():
                assert process.poll() is None


@pytest.mark.root  # where no systemd runs, it makes /run/systemd
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_them(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing wrong, once the command is where it is here."""
    here = str(Path(sys.executable).with_name("statsfs"))
    unit = UNIT.read_text().replace(read_settings(UNIT)["ExecStart"].split()[0], here)
    app = f"[Unit]\nDescription=It publishes\n{DROP_IN.read_text()}\nExecStart={here} --version\n"
    for name, text in (("statsfs.service", unit), ("app.service", app)):
        (tmp_path / name).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "--man=no", "verify", tmp_path / name],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "app.service").write_text(app.replace("RuntimeDirectory=", "RuntimeDirektory="))
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", tmp_path / "app.service"],
        capture_output=True,
        text=True,
    )
    assert "RuntimeDirektory" in done.stderr, "it finds nothing at all"

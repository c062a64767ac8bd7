"""The examples for systemd: nothing in them hides the mount from the host, and systemd agrees."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
UNIT = EXAMPLES / "statsfs.service"
DROP_IN = EXAMPLES / "publisher.conf"

# systemd.exec(5): each gives the service a mount namespace of its own.
NAMESPACED = {
    "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionDirectories",
    "ExtensionImages", "InaccessiblePaths", "LogNamespace", "MountAPIVFS", "MountFlags",
    "MountImages", "NoExecPaths", "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateNetwork",
    "PrivateTmp", "ProcSubset", "ProtectControlGroups", "ProtectHome", "ProtectHostname",
    "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc",
    "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "RootImage",
    "TemporaryFileSystem",
}  # fmt: skip


def settings(file: Path) -> dict[str, str]:
    """The settings of a unit, none of which is there twice."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("=", 1) for line in lines if "=" in line]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize("file", [UNIT, DROP_IN], ids=lambda file: file.name)
def test_nothing_hides_the_mount(file: Path) -> None:
    """No setting makes a mount namespace, and a stop leaves the segments."""
    said = settings(file)
    assert not NAMESPACED & said.keys()
    assert said["RuntimeDirectoryPreserve"] == "yes"
    assert said["RuntimeDirectory"].partition("/")[0] == "statsfs"


def test_what_the_unit_runs() -> None:
    """The command of the unit is one that we have."""
    command, *arguments = settings(UNIT)["ExecStart"].split()
    assert Path(command).name == "statsfs"
    assert arguments == ["mount", "--create", "/run/stats"]
    assert settings(UNIT)["Type"] == "notify"


@pytest.mark.root  # where no systemd runs, it makes /run/systemd
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_them(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing wrong, once the command is where it is here."""
    here = str(Path(sys.executable).with_name("statsfs"))
    unit = UNIT.read_text().replace(settings(UNIT)["ExecStart"].split()[0], here)
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

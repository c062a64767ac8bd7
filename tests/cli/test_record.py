"""`statsfs record` and `statsfs plot`, with a real mount, real kills and the real promtool."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.commands import STATSFS, CommandServer, assert_error, run, run_here, serving
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.prometheus_server import tool

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def recording(demo: CommandServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of a few samples."""
    file = tmp_path_factory.mktemp("recording") / "r.parquet"
    command = ["sh", "-c", "sleep 1; exit 5"]
    done = run("record", "-o", str(file), "-i", "0.1", "-p", str(demo.mountpoint), "--", *command)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("statsfs: recorded ")
    return file


@contextmanager
def recorder(file: Path, place: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Start recording a place; the test ends it."""
    command: list[str | Path] = [*STATSFS, "record", "-o", file, "-p", place, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def count_samples(file: Path) -> int:
    """How many samples a recording has."""
    return int(pq.read_table(file)["source"].null_count)


def test_a_command_is_recorded(recording: Path) -> None:
    """From before it began to after it ended; one row group is left."""
    assert count_samples(recording) >= 3
    assert pq.ParquetFile(recording).num_row_groups == 2  # the first has whole numbers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_recorder_that_ends_leaves_a_recording(
    demo: CommandServer, tmp_path: Path, number: signal.Signals
) -> None:
    """Also one that is killed: all of the samples that it had written are there."""
    file = tmp_path / "r.parquet"
    with recorder(file, demo.mountpoint, "-i", "0.05") as process:
        wait_until(lambda: file.exists() and file.stat().st_size > 20_000)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == (-number if number == signal.SIGKILL else 0)
    assert stderr.startswith("statsfs: recorded " if number != signal.SIGKILL else "")
    picture = tmp_path / "r.png"
    assert run("plot", str(file)).returncode == 0  # cuts off what is unfinished
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert count_samples(file) >= 3


@pytest.mark.parametrize("ignored", [False, True], ids=["ends", "goes on"])
def test_a_terminal_that_is_closed(demo: CommandServer, tmp_path: Path, ignored: bool) -> None:
    """That is SIGHUP, and no failure; a recorder that ignores it goes on, with nobody to tell."""
    file = tmp_path / "r.parquet"
    options = ["-o", str(file), "-i", "0.1", "-p", str(demo.mountpoint)]
    command = f"exec {shlex.join([*STATSFS, 'record', *options])}"
    if ignored:
        command = f"trap '' HUP; {command}"
    ours, theirs = os.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", "sh", "-c", command], stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        try:
            os.close(theirs)
            seen = b""
            while b"2 samples" not in seen:
                seen += os.read(ours, 1 << 16)
            os.close(ours)
            if ignored:
                size = file.stat().st_size
                wait_until(lambda: file.stat().st_size > size + 4096, "more samples")
                process.terminate()
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
    assert count_samples(file) >= 3


def test_an_unfinished_interval_is_cut_off(recording: Path, tmp_path: Path) -> None:
    """The user is told so."""
    file = tmp_path / "killed.parquet"
    file.write_bytes(recording.read_bytes() + b"unfinished")
    done = run("plot", str(file), "-o", str(tmp_path / "k.svg"))
    assert done.returncode == 0
    assert "its recorder was killed; the unfinished interval is cut off" in done.stderr
    assert file.read_bytes() == recording.read_bytes()


@pytest.mark.parametrize("options", [[], ["--by", "vcpu", "--value", "exits"], ["--since", "1h"]])
def test_pictures_of_a_recording(recording: Path, tmp_path: Path, options: list[str]) -> None:
    """Of what is asked for."""
    out = tmp_path / "out.html"
    done = run("plot", str(recording), "-o", str(out), *options)
    assert (done.returncode, done.stdout) == (0, f"statsfs: drew {out}\n")
    text = out.read_text()
    assert 'aria-label="exits"' in text
    assert ('aria-label="halt_wait_ns"' in text) == ("--value" not in options)


@pytest.mark.tools
def test_promtool_takes_openmetrics(demo: CommandServer, tmp_path: Path) -> None:
    """Each sample with its time becomes one of a block; also of a recorder that was killed."""
    file = tmp_path / "r.om"
    with recorder(file, demo.mountpoint, "-i", "0.1", "--openmetrics") as process:
        wait_until(lambda: file.exists() and file.read_text().count("kvm_exits_total{") >= 12)
        process.kill()
        process.communicate(timeout=DEADLINE)
    blocks = tmp_path / "blocks"
    arguments = ["tsdb", "create-blocks-from", "openmetrics", str(file), str(blocks)]
    subprocess.run([tool("promtool"), *arguments], check=True, capture_output=True)
    (blocks / "wal").mkdir()  # promtool looks for one
    dumped = subprocess.run(
        [tool("promtool"), "tsdb", "dump", blocks], check=True, capture_output=True, text=True
    )
    lines = [line for line in file.read_text().splitlines() if line[0] != "#"]
    assert len(dumped.stdout.splitlines()) == len(lines) >= 12


def test_a_server_is_recorded(tmp_path: Path) -> None:
    """By its /metrics, as OpenMetrics."""
    with serving("demo", tmp_path / "s", "--listen", "0") as server:
        url = server.line("statsfs: metrics at ").removeprefix("statsfs: metrics at ")
        made = [sys.executable, "-c", OPEN, url.removesuffix("/metrics"), str(tmp_path / "r.om")]
        subprocess.run(made, check=True)
        server.stop()
    assert "kvm_exits_total{" in (tmp_path / "r.om").read_text()


OPEN = """
import sys
from statsfs.recordings.openmetrics_file import MetricsRecorder

recorder = MetricsRecorder(sys.argv[2], [sys.argv[1]])
assert recorder.record(1.5) == {}
recorder.close()
"""


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["record", "-o", "FILE", "-p", "STATS"], 1, ["it exists"]),
        (["record", "-o", "/none/x", "-p", "STATS"], 1, ["/none/x", "No such file"]),
        (["record", "-o", "NEW", "-p", "/"], 1, ["/: not a directory of a statsfs"]),
        (["record", "-o", "NEW", "-p", "STATS", "--for", "1", "--", "true"], 2, ["--for"]),
        (["record", "-p", "STATS"], 2, ["-o"]),
        (["record", "-o", "NEW", "-p", "STATS", "-i", "86401"], 2, ["-i", "not in the range"]),
        (["record", "-o", "NEW", "-p", "STATS", "-i", "1e308"], 2, ["-i", "not in the range"]),
        (
            ["record", "-o", "NEW", "-p", "STATS", "--for", "1e308"],
            2,
            ["--for", "not in the range"],
        ),
        (["plot", "/etc/passwd"], 1, ["/etc/passwd: not a recording"]),
        (["plot", "NEW"], 1, ["No such file"]),
        (["plot", "FILE", "--value", "none"], 1, ["no value none"]),
        (["plot", "FILE", "--by", "none"], 1, ["no source has the label none"]),
        (["top", "--once", "/etc/passwd"], 1, ["/etc/passwd: not a recording"]),
        (["top", "--once", "STATS/kvm/exits"], 1, ["exits: not a directory"]),
        (["stat", "-p", "FILE", "--", "true"], 1, ["not a directory"]),
        (["plot", "FILE", "-o", "x.gif"], 2, [".png, .svg or .html"]),
        (["plot", "FILE", "--since", "yesterday"], 2, ["--since"]),
        (["plot", "FILE", "--since", "2999-01-01"], 1, ["fewer than two samples"]),
        (["plot", "FILE", "-o", "/none/x.png"], 1, ["/none/x.png: No such file"]),
    ],
)
def test_errors_are_one_line(
    demo: CommandServer,
    recording: Path,
    tmp_path: Path,
    arguments: list[str],
    status: int,
    words: list[str],
) -> None:
    """With the status that is documented; no file is left of a recording that did not begin."""
    names = {"STATS": demo.mountpoint, "FILE": recording, "NEW": tmp_path / "new"}
    arguments = [str(names.get(one, one)) for one in arguments]
    arguments = [one.replace("STATS/", f"{demo.mountpoint}/") for one in arguments]
    tried = run if arguments[0] == "top" else run_here  # it handles signals, and then looks
    assert_error(tried(*arguments, cwd=tmp_path), status, *words)
    assert not os.path.exists(tmp_path / "new")


@pytest.mark.parametrize(
    ("command", "missing"),
    [("record", "pyarrow"), ("plot", "matplotlib"), ("top", "pyarrow")],
)
def test_a_missing_package_is_said(
    demo: CommandServer, recording: Path, tmp_path: Path, command: str, missing: str
) -> None:
    """In one line, with what to install."""
    more = ["-o", str(tmp_path / "new"), "-p", str(demo.mountpoint)]
    arguments = [command, *(more if command == "record" else [str(recording)])]
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom statsfs.cli import main\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}sys.exit(main({arguments!r}))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert_error(done, 1, f"statsfs {command} needs {missing}: pip install 'statsfs[record]'")


def test_top_prints_a_recording(recording: Path) -> None:
    """Its end with rates, or all of it."""
    done = run("top", "--once", "-f", "kvm/exits$", str(recording))
    assert (done.returncode, done.stderr) == (0, "")
    last = run("top", "--csv", "-f", "^kvm/exits$", str(recording)).stdout.splitlines()
    assert len(last) == count_samples(recording) + 1
    assert last[0] == "time,path,name,value,rate"
    (begin, _, _, before, _), (end, _, _, number, rate) = (one.split(",") for one in last[-2:])
    elapsed = float(end) - float(begin)
    # Times have milliseconds.
    assert float(rate) == pytest.approx((int(number) - int(before)) / elapsed, rel=0.002 / elapsed)
    assert last[1].endswith(",")  # there is no rate at the first
    assert done.stdout.startswith("kvm/exits ")
    assert f"{int(number):,}" in done.stdout


def test_a_mount_that_goes_and_comes_back(tmp_path: Path) -> None:
    """The recording goes on; it is said once that there were no numbers, with the first reason."""
    file = tmp_path / "r.parquet"
    place = tmp_path / "s"
    with (
        serving("demo", place, "--vms", "1") as server,
        recorder(file, place, "-i", "0.05") as process,
    ):
        wait_until(lambda: file.exists() and file.stat().st_size > 5_000)
        server.stop()
        for again in (False, True):
            if again:
                place.mkdir()  # the demo removed its directory
            size = file.stat().st_size
            wait_until(lambda: file.stat().st_size > size + 3_000)  # noqa: B023
        process.terminate()
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert stderr.count("the recording goes on") == 1

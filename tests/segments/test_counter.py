"""The producer in C: it needs the header alone, and a compiler."""

import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsfs.model.histograms import find_sums
from statsfs.model.values import Aggregate, Kind, Unit, Value
from tests.formats.test_binary import read_as_kvm
from tests.support.c_header import compile_c
from tests.support.deadlines import wait_until
from tests.support.segment_files import alive, read_segment, segments_in

SOURCE = Path(__file__).parent.parent.parent / "examples" / "counter.c"
TIME = {"unit": Unit.SECONDS, "exponent": -9}


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled with every warning an error."""
    program = tmp_path_factory.mktemp("counter") / "counter"
    compile_c("c", "-o", program, SOURCE)
    return program


@contextmanager
def counting(counter: Path, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program, until the test has ended it."""
    with subprocess.Popen([counter, directory, "app/ticker"]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_is_short() -> None:
    """A program in C needs no more than that."""
    comment, _, source = SOURCE.read_text().partition("*/")
    assert comment.startswith("/*")
    assert sum(1 for line in source.splitlines() if line.strip(" \t{}")) <= 36


@pytest.mark.tools
def test_what_it_counts_is_decoded(counter: Path, directory: Path) -> None:
    """The path, the values as its JSON describes them, and each tick in each of them."""
    subprocess.run([counter, directory, "app/ticker", "25"], check=True, timeout=60)
    (file,) = segments_in(directory)
    assert list(directory.iterdir()) == [file]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    head, numbers = read_segment(file)
    assert (head.path, head.labels) == ("app/ticker", (None, None))
    assert file.name == f"app_ticker-{head.id}.stats"
    ticks, late, late_sum, late_max = head.values
    assert ticks == Value("ticks", aggregate=Aggregate.SUM, description="Ticks of the clock")
    assert late == Value(
        "late",
        aggregate=Aggregate.SUM,
        kind=Kind.LOG_HIST,
        size=32,
        description="How late the ticks were",
        **TIME,  # type: ignore[arg-type]  # keywords of two types
    )
    assert late_sum == Value(
        "late.sum",
        aggregate=Aggregate.SUM,
        mode=0o444,
        description="Sum of late: How late the ticks were",
        **TIME,  # type: ignore[arg-type]  # keywords of two types
    )
    assert find_sums(head.values) == {1: 2}
    assert late_max == Value(
        "late_max",
        aggregate=Aggregate.MAX,
        mode=0o444,
        kind=Kind.PEAK,
        **TIME,  # type: ignore[arg-type]  # keywords of two types
    )
    buckets, most = numbers["late"], numbers["late_max"]
    assert isinstance(buckets, list)
    assert isinstance(most, int)
    assert numbers["ticks"] == sum(buckets) == 25
    assert buckets[min(most.bit_length(), 31)] > 0
    assert not any(buckets[most.bit_length() + 1 :])
    total = numbers["late.sum"]
    assert isinstance(total, int)
    assert most <= total <= 25 * most


@pytest.mark.tools
def test_decoders_of_kvm_read_it(counter: Path, directory: Path) -> None:
    """It is an object of the kernel's format to the last byte of it."""
    subprocess.run([counter, directory, "app/ticker", "3"], check=True, timeout=60)
    (file,) = segments_in(directory)
    id, found = read_as_kvm(file.read_bytes())
    assert (id, found["ticks"].numbers) == ("app/ticker", (3,))


@pytest.mark.tools
def test_it_is_alive_until_it_is_killed(counter: Path, directory: Path) -> None:
    """From the first moment in which its file is there; then all that it counted is."""
    with counting(counter, directory) as process:
        wait_until(lambda: segments_in(directory), "the segment")
        (file,) = segments_in(directory)
        assert alive(file)
        first = read_segment(file).numbers["ticks"]
        wait_until(lambda: read_segment(file).numbers["ticks"] != first, "a tick")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert not alive(file)
        assert read_segment(file).numbers["ticks"] != first


@pytest.mark.tools
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "usage: "),
        (["{directory}"], 2, "usage: "),
        (["{directory}/missing", "app"], 1, "missing: make it\n"),
        (["{directory}", ".app"], 1, "a name of the path '.app' starts with"),
    ],
)
def test_it_says_what_is_wrong(
    counter: Path, directory: Path, arguments: list[str], status: int, message: str
) -> None:
    """In one line, and leaves nothing."""
    done = subprocess.run(
        [counter, *(one.format(directory=directory) for one in arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(directory.iterdir()) == []

"""A Python without its GIL: a warning, and refusals; counting goes on."""

import subprocess
import sys
from pathlib import Path

from statsfs.tree.gil import is_gil_on

PROGRAM = """
import sys, warnings
sys._is_gil_enabled = lambda: False
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import statsfs
for warning in caught:
    print(warning.category.__name__, warning.message)

registry, directory = statsfs.Registry(), sys.argv[1]
for refused in (
    lambda: statsfs.mount(registry, directory),
    lambda: statsfs.Collector(registry, directory),
    lambda: statsfs.serve_metrics(registry),
):
    try:
        refused()
    except OSError as error:
        print(type(error).__name__, error)

async def main():
    async with statsfs.mounted(registry, directory):
        pass
import trio
try:
    trio.run(main)
except statsfs.MountError as error:
    print(type(error).__name__, error)

class Counts(statsfs.Stats):
    n = statsfs.u64()

source, counts = statsfs.Source("app"), Counts()
source.add_values(Counts, counts)
counts.n += 1
print(source.get_value("n"))
sys._is_gil_enabled = lambda: True
statsfs.serve_metrics(registry).close()
"""


def test_without_the_gil(tmp_path: Path) -> None:
    """One warning says what holds and what does not; what shows numbers to others refuses."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    why = "this Python runs without its GIL, so what is read is torn; run it with -X gil=1"
    assert done.stdout.splitlines() == [
        "RuntimeWarning statsfs: this Python runs without its GIL. A base that one thread writes "
        "is counted right; snapshots and totals are torn, and mount, Collector and serve_metrics "
        "refuse. Run it with -X gil=1.",
        f"MountError {tmp_path}: {why}",
        f"SegmentError {tmp_path}: {why}",
        f"OSError cannot serve metrics: {why}",
        f"MountError {tmp_path}: {why}",
        "1",
    ]


def test_with_the_gil() -> None:
    """Nothing is said, also by a Python that does not know of any other."""
    assert is_gil_on()
    command = [sys.executable, "-W", "error", "-c", "import statsfs"]
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""

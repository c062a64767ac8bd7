"""RESULTS.md: what the benchmarks print, the growth as a table and a plot, and on what machine."""

import contextlib
import io
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from tests.bench.growing import MEASURES, Growth

__all__ = ["describe_machine", "written"]

HERE = Path(__file__).parent
COLOURS = ("#4269d0", "#e0a100", "#d62f2f", "#3ca0a0", "#3c9a3c", "#b85fbf", "#7a5230")
WIDTH, HEIGHT = 760, 420
LEFT, TOP, RIGHT, BOTTOM = 70, 20, 280, 50  # margins; the names stand in the right one


def describe_machine() -> str:
    """One line: what all this ran on."""
    fuse = subprocess.run(["fusermount3", "-V"], capture_output=True, text=True, check=True)
    return ", ".join(
        [
            f"{os.cpu_count()} CPUs ({platform.machine()})",
            f"Linux {platform.release()}",
            f"Python {platform.python_version()}",
            f"pyfuse3 {version('pyfuse3')}",
            f"trio {version('trio')}",
            f"libfuse {fuse.stdout.split()[-1]}",
        ]
    )


class Tee(io.TextIOBase):
    """Prints, and keeps what it prints."""

    def __init__(self) -> None:
        self.text = ""
        self.stdout = sys.stdout

    def write(self, text: str) -> int:
        """Print."""
        self.text += text
        return self.stdout.write(text)

    def flush(self) -> None:
        """Print now."""
        self.stdout.flush()


@contextlib.contextmanager
def written(growth: Mapping[int, Growth]) -> Iterator[None]:
    """Write what is printed within the block, and the growth that was found by its end."""
    tee = Tee()
    with contextlib.redirect_stdout(tee):
        yield
    parts = [
        "# Results",
        "What `make bench` printed when it last ran. Ratios within one run; believe those.",
        f"```\n{tee.text.strip()}\n```",
        "## Growth",
        "Sources are vCPUs of 47 values, in VMs of eight; 8,000 are 1,000 VMs.",
        tabulate(growth),
        "![How many times what it is with the fewest sources](growth.svg)",
    ]
    (HERE / "RESULTS.md").write_text("\n\n".join(parts) + "\n")
    (HERE / "growth.svg").write_text(plot(growth))


def tabulate(growth: Mapping[int, Growth]) -> str:
    """The growth as a table, a column a size."""
    rows = [["sources", *(f"{count:,}" for count in growth)], ["---", *["---:"] * len(growth)]]
    for name, (what, unit, scale) in MEASURES.items():
        figures = (asdict(found)[name] * scale for found in growth.values())
        rows.append([f"{what}, {unit}", *(f"{figure:,.1f}" for figure in figures)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(growth: Mapping[int, Growth]) -> str:
    """The growth against the fewest sources, both axes logarithmic."""
    counts = list(growth)
    ratios = {
        what: [
            asdict(found)[name] / (asdict(growth[counts[0]])[name] or 1)
            for found in growth.values()
        ]
        for name, (what, _, _) in MEASURES.items()
        if name != "memory"
    }
    decades = math.ceil(math.log10(max(max(row) for row in ratios.values())) or 1)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_of(count: float) -> float:
        return LEFT + wide * math.log10(count / counts[0]) / math.log10(counts[-1] / counts[0])

    def y_of(ratio: float) -> float:
        # From a half.
        return TOP + high * (1 - (math.log10(max(ratio, 0.5)) + 0.3) / (decades + 0.3))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for power in range(decades + 1):
        y = y_of(10**power)
        out.append(
            f'<path d="M{LEFT} {y:.1f}h{wide}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10**power:,} x</text>'
        )
    for count in counts:
        x = x_of(count)
        # 8,000 and 10,000 are too close for two labels.
        label = f"{count:,}" if math.log10(count) % 1 == 0 else ""
        out.append(
            f'<path d="M{x:.1f} {TOP}v{high}" stroke="#eee"/>'
            f'<text x="{x:.1f}" y="{TOP + high + 18}" text-anchor="middle">{label}</text>'
        )
    out.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 10}" text-anchor="middle">sources</text>')
    for index, ((what, row), colour) in enumerate(zip(ratios.items(), COLOURS, strict=False)):
        points = " ".join(
            f"{x_of(count):.1f},{y_of(ratio):.1f}" for count, ratio in zip(counts, row, strict=True)
        )
        y = TOP + 20 + 20 * index
        out.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<path d="M{WIDTH - RIGHT + 15} {y - 4}h20" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{WIDTH - RIGHT + 42}" y="{y}">{what}</text>'
        )
    return "\n".join([*out, "</svg>"]) + "\n"

"""Runs the scenarios, all of them or those that are named, one after the other.

    python -m tests.soak [--seconds 60] [load] [fuzz] …

The status is 1 if any failed; the others run all the same.
"""

import argparse
import sys
import time
import traceback

from tests.soak.scenarios import SCENARIOS
from tests.support.mounts import sweep_dead_mounts

SECONDS = 60.0


def main(arguments: list[str]) -> int:
    """Run the scenarios of these names, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Load and faults.")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="how long each lasts, about (%(default)g)"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    sweep_dead_mounts()
    failed = []
    for name in options.names or SCENARIOS:
        begun = time.monotonic()
        try:
            report = SCENARIOS[name](options.seconds)
        except Exception:
            failed.append(name)
            report = f"FAILED\n{traceback.format_exc()}"
        print(f"{name} ({time.monotonic() - begun:.0f} s): {report}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Measures what a fleet costs.

    python -m tests.fleet [--hosts 500] [--seconds 600] [--interval 15] [--agent] [host] [fleet]

`host` is the daemon of one host, with more and more sources; `fleet` is hosts, a Prometheus and a
VictoriaMetrics. The status is 0 unless something breaks.
"""

import argparse
import os
import sys

import pytest

from tests.bench.results import describe_machine
from tests.fleet import one_host, watching

SOURCES = (100, 1_000, 10_000)


def _show_load() -> None:
    print("load:", " ".join(f"{number:.2f}" for number in os.getloadavg()), flush=True)


def measure_host(options: argparse.Namespace) -> None:
    """Print what the daemon of a host costs."""
    for line in one_host.tell([one_host.measure(count) for count in options.sources]):
        print(line)


def measure_fleet(options: argparse.Namespace) -> None:
    """Print what a fleet costs."""
    with watching.start(options.hosts, options.interval, agent=options.agent) as fleet:
        found = watching.watch(fleet, options.seconds)
        for line in watching.tell(fleet, found):
            print(line)


PARTS = {"host": measure_host, "fleet": measure_fleet}


def main(arguments: list[str]) -> int:
    """Measure the parts of these names, or both."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fleet", description="What a fleet costs."
    )
    parser.add_argument("--hosts", type=int, default=500, help="how many (%(default)d)")
    parser.add_argument("--seconds", type=float, default=600, help="how long (%(default)g)")
    parser.add_argument("--interval", type=float, default=15, help="of scrapes (%(default)g s)")
    parser.add_argument("--agent", action="store_true", help="scrape by Prometheus's agent")
    parser.add_argument(
        "--sources", type=int, nargs="+", default=SOURCES, help="of one host (%(default)s)"
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; or both")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    print(describe_machine())
    try:
        for part in options.parts or PARTS:
            _show_load()
            PARTS[part](options)
            _show_load()
    except pytest.skip.Exception as missing:  # a program
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

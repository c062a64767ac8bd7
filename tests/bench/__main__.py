"""Runs the benchmarks, all of them or those that are named.

    python -m tests.bench [counting] [aggregating] …

The status is 0 unless something breaks: how fast a machine is today is no test.
"""

import platform
import sys

from tests.bench import aggregating, changing, counting, memory, sampling

# A topic a module; each has `main()`, which prints its table.
TOPICS = {
    "counting": counting.main,
    "aggregating": aggregating.main,
    "sampling": sampling.main,
    "memory": memory.main,
    "changing": changing.main,
}


def main(names: list[str]) -> int:
    """Run the topics of these names, or all."""
    unknown = [name for name in names if name not in TOPICS]
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(TOPICS)}")
        return 2
    print(f"Python {platform.python_version()}, {platform.machine()}")
    for name in names or TOPICS:
        TOPICS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

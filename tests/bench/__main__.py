"""Runs the benchmarks, all of them or those that are named.

    python -m tests.bench [counting] [aggregating] …

All of them together write RESULTS.md and growth.svg beside this file. The status is 0 unless
something breaks: how fast a machine is today is no test.
"""

import contextlib
import sys

from tests.bench import (
    aggregating,
    asking,
    changing,
    collecting,
    counting,
    embedding,
    exposing,
    growing,
    kvm,
    looking,
    memory,
    migrating,
    recording,
    results,
    sampling,
    segmenting,
    serving,
    syncing,
    viewing,
)

# A topic a module; each has `main()`, which prints its table.
TOPICS = {
    "counting": counting.main,
    "aggregating": aggregating.main,
    "sampling": sampling.main,
    "memory": memory.main,
    "changing": changing.main,
    "syncing": syncing.main,
    "segmenting": segmenting.main,
    "collecting": collecting.main,
    "asking": asking.main,
    "kvm": kvm.main,
    "exposing": exposing.main,
    "serving": serving.main,
    "embedding": embedding.main,
    "growing": growing.main,
    "viewing": viewing.main,
    "migrating": migrating.main,
    "looking": looking.main,
    "recording": recording.main,
}


def main(names: list[str]) -> int:
    """Run the topics of these names, or all."""
    unknown = [name for name in names if name not in TOPICS]
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(TOPICS)}")
        return 2
    with results.written(growing.found) if not names else contextlib.nullcontext():
        print(results.describe_machine())
        for name in names or TOPICS:
            TOPICS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

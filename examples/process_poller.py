"""A poller: the processes of this machine as files, asked for when somebody reads.

Run it, and read it from another shell::

    python examples/process_poller.py ./stats
    cat ./stats/procs/cpu_ns
    grep -r . ./stats/procs/1

Processes come and go; `sync` makes, updates and removes their directories in one change. The time
on a CPU of those that have ended stays in the total, as `procs` retains.
"""

import argparse
import signal

import psutil

from statsfs import Registry, Source, Stats, Unit, counter, gauge, mount

STOP = {signal.SIGINT, signal.SIGTERM}


class ProcessStats(Stats):
    """What is known of a process."""

    cpu_ns = counter("Time on a CPU", unit=Unit.SECONDS, exponent=-9)
    resident_bytes = gauge("Memory in use", unit=Unit.BYTES)
    threads = gauge("Threads")
    read_bytes = counter("Read from disks; of your own processes", unit=Unit.BYTES)


def poll() -> None:
    """Make the directories those of the processes that there are."""
    found: dict[str, dict[str, int]] = {}
    for process in psutil.process_iter(["cpu_times", "memory_info", "num_threads", "io_counters"]):
        info = process.info
        cpu, io = info["cpu_times"], info["io_counters"]
        row = {"cpu_ns": round(1e9 * (cpu.user + cpu.system)), "threads": info["num_threads"]}
        row["resident_bytes"] = info["memory_info"].rss
        if io is not None:  # else the kernel does not tell us, and there is no such file
            row["read_bytes"] = io.read_bytes
        found[str(process.pid)] = row
    procs.sync(found, values=ProcessStats, label="pid")


# However many files of it are read, it is asked twice a second at most.
procs = Source("procs", refresh=poll, max_age=0.5, retain=True, collapse=False)


def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="the processes of this machine as files")
    parser.add_argument("mountpoint")
    parser.add_argument("--for", dest="seconds", type=float, default=1e9, help="end by itself")
    args = parser.parse_args()

    # Blocked here, and so in every thread: the signals wait until the main thread asks for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    registry = Registry()
    registry.register(procs)
    poll()  # the first directories are there from the beginning
    with mount(registry, args.mountpoint, create=True):
        signal.sigtimedwait(STOP, args.seconds)


if __name__ == "__main__":
    main()

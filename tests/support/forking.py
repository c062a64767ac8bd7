"""Programs that fork, run as processes of their own."""

import os
import signal
import subprocess
import sys


def run_forking(program: str, measured: bool = False) -> tuple[int, str]:
    """Run a program that forks; return its status and what it wrote to stderr.

    Only one whose other threads stand still can be measured by coverage: its tracer has a lock, for
    which a child waits for ever if another thread had it at the fork. A child that hangs is killed
    together with the program when its time is over.
    """
    environment = {
        key: text for key, text in os.environ.items() if measured or not key.startswith("COVERAGE_")
    }
    process = subprocess.Popen(
        # Python warns of forks beside threads, which is what these programs are about.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    with process:
        try:
            _, errors = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, errors

"""Gunicorn's hooks for `web_workers.py`, in a file of their own: gunicorn runs it a second time."""

from typing import Any

from prometheus_client import multiprocess


def child_exit(server: object, worker: Any) -> None:
    """A worker has ended: its gauges go."""
    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]  # theirs

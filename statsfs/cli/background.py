"""Going to the background: a child that serves, a parent that waits until it does.

Owns the fork, the pipe through which the parent learns of the mount, and where the server's words
go when it has neither a terminal nor a caller any more: to a file, or to the system log. Until it
is ready they go where the caller sees them.

Threading: main thread only, and before any other is started, for a fork takes one thread along. In
the child each of stdout and stderr then has a thread that carries lines to the system log.
"""

import atexit
import logging
import os
import signal
import socket
import sys
import syslog
import threading
from typing import Final

import click

__all__ = ["Background", "detach"]

_SYSTEM_LOG: Final = "/dev/log"
_PATIENCE: Final = 1.0  # seconds for the last words
_READY: Final = b"!"


class Background:
    """A server that was started to be left alone; in the child.

    Args:
        pipe: where the parent waits for a byte.
        file: a descriptor to write to from then on; None for the system log.
    """

    def __init__(self, pipe: int, file: int | None) -> None:
        self._pipe = pipe
        self._file = file

    def ready(self) -> None:
        """Let the parent end well, and go on without it, its terminal and its directory.

        Raises:
            BrokenPipeError: the parent has gone without waiting; nobody wants the server.
        """
        if self._file is None and not _is_logged():
            click.echo(
                f"statsfs: there is no system log ({_SYSTEM_LOG}): what is logged later goes to "
                "the console, if at all; see --log",
                err=True,
            )
        os.setsid()
        os.chdir("/")
        if self._file is None:
            _log_to_system()
        else:
            # A program that was loaded may have said already how it logs.
            logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
            _redirect(self._file, 1, 2)
        os.write(self._pipe, _READY)
        os.close(self._pipe)


def detach(log: str | None) -> Background:
    """Fork; return in the child, which says when it is ready, or raises what went wrong.

    In the parent, which ends as the child does until then, this does not return.

    Args:
        log: a file for what the child says once it is ready; None for the system log.

    Raises:
        SystemExit: in the parent: with 0 when the child is ready, else with its status.
        click.ClickException: in the parent: there is no child, or it left without a word.
    """
    try:
        file = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        raise click.ClickException(f"--log: {log}: {error.strerror}") from error
    try:
        reading, writing = os.pipe()
        child = os.fork()
    except OSError as error:
        raise click.ClickException(f"cannot go to the background: {error.strerror}") from error
    if child:
        os.close(writing)
        raise SystemExit(_wait(child, reading))
    os.close(reading)
    os.umask(0o022)
    _redirect(os.open(os.devnull, os.O_RDONLY), 0)
    return Background(writing, file)


def _wait(child: int, pipe: int) -> int:
    # Ctrl-C reaches the child too: what becomes of it then is seen here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.read(pipe, 1) == _READY:
        return 0
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        raise click.ClickException(f"the server was ended by signal {-status}")
    if status == 0:
        raise click.ClickException("told to stop before it was mounted")
    return status


def _redirect(source: int, *descriptors: int) -> None:
    for descriptor in descriptors:
        os.dup2(source, descriptor)
    os.close(source)


def _is_logged() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        try:
            log.connect(_SYSTEM_LOG)
        except (FileNotFoundError, ConnectionRefusedError):  # there is none, or it has ended
            return False
        except OSError:  # of another kind: glibc knows more of them
            pass
    return True


def _log_to_system() -> None:
    # All of it: what is logged, tracebacks of threads, libfuse's own words. glibc connects anew
    # where the log was restarted, and writes to the console where there is none.
    syslog.openlog("statsfs", syslog.LOG_PID | syslog.LOG_CONS, syslog.LOG_DAEMON)
    threads = []
    for descriptor, priority in ((1, syslog.LOG_INFO), (2, syslog.LOG_WARNING)):
        reading, writing = os.pipe()
        _redirect(writing, descriptor)
        threads.append(
            threading.Thread(
                target=_carry, args=(reading, priority), name="statsfs-syslog", daemon=True
            )
        )
        threads[-1].start()
    atexit.register(_end, threads)


def _carry(pipe: int, priority: int) -> None:
    with os.fdopen(pipe, errors="backslashreplace") as lines:
        for line in lines:
            # A NUL would be an error; the log has our name already.
            syslog.syslog(priority, line.rstrip("\n").replace("\0", "").removeprefix("statsfs: "))


def _end(threads: list[threading.Thread]) -> None:
    # The last words are read when nobody can write any more.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _redirect(os.open(os.devnull, os.O_WRONLY), 1, 2)
    for thread in threads:
        thread.join(_PATIENCE)

"""Going to the background: a child that serves, a parent that waits until it does.

Owns the fork, the pipe through which the parent learns of the mount, and the server's output.
Threading: main thread only, before other threads start, as a child has only the thread that forked.
In the child stdout and stderr then have a thread each, which copies lines to the system log.
"""

import atexit
import errno
import logging
import os
import re
import signal
import socket
import sys
import syslog
from collections.abc import Callable
from functools import partial
from threading import Thread
from types import FrameType
from typing import Final

import click

from statsfs.cli import logs
from statsfs.cli.surroundings import close_inherited

__all__ = ["detach"]

log = logging.getLogger(__name__)

_SYSTEM_LOG: Final = "/dev/log"
_PATIENCE: Final = 1.0  # seconds for the last lines
_READY: Final = b"!"
_PRIORITIZED: Final = re.compile(r"^(?:<([0-7])>)?(.*)", re.DOTALL)


def detach(log: str | None, form: logs.Format) -> Callable[[], None]:
    """Fork, and return in the child a function for it to call when it is ready.

    The function lets the parent end, leaves its terminal and directory, and sends later output to
    the file `log`, which SIGHUP then opens anew, or to the system log. It raises BrokenPipeError if
    the parent has ended already, so that the server is not wanted. The parent exits, with 0 once
    the child is ready. What the child inherits beside its standard streams is closed.
    """
    path = None if log is None else os.path.abspath(log)
    try:
        file = None if path is None else _open_log(path)
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
    close_inherited({writing} if file is None else {writing, file})
    os.umask(0o022)
    _redirect(os.open(os.devnull, os.O_RDONLY), 0)
    return partial(_leave, writing, path, file, form)


def _wait(child: int, pipe: int) -> int:
    # Ctrl-C reaches the child too, whose status then is the parent's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.read(pipe, 1) == _READY:
        return 0
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        raise click.ClickException(f"the server was ended by signal {-status}")
    if status == 0:
        raise click.ClickException("stopped by a signal before it was mounted")
    return status


def _open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)


def _leave(pipe: int, path: str | None, file: int | None, form: logs.Format) -> None:
    if file is None and not _has_system_log():
        text = f"no system log ({_SYSTEM_LOG}): later messages go to the console, or are lost"
        click.echo(f"statsfs: {text}; see --log", err=True)
    os.setsid()
    os.chdir("/")
    logs.set_up(form, dated=file is not None, prioritized=file is None)
    if path is None or file is None:
        _log_to_system()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    else:
        _redirect(file, 1, 2)
        signal.signal(signal.SIGHUP, partial(_reopen, path))
    os.write(pipe, _READY)
    os.close(pipe)


def _reopen(path: str, _number: int, _frame: FrameType | None) -> None:
    # As after logrotate(8) has renamed it.
    try:
        _redirect(_open_log(path), 1, 2)
    except OSError as error:
        log.error("%s cannot be opened anew: %s", path, error.strerror)  # in the old one


def _redirect(source: int, *descriptors: int) -> None:
    for descriptor in descriptors:
        os.dup2(source, descriptor)
    os.close(source)


def _has_system_log() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        # Other errors: a socket of another type, which glibc may know.
        return log.connect_ex(_SYSTEM_LOG) not in (errno.ENOENT, errno.ECONNREFUSED)


def _log_to_system() -> None:
    # All output: logged lines, tracebacks of threads, messages of libfuse. glibc connects again
    # after a restart of the log, and writes to the console if there is none.
    syslog.openlog("statsfs", syslog.LOG_PID | syslog.LOG_CONS, syslog.LOG_DAEMON)
    for descriptor, priority in ((1, syslog.LOG_INFO), (2, syslog.LOG_WARNING)):
        reading, writing = os.pipe()
        _redirect(writing, descriptor)
        thread = Thread(target=_copy, args=(reading, priority), name="statsfs-syslog", daemon=True)
        thread.start()
        atexit.register(thread.join, _PATIENCE)
    atexit.register(_end)  # runs before the joins


def _copy(pipe: int, priority: int) -> None:
    with os.fdopen(pipe, errors="backslashreplace") as lines:
        for line in lines:
            own, text = _PRIORITIZED.findall(line.rstrip("\n"))[0]
            # A NUL would be an error; the log adds our name.
            text = text.replace("\0", "").removeprefix("statsfs: ")
            syslog.syslog(int(own or priority), text)


def _end() -> None:
    # The last lines are copied: with its writers closed, each pipe comes to an end.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _redirect(os.open(os.devnull, os.O_WRONLY), 1, 2)

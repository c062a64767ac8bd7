"""The log of a server: what a line of it looks like, for people, machines and systemd.

Owns the formats, and the handler of the root logger where nobody else has set one up.
Threading: set up by the main thread; lines are made in any.
"""

import json
import logging
import os
import sys
import time
from typing import Final, Literal

__all__ = ["FORMATS", "Format", "is_journal", "set_up"]

Format = Literal["text", "json"]
FORMATS: Final[tuple[Format, ...]] = ("text", "json")

# sd-daemon(3): a line's priority before it, as syslog(3) numbers them.
_PRIORITIES: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def set_up(form: Format, *, dated: bool = False, prioritized: bool = False) -> None:
    """Log to stderr from INFO on, unless a program that was loaded has set up logging.

    Args:
        form: "text", or "json": an object a line, with `time`, `level`, `logger`, `message`, and
            `traceback` if there is one.
        dated: whether lines of text begin with the time and the level.
        prioritized: whether each line of text begins with its priority, as "<4>".
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text(dated, prioritized))
    root.addHandler(handler)
    logging.getLogger("statsfs").setLevel(logging.INFO)


def is_journal() -> bool:
    """Return whether systemd's journal reads our stderr; systemd.exec(5) on JOURNAL_STREAM."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Text(logging.Formatter):
    def __init__(self, dated: bool, prioritized: bool) -> None:
        dates = "%(asctime)s %(levelname)s %(name)s: " if dated else ""
        super().__init__(f"{dates}%(message)s")
        self._prioritized = prioritized

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._prioritized:
            return text
        prefix = f"<{_PRIORITIES.get(record.levelno, 4)}>"
        return "\n".join(prefix + line for line in text.split("\n"))


class _Json(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)

"""The log of a server: its formats, for people, programs and systemd.

Owns the formats, and the handler of the root logger, unless a loaded program has set up one.
Threading: set up by the main thread; lines are formatted in any.
"""

import json
import logging
import time
from typing import Final, Literal

from statsfs.cli.systemd import prioritize

__all__ = ["FORMATS", "Format", "set_up"]

Format = Literal["text", "json"]
FORMATS: Final[tuple[Format, ...]] = ("text", "json")


def set_up(form: Format, *, dated: bool = False, prioritized: bool = False) -> None:
    """Log to stderr, from INFO on, unless a loaded program has set up logging.

    Args:
        form: "text", or "json": an object a line, with `time`, `level`, `logger`, `message`, and
            `traceback` if there is one.
        dated: whether lines of text begin with the time and the level.
        prioritized: whether each line of text begins with its priority, as "<4>", even if stderr
            is not systemd's journal.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text(dated, prioritized))
    root.addHandler(handler)
    logging.getLogger("statsfs").setLevel(logging.INFO)


class _Text(logging.Formatter):
    def __init__(self, dated: bool, prioritized: bool) -> None:
        dates = "%(asctime)s %(levelname)s %(name)s: " if dated else ""
        super().__init__(f"{dates}%(message)s")
        self._prioritized = prioritized

    def format(self, record: logging.LogRecord) -> str:
        return prioritize(super().format(record), record.levelno, always=self._prioritized)


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

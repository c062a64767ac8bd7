"""What is known of files: the schema, completed when sources come that it lacks.

Threading: `find` is for any thread; one thread reads schemas.
"""

import threading
from collections.abc import Mapping
from typing import Final

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Description, Path, Schema
from statsfs.eyes.places import Place

__all__ = ["Known"]

_READS_MAX: Final = 8  # of schemas in a tick
_EACH: Final = 10.0  # seconds between two reads of a whole schema
_FOUND_MAX: Final = 1024  # sources that are described one by one; more are not on a screen

_NOTHING: Final[Mapping[str, Description]] = {}


class Known:
    """The descriptions of the shown files.

    Args:
        place: where schemas are read.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._schema = Schema({"labels": {}, "values": {}, "subordinates": {}})
        self._found: dict[Path, Mapping[str, Description]] = {}
        self._wanted: set[Path] = set()
        self._due = 0.0
        self._lock = threading.Lock()

    def find(self, path: Path, name: str) -> Description | None:
        """Return what a file is; None if it is not known yet: then it is asked for."""
        described = (self._found.get(path) or self._schema.find(path) or _NOTHING).get(name)
        if described is None:
            with self._lock:
                self._wanted.add(path)
        return described

    def read(self, now: float) -> bool:
        """Read what was asked for; tell whether something was. SampleError: it is not to be had."""
        if self._due == 0 or not self._place.partial:
            if self._due and not (self._wanted and now >= self._due):
                return False
            self._schema = self._place.read_schema()
            self._due = now + _EACH
            with self._lock:
                self._wanted.clear()
            return True
        with self._lock:
            paths = [self._wanted.pop() for _ in range(min(_READS_MAX, len(self._wanted)))]
        for path in paths:
            try:
                self._found[path] = self._place.read_schema(path).find(()) or _NOTHING
            except SampleError:
                self._found.pop(path, None)  # it has gone since
        while len(self._found) > _FOUND_MAX:  # the oldest; asked for again if it is shown
            del self._found[next(iter(self._found))]
        return bool(paths)

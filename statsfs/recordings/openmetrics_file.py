"""A recording as text of OpenMetrics, each sample with its time: what Prometheus can take in.

The samples are those of the view `.stats.openmetrics`, or of a server's `/metrics`. The file ends
in `# EOF` after each interval. Threading: one thread's.
"""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Final

from statsfs.exceptions import SampleError
from statsfs.eyes.places import explain
from statsfs.formats.openmetrics import CONTENT_TYPE
from statsfs.recordings.growing_file import open_new

__all__ = ["MetricsRecorder"]

_END: Final = b"# EOF\n"
_PATIENCE: Final = 10.0  # seconds


class MetricsRecorder:
    """Records places into a text.

    Args:
        name: the file's; it must not exist, or be empty.
        places: directories of a mount, or `http://host:port`.

    Attributes:
        intervals: how many were written.
        rows: how many samples they had.
        size: the bytes of the file.
    """

    def __init__(self, name: str, places: Sequence[str]) -> None:
        self._name = name
        self._places = places
        self._described: set[bytes] = set()  # families, whose lines are written once
        self._descriptor = open_new(name)
        self.intervals = self.rows = self.size = 0
        try:
            self._write([])
        except SampleError:
            os.close(self._descriptor)
            raise

    def record(self, time: float) -> dict[str, SampleError]:
        """Write the samples of now; the errors, by place, say why there are none.

        Raises:
            SampleError: they could not be written. The file is as it was before.
        """
        stamp = b" %.3f" % time
        lines, described = [], set[bytes]()
        errors = {}
        for place in self._places:
            try:
                text = _read(place)
            except SampleError as error:
                errors[place] = error
                continue
            for line in text.splitlines():
                if not line.startswith(b"#"):
                    lines.append(line + stamp)
                elif line != b"# EOF" and line not in self._described:
                    described.add(line)
                    lines.append(line)
        self._write(lines)
        self._described |= described
        self.rows += sum(not line.startswith(b"#") for line in lines)
        self.intervals += 1
        return errors

    def close(self) -> None:
        """Close the file, which is whole."""
        os.close(self._descriptor)

    def _write(self, lines: Sequence[bytes]) -> None:
        # In place of the end, which the new end follows.
        begin = max(0, self.size - len(_END))
        left = memoryview(b"".join([line + b"\n" for line in lines]) + _END)
        at = begin
        try:
            while left:
                written = os.pwrite(self._descriptor, left, at)
                left = left[written:]
                at += written
        except OSError as error:
            os.ftruncate(self._descriptor, begin)
            os.pwrite(self._descriptor, _END[: self.size], begin)
            raise SampleError(f"{self._name}: {error.strerror}", self._name) from error
        self.size = at


def _read(place: str) -> bytes:
    try:
        if "://" not in place:
            with open(os.path.join(place, ".stats.openmetrics"), "rb", buffering=0) as file:
                return file.read()
        url = f"{place.rstrip('/')}/metrics"
        request = urllib.request.Request(url, headers={"Accept": CONTENT_TYPE})
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            text: bytes = answer.read()
            return text
    except FileNotFoundError:
        reason = "not a directory of a statsfs"
    except urllib.error.URLError as error:
        reason = str(error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = explain(error)
    raise SampleError(f"{place}: {reason}", place)

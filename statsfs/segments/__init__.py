"""The producer's half of many processes: a segment is one source of one process, as a file.

The producer maps the file and counts in place. It needs nothing but Python.
"""

from statsfs.segments.header import get_include
from statsfs.segments.publishing import Segment, publish

__all__ = ["Segment", "get_include", "publish"]

"""The producer's half of many processes: a segment is one source of one process, as a file.

Its producer maps the file and counts in place; it needs nothing but Python. The other half is the
collector.
"""

from statsfs.segments.publishing import Segment, publish

__all__ = ["Segment", "publish"]

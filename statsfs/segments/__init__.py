"""Segments: what many processes count, as files of one directory and one tree.

A segment is one source of one process, mapped and written in place by its producer. `blocks` owns
its file, `locks` who is alive, `places` the directories, `mappings` the memory and `publishing` the
life of a segment in its producer, which needs nothing but Python.

The other half is the `collector` with its parts: `watching` what happens in its `home`, the
`members` that it lets in from each `directory`, read as `leaves`, on the `branches` of a tree that
outlives it by the `ledger` and its `records`. It wants `inotify_simple`, when it starts.
"""

from statsfs.segments.collector import Collector
from statsfs.segments.publishing import Segment, publish

__all__ = ["Collector", "Segment", "publish"]

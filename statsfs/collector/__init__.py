"""The daemon's half of many processes: the segments of a directory as one tree.

It wants `inotify_simple` when it starts.
"""

from statsfs.collector.collector import Collector

__all__ = ["Collector"]

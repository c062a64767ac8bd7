"""The daemon's half of many processes; it needs `inotify_simple` when it starts."""

from statsfs.collector.collector import Collector

__all__ = ["Collector"]

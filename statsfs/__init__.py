"""statsfs: a program's counters as a live filesystem, with totals in every directory.

The examples in the docstrings follow `from statsfs import *`. Those that publish are run in a place
that has a directory `segments`.
"""

import typing

from statsfs.collector import Collector
from statsfs.exceptions import (
    BaseMismatchError,
    DuplicateNameError,
    ExhaustedError,
    FormatError,
    InvalidNameError,
    MountError,
    QmpError,
    ReadOnlyValueError,
    ReleasedError,
    SegmentError,
    StatsfsError,
    TreeError,
    UnavailableError,
    UnknownValueError,
)
from statsfs.filesystem.mounting import Mount, mount, mounted
from statsfs.model.additions import Addition
from statsfs.model.fields import (
    FieldArguments,
    HistogramArguments,
    boolean,
    counter,
    gauge,
    hist,
    linear_hist,
    log_hist,
    peak,
    s8,
    s16,
    s32,
    s64,
    u8,
    u16,
    u32,
    u64,
)
from statsfs.model.histograms import Histogram
from statsfs.model.names import safe_name
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.monitoring.exposition import RegistryCollector, serve_metrics
from statsfs.monitoring.prometheus_bridge import show_prometheus
from statsfs.segments import Segment, get_include, publish
from statsfs.tree.families import Family
from statsfs.tree.per_thread import PerThread
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot import Samples, Snapshot
from statsfs.tree.source import Source

if typing.TYPE_CHECKING:
    from statsfs.monitoring.http_server import MetricsServer as MetricsServer

__all__ = [
    "Addition",
    "Aggregate",
    "BaseMismatchError",
    "Collector",
    "DuplicateNameError",
    "ExhaustedError",
    "Family",
    "FieldArguments",
    "FormatError",
    "Histogram",
    "HistogramArguments",
    "InvalidNameError",
    "Kind",
    "Mount",
    "MountError",
    "PerThread",
    "QmpError",
    "ReadOnlyValueError",
    "Registry",
    "RegistryCollector",
    "ReleasedError",
    "Samples",
    "Segment",
    "SegmentError",
    "Snapshot",
    "Source",
    "Stats",
    "StatsfsError",
    "TreeError",
    "Type",
    "UnavailableError",
    "Unit",
    "UnknownValueError",
    "Value",
    "boolean",
    "counter",
    "gauge",
    "get_include",
    "hist",
    "linear_hist",
    "log_hist",
    "mount",
    "mounted",
    "peak",
    "publish",
    "s16",
    "s32",
    "s64",
    "s8",
    "safe_name",
    "serve_metrics",
    "show_prometheus",
    "u16",
    "u32",
    "u64",
    "u8",
    "values_of",
]

__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    if name != "MetricsServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    # It needs trio and h11: not in `__all__`, all of which a program that only counts can import.
    from statsfs.monitoring.http_server import MetricsServer

    return MetricsServer

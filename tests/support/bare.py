"""Histograms without a sum, as the kernel's are, for a `Stats` class."""

from typing import Any, cast

from statsfs.model.fields import u64
from statsfs.model.histograms import Histogram
from statsfs.model.values import Aggregate, Kind

__all__ = ["bare_linear_hist", "bare_log_hist"]


def bare_log_hist(size: int, aggregate: Aggregate = Aggregate.NONE, **kwargs: Any) -> Histogram:
    """Declare what `log_hist` declares, but no sum."""
    return cast(Histogram, u64(aggregate, kind=Kind.LOG_HIST, size=size, **kwargs))


def bare_linear_hist(
    size: int, bucket_size: int, aggregate: Aggregate = Aggregate.NONE, **kwargs: Any
) -> Histogram:
    """Declare what `linear_hist` declares, but no sum."""
    kind = Kind.LINEAR_HIST
    return cast(Histogram, u64(aggregate, kind=kind, size=size, bucket_size=bucket_size, **kwargs))

"""Numbers that are counted elsewhere, less what they were when somebody cleared them.

Owns the base for what this process can read and not write: a kernel's counters, another process's.
Clearing one keeps what it is now, its baseline, and subtracts that from then on. Where the numbers
come from is the business of others, who `take` them before they are read.

Threading: `take` and `clear_value` may come from any threads, and exclude each other; reading takes
no lock and sees a row of one `take`, for it is replaced by one C call.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from statsfs.model.values import Value

__all__ = ["Numbers"]


class Numbers(dict[str, Any]):
    """The numbers of some values by name, a base for arrays of any of them.

    Args:
        values: what is counted, by name, in the order in which `take` has the numbers; it is kept,
            and thousands may share it.

    Attributes:
        baselines: of each value that was cleared what it was then: an integer, or buckets. Whoever
            keeps them beyond this process may put them back before the first `take`.
    """

    __slots__ = ("_lock", "_raw", "_values", "baselines")

    def __init__(self, values: Mapping[str, Value]) -> None:
        super().__init__((name, value.zero) for name, value in values.items())
        self.baselines: dict[str, Any] = {}
        self._values = values
        self._raw: Sequence[Any] = tuple(self.values())
        # Reentrant: a signal handler may read what the code that it interrupted is just taking.
        self._lock = threading.RLock()

    def take(self, raw: Sequence[Any]) -> None:
        """Replace all numbers by what is counted now.

        A number below its baseline shows that counting began anew: the baseline is dropped.

        Args:
            raw: for each value an integer, or a list of them for a histogram; it is kept.
        """
        with self._lock:
            self._raw = raw
            if not self.baselines:
                self.update(zip(self._values, raw, strict=True))
                return
            numbers = dict(zip(self._values, raw, strict=True))
            for name, baseline in list(self.baselines.items()):
                left = _subtract(self._values[name], numbers[name], baseline)
                if left is None:
                    del self.baselines[name]
                else:
                    numbers[name] = left
            self.update(numbers)

    def clear_value(self, name: str) -> None:
        """Make what a value is now its baseline; readers call it in place of `self[name] = 0`.

        Raises:
            ValueError: it is neither cumulative nor a histogram, so that no difference would mean
                anything.
        """
        value = self._values[name]
        if not value.cumulative:
            raise ValueError(f"who counts it keeps the {value.kind}")
        with self._lock:
            self.baselines[name] = self._raw[list(self._values).index(name)]
            self[name] = value.zero


def _subtract(value: Value, raw: Any, baseline: Any) -> Any:
    # None where it was more before than it is now, which what only grows can not have been.
    if not value.histogram:
        left = raw - baseline
        return left if left >= 0 or value.type.signed else None
    buckets = [count - before for count, before in zip(raw, baseline, strict=True)]
    return buckets if min(buckets) >= 0 else None

"""Numbers that this process reads but cannot write: a kernel's counters, another process's.

A clear makes the number of that moment the baseline, which is subtracted from then on.

Threading: `take` and `clear_value` take a lock. Reading takes none; it sees all numbers of one
`take`, which one C call replaces.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from statsfs.model.locking import locked
from statsfs.model.values import Value

__all__ = ["Numbers", "subtract_baseline"]


class Numbers(dict[str, Any]):
    """The numbers of some values by name, a base for arrays of any of them.

    Args:
        values: the values by name, in the order of the numbers that `take` gets; not copied, as
            thousands may share it.

    Attributes:
        baselines: by name what each cleared value was when it was cleared; saved ones may be put
            back before the first `take`.
    """

    __slots__ = ("_lock", "_raw", "_values", "baselines")

    def __init__(self, values: Mapping[str, Value]) -> None:
        super().__init__((name, value.zero) for name, value in values.items())
        self.baselines: dict[str, Any] = {}
        self._values = values
        self._raw: Sequence[Any] = tuple(self.values())
        # Reentrant: a signal handler may read in the middle of a `take`.
        self._lock = threading.RLock()

    @locked
    def take(self, raw: Sequence[Any]) -> None:
        """Replace all numbers by an integer or a list for each value, which are not copied."""
        self._take(raw)

    def _take(self, raw: Sequence[Any]) -> None:
        # Under the lock. A number below its baseline shows that counting began anew: then there is
        # none.
        self._raw = raw
        if not self.baselines:
            self.update(zip(self._values, raw, strict=True))
            return
        numbers = dict(zip(self._values, raw, strict=True))
        for name, baseline in list(self.baselines.items()):
            left = subtract_baseline(self._values[name], numbers[name], baseline)
            if left is None:
                del self.baselines[name]
            else:
                numbers[name] = left
        self.update(numbers)

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers that were taken last, by name, without the baselines subtracted."""
        return dict(zip(self._values, self._raw, strict=True))

    def clear_value(self, name: str) -> None:
        """Make the number of a cumulative value its baseline, else raise ValueError.

        Readers call it in place of `self[name] = 0`.
        """
        value = self._values[name]
        if not value.cumulative:
            raise ValueError(f"the {value.kind} is kept where it is counted")
        self._clear(name)

    @locked
    def _clear(self, name: str) -> None:
        self.baselines[name] = self._raw[list(self._values).index(name)]
        self[name] = self._values[name].zero


def subtract_baseline(value: Value, raw: Any, baseline: Any) -> Any:
    """Return a number less its baseline; None if it is below the baseline, as it began anew."""
    if not value.histogram:
        left = raw - baseline
        return left if left >= 0 or value.type.signed else None
    buckets = [count - before for count, before in zip(raw, baseline, strict=True)]
    return buckets if min(buckets) >= 0 else None

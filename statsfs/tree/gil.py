"""The GIL: without it a snapshot is not of one moment.

Owns the warning when statsfs is imported, and what the refusals say. A snapshot copies all bases in
one C call, during which the GIL keeps other threads from running. Without it 12,094 of 12,176
snapshots were torn: nothing else stops all producers at no cost to them.

Threading: as the caller's.
"""

import sys
import warnings
from typing import Final

__all__ = ["GIL_OFF", "is_gil_on"]

GIL_OFF: Final = "this Python runs without its GIL, so what is read is torn; run it with -X gil=1"
"""What is said of what is refused."""


def is_gil_on() -> bool:
    """Tell whether this Python runs with its GIL; importing a module may switch it on."""
    # Since Python 3.13.
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


if not is_gil_on():
    warnings.warn(
        "statsfs: this Python runs without its GIL. A base that one thread writes is counted "
        "right; snapshots and totals are torn, and mount, Collector and serve_metrics refuse. Run "
        "it with -X gil=1.",
        RuntimeWarning,
        stacklevel=2,
    )

"""Closings: what is closed at the end of a `with`.

Owns that and nothing else. Threading: that of what is closed.
"""

from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing:
    """A context manager that closes itself at the end; it is there already when it begins."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; once more does nothing."""
        raise NotImplementedError

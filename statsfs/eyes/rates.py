"""What moved between two samples.

Sources are told apart by their paths. Where it is not known what was counted, there is no
difference: a number that fell was cleared or restarted, or one of its sources left; a source that
came has counted for longer than since the sample before. Threading: one thread's.
"""

from statsfs.eyes.descriptions import Path
from statsfs.eyes.samples import Number, Sample

__all__ = ["Rates", "subtract"]


def subtract(before: Number | None, after: Number | None) -> Number | None:
    """Return the growth of a counter, or of each bucket; None if it is not known."""
    if before is None or after is None:
        return None
    if isinstance(before, list) or isinstance(after, list):
        if not (isinstance(before, list) and isinstance(after, list)) or len(before) != len(after):
            return None
        grown = [new - old for old, new in zip(before, after, strict=True)]
        return None if min(grown, default=0) < 0 else grown
    return None if after < before else after - before


class Rates:
    """The differences between the two newest of the samples that it was given.

    Attributes:
        before: the one before the newest, or None.
        after: the newest, or None.
    """

    def __init__(self) -> None:
        self.before: Sample | None = None
        self.after: Sample | None = None

    @property
    def elapsed(self) -> float:
        """The seconds between both; 0 if there are not two."""
        if self.before is None or self.after is None:
            return 0.0
        return self.after.moment - self.before.moment

    def add(self, sample: Sample) -> None:
        """Take the next sample."""
        self.before, self.after = self.after, sample

    def difference(self, path: Path, name: str) -> Number | None:
        """Return the growth of a file's number, or of each bucket."""
        if self.before is None or self.after is None:
            return None
        return subtract(self.before.number(path, name), self.after.number(path, name))

    def rate(self, path: Path, name: str) -> float | None:
        """Return the growth of a file's number in a second; of a histogram, its observations.

        Whether a file counts at all its description tells (`Description.counts`).
        """
        grown, elapsed = self.difference(path, name), self.elapsed
        if grown is None or elapsed <= 0:
            return None
        return (sum(grown) if isinstance(grown, list) else grown) / elapsed

"""The numbers of each user in a collector, and the reasons of refusals.

Threading: any thread.
"""

from collections import Counter
from collections.abc import Callable

from statsfs.collector.admission import Admission
from statsfs.collector.directories import Directories
from statsfs.collector.liveness import Liveness
from statsfs.collector.path_sources import PathSources
from statsfs.model.fields import counter, gauge
from statsfs.model.stats import Stats

__all__ = ["UserStats", "Users"]


class UserStats(Stats):
    """The numbers of one user: segments, directories, their weights, and refusals."""

    segments = gauge("Segments that are shown", mode=0o444)
    segment_integers = gauge("Weight of living segments in the user's share", mode=0o444)
    directory_numbers = gauge("Weight of directories of segments in the user's share", mode=0o444)
    empty_directories = gauge("Directories that only retain what was counted", mode=0o444)
    refused_files = gauge("Files and directories that are not shown now", mode=0o444)
    refusals = counter("How often a file was not shown", mode=0o444)


class Users:
    """The users who have something in a collector.

    Args:
        liveness, paths, admission: the collector's.
        find_directories: returns the directories that it reads, if any.
    """

    def __init__(
        self,
        liveness: Liveness,
        paths: PathSources,
        admission: Admission,
        find_directories: Callable[[], Directories | None],
    ) -> None:
        self._liveness = liveness
        self._paths = paths
        self._refusals = admission.refusals
        self._find_directories = find_directories

    def count(self) -> dict[int, Counter[str]]:
        """Return the numbers of each user, by the names of `UserStats`."""
        weights, empty = self._paths.count_users()
        found: dict[int, Counter[str]] = {}
        for name, numbers in (
            ("segments", self._liveness.counts),
            ("segment_integers", self._liveness.weights),
            ("directory_numbers", weights),
            ("empty_directories", empty),
            ("refused_files", self._refusals.counts),
            ("refused_files", Counter(user for user, _ in self._list_refused())),
            ("refusals", self._refusals.total),
        ):
            for user, number in list(numbers.items()):
                if number:
                    found.setdefault(user, Counter())[name] += number
        return found

    def find_reasons(self, user: int, most: int) -> list[str]:
        """Return lines about the refused directories of a user, then about the newest files.

        There are `most` lines at most.
        """
        lines = [reason for one, reason in self._list_refused() if one == user]
        return [*lines, *self._refusals.find_reasons(user, most)][:most]

    def _list_refused(self) -> list[tuple[int, str]]:
        directories = self._find_directories()
        return [] if directories is None else list(directories.refused.values())

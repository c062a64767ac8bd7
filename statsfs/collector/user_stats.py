"""What each user has in a collector, and what is refused of it.

Threading: any thread.
"""

from collections import Counter

from statsfs.collector.admission import Admission
from statsfs.collector.directories import Directories
from statsfs.collector.liveness import Liveness
from statsfs.collector.path_sources import PathSources
from statsfs.model.fields import counter, gauge
from statsfs.model.stats import Stats

__all__ = ["UserStats", "count_users", "find_reasons"]


class UserStats(Stats):
    """What the segments of one user are, and weigh in the shares that the user has."""

    segments = gauge("Segments that are shown", mode=0o444)
    segment_integers = gauge("What living segments weigh in the user's share", mode=0o444)
    directory_numbers = gauge("What directories of segments weigh in the share", mode=0o444)
    empty_directories = gauge("Directories that only retain what was counted", mode=0o444)
    refused_files = gauge("Files and directories that are not shown now", mode=0o444)
    refusals = counter("How often a file was not shown", mode=0o444)


def count_users(
    liveness: Liveness,
    paths: PathSources,
    admission: Admission,
    directories: Directories | None,
) -> dict[int, Counter[str]]:
    """Return the numbers of each user, by the names of `UserStats`."""
    weights, empty = paths.count_users()
    refusals = admission.refusals
    refused = Counter(user for user, _ in _list_refused(directories))
    found: dict[int, Counter[str]] = {}
    for name, numbers in (
        ("segments", liveness.counts),
        ("segment_integers", liveness.weights),
        ("directory_numbers", weights),
        ("empty_directories", empty),
        ("refused_files", refusals.counts),
        ("refused_files", refused),
        ("refusals", refusals.total),
    ):
        for user, number in list(numbers.items()):
            if number:
                found.setdefault(user, Counter())[name] += number
    return found


def find_reasons(
    admission: Admission, directories: Directories | None, user: int, most: int
) -> list[str]:
    """Return lines that say what is refused of a user, the newest files last, `most` at most."""
    lines = [reason for one, reason in _list_refused(directories) if one == user]
    return [*lines, *admission.refusals.find_reasons(user, most)][:most]


def _list_refused(directories: Directories | None) -> list[tuple[int, str]]:
    return [] if directories is None else list(directories.refused.values())

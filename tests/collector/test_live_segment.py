"""Live segments: what an earlier collector cleared of one."""

from statsfs.collector.trusted_directory import TrustedDirectory
from tests.support.collecting import make_segment


def test_baselines_that_do_not_fit(trusted: TrustedDirectory) -> None:
    """What an earlier life cleared is put back where it is of the same sort, and else left out."""
    numbers = make_segment(trusted, "app/w1").numbers
    numbers.restore({"sum": 2, "waits": [1, 1, 1], "peak": 3, "gone": 4})
    assert numbers.baselines == {"sum": 2, "waits": [1, 1, 1]}
    numbers.refresh()
    assert dict(numbers) == {"sum": 3, "waits": [0, 1, 2], "peak": 7}
    numbers.close()
    other = make_segment(trusted, "app/w2").numbers
    other.restore({"sum": [1], "waits": 1})
    other.restore({"waits": [1, 1]})
    assert other.baselines == {}
    other.refresh()
    other.close()
    other.close()
    other.refresh()
    other.clear_value("peak")
    assert dict(other) == {"sum": 5, "waits": [1, 2, 3], "peak": 0}

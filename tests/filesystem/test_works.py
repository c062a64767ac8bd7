"""Works: what is done before a handler answers, and who shares it."""

import pytest

from statsfs.filesystem.works import Work, Works
from statsfs.tree import pauses


def make() -> Work[int]:
    """Make a work."""
    return Work(lambda: 7, 1)


def test_a_work() -> None:
    """It has a result, or an error that everybody gets who asks for it."""
    work = make()
    assert not work.begun
    work.run()
    assert (work.begun, work.result, work.error) == (True, 7, None)

    def fail() -> int:
        raise SystemExit(3)

    broken = Work(fail, 1)
    for ask in (broken.run, lambda: broken.result):
        with pytest.raises(SystemExit):
            ask()
    assert isinstance(broken.error, SystemExit)


@pytest.mark.parametrize("quick", [True, False])
def test_pauses(quick: bool) -> None:
    """In a thread it lets others have the interpreter; on the serving thread all wait for it."""
    work = Work(lambda: pauses._calling.rest, 1, quick=quick)
    work.run()
    assert (work.result is None) == quick


def test_sharing() -> None:
    """What asks for the same is joined until it begins, and by nobody afterwards."""
    works: Works[int] = Works()
    with works.share("a", make) as first:
        with works.share("a", make) as same, works.share("b", make) as other:
            assert same is first
            assert other is not first
        # Those who joined may have gone; who asks now has its own.
        with works.share("a", make) as second:
            assert second is not first
            first.run()
            with works.share("a", make) as joining:
                assert joining is second
            second.run()
            with works.share("a", make) as third:
                assert third not in (first, second)
                with pytest.raises(KeyError), works.share("c", make):
                    raise KeyError
    assert works._works == {}

"""How requests are waited for: what ends serving, and what does not."""

import errno
import os
from collections.abc import Callable

import pyfuse3
import pytest
import trio

from statsfs.loop import find_descriptors, serve


def serve_with(monkeypatch: pytest.MonkeyPatch, *outcomes: BaseException | None) -> int:
    """Serve with a `pyfuse3.main` that ends so each time; return how often it was begun."""
    begun = 0

    async def main(min_tasks: int, max_tasks: int) -> None:
        nonlocal begun
        begun += 1
        assert (min_tasks, max_tasks) == (1, 1)
        await trio.lowlevel.checkpoint()
        outcome = outcomes[begun - 1]
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(pyfuse3, "main", main)
    reading, writing = os.pipe()
    try:
        trio.run(serve, reading)
        assert not os.get_blocking(reading)
    finally:
        os.close(reading)
        os.close(writing)
    return begun


def again(wrap: Callable[[OSError], BaseException]) -> BaseException:
    """Make what pyfuse3 raises when a killed client took its request back."""
    return wrap(OSError(errno.EAGAIN, "fuse_session_receive_buf failed"))


def test_serving_ends_with_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """When `main` returns, the mount was unmounted or terminated."""
    assert serve_with(monkeypatch, None) == 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda error: error,
        lambda error: ExceptionGroup("one", [error]),
        lambda error: ExceptionGroup("outer", [ExceptionGroup("inner", [error, error])]),
    ],
)
def test_a_request_that_was_taken_back(
    monkeypatch: pytest.MonkeyPatch, wrap: Callable[[OSError], BaseException]
) -> None:
    """However it is wrapped and as often as it comes, serving begins again."""
    assert serve_with(monkeypatch, again(wrap), again(wrap), None) == 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "broken"),
        ExceptionGroup("two", [OSError(errno.EAGAIN, "again"), OSError(errno.EIO, "broken")]),
        ExceptionGroup("two", [OSError(errno.EAGAIN, "again"), ValueError("a bug")]),
        ValueError("a bug"),
    ],
)
def test_what_serving_cannot_survive(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Other errors, even beside such a one, come through."""
    with pytest.raises((OSError, ValueError, ExceptionGroup)):
        serve_with(monkeypatch, error)


def test_finding_descriptors() -> None:
    """Those on /dev/fuse; others of the process are not counted, nor is that of the listing."""
    before = find_descriptors()
    with open("/dev/null") as other:
        assert other.fileno() not in find_descriptors()
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        with open("/dev/fuse", "rb") as device:
            assert find_descriptors() - before == {device.fileno()}
    assert find_descriptors() == before

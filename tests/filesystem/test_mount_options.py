"""Options of a mount: what they are by default, and which are refused."""

import math
import os

import pytest

from statsfs.exceptions import MountError
from statsfs.filesystem.mount_options import MountOptions


def test_defaults() -> None:
    """The owner is the process's user, and only root lets others in."""
    options = MountOptions()
    options.check("/mnt")
    assert options.owner == (os.geteuid(), os.getegid())
    assert options.lets_others_in is (os.geteuid() == 0)
    assert MountOptions(uid=7, gid=8).owner == (7, 8)
    for allowed in (True, False):
        assert MountOptions(allow_other=allowed).lets_others_in is allowed


@pytest.mark.parametrize("seconds", [0, 1e-7, -1.0, 101, math.inf, math.nan])
def test_invalid_switch_intervals(seconds: float) -> None:
    """One line that says what is valid."""
    with pytest.raises(MountError, match=r"^/mnt: invalid switch interval .* and 100 s$"):
        MountOptions(switch_interval=seconds).check("/mnt")


def test_what_is_no_switch_interval() -> None:
    """It is named."""
    options = MountOptions(switch_interval="5")  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(MountError, match=r"^/mnt: invalid switch_interval '5'$"):
        options.check("/mnt")


@pytest.mark.parametrize("number", [-1, 0xFFFFFFFF, "root", 1.0])
def test_invalid_owners(number: object) -> None:
    """The kernel uses the highest number for "none"."""
    for name in ("uid", "gid"):
        options = MountOptions(**{name: number})  # type: ignore[arg-type]  # that is what is tested
        with pytest.raises(MountError, match=rf"^/mnt: invalid {name} {number!r}$"):
            options.check("/mnt")

"""Other users: how programs run as them, and segments that are theirs."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from statsfs.model.values import Aggregate, Value
from tests.support.collecting import HandMade
from tests.support.mounts import NOBODY

__all__ = ["AS_NOBODY", "AS_USER", "SUM", "USER", "put", "shared_directory"]

USER = 1234
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
SUM = Value("sum", aggregate=Aggregate.SUM)


@contextlib.contextmanager
def shared_directory() -> Iterator[Path]:
    """A directory that others may enter, with one in it that is a user's."""
    path = Path(tempfile.mkdtemp(prefix="statsfs-segments-"))
    path.chmod(0o755)
    (path / "www").mkdir()
    os.chown(path / "www", USER, USER)
    yield path
    shutil.rmtree(path)


def put(file: Path, path: str, uid: int, mode: int = 0o644, number: int = 1) -> HandMade:
    """Put a living segment of some user's somewhere."""
    hidden = file.with_name(f".{file.name}.made")
    made = HandMade.of(hidden, path, [number], [SUM])
    os.chown(hidden, uid, uid)
    hidden.chmod(mode)
    hidden.rename(file)
    made.file = file
    return made

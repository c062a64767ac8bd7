"""A user who means harm, beside a service of another user's; and QMP servers that do."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from statsfs.segments import file_format, locks
from tests.soak.attackers import VALUES
from tests.support.neighbours import Neighbours, at, neighbours
from tests.support.service import NAME

__all__ = ["locked_files", "mutated_segments", "renamed_files"]

# The longest that the service's slowest reads may take, in seconds: far more than they do.
_SLOW: Final = 2.0


def _attack(scene: Neighbours, seconds: float, function: str, *arguments: str) -> str:
    imports, program = (
        f"from tests.soak.attackers import {function}",
        f"{function}(DIRECTORY, *sys.argv[4:])",
    )
    attacking = scene.attacking(program, *arguments, imports=imports)
    with scene.measuring() as measured, attacking as attacker:
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == "begun\n"
        time.sleep(seconds)
        output, _ = attacker.communicate(timeout=60)
    assert attacker.returncode == 0
    assert not measured[0].wrong, measured[0]
    for taken in (measured[0].reads, measured[0].births, measured[0].scrapes):
        assert at(taken, 1) < _SLOW, measured[0]
    moves = json.loads(output)
    listed = ", ".join(f"{count} {name}" for name, count in moves.items())
    return f"{sum(moves.values())} moves ({listed}); {measured[0]}"


@contextlib.contextmanager
def _scene() -> Iterator[Neighbours]:
    with neighbours() as scene:
        yield scene
    assert not [line for line in scene.said if "Traceback" in line], scene.said


def renamed_files(seconds: float) -> str:
    """Let a user swap files faster than they can be checked and opened.

    What he may not read is not shown, and what is not his is not removed.
    """
    with _scene() as scene, tempfile.TemporaryDirectory() as place:
        secret = Path(place, "secret.stats")
        secret.write_bytes(file_format.encode("web/secret", VALUES, numbers=[9, [9, 9, 9], 9]))
        secret.chmod(0o600)
        alive = os.open(secret, os.O_RDWR)
        assert locks.hold(alive)
        done = _attack(scene, seconds, "rename", str(secret), place, "/dev/zero", "/dev/tty")
        assert secret.exists()
        assert not Path(scene.mountpoint, "web/secret").exists()
        os.close(alive)
    return done


def locked_files(seconds: float) -> str:
    """Let a user lock what he may open, his own files and others'.

    Segments of others come and go as ever, and their totals are right.
    """
    with _scene() as scene:
        return _attack(scene, seconds, "play_with_locks", str(scene.directory / NAME))


def mutated_segments(seconds: float) -> str:
    """Let a user publish what was changed at random."""
    with _scene() as scene:
        return _attack(scene, seconds, "mutate")

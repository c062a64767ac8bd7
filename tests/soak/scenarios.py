"""The scenarios, by name."""

from collections.abc import Callable
from typing import Final

from tests.soak.attacks import locked_files, mutated_segments, renamed_files
from tests.soak.decoding import decoding
from tests.soak.embedding import remounting
from tests.soak.faults import busy_mounts, killed_clients, stopped_server
from tests.soak.forks import forks_while_rendering
from tests.soak.fuzzing import fuzz
from tests.soak.holding import held_files, listings, stopped_clients
from tests.soak.hostile_qmp import hostile_qmp
from tests.soak.load import load
from tests.soak.producers import blocking_producers, broken_producers
from tests.soak.segments import cleared_segments, segments, takeovers

__all__ = ["SCENARIOS"]

SCENARIOS: Final[dict[str, Callable[[float], str]]] = {
    scenario.__name__: scenario
    for scenario in (
        load,
        fuzz,
        killed_clients,
        stopped_clients,
        stopped_server,
        held_files,
        listings,
        busy_mounts,
        broken_producers,
        blocking_producers,
        decoding,
        segments,
        cleared_segments,
        takeovers,
        forks_while_rendering,
        remounting,
        renamed_files,
        locked_files,
        mutated_segments,
        hostile_qmp,
    )
}

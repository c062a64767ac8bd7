"""Keys of a recording that is played, and what the line at the top says of it.

Threading: textual's.
"""

import time
from typing import Final

from textual.binding import Binding

from statsfs.eyes.places import Player

__all__ = ["PLAYER_BINDINGS", "describe_position", "move"]

PLAYER_BINDINGS: Final = (
    Binding("full_stop", "play('step', 1)", "Step", show=False),
    Binding("comma", "play('step', -1)", "Step back", show=False),
    Binding("right_curly_bracket", "play('skip', 60)", "A minute on", show=False),
    Binding("left_curly_bracket", "play('skip', -60)", "A minute back", show=False),
    Binding("right_square_bracket", "play('accelerate', 2)", "Faster", show=False),
    Binding("left_square_bracket", "play('accelerate', 0.5)", "Slower", show=False),
    *(Binding(str(n), f"play('seek', {n / 10})", "Jump", show=False) for n in range(1, 10)),
    Binding("ctrl+home", "play('seek', 0)", "Beginning", show=False),
    Binding("ctrl+end", "play('seek', 1)", "End", show=False),
)


def move(player: Player, what: str, number: float) -> None:
    """Do what a key says."""
    match what:
        case "step":
            player.step(int(number))
        case "skip":
            player.skip(number)
        case "seek":
            player.seek(number)
        case _:
            player.accelerate(number)


def describe_position(player: Player, moment: float) -> str:
    """Return the time of a sample, how much of the recording lies before it, and the speed."""
    whole = player.end - player.begin
    share = (moment - player.begin) / whole if whole else 1.0
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    return f"{shown}  {share:.0%} of {_format_duration(whole)}  {player.speed:g}x"


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

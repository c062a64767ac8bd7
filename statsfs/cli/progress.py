"""What commands say while they work long, and where a package is missing.

Threading: main thread only.
"""

import contextlib
import sys
from collections.abc import Iterator

import click

__all__ = ["Progress", "needing"]


class Progress:
    """A line on a terminal: how much of a file was read."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def show(self, share: float) -> None:
        """Show a share of 1."""
        if self._shown:
            click.echo(f"\r\033[Kreading: {share:.0%}", nl=False, err=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        click.echo(f"statsfs: {text}", err=True)


@contextlib.contextmanager
def needing(command: str, *packages: str) -> Iterator[None]:
    """Say on one line which package of the extra `record` is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
        text = f"statsfs {command} needs {missing}: pip install 'statsfs[record]'"
        raise click.ClickException(text) from None

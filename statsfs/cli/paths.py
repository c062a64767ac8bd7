"""Paths on the command line.

Threading: no state.
"""

from typing import Any, Final

import click

__all__ = ["DIRECTORY", "PATH"]


class _Path(click.ParamType[str]):
    # A path that a system call accepts; each command checks the file itself.
    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = str(value)
        if not path:
            # To realpath(3) it would be the current directory.
            self.fail(f"'' is not a {self.name}: it is empty", param, ctx)
        if "\0" in path:
            self.fail(f"{path!r} is not a {self.name}: it has a NUL character", param, ctx)
        return path


PATH: Final = _Path("path")
"""The type of an argument or option that is a path."""
DIRECTORY: Final = _Path("directory")
"""The type of an option that is the path of a directory."""

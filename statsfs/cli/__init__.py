"""The command line, `statsfs`: arguments, output, exit codes.

Owns the entry point: without click or rich it prints one line that names what is missing.
Threading: everything here runs in the main thread; mounts are served by threads of their own.
"""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, program: str = "statsfs") -> int:
    """Run a command, return the exit code; `program` begins the line of an error."""
    try:
        from statsfs.cli.commands import run

        return run(arguments, program)
    except KeyboardInterrupt:
        return 0  # Ctrl-C before a command began: nothing is mounted yet
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("click", "rich"):
            raise
        message = f"the command line needs {missing}: pip install 'statsfs[all]'"
        print(f"{program}: error: {message}", file=sys.stderr)
        return 1

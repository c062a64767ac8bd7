"""The command line, `statsfs`: arguments, output, exit codes.

Owns the entry point: without click or rich it prints one line that names what is missing.
Threading: everything here runs in the main thread; mounts are served by threads of their own.
"""

import sys
from collections.abc import Sequence

from statsfs.cli.surroundings import explain, open_standard_streams

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, program: str = "statsfs") -> int:
    """Run a command, return the exit code; `program` begins the line of an error."""
    try:
        open_standard_streams()
        from statsfs.cli.commands import run

        return run(arguments, program)
    except KeyboardInterrupt:
        return 0  # Ctrl-C before a command began: nothing is mounted yet
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("click", "rich"):
            raise
        return _fail(program, f"the command line needs {missing}: pip install 'statsfs[all]'")
    except OSError as error:
        reason = explain(error)
        if reason is None:
            raise
        return _fail(program, reason)


def _fail(program: str, reason: str) -> int:
    print(f"{program}: error: {reason}", file=sys.stderr)
    return 1

"""`--load module:function`: programs that fill the registry of `statsfs mount`.

Owns how such functions are found and called, and the one line of their errors; main thread only.
"""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any, Final

import click

from statsfs.tree.registry import Registry

__all__ = ["check", "load"]

_OURS: Final = str(Path(__file__).parent.parent)


def check(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Check that each name is `module:function`, both dotted names; the option's callback."""
    for name in names:
        module, _, function = name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
            raise click.BadParameter(f"{name!r} is not module:function", ctx, param)
    return names


def load(registry: Registry, names: Iterable[str]) -> None:
    """Find all functions, in the current directory too; then call each, in order."""
    sys.path.insert(0, os.getcwd())
    found = [(name, _find(name)) for name in names]
    for name, callback in found:
        try:
            callback(registry)
        except (Exception, SystemExit) as error:  # any exception of the user's program
            raise _failure(name, error) from error


def _find(name: str) -> Callable[[Registry], object]:
    module, _, function = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # any exception of the user's program
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{module}.".startswith(f"{missing}."):
            raise _failure(name, error) from error
        raise click.BadParameter(f"no module {missing!r}", param_hint="--load") from None
    try:
        found: Any = reduce(getattr, function.split("."), imported)
    except AttributeError:
        found = None
    if not callable(found):
        message = f"module {module!r} has no function {function!r}"
    elif inspect.iscoroutinefunction(found):
        message = f"{name} is a coroutine function; it must be a plain one"
    else:
        return found  # type: ignore[no-any-return]  # of a user's function nothing else is known
    raise click.BadParameter(message, param_hint="--load")


def _failure(name: str, error: BaseException) -> click.ClickException:
    # Names the innermost line of the user's program: not ours, not the import system's.
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if not frame.filename.startswith((_OURS, "<frozen")) and path.parent.name != "importlib":
            where = f" ({path.name}:{frame.lineno})"
    return click.ClickException(f"--load {name} failed: {type(error).__name__}: {error}{where}")

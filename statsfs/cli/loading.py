"""`--load module:function`: programs that fill the registry of `statsfs mount`.

Owns how such a function is found and called, and the one line of its errors.

Threading: main thread only.
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

__all__ = ["load", "parse"]

_OURS: Final = str(Path(__file__).parent.parent)


def parse(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Split each `module:function`, both dotted names; the option's callback.

    Raises:
        click.BadParameter: a text has another form.
    """
    names = []
    for text in texts:
        module, _, function = text.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
            raise click.BadParameter(f"{text!r} is not module:function", ctx, param)
        names.append((module, function))
    return names


def load(registry: Registry, names: Iterable[tuple[str, str]]) -> None:
    """Find all functions, in the current directory too; then call each, in order.

    Raises:
        click.BadParameter: a module or a function does not exist.
        click.ClickException: a module or a function raised an exception.
    """
    sys.path.insert(0, os.getcwd())
    found = [(module, function, _find(module, function)) for module, function in names]
    for module, function, callback in found:
        try:
            callback(registry)
        except (Exception, SystemExit) as error:  # any exception of the user's program
            raise _failure(module, function, error) from error


def _find(module: str, function: str) -> Callable[[Registry], object]:
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failure(module, function, error) from error
        raise click.BadParameter(f"no module {error.name!r}", param_hint="--load") from None
    except (Exception, SystemExit) as error:  # any exception of the user's program
        raise _failure(module, function, error) from error
    try:
        found: Any = reduce(getattr, function.split("."), imported)
    except AttributeError:
        found = None
    if not callable(found):
        message = f"module {module!r} has no function {function!r}"
    elif inspect.iscoroutinefunction(found):
        message = f"{module}:{function} is a coroutine function; it must be a plain one"
    else:
        return found  # type: ignore[no-any-return]  # of a user's function nothing else is known
    raise click.BadParameter(message, param_hint="--load")


def _failure(module: str, function: str, error: BaseException) -> click.ClickException:
    # Names the innermost line of the user's program: not ours, not the import system's.
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_OURS, "<frozen"))
        and Path(frame.filename).parent.name != "importlib"
    ]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return click.ClickException(
        f"--load {module}:{function} failed: {type(error).__name__}: {error}{where}"
    )

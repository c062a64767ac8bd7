"""`--load module:function`: programs that fill the registry of `statsfs mount`.

Owns how such a function is found and called, and how what goes wrong there becomes one line.

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
        click.BadParameter: a text that is something else.
    """
    names = []
    for text in texts:
        module, _, function = text.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
            raise click.BadParameter(f"{text!r} is not module:function", ctx, param)
        names.append((module, function))
    return names


def load(registry: Registry, names: Iterable[tuple[str, str]]) -> None:
    """Find every function, the current directory being importable; then call each, in order.

    Raises:
        click.BadParameter: a module or a function is not there.
        click.ClickException: a module or a function raised, whatever it was.
    """
    sys.path.insert(0, os.getcwd())
    found = [(module, function, _find(module, function)) for module, function in names]
    for module, function, callback in found:
        try:
            callback(registry)
        except (Exception, SystemExit) as error:  # whatever a program does when it is called
            raise _failure(module, function, error) from error


def _find(module: str, function: str) -> Callable[[Registry], object]:
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failure(module, function, error) from error
        raise click.BadParameter(f"no module {error.name!r}", param_hint="--load") from None
    except (Exception, SystemExit) as error:  # whatever a program does when it is imported
        raise _failure(module, function, error) from error
    try:
        found: Any = reduce(getattr, function.split("."), imported)
    except AttributeError:
        found = None
    if not callable(found):
        message = f"module {module!r} has no function {function!r}"
        raise click.BadParameter(message, param_hint="--load")
    if inspect.iscoroutinefunction(found):
        message = f"{module}:{function} is a coroutine function; it must be a plain one"
        raise click.BadParameter(message, param_hint="--load")
    return found  # type: ignore[no-any-return]  # callable() is all that can be known


def _failure(module: str, function: str, error: BaseException) -> click.ClickException:
    # Where it went wrong in the user's program: the innermost line not ours nor import's.
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_OURS, "<frozen"))
        and Path(frame.filename).parent.name != "importlib"
    ]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = f"--load {module}:{function} failed: {type(error).__name__}: {error}{where}"
    return click.ClickException(text)

"""What a source is made with: checks, with an error of one line that names the argument.

Threading: pure.
"""

import math
import re
from collections.abc import Mapping
from typing import Final

from statsfs.exceptions import InvalidNameError
from statsfs.model.names import check_label, show_text
from statsfs.model.values import check_name

__all__ = [
    "check_age",
    "check_functions",
    "check_info",
    "check_path",
    "check_prefix",
    "check_source_label",
    "format_name",
    "show_label",
]

# As printf's, but not what `safe_name` makes of a character: "%" and two hexadecimal digits.
_FORMAT: Final = re.compile(
    r"%(?![0-9A-F]{2})[0-9]*(\.[0-9]+)?(hh?|ll?|[jtz])?[diouxefgcrsa](?![0-9A-Za-z])"
    r"|%\([^)]*\)[a-zA-Z]"
)
_PREFIX: Final = re.compile("[a-zA-Z]([a-zA-Z0-9_]*[a-zA-Z0-9])?")


def format_name(name: str, args: tuple[object, ...]) -> str:
    """Return the name of a source, formatted as by printf if there are arguments.

    Raises:
        InvalidNameError: a directory cannot have it, or the arguments do not fit it.
    """
    if args:
        try:
            name = name % args
        except (TypeError, ValueError) as error:
            text = f"a source's name {name!r} % {args!r}: {error}"
            raise InvalidNameError(text, name) from None
    elif _FORMAT.search(str(name)):
        raise InvalidNameError(f"a source's name {name!r} lacks the arguments that it names", name)
    return check_name(name, "a source's name")


def check_source_label(label: object) -> str | None:
    """Return the label of a source, or raise InvalidNameError."""
    if label is None:
        return None
    return check_label(check_name(label, "a source's label"), "a source's label")


def show_label(text: object) -> str:
    """Return the value of a label as it is shown; TypeError if it is not a text."""
    if not isinstance(text, str):
        raise TypeError(f"label_value is not a str: {text!r}")
    return show_text(text)


def check_info(info: object) -> dict[str, str]:
    """Return a source's `info` as it is shown; TypeError if it does not have texts by name.

    Raises:
        InvalidNameError: an extended attribute cannot have a name.
    """
    if info is None:
        return {}
    if not isinstance(info, Mapping):
        raise TypeError(f"info is not a mapping: {info!r}")
    for name, text in info.items():
        if not isinstance(text, str):
            raise TypeError(f"info is not a str: {name!r}: {text!r}")
        check_name(name, "a name in info")
    return {name: show_text(text) for name, text in info.items()}


def check_path(path: object) -> None:
    """Raise TypeError if a path of a source or a value is not a str."""
    if not isinstance(path, str):
        raise TypeError(f"a path is a str, not {type(path).__name__}: {path!r}")


def check_prefix(prefix: object) -> str | None:
    """Return the prefix of a registry's metrics, or raise TypeError or InvalidNameError."""
    if prefix is None:
        return None
    if not isinstance(prefix, str):
        raise TypeError(f"prefix is not a str: {prefix!r}")
    if not _PREFIX.fullmatch(prefix):
        # If it were rewritten silently, the program's dashboards would find nothing.
        rule = 'is not letters, digits and "_" of ASCII, from a letter to a letter or digit'
        raise InvalidNameError(f"prefix {rule}: {prefix!r}", prefix)
    return prefix


def check_age(max_age: object) -> float:
    """Return the age of numbers that are new enough, or raise TypeError or ValueError."""
    if isinstance(max_age, bool) or not isinstance(max_age, int | float):
        raise TypeError(f"max_age is not a number of seconds: {max_age!r}")
    if not 0 <= max_age < math.inf:
        raise ValueError(f"max_age is not a number of seconds: {max_age!r}")
    return max_age


def check_functions(**functions: object) -> None:
    """Raise TypeError if one of them is neither None nor a function."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} is not callable: {function!r}")

"""Users and groups on the command line, by name or by number.

Threading: no state.
"""

import grp
import pwd
from typing import Final

import click

__all__ = ["find_group", "find_user"]

_MOST: Final = 0xFFFFFFFE  # the highest number means "none" to the kernel


def find_user(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """Return the number of a user that an option names; BadParameter if there is none."""
    return None if text is None else _find("user", text, ctx, param)


def find_group(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """Return the number of a group that an option names; BadParameter if there is none."""
    return None if text is None else _find("group", text, ctx, param)


def _find(what: str, text: str, ctx: click.Context, param: click.Parameter) -> int:
    # A name first, as chown(1) does.
    try:
        return pwd.getpwnam(text).pw_uid if what == "user" else grp.getgrnam(text).gr_gid
    except KeyError:
        pass  # so that the error is not shown as another's
    digits = text.lstrip("0") or text[:1]
    if text.isascii() and text.isdecimal() and len(digits) <= 10 and int(digits) <= _MOST:
        return int(digits)
    why = f"there is no {what} {text!r}; a number is from 0 to {_MOST}"
    raise click.BadParameter(why, ctx, param)

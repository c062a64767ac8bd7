"""`statsfs install-mount-helper`: where mount(8) finds us.

Owns the link in /sbin, the only directory in which mount(8) looks for a helper, to the program
`mount.statsfs` of this installation. It is a link and no copy, so that `ls -l` tells what root will
run, and so that what is not ours can be told from what is.

Threading: main thread only.
"""

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

__all__ = ["install_mount_helper"]

_NAME: Final = "mount.statsfs"

_EPILOG: Final = """\b
Exit codes:
  0  done, also where it was done before
  1  failed: no rights, or another program there
  2  wrong usage
"""


@click.command("install-mount-helper", epilog=_EPILOG)
@click.option("--remove", is_flag=True, help="Take the link away.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=Path("/sbin"),
    show_default=True,
    help="Where to put the link; for packages.",
)
def install_mount_helper(remove: bool, directory: Path) -> None:
    """Let mount(8) and fstab mount a statsfs.

    mount(8) looks for its helpers in /sbin only: this makes a link there to the mount.statsfs of
    this installation. It must stay where it is from then on.

    \b
    Example, as root:
      statsfs install-mount-helper
      mount -t statsfs statsfs /run/stats
    """
    link = directory / _NAME
    try:
        if remove:
            _remove(link)
        else:
            _install(link, _find_program())
    except OSError as error:
        raise click.ClickException(f"{link}: {error.strerror}") from error


def _install(link: Path, program: Path) -> None:
    if os.path.lexists(link) and _target(link) == program:
        click.echo(f"statsfs: {link} is there already, a link to {program}")
        return
    _check_ours(link)
    # Beside it and over it: nobody finds nothing there meanwhile.
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.symlink_to(program)
    try:
        new.replace(link)
    except OSError:
        new.unlink()
        raise
    click.echo(f"statsfs: made {link}, a link to {program}")
    for path in _find_writable(program):
        click.echo(f"statsfs: warning: root will run what others can change: {path}", err=True)


def _remove(link: Path) -> None:
    _check_ours(link)
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
        click.echo(f"statsfs: removed {link}")
        return
    click.echo(f"statsfs: there is no {link}")


def _check_ours(link: Path) -> None:
    # A link that leads nowhere any more is ours by the name that it leads to.
    if os.path.lexists(link) and (not link.is_symlink() or _target(link).name != _NAME):
        raise click.ClickException(f"{link} is not ours: it is no link to a {_NAME}")


def _target(link: Path) -> Path:
    return link.parent / link.readlink() if link.is_symlink() else link


def _find_program() -> Path:
    # Beside the command that runs, and where this Python's programs are.
    places = (
        os.path.dirname(sys.argv[0]),
        os.path.dirname(sys.executable),
        sysconfig.get_path("scripts"),
    )
    for place in places:
        program = Path(os.path.abspath(place)) / _NAME
        if os.access(program, os.X_OK):
            return program
    raise click.ClickException(
        f"this installation has no program {_NAME}; install it anew: pip install 'statsfs[all]'"
    )


def _find_writable(program: Path) -> Iterator[Path]:
    # Of the program, its interpreter, our code, and all that they are in.
    leads = [program, Path(sys.executable), Path(__file__)]
    paths = {path for lead in leads for end in (lead, lead.resolve()) for path in _above(end)}
    for path in sorted(paths):
        status = path.stat()
        shared = status.st_mode & 0o022 and not status.st_mode & 0o1000
        if status.st_uid or shared:
            yield path


def _above(path: Path) -> list[Path]:
    return [path, *path.parents]

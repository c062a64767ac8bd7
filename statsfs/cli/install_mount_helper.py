"""`statsfs install-mount-helper`: links where mount(8) looks for its helpers.

Owns the links to this installation's `mount.statsfs`: by its own name, and by that of the type in
the table of mounts, which mount(8) uses for a remount. A link, unlike a copy, shows in `ls -l` what
root will run, and differs from another program. Threading: main thread only.
"""

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from statsfs.cli.paths import DIRECTORY

__all__ = ["install_mount_helper"]

_NAME: Final = "mount.statsfs"
_OTHER_NAME: Final = "mount.fuse.statsfs"

_EPILOG: Final = """\b
Exit codes:
  0  done, also if it was done before
  1  failed: no permission, or another program is there
  2  wrong usage
"""


@click.command("install-mount-helper", epilog=_EPILOG)
@click.option("--remove", is_flag=True, help="Remove both links.")
@click.option(
    "--directory",
    type=DIRECTORY,
    default="/sbin",
    show_default=True,
    help="The link's directory; for packages.",
)
def install_mount_helper(remove: bool, directory: str) -> None:
    """Let mount(8) and fstab mount a statsfs.

    mount(8) looks for its helpers in /sbin only: this makes a link there to the mount.statsfs of
    this installation, which must then stay where it is; and another, mount.fuse.statsfs, beside it,
    for `mount -o remount` and `mount -t fuse.statsfs`.

    \b
    Example, as root:
      statsfs install-mount-helper
      mount -t statsfs statsfs /run/stats
    """
    link, other = Path(directory, _NAME), Path(directory, _OTHER_NAME)
    try:
        if remove:
            _remove(link, other)
        else:
            _install(link, other, _find_program())
    except OSError as error:
        raise click.ClickException(f"{link}: {error.strerror}") from error


def _install(link: Path, other: Path, program: Path) -> None:
    if {_target(link), _target(other)} == {program}:
        click.echo(f"statsfs: {link} is already a link to {program}")
        return
    _check_ours(link)
    _check_ours(other)
    _make_link(link, program)
    _make_link(other, program)
    click.echo(f"statsfs: made {link}, a link to {program}")
    for path in _find_writable(program):
        click.echo(f"statsfs: warning: others can change what root will run: {path}", err=True)


def _make_link(link: Path, program: Path) -> None:
    # Made beside it, then moved over it: mount(8) finds the old one or the new one.
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.symlink_to(program)
    try:
        new.replace(link)
    except OSError:
        new.unlink()
        raise


def _remove(link: Path, other: Path) -> None:
    _check_ours(link)
    _check_ours(other)
    other.unlink(missing_ok=True)
    try:
        link.unlink()
        click.echo(f"statsfs: removed {link}")
    except FileNotFoundError:
        click.echo(f"statsfs: there is no {link}")


def _check_ours(link: Path) -> None:
    # The name of the target tells, even of one that is gone.
    if os.path.lexists(link) and (not link.is_symlink() or _target(link).name != _NAME):
        raise click.ClickException(f"{link} is another program, not a link to a {_NAME}")


def _target(link: Path) -> Path:
    return link.parent / link.readlink() if link.is_symlink() else link


def _find_program() -> Path:
    # Beside the command that runs, or among this Python's programs.
    for place in (sys.argv[0], sys.executable, f"{sysconfig.get_path('scripts')}/"):
        program = Path(os.path.abspath(os.path.dirname(place))) / _NAME
        if os.access(program, os.X_OK):
            return program
    text = f"this installation lacks {_NAME}; install it again: pip install 'statsfs[all]'"
    raise click.ClickException(text)


def _find_writable(program: Path) -> Iterator[Path]:
    # Yields what others can write: the program, its interpreter, our code, directories above them.
    leads = [program, Path(sys.executable), Path(__file__)]
    ends = {end for lead in leads for end in (lead, lead.resolve())}
    for path in sorted({path for end in ends for path in (end, *end.parents)}):
        status = path.stat()
        if status.st_uid or (status.st_mode & 0o022 and not status.st_mode & 0o1000):
            yield path

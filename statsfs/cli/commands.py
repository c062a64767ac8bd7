"""The commands of `statsfs`, and the exit codes of their errors.

Owns the group of commands, `umount`, and how errors end: a user's mistake is one line on stderr,
never a traceback. Threading: main thread only.
"""

import errno
import logging
from collections.abc import Sequence
from typing import Any, Final

import click

import statsfs
from statsfs.cli.daemon import mount_command
from statsfs.cli.demo import demo
from statsfs.cli.install_mount_helper import install_mount_helper
from statsfs.cli.kvm_check import kvm_check
from statsfs.cli.paths import PATH
from statsfs.cli.plot import plot
from statsfs.cli.record import record
from statsfs.cli.serving import EPILOG, complete_directory, silence
from statsfs.cli.signals import Stopped
from statsfs.cli.stat import stat
from statsfs.cli.status import status
from statsfs.cli.systemd import prioritize
from statsfs.cli.top import top
from statsfs.exceptions import MountError, StatsfsError
from statsfs.filesystem.mountpoints import (
    FILESYSTEM,
    find_mount,
    resolve_mountpoint,
    unmount,
)

__all__ = ["cli", "run"]

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            # click does not say which command's option lacks its argument.
            name = ctx.invoked_subcommand
            if error.ctx is None and name and (command := self.get_command(ctx, name)):
                error.ctx = click.Context(command, parent=ctx, info_name=name)
            raise
        except BrokenPipeError:
            raise Stopped from None  # click would exit with status 1


@click.group(
    cls=_Group,
    commands=[
        demo,
        install_mount_helper,
        kvm_check,
        mount_command,
        plot,
        record,
        stat,
        status,
        top,
    ],
    epilog=EPILOG,
    context_settings={"max_content_width": 100},
)
@click.version_option(statsfs.__version__, prog_name="statsfs", message="%(prog)s %(version)s")
def cli() -> None:
    """Show a program's counters as files: live, with totals in every directory above.

    \b
    Example:
      statsfs demo ./stats
    """


@cli.command(epilog=EPILOG)
@click.argument("mountpoint", type=PATH, shell_complete=complete_directory)
def umount(mountpoint: str) -> None:
    """Unmount the statsfs at MOUNTPOINT.

    Its server then ends. A mount that is in use is refused.

    \b
    Example:
      statsfs umount ./stats
    """
    path = resolve_mountpoint(mountpoint)  # a server that hangs is not asked
    if find_mount(path) != FILESYSTEM:
        raise click.ClickException(f"{mountpoint} is not a mounted statsfs")
    try:
        unmount(path)
    except MountError as error:
        if "busy" not in str(error):
            raise
        hint = "close its files and leave its directories (fuser -vm tells whose), then try again"
        raise click.ClickException(f"{mountpoint} is busy: {hint}") from error


def run(arguments: Sequence[str] | None, program: str = "statsfs") -> int:
    """Run a command, as `statsfs.cli.main`; return the exit code."""
    try:
        # A command that runs another one returns its exit status.
        status = cli.main(arguments, prog_name="statsfs", standalone_mode=False)
        return status or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "statsfs"
        return _fail(program, f"{error.format_message()} (see {command} --help)", error.exit_code)
    except (click.ClickException, StatsfsError) as error:
        return _fail(program, error.message, getattr(error, "exit_code", 1))
    except (Stopped, click.Abort):
        silence()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        silence()
        return _fail(program, f"the output cannot be written: {error.strerror}")
    return 0


def _fail(program: str, message: str, code: int = 1) -> int:
    text = f"{program}: error: {' '.join(message.split())}"
    click.echo(prioritize(text, logging.ERROR), err=True)
    return code

"""`mount.statsfs`: mount(8) runs it for `mount -t statsfs` and for such a line of fstab.

Owns how mount(8) calls its helpers (there: "External helpers"), and the translation of the options
after `-o` to those of `statsfs mount --background`. The exit codes are mount(8)'s too: 0 mounted, 1
wrong usage, 32 the mount failed. It is also `mount.fuse.statsfs`: that is the type in the table of
mounts, by which mount(8) finds the helper for a remount. Threading: main thread only.
"""

import getopt
import grp
import os
import pwd
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from statsfs.cli.remount import find_new_options, remount
from statsfs.cli.surroundings import open_standard_streams
from statsfs.exceptions import MountError
from statsfs.filesystem.mountpoints import resolve_mountpoint

__all__ = ["list_options", "main", "translate"]

_SOURCE: Final = "statsfs"
_WRONG: Final = 1
_CODES: Final = {0: 0, 1: 32, 2: _WRONG}  # by those of `statsfs`

_USAGE: Final = """\
Usage: mount.statsfs statsfs DIRECTORY [-fnsv] [-N NAMESPACE] [-o OPTION,...]

mount(8) runs this for `mount -t statsfs statsfs DIRECTORY`; docs/operations.md has its options.\
"""

_VALUED: Final = {"gid", "listen", "log", "log_format", "root", "switch_interval", "uid"}
_LISTS: Final = {"qmp", "segments"}  # separated by colons
# mount(8) may run in any directory: at boot, by systemd, in another namespace.
_PATHS: Final = {"log", "qmp", "segments"}
# The last of a pair counts, as with mount(8).
_FLAGS: Final = {
    "allow_other": "--allow-other",
    "kvm": "--kvm",
    "noallow_other": "--no-allow-other",
    "ro": "--read-only",
    "rw": "--no-read-only",
}
# Options about when to mount, and for which users; options for other programs; options without an
# effect here, as there are no programs, devices, times or delayed writes. Each may begin with "no".
_IGNORED: Final = {
    "_netdev", "async", "atime", "auto", "comment", "default_permissions", "defaults", "dev",
    "diratime", "dirsync", "exec", "fail", "group", "iversion", "lazytime", "loud", "mand", "owner",
    "relatime", "silent", "strictatime", "suid", "sync", "user", "users",
}  # fmt: skip


class _WrongUsage(Exception):
    pass


def main() -> NoReturn:
    """Mount as the arguments say, and leave the server in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C must not end it with status 0
    open_standard_streams()
    try:
        given_options, positional = getopt.gnu_getopt(sys.argv[1:], "fhno:rst:vwN:", ["help"])
        given = dict(given_options)
        if given.keys() & {"-h", "--help"}:
            print(_USAGE)
            sys.exit(0)
        texts = ",".join(text for option, text in given_options if option == "-o")
        options, sloppy = [*filter(None, texts.split(","))], "-s" in given
        if again := "remount" in options:
            _check_remount(positional, options, sloppy=sloppy)
        else:
            command = _make_command(positional, texts, sloppy=sloppy)
    except (_WrongUsage, getopt.GetoptError, MountError) as error:
        print(f"mount.statsfs: error: {error}", file=sys.stderr)
        sys.exit(_WRONG)
    if "-N" in given:
        flags = given.keys() & {"-f", "-s", "-v"}
        _enter(given["-N"], [sys.argv[0], f"-o{texts}", *sorted(flags), *positional])
    if "-f" in given:
        sys.exit(0)
    if again:
        sys.exit(_remount(positional[1], options))
    from statsfs import cli

    if "-v" not in given:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # The parent ends in there, with the child's status, which comes from here.
    sys.exit(_CODES[cli.main(command, "mount.statsfs")])


def _split(positional: Sequence[str]) -> tuple[str, str]:
    if len(positional) != 2:
        raise _WrongUsage("expected `statsfs` and a directory: mount -t statsfs statsfs DIR")
    return positional[0], positional[1]


def _make_command(positional: Sequence[str], options: str, *, sloppy: bool) -> list[str]:
    source, directory = _split(positional)
    # mount(8) makes a path of it if the current directory has a file of that name.
    if source not in (_SOURCE, os.path.realpath(_SOURCE)):
        # Under another name `mount -a` would not find the mount, and mount it once more.
        hint = "a directory of segments is an option: -o segments=DIR"
        raise _WrongUsage(f"the first field must be {_SOURCE}, not {source}; {hint}")
    return ["mount", "--background", *translate(options, sloppy=sloppy), "--", directory]


def list_options() -> dict[str, str]:
    """Return the options after `-o`, and what each is for `statsfs mount`; for the manual."""
    valued = {f"{name}=": f"--{name.replace('_', '-')}" for name in _VALUED | _LISTS}
    return valued | _FLAGS


def translate(options: str, *, sloppy: bool = False) -> list[str]:
    """Translate the options of mount(8); with `sloppy`, as of `mount -s`, ignore unknown ones."""
    translated = []
    for option in filter(None, options.split(",")):
        name, equals, value = option.partition("=")
        if name in _VALUED | _LISTS:
            if not value:
                raise _WrongUsage(f"option {name}= needs a value")
            values = value.split(":") if name in _LISTS else [_find_id(name, value)]
            for one in filter(None, values):
                if name in _PATHS and not os.path.isabs(one):
                    raise _WrongUsage(f"option {name}={one}: not an absolute path")
                translated += [f"--{name.replace('_', '-')}", one]
        elif option in _FLAGS:
            translated.append(_FLAGS[option])
        elif not (sloppy or _is_for_others(name, equals)):
            raise _WrongUsage(f"unknown option {option!r}")
    return translated


def _is_for_others(name: str, equals: str) -> bool:
    known = name in ("comment", "user") if equals else name.removeprefix("no") in _IGNORED
    return known or name.startswith(("x-", "X-"))


def _check_remount(positional: Sequence[str], options: Sequence[str], *, sloppy: bool) -> None:
    # Not by `translate`: the table of mounts has options of FUSE's own.
    path = resolve_mountpoint(_split(positional)[1])
    for option in find_new_options(path, options):
        name, equals, _ = option.partition("=")
        if not (sloppy or _is_for_others(name, equals)):
            what = "remount changes ro and rw alone: unmount, then mount again"
            raise _WrongUsage(f"option {option!r}: {what}")


def _remount(directory: str, options: Sequence[str]) -> int:
    try:
        remount(resolve_mountpoint(directory), options)
    except MountError as error:
        print(f"mount.statsfs: error: {error}", file=sys.stderr)
        return _CODES[1]
    return 0


def _find_id(name: str, value: str) -> str:
    if name not in ("uid", "gid") or value.isdecimal():
        return value
    try:
        return str(pwd.getpwnam(value).pw_uid if name == "uid" else grp.getgrnam(value).gr_gid)
    except KeyError:
        what = "user" if name == "uid" else "group"
        raise _WrongUsage(f"option {name}={value}: no such {what}") from None


def _enter(namespace: str, command: list[str]) -> NoReturn:
    # As mount(8)'s option -N: a process, or a namespace's file.
    file = f"/proc/{namespace}/ns/mnt" if namespace.isdecimal() else namespace
    os.execvp("nsenter", ["nsenter", f"--mount={file}", "--", *command])

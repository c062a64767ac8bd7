"""`mount.statsfs`: what mount(8) runs for `mount -t statsfs` and for such a line of fstab.

Owns how mount(8) calls its helpers (there: "External helpers") and what the options after `-o` are
called with us: each becomes one of `statsfs mount --background`. The exit codes are mount(8)'s too:
0 mounted, 1 wrong usage, 32 the mount failed.

Threading: main thread only.
"""

import getopt
import grp
import os
import pwd
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

__all__ = ["main", "translate"]

_SOURCE: Final = "statsfs"
_WRONG, _FAILED = 1, 32
_CODES: Final = {0: 0, 1: _FAILED, 2: _WRONG}

_USAGE: Final = """\
Usage: mount.statsfs statsfs DIRECTORY [-fnsv] [-N NAMESPACE] [-o OPTION,...]

mount(8) runs this for `mount -t statsfs statsfs DIRECTORY`; the README has its options.\
"""

_VALUED: Final = {
    "gid": "--gid",
    "listen": "--listen",
    "log": "--log",
    "root": "--root",
    "switch_interval": "--switch-interval",
    "uid": "--uid",
}
_LISTS: Final = {"qmp": "--qmp", "segments": "--segments"}
# The last of a pair counts, as with mount(8).
_FLAGS: Final = {
    "allow_other": "--allow-other",
    "noallow_other": "--no-allow-other",
    "ro": "--read-only",
    "rw": "--no-read-only",
}
# What says when to mount and who may, what other programs want to know, and what asks for nothing
# that could matter here: there are no programs, devices, times or writes to be kept back. Each may
# have a "no" before it.
_IGNORED: Final = {
    "_netdev", "async", "atime", "auto", "comment", "default_permissions", "defaults", "dev",
    "diratime", "dirsync", "exec", "fail", "group", "iversion", "lazytime", "loud", "mand", "owner",
    "relatime", "silent", "strictatime", "suid", "sync", "user", "users",
}  # fmt: skip


class _WrongUsage(Exception):
    pass


def main() -> NoReturn:
    """Mount as the arguments say, and leave the server in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an end by Ctrl-C is not one with status 0
    try:
        options, positional = getopt.gnu_getopt(sys.argv[1:], "fhno:rst:vwN:", ["help"])
        given = dict(options)
        if given.keys() & {"-h", "--help"}:
            print(_USAGE)
            sys.exit(0)
        texts = [text for option, text in options if option == "-o"]
        command = _make_command(positional, ",".join(texts), sloppy="-s" in given)
    except (_WrongUsage, getopt.GetoptError) as error:
        print(f"mount.statsfs: error: {error}", file=sys.stderr)
        sys.exit(_WRONG)
    if "-N" in given:
        flags = given.keys() & {"-f", "-s", "-v"}
        _enter(given["-N"], [sys.argv[0], f"-o{','.join(texts)}", *sorted(flags), *positional])
    if "-f" in given:
        sys.exit(0)
    from statsfs.cli import run_command

    if "-v" not in given:
        _silence()
    # The parent ends within, with the status that the child makes of it here.
    sys.exit(_CODES[run_command(command, "mount.statsfs")])


def _make_command(positional: Sequence[str], options: str, *, sloppy: bool) -> list[str]:
    if len(positional) != 2:
        raise _WrongUsage("it takes `statsfs` and a directory, as in mount -t statsfs statsfs DIR")
    source, directory = positional
    # mount(8) makes a path of it, where the current directory has something of that name.
    if source not in (_SOURCE, os.path.realpath(_SOURCE)):
        # What is mounted is called so: `mount -a` would not find it under another name, and mount
        # it once more.
        raise _WrongUsage(
            f"what is mounted is called {_SOURCE}, not {source}; "
            "a directory of segments is given as -o segments=DIR"
        )
    return ["mount", "--background", *translate(options, sloppy=sloppy), "--", directory]


def translate(options: str, *, sloppy: bool = False) -> list[str]:
    """Return the options of `statsfs mount` for those that mount(8) was given.

    Args:
        options: what stands after `-o`, or in the fourth field of fstab.
        sloppy: ignore what is not known, as `mount -s` asks.
    """
    translated = []
    for option in filter(None, options.split(",")):
        name, equals, value = option.partition("=")
        if name in _VALUED.keys() | _LISTS.keys() and not value:
            raise _WrongUsage(f"option {name}= needs a value")
        if name in _VALUED:
            translated += [_VALUED[name], _find_id(name, value)]
        elif name in _LISTS:
            for one in filter(None, value.split(":")):
                translated += [_LISTS[name], one]
        elif option in _FLAGS:
            translated.append(_FLAGS[option])
        elif option == "remount":
            raise _WrongUsage("a mounted statsfs cannot be changed: unmount it, then mount it anew")
        elif not (sloppy or _is_for_others(name, equals)):
            raise _WrongUsage(f"unknown option {option!r}")
    return translated


def _is_for_others(name: str, equals: str) -> bool:
    if equals:
        return name.startswith(("x-", "X-")) or name in ("comment", "user")
    return name.startswith(("x-", "X-")) or name.removeprefix("no") in _IGNORED


def _find_id(name: str, value: str) -> str:
    if name not in ("uid", "gid") or value.isdecimal():
        return value
    try:
        return str(pwd.getpwnam(value).pw_uid if name == "uid" else grp.getgrnam(value).gr_gid)
    except KeyError:
        raise _WrongUsage(f"option {name}={value}: there is none of that name") from None


def _enter(namespace: str, command: list[str]) -> NoReturn:
    # As mount(8) is told with its option of that name: a process, or a namespace's file.
    file = f"/proc/{namespace}/ns/mnt" if namespace.isdecimal() else namespace
    os.execvp("nsenter", ["nsenter", f"--mount={file}", "--", *command])


def _silence() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The watcher: a shell that clears the mount of a server that was killed.

Owns one process per mount, blocked on a pipe of which the server has the other end. When the server
dies in any way, the pipe closes; the watcher then asks the mount, and unmounts it if it is not
served any more (ENOTCONN). libfuse's `auto_unmount` would leak a descriptor and a process for each
mount until the program ends.

Threading: as the caller's; `disown` runs in a forked child.
"""

import contextlib
import os
import subprocess
from typing import Final

from statsfs.filesystem.mountpoints import find_mount

__all__ = ["Watcher"]

# It does the same after a clean end, for which it reads a line: a server that gave up its rights
# after mounting cannot unmount, and the watcher can. `stat -f` always asks the server, whatever is
# cached; while a dead server's descriptors are being closed, the request is aborted first.
_SCRIPT: Final = """
trap '' HUP INT TERM
PATH=$PATH:/usr/bin:/bin:/usr/sbin:/sbin
read -r line
[ -z "$line" ] || exit
if [ -r "$2" ]; then exec 8< "$2"; flock -w 5 8; fi
tries=50
while [ $tries -gt 0 ]; do
    answer=$(LC_ALL=C stat -f -- "$1" 2>&1) && exit
    case $answer in
        *"not connected"*) fusermount3 -uz -- "$1" || umount -il -- "$1"; exit ;;
        *"connection abort"*) tries=$((tries - 1)); sleep 0.1 ;;
        *) exit ;;
    esac
done
"""


class Watcher:
    """Clears the mount at an absolute path when this process dies without closing it."""

    def __init__(self, mountpoint: str) -> None:
        # After a clean end, a look at a mount point of autofs would have it mounted once more.
        self._last = b"end\n" if find_mount(mountpoint) == "autofs" else b"\n"
        # A new mount there locks the parent, so only a dead one is cleared.
        parent = os.path.dirname(mountpoint)
        reading, self._writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "statsfs-watcher", mountpoint, parent],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                # Signals for the server's terminal or process group are not for the watcher.
                start_new_session=True,
            )
        except BaseException:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)

    def close(self) -> None:
        """End the watcher of a closed mount; return when its process has ended."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._writing, self._last)
        os.close(self._writing)
        self._process.wait()

    def disown(self) -> None:
        """Let go of the pipe in a forked child, which must not keep the watcher waiting."""
        os.close(self._writing)
        # The process is not the child's to wait for; no warning about that.
        self._process.returncode = 0

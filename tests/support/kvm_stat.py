"""A reader that treats a directory as the kernel's own `kvm_stat` treats debugfs's `kvm`.

The real one wants a mounted debugfs; this one takes any directory. What it does was seen in
`tools/kvm/kvm_stat` of Linux 6.1, in debugfs mode:

- its fields are the files that the directory itself lists, but for three of times;
- a field's number is all that the file says, as one integer. A file that cannot be opened or read
  is 0, and a text that is not an integer ends it (here with the ValueError);
- of one process it reads the directories in whose name its pid stands before a dash;
- of all it takes the name of each directory at whatever depth, and looks for it right below the
  top: `vcpu0` is not there, and missed once for every vCPU of that name and every field.
"""

import os

__all__ = ["KvmStat"]

_LEFT_OUT = {"halt_poll_fail_ns", "halt_poll_success_ns", "halt_wait_ns"}


class KvmStat:
    """One run of it.

    Attributes:
        fields: what it reads.
    """

    def __init__(self, top: str | os.PathLike[str]) -> None:
        self._top = top
        with os.scandir(top) as entries:
            files = [entry.name for entry in entries if not entry.is_dir()]
        self.fields = [name for name in files if name not in _LEFT_OUT]

    def guests(self, pid: int) -> list[str]:
        """The directories of one process."""
        with os.scandir(self._top) as entries:
            return [entry.name for entry in entries if entry.is_dir() and f"{pid}-" in entry.name]

    def read(self, pid: int = 0) -> dict[str, int]:
        """Add up each field, of all or of one process."""
        found = dict.fromkeys(self.fields, 0)
        for directory in self.guests(pid) if pid else self._every_name():
            for field in self.fields:
                found[field] += self._read(directory, field)
        return found

    def _every_name(self) -> list[str]:
        return [name for _, directories, _ in os.walk(self._top) for name in directories]

    def _read(self, directory: str, field: str) -> int:
        try:
            with open(os.path.join(self._top, directory, field), encoding="utf-8") as file:
                return int(file.read())
        except OSError:
            return 0

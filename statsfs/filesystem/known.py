"""Known directories: what the kernel was given of one directory; inode numbers and attributes.

An inode number is a source's place times 2^30 plus the file's number, 0 for the directory: it stays
while the source stays in its place, needs no table, and is never used again. The root is always 1.

Threading: changed by the serving thread only; names are read by any.
"""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import O_ACCMODE, O_RDONLY, O_WRONLY
from typing import Final, NamedTuple, Protocol

from statsfs.exceptions import ExhaustedError, ReadOnlyValueError, StatsfsError
from statsfs.filesystem.value_files import FILE_SIZE, describe_file, find_size
from statsfs.model.arrays import FILE_NUMBERS, File
from statsfs.tree.access import Owner
from statsfs.tree.clearing import find_mode
from statsfs.tree.directory import Directory
from statsfs.tree.source import Source, directory_of

__all__ = [
    "ABSENT",
    "FILE_BITS",
    "FILE_MASK",
    "ROOT",
    "Attributes",
    "BusyDirectoryError",
    "FixedDirectoryError",
    "Known",
    "NoSuchAttributeError",
    "NoSuchFileError",
    "Numbered",
    "check_access",
    "number_inode",
]

ROOT: Final = 1

FILE_BITS: Final = (FILE_NUMBERS - 1).bit_length()
FILE_MASK: Final = FILE_NUMBERS - 1
# The other 34 bits are 5 years of 100 sources a second, half a year of 1,000.
_PLACES: Final = 1 << (64 - FILE_BITS)


class NoSuchFileError(StatsfsError, FileNotFoundError):
    """There is no such name, or it is gone."""


class NoSuchAttributeError(StatsfsError, KeyError):
    """A file has no such extended attribute."""


class FixedDirectoryError(StatsfsError, PermissionError):
    """A directory cannot be removed, at least not by this user."""


class BusyDirectoryError(StatsfsError, OSError):
    """A directory is in use: something is in it, or comes to it."""


class Numbered(Protocol):
    """What a directory has besides its subdirectories: a `File`, or a view of the subtree.

    The numbers of views are 2 to 7, so that those of the root are not its own.
    """

    @property
    def name(self) -> str: ...

    @property
    def number(self) -> int: ...


def number_inode(place: int, number: int = 0) -> int:
    """Return the inode number of a file in a place; ExhaustedError if it would be another's."""
    if place >= _PLACES or number >= FILE_NUMBERS:
        raise ExhaustedError(f"no inode number is left for place {place}, file {number}", place)
    return place << FILE_BITS | number


def check_access(file: Numbered, mode: int, flags: int) -> None:
    """Raise ReadOnlyValueError if the flags of an open want what a mode has no bit for."""
    access = flags & O_ACCMODE
    if access != O_RDONLY and not mode & 0o222:
        raise ReadOnlyValueError(f"{file.name!r} cannot be written", file.name)
    if access != O_WRONLY and not mode & 0o444:
        raise ReadOnlyValueError(f"{file.name!r} cannot be read", file.name)


class Attributes(NamedTuple):
    """What stat(2) tells of a file; times in nanoseconds since the epoch.

    Attributes that are `live` change without an invalidation, and must not be cached.
    """

    inode: int
    mode: int
    links: int
    size: int
    modified: int
    owner: Owner
    live: bool = False


ABSENT: Final = Attributes(0, 0, 0, 0, 0, (0, 0))
"""Those of a missing name that the kernel may cache as missing for a second."""


@dataclass(slots=True, eq=False, repr=False)
class Known:
    """A directory that the kernel knows, and what it was given of it."""

    source: Source | None  # None for a root that shows a registry, or nothing
    place: int  # the source's when it was looked up; the directory is gone when that changes
    parent: "Known | None"
    name: str
    owner: Owner = (0, 0)  # given is that of a root without one of its own
    directory: Directory | None = field(init=False)
    # By file number, how often the kernel was given it; 0 is the directory itself.
    lookups: dict[int, int] = field(default_factory=dict)
    files: dict[int, Numbered] = field(default_factory=dict)
    # The length and the moment of a view's newest rendering, by number.
    rendered: dict[int, tuple[int, int]] = field(default_factory=dict)
    opened: dict[int, int] = field(default_factory=dict)  # numbers by handle
    directories: dict[str, "Known"] = field(default_factory=dict)
    missed: frozenset[bytes] = frozenset()  # looked for after the directory was gone
    # What the kernel may cache as missing, and how long ours are kept.
    absent: dict[bytes, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = None if self.source is None else directory_of(self.source)
        inherited = self.owner if self.parent is None else self.parent.owner
        self.owner = (self.source.owner if self.source is not None else None) or inherited

    @property
    def inode(self) -> int:
        """Its inode number."""
        return ROOT if self.parent is None else number_inode(self.place)

    @property
    def files_now(self) -> Mapping[str, File]:
        """The files that the source shows, by name."""
        return {} if self.directory is None else self.directory.files

    @property
    def alive(self) -> bool:
        """Whether the path by which the kernel found it still leads to it."""
        known: Known | None = self
        while known is not None and known.directory is not None:
            if known.directory.place != known.place:
                return False
            known = known.parent
        return True

    # What stat(2) and getfattr(1) tell

    def value_attributes(self, file: File) -> Attributes:
        """Return the attributes of a value's file."""
        assert self.directory is not None
        value = file.value
        return Attributes(
            number_inode(self.place, file.number),
            stat.S_IFREG | find_mode(self.directory, file),
            1,
            FILE_SIZE if value.size == 1 else find_size(value),
            self.directory.placed,
            self.owner,
        )

    def view_attributes(self, view: Numbered, size: int, modified: int) -> Attributes:
        """Return the attributes of a view."""
        inode = number_inode(self.place, view.number)
        return Attributes(inode, stat.S_IFREG | 0o444, 1, size, modified, self.owner, live=True)

    def extended_attributes(self, file: Numbered | None) -> dict[bytes, bytes]:
        """Return the extended attributes of a file, or of the directory."""
        if file is not None:
            return describe_file(file.value) if isinstance(file, File) else {}
        if self.source is None:
            return {}
        label = self.source.label
        texts = {**self.source.info, **({} if label is None else {"label": label})}
        return {f"user.statsfs.{name}".encode(): text.encode() for name, text in texts.items()}

    # What the kernel is given, and gives back

    def note_file(self, file: Numbered) -> int:
        """Note that the kernel is given a file; return its inode number."""
        self.files[file.number] = file
        self.lookups[file.number] = self.lookups.get(file.number, 0) + 1
        return number_inode(self.place, file.number)

    def forget(self, number: int, lookups: int) -> None:
        """Take back that the kernel knows a file, or the directory, as often as it says."""
        left = self.lookups.get(number, 0) - lookups
        if left > 0:
            self.lookups[number] = left
            return
        for noted in (self.lookups, self.files, self.rendered):
            noted.pop(number, None)

    # What the kernel may have cached, as pairs of a directory's inode and a name

    def names(self) -> Iterator[tuple[int, bytes]]:
        """All names in it, missing ones too."""
        names = [*[file.name for file in list(self.files.values())], *self.directories.copy()]
        for name in (*(name.encode() for name in names), *list(self.absent)):
            yield self.inode, name

    def names_in_use(self) -> Iterator[tuple[int, bytes]]:
        """What stays cached here and below when the kernel invalidates the directory's name.

        The kernel then drops all but open files, and directories that processes stand in.
        """
        for directory in self._all():
            for number in set(directory.opened.copy().values()):
                file = directory.files.get(number)
                if file is not None:
                    yield directory.inode, file.name.encode()
            for name in directory.directories.copy():
                yield directory.inode, name.encode()

    def take_names(self) -> Iterator[tuple[int, bytes]]:
        """All names here and below; of missed ones only those since the last call."""
        for directory in self._all():
            if directory.parent is None:
                continue  # by these names the root has what it shows now
            missed, directory.missed = directory.missed, frozenset()
            files = [file.name for file in list(directory.files.values())]
            names = [name.encode() for name in (*files, *directory.directories.copy())]
            yield from ((directory.inode, name) for name in (*missed, *names))

    def _all(self) -> Iterator["Known"]:
        below = [self]
        for directory in below:
            yield directory
            below += directory.directories.copy().values()

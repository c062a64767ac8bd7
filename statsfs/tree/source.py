"""Sources: what a program counts in, and the tree that they make.

Threading: the tree changes under its lock, from any thread. Reading one value or one aggregate
takes no lock, unless a total counts what left; a snapshot takes it for its pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from statsfs.exceptions import UnknownValueError
from statsfs.model.arrays import Array, File, intern_array
from statsfs.model.stats import Stats
from statsfs.model.values import Value
from statsfs.tree import arguments, entries, placement, references, syncing
from statsfs.tree.access import check_owner
from statsfs.tree.asking import ask_names, find_source, make_refresher
from statsfs.tree.clearing import check_writable
from statsfs.tree.directory import Directory
from statsfs.tree.index import ClearRecorder, Entry
from statsfs.tree.lineage import find_lineage, note_files
from statsfs.tree.lock import TreeChange, lock_tree, tree_change
from statsfs.tree.refresh import refresh_all
from statsfs.tree.retained import check_row, read_retained, restore_row
from statsfs.tree.rows import RetainedRow
from statsfs.tree.snapshot import Snapshot, take_snapshot

if TYPE_CHECKING:
    from statsfs.tree.registry import Registry

__all__ = [
    "Source",
    "check_source",
    "directory_of",
    "rmdir_of",
]


class Source:
    """A directory of statistics: arrays of values over their bases, and subordinate sources.

    A new source has one reference, its creator's. The tree takes its own when the source is added
    to it. The source is released when the last reference is put. The end of `with` puts the
    creator's reference: then only the tree keeps the source, and one in no tree is released. A
    program that never puts may use its sources for ever, and leave them to garbage collection.

    >>> app = Source("app")
    >>> worker = Source("worker%d", 3, label="worker")
    >>> worker.add_values([Value("jobs", aggregate=Aggregate.SUM)], {"jobs": 5})
    >>> app.add_subordinate(worker)
    >>> app.get_value("jobs")
    5

    >>> numbers = {"degrees": 0}
    >>> sensor = Source("sensor", refresh=lambda: numbers.update(degrees=21))
    >>> sensor.add_values([Value("degrees", kind=Kind.INSTANT)], numbers)
    >>> sensor.get_value("degrees")
    21

    Args:
        name: the directory's name; `name % args` if there are arguments.
        args: what the name is formatted with, as by printf.
        label: the Prometheus label whose value is this source's name; None for none.
        label_value: that label's value, if another than the name: any text.
        info: more about the source, by name: extended attributes of its directory, as
            `user.statsfs.<name>`, and in `.schema.json`. A program may set it anew.
        hidden: no directory, for it and its subtree; but its values count above.
        retain: keep what subordinates have counted when they leave, so that totals never go back.
        collapse: in Prometheus's formats, be one series, the total, and nothing in the subtree has
            one; by default a source that retains does. Else each source in the subtree is a series
            as long as it lives, and what is retained is not exported.
        refresh: called before anything in the source's subtree is read, cleared or listed: it
            brings bases and subordinates up to date. Files of a source whose refresh fails return
            ENODATA. An `async def` is awaited by trio, for a mount, or a trio.to_thread thread.
        blocking: whether `refresh` may take long; it is then called in a thread of its own.
        max_age: seconds for which what `refresh` brought is new enough, from its call on.
        baseline: whether a clear of a cumulative value in the subtree subtracts what it is from
            then on. Without, all values are read-only there: `refresh` would overwrite a 0.
        recorder: called in place of a clear of this source's values, or of its retained numbers,
            with the parts to clear and the function that clears them. It calls the function, or
            raises, and nothing is cleared. One clear calls each recorder once.
        cleared: called after values of this source, or what it retains, were cleared, and before
            the clear returns: once for all sources of one clear that have the same function.
        rmdir: called with this source, in a thread of its own, when a client of a mount removes its
            directory: takes it out of the tree, or returns False if it is in use. Without one, no
            client can.
        owner: the user and the group, by number, that own its directory and files in a mount, and
            those in its subtree; None for the owner of the source above, or else of the mount.

    Raises:
        InvalidNameError: the name is not one for a directory, or the arguments do not fit it.
        TypeError, ValueError: the owner, a function, an age, a label's value or `info` is wrong.
    """

    __slots__ = (
        "__weakref__",
        "_cleared",
        "_directory",
        "_holds",
        "_recorder",
        "_released",
        "_rmdir",
        "_taken",
        "collapse",
        "hidden",
        "info",
        "label",
        "label_value",
        "name",
        "retain",
    )

    def __init__(
        self,
        name: str,
        *args: object,
        label: str | None = None,
        label_value: str | None = None,
        info: Mapping[str, str] | None = None,
        hidden: bool = False,
        retain: bool = False,
        collapse: bool | None = None,
        refresh: Callable[[], object] | None = None,
        blocking: bool = True,
        max_age: float = 0,
        baseline: bool = False,
        recorder: ClearRecorder | None = None,
        cleared: Callable[[], object] | None = None,
        rmdir: "Callable[[Source], bool] | None" = None,
        owner: tuple[int, int] | None = None,
    ) -> None:
        self.name: Final = arguments.format_name(name, args)
        self.label: Final = arguments.check_source_label(label)
        self.label_value: Final = (
            self.name if label_value is None else arguments.show_label(label_value)
        )
        self.info: Mapping[str, str] = arguments.check_info(info)
        arguments.check_functions(refresh=refresh, recorder=recorder, cleared=cleared, rmdir=rmdir)
        self.hidden: Final = hidden
        self.retain: Final = retain
        self.collapse: Final = retain if collapse is None else collapse
        self._recorder: Final = recorder
        self._cleared: Final = cleared
        self._rmdir: Final = rmdir
        # References: the creator's and those of `get`; those of the tree and of open files.
        self._taken, self._holds, self._released = 1, 0, False
        owner = check_owner(owner, f"the owner of {self.name!r}")
        self._directory: Final = Directory(self.name, owner)
        make_refresher(self, refresh, blocking, max_age, baseline)

    def __repr__(self) -> str:
        state = " released" if self._released else f" references={self.refcount}"
        return f"<Source {self.path!r}{state}>"

    def __enter__(self) -> Self:
        references.check(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.put()

    @property
    def owner(self) -> tuple[int, int] | None:
        """The user and the group that it was made with, by number, or None.

        >>> Source("app", owner=(1000, 100)).owner
        (1000, 100)
        """
        return self._directory.owner

    @property
    def parent(self) -> "Source | Registry | None":
        """The source or registry that this one is in, or None.

        >>> app, worker = Source("app"), Source("worker3")
        >>> app.add_subordinate(worker)
        >>> worker.parent is app
        True
        """
        return self._directory.parent

    @property
    def path(self) -> str:
        """The names from the top of the tree to this source, joined by "/".

        >>> app, worker = Source("app"), Source("worker3")
        >>> app.add_subordinate(worker)
        >>> worker.path
        'app/worker3'
        """
        return self._directory.path

    @property
    def subordinates(self) -> tuple["Source", ...]:
        """The sources in this one, hidden ones too, in the order they were added.

        >>> app = Source("app")
        >>> app.add_subordinate(Source("worker3"))
        >>> app.add_subordinate(Source("thread1", hidden=True))
        >>> [source.name for source in app.subordinates]
        ['worker3', 'thread1']

        Raises:
            ReleasedError: it was released.
        """
        references.check(self)
        return tuple(self._directory.subordinates.values())

    def find(self, path: str) -> "Source | None":
        """Return a source in this one's subtree, hidden or not, or None.

        Refreshes of those above a name that is missing run, and may make it.

        >>> app, worker = Source("app"), Source("worker3")
        >>> app.add_subordinate(worker)
        >>> app.find("worker3") is worker
        True

        Args:
            path: the names from a subordinate on, joined by "/".

        Raises:
            UnavailableError: one of them is async, and nothing awaits it here.
            TypeError: the path is not a str.
        """
        return find_source(self, path)

    @property
    def refcount(self) -> int:
        """How many references there are: the creator's, the tree's, those of open files.

        >>> app, worker = Source("app"), Source("worker3")
        >>> app.add_subordinate(worker)
        >>> worker.refcount  # the creator's and the tree's
        2
        """
        return self._taken + self._holds

    def get(self) -> Self:
        """Take a reference; return the source.

        >>> with Source("worker3") as worker:
        ...     kept = worker.get()
        >>> kept.refcount
        1

        Raises:
            ReleasedError: it was released.
        """
        references.get(self)
        return self

    def put(self) -> None:
        """Give a reference back; with the last one the source is released.

        Its subordinates are then removed, its bases dropped, and every later use raises.

        >>> worker = Source("worker3")
        >>> worker.put()
        >>> worker
        <Source 'worker3' released>

        Raises:
            ReleasedError: it was released, or the references that are left are the tree's or an
                open file's.
        """
        references.put(self)

    # The tree

    def add_subordinate(self, source: "Source") -> None:
        """Put a source into this one; the tree takes a reference to it.

        >>> app = Source("app")
        >>> with Source("worker3") as worker:  # at the end only the tree has a reference
        ...     app.add_subordinate(worker)
        >>> worker
        <Source 'app/worker3' references=1>

        Raises:
            TreeError: it has a parent already, or is this source or an ancestor of it.
            DuplicateNameError: another subordinate has its name.
            ReleasedError: one of the two was released.
            TypeError: it is not a source.
        """
        check_source(source)
        placement.add(self, source)

    def remove_subordinate(self, source: "Source") -> None:
        """Remove a source, with its subtree, from this one: then all mounts have lost its names.

        >>> app, worker = Source("app"), Source("worker3")
        >>> app.add_subordinate(worker)
        >>> app.remove_subordinate(worker)
        >>> app.subordinates
        ()

        Raises:
            TreeError: it is not a subordinate of this source.
            ReleasedError: one of the two was released.
            TypeError: it is not a source.
        """
        check_source(source)
        placement.remove(self, source)

    def sync(
        self,
        subordinates: Mapping[str, Mapping[str, int | Sequence[int]]],
        values: type[Stats] | Sequence[Value],
        *,
        label: str | None = None,
    ) -> None:
        """Make, update and remove subordinates in one change, so that they match a mapping.

        A reader sees all of it or nothing. Subordinates that were added otherwise are left alone.
        What removed ones have counted is retained, as by `remove_subordinate`. If a cumulative
        number falls, something else has the name now. So call this in one thread at a time.

        >>> procs, values = Source("procs"), [Value("cpu_ns", aggregate=Aggregate.SUM)]
        >>> procs.sync({"1": {"cpu_ns": 40}, "27": {"cpu_ns": 2}}, values)
        >>> procs.get_value("cpu_ns")
        42
        >>> procs.sync({"27": {"cpu_ns": 3}}, values)
        >>> [source.name for source in procs.subordinates]
        ['27']

        Args:
            subordinates: the numbers of each subordinate, by the names of values. Its name may be
                any text: the directory's is what `safe_name` makes of it.
            values: an array, as for `add_values`. A value that a subordinate never had has no file
                there; one that it had, and lacks now, is unavailable, and totals have the last one.
            label: the Prometheus label whose value is the subordinate's name; None for none.

        Raises:
            UnknownValueError: a mapping has a name that is not a value's.
            BaseMismatchError: a mapping has no integer for a value.
            ValueError: a number does not fit into its value's type.
            DuplicateNameError: a source that `sync` did not make has the name.
            InvalidNameError: the label is not one of Prometheus's.
            ReleasedError: the source was released.
            TypeError: `values` is not an array, or something else not a mapping by text.
        """
        syncing.sync(self, subordinates, values, label, Source)

    # Values

    def add_values(
        self, values: type[Stats] | Sequence[Value], base: object, *, hidden: bool = False
    ) -> None:
        """Show an array of values that are held by a base.

        >>> class WorkerStats(Stats):
        ...     jobs = counter("Jobs done")
        >>> worker, stats = Source("worker3"), WorkerStats()
        >>> worker.add_values(WorkerStats, stats)
        >>> stats.jobs += 1
        >>> worker.get_value("jobs")
        1
        >>> memory = bytearray(8)
        >>> worker.add_values([Value("errors", Type.U32, offset=4)], memory)  # its last 4 bytes

        Args:
            values: a `Stats` class, or any sequence of `Value`s; equal arrays belong together.
            base: where the integers are: a writable buffer if the values have offsets, else a
                mapping read by key or anything else read by attribute; None declares the
                aggregates of the values here and above, before any base of theirs is there.
            hidden: no files here, but counted above.

        Raises:
            BaseMismatchError: the base lacks a value, or is of another sort than the values need.
            DuplicateNameError: a name is twice in the array, or the source shows the array already,
                or has it over the same base.
            ReleasedError: the source was released.
            TypeError, ValueError: `values` is not an array.
        """
        entries.add_values(self, values, base, hidden)

    def remove_values(self, values: type[Stats] | Sequence[Value]) -> None:
        """Take an array away: this source shows its values no longer.

        Sources above show their totals on. One that retains keeps what was counted, until the array
        is added again over the same base. Nothing happens where the array is not there.

        >>> worker, values = Source("worker3"), [Value("jobs")]
        >>> worker.add_values(values, {"jobs": 5})
        >>> worker.remove_values(values)
        >>> worker.names()
        []

        Raises:
            ReleasedError: the source was released.
            TypeError, ValueError: `values` is not an array.
        """
        entries.revoke(self, intern_array(values))

    def revoke(self) -> None:
        """Drop the bases of this source alone, as when their memory goes away.

        Its arrays stay as if their base were None: names here and above remain, and read 0. Open
        files read 0. An array may be added again.

        >>> worker = Source("worker3")
        >>> worker.add_values([Value("jobs", aggregate=Aggregate.SUM)], {"jobs": 5})
        >>> worker.revoke()
        >>> worker.get_value("jobs")
        0

        Raises:
            ReleasedError: it was released.
        """
        entries.revoke(self)

    # Files

    def names(self) -> list[str]:
        """Return the file names that the source's directory shows: own values, then aggregates.

        >>> app, worker = Source("app"), Source("worker3")
        >>> app.add_values([Value("restarts")], {"restarts": 0})
        >>> worker.add_values([Value("load", aggregate=Aggregate.AVG | Aggregate.MAX)], {"load": 7})
        >>> app.add_subordinate(worker)
        >>> app.names()
        ['restarts', 'load.max', 'load.avg']

        Raises:
            ReleasedError: it was released.
        """
        references.check(self)
        return list(self._directory.layout.files)

    def _find_file(self, name: str, ask: bool = True) -> tuple[File, Entry | None]:
        references.check(self)
        file = self._directory.layout.files.get(name)
        if file is not None:
            return file, self._directory.entry_of(file)
        hidden = self._directory.find_hidden(name)
        if hidden is None and ask and ask_names(self._directory):
            return self._find_file(name, ask=False)
        if hidden is None:
            raise UnknownValueError(f"{self.path}: no value {name!r}", name)
        return hidden

    def get_value(self, name: str) -> Any:
        """Read a value or an aggregate now.

        >>> disk = Source("disk")
        >>> disk.add_values([Value("reads", Type.U8)], {"reads": 257})
        >>> disk.get_value("reads")  # as a u8 wraps
        1

        Args:
            name: one of `names()`, or a hidden value of this source itself.

        Returns:
            The integer, converted to its type, and not the text of `show`; of a histogram a list
            of integers, one for each bucket.

        Raises:
            UnknownValueError: there is no such value.
            UnavailableError: a refresh failed, or took more than a second.
            BaseMismatchError: the base holds no integer for it any more.
            ReleasedError: the source was released.
        """
        file, entry = self._find_file(name)
        refresh_all([self], name)
        return self._directory.read(file, entry)

    def clear_value(self, name: str) -> None:
        """Write 0 into a value, or into all that an aggregate covers.

        >>> worker, numbers = Source("worker3"), {"jobs": 5}
        >>> worker.add_values([Value("jobs")], numbers)
        >>> worker.clear_value("jobs")
        >>> numbers
        {'jobs': 0}

        Args:
            name: one of `names()`, or a hidden value of this source itself.

        Raises:
            UnknownValueError: there is no such value.
            UnavailableError: a refresh failed, or took more than a second.
            ReadOnlyValueError: its mode has no write bit, a refresh without `baseline` brings it,
                or its base refuses. An aggregate skips bases that refuse, and logs them.
            SegmentError: a collector cannot record the clear; then nothing is cleared.
            ReleasedError: the source was released.
        """
        file, entry = self._find_file(name)
        check_writable(self._directory, file)
        refresh_all([self], name)
        self._directory.clear(file, entry)

    # What it retains

    @property
    def retained(self) -> dict[tuple[Value, ...], tuple[Any, ...]]:
        """What it has kept of subordinates that left, by array.

        A row has for each value a sum, a peak or buckets, and 0 where nothing is retained.

        >>> app = Source("app", retain=True)
        >>> with Source("worker3") as worker:
        ...     worker.add_values([Value("jobs", aggregate=Aggregate.SUM)], {"jobs": 21})
        ...     app.add_subordinate(worker)
        >>> app.remove_subordinate(worker)
        >>> list(app.retained.values())
        [(21,)]

        Raises:
            ReleasedError: it was released.
        """
        references.check(self)
        return lock_tree(lambda: read_retained(self))

    def restore(self, values: type[Stats] | Sequence[Value], row: Sequence[Any]) -> None:
        """Add to what it retains, as if a subordinate had left that counted so much.

        >>> app = Source("app", retain=True)
        >>> app.restore([Value("jobs", aggregate=Aggregate.SUM)], (21,))
        >>> app.get_value("jobs")
        21

        Args:
            values: an array, as for `add_values`.
            row: as `retained` has it; only what is retained is taken of it, and no PEAK of 0.

        Raises:
            ValueError: the source does not retain, or the row is of another length.
            TypeError: something in the row is not a number.
            ReleasedError: it was released.
        """
        references.check(self)
        if not self.retain:
            raise ValueError(f"{self.path} does not retain")
        array = intern_array(values)
        self._restore(array, check_row(array, row))

    @tree_change
    def _restore(self, change: TreeChange, array: Array, row: RetainedRow) -> None:
        references.check(self)
        lineage = find_lineage(self)
        note_files(change, lineage, restore_row(change, lineage, array, row))

    def snapshot(self) -> Snapshot:
        """Sample the whole subtree in one uninterrupted pass.

        All numbers are of one moment where the bases are slotted or plain objects, dictionaries,
        or buffers of this process. Bases that run Python code when read (properties,
        `__getattr__`) are read after the pass, one by one. A base that holds no integers any more
        is left out, and logged once.

        Refreshes come first, and take a second at most.

        >>> app = Source("app")
        >>> app.add_values([Value("jobs"), Value("errors")], {"jobs": 5, "errors": 0})
        >>> app.snapshot().to_dict()
        {'values': {'jobs': 5, 'errors': 0}, 'subordinates': {}}

        Raises:
            ReleasedError: it was released.
        """
        references.check(self)
        refresh_all([self])
        return take_snapshot(self)


def directory_of(source: Source) -> Directory:
    """Return the directory of a source; the rest of the package works on it."""
    return source._directory


def rmdir_of(source: Source) -> Callable[[Source], bool] | None:
    """Return what takes a source out of the tree for a client, if its directory can be removed."""
    return source._rmdir


def check_source(source: object) -> None:
    """Raise TypeError if something is not a source."""
    if not isinstance(source, Source):
        raise TypeError(f"source is not a Source: {source!r}")

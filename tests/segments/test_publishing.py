"""Publishing: what lies in the directory, what the attributes are, what is refused, and the end."""

import contextlib
import errno
import os
import pwd
import stat
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statsfs import Registry, Source, publish
from statsfs.exceptions import InvalidNameError, SegmentError
from statsfs.model.fields import s32, u8, u64
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import Segment, locks, mappings, places
from tests.support.bare import bare_linear_hist, bare_log_hist
from tests.support.segment_files import alive, read_segment, segments_in


class WorkerStats(Stats):
    """What a worker counts."""

    requests = u64(Aggregate.SUM, description="Requests answered")
    busiest = u8(Aggregate.MAX, kind=Kind.PEAK)
    balance = s32(Aggregate.MIN)
    latency = bare_log_hist(8, Aggregate.SUM)
    queue = bare_linear_hist(3, 10)


@pytest.fixture
def segment(directory: Path) -> Iterator[Segment[WorkerStats]]:
    """A segment that is closed afterwards."""
    with publish(
        "app/worker-%d", 7, values=WorkerStats, labels=("app", "worker"), directory=directory
    ) as segment:
        yield segment


# What there is


def test_a_segment_is_whole_alive_and_alone(segment: Segment[WorkerStats], directory: Path) -> None:
    """One file under its real name, as long as its head says, locked, all zeros."""
    assert list(directory.iterdir()) == [segment.file]
    head, numbers = read_segment(segment.file)
    assert (segment.path, head.path, head.labels) == (*["app/worker-7"] * 2, ("app", "worker"))
    assert head.values == values_of(WorkerStats)
    assert list(numbers.values()) == [0, 0, 0, [0] * 8, [0] * 3]
    assert alive(segment.file)
    assert stat.S_IMODE(segment.file.stat().st_mode) == 0o644
    assert segment.file.stat().st_blocks * 512 >= head.size, "a hole would be a SIGBUS some day"
    assert segment.file.name.startswith("app_worker-7-")
    assert repr(segment) == f"<Segment 'app/worker-7' {str(segment.file)!r}>"


def test_what_is_counted_is_in_the_file(segment: Segment[WorkerStats]) -> None:
    """Attributes as those of `Stats.from_buffer`: they wrap as C does, histograms observe."""
    stats = segment.stats
    stats.requests += 3
    stats.requests += 1 << 64
    stats.balance -= 2
    stats.busiest = 200
    stats.latency.observe(5)
    stats.latency.observe(1 << 40)
    stats.queue[1] += 1
    stats.queue.observe(19)
    assert read_segment(segment.file).numbers == {
        "requests": 3,
        "busiest": 200,
        "balance": (1 << 64) - 2,
        "latency": [0, 0, 0, 1, 0, 0, 0, 1],
        "queue": [0, 2, 0],
    }
    assert (stats.requests, stats.balance) == (3, -2)
    assert list(stats.latency) == [0, 0, 0, 1, 0, 0, 0, 1]


def test_unknown_attributes_are_refused(segment: Segment[WorkerStats]) -> None:
    """A misspelt name does not make a new attribute."""
    stats: Any = segment.stats
    with pytest.raises(AttributeError):
        stats.request += 1
    with pytest.raises(AttributeError):
        stats.request = 1
    other: Any = segment
    with pytest.raises(AttributeError):
        other.statistics = 1


def test_values_need_no_class(directory: Path) -> None:
    """A sequence of values does, with any names that files may have."""
    values = [Value("a.b"), Value("é", kind=Kind.INSTANT), Value("requests")]
    with publish("app", values=values, directory=directory) as segment:
        segment.stats.requests += 1
        setattr(segment.stats, "a.b", 5)
        assert read_segment(segment.file).numbers == {"a.b": 5, "é": 0, "requests": 1}
        assert read_segment(segment.file).head.labels == (None,)


def test_a_segment_is_a_base_for_its_own_process_too(segment: Segment[WorkerStats]) -> None:
    """What is published may be shown in a mount of one's own."""
    registry = Registry()
    with Source("own") as own:
        registry.register(own)
        own.add_values(WorkerStats, segment.stats)
        segment.stats.requests += 9
        segment.stats.balance -= 1
        assert (own.get_value("requests"), own.get_value("balance")) == (9, -1)
        own.clear_value("requests")
        assert segment.stats.requests == 0


def test_only_arguments_format_a_path(directory: Path) -> None:
    """Without them a "%" is one."""
    with publish("100%d", values=WorkerStats, directory=directory) as segment:
        assert segment.path == "100%d"
    with pytest.raises(InvalidNameError, match="not enough arguments"):
        publish("a%d/%d", 1, values=WorkerStats, directory=directory)


def test_the_directory_is_the_default(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """And a relative one is where it was, whatever the process's directory becomes."""
    monkeypatch.setenv("STATSFS_DIR", str(directory))
    with publish("a", values=WorkerStats) as segment:
        assert segment.file.parent == directory
    monkeypatch.chdir(directory)
    monkeypatch.setenv("STATSFS_DIR", "")
    segment = publish("a", values=WorkerStats, directory=".")
    monkeypatch.chdir("/")
    segment.close()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604, 0o644])
def test_who_may_read_is_said(directory: Path, mode: int) -> None:
    """Whatever the umask is."""
    umask = os.umask(0o077)
    try:
        with publish("a", values=WorkerStats, directory=directory, mode=mode) as segment:
            assert stat.S_IMODE(segment.file.stat().st_mode) == mode
    finally:
        os.umask(umask)


def test_names_never_meet(directory: Path) -> None:
    """Segments of one path lie beside each other; a name has no more than a file's may have.

    Each file has an id of its own, which is at the end of its name too.
    """
    long = "/".join("ä" * 100 for _ in range(8))
    made = [publish(path, values=WorkerStats, directory=directory) for path in ("a", "a", long)]
    assert len(segments_in(directory)) == 3
    assert [read_segment(one.file).head.path for one in made] == ["a", "a", long]
    ids = [read_segment(one.file).head.id for one in made]
    assert ids == [one.file.stem.rpartition("-")[2] for one in made]
    assert len({*ids}) == 3
    for one in made:
        one.close()


# What is refused


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "has 0 bytes"),
        ("a//b", "has 0 bytes"),
        ("/a", "has 0 bytes"),
        ("../a", 'starts with "."'),
        ("a/.b", 'starts with "."'),
        ("a\n", "control character"),
        ("x" * 256, "has 256 bytes"),
        (None, "must be a str"),
    ],
)
def test_paths_are_names_of_sources(directory: Path, path: Any, message: str) -> None:
    """What a source could not be called, a segment's component cannot be."""
    with pytest.raises(InvalidNameError, match=message):
        publish(path, values=WorkerStats, directory=directory)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ("a",)}, "1 label for 2 components"),
        ({"labels": ("a", "/")}, "a label '/'"),
        ({"mode": 0o664}, "mode 0o664"),
        ({"mode": 0o444}, "mode 0o444"),
        ({"mode": 0o1644}, "mode 0o1644"),
        ({"values": ()}, "0 values"),
        ({"values": [Value("a", offset=0)]}, "have offsets"),
        ({"values": [Value("a"), Value("a", hidden=True)]}, "there twice"),
        ({"values": [Value(f"v{number}") for number in range(4097)]}, "4097 values"),
        (
            {"values": [Value(f"v{n}", kind=Kind.LINEAR_HIST, size=65535, bucket_size=1)
                        for n in range(3)]},
            "not at most 1048576",
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_what_no_collector_would_take_is_refused(
    directory: Path, arguments: dict[str, Any], message: str
) -> None:
    """In one line that has the path, and nothing is left."""
    with pytest.raises(SegmentError, match=f"segment 'a/b': .*{message}") as caught:
        publish("a/b", **{"values": WorkerStats, "directory": directory, **arguments})
    assert "\n" not in str(caught.value)
    assert caught.value.offender == "a/b"
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "arguments", "error", "message"),
    [
        ("/a/b", {}, InvalidNameError, """path '/a/b': .*; it is names joined by "/\""""),
        ("a/b/", {}, InvalidNameError, "path 'a/b/': "),
        (b"a/b", {}, InvalidNameError, "path must be a str, not bytes"),
        (Path("a/b"), {}, InvalidNameError, "path must be a str, not PosixPath"),
        (7, {}, InvalidNameError, "path must be a str, not int: 7"),
        ("a/" * 8 + "a", {}, SegmentError, "a path of 9 components, not 1 to 8"),
        ("a/b", {"labels": "worker"}, TypeError, "'a/b': labels must be a list .* not 'worker'"),
        ("a/b", {"labels": b"ab"}, TypeError, "labels must be a list"),
        ("a/b", {"labels": {"a": "b", "c": "d"}}, TypeError, "labels must be a list"),
        ("a/b", {"labels": 5}, TypeError, "labels must be a list .* not 5"),
        ("a/b", {"labels": ("a", 5)}, SegmentError, "a label must be a str, not int"),
        ("a/b", {"labels": ("a", "my-x")}, SegmentError, "label 'my-x': Prometheus takes letters"),
        ("a/b", {"labels": ("le", None)}, SegmentError, "label 'le': Prometheus takes letters"),
        ("a/b", {"mode": "0644"}, TypeError, "mode must be an int, as 0o644, not '0644'"),
        ("a/b", {"mode": None}, TypeError, "mode must be an int"),
        ("a/b", {"values": WorkerStats()}, TypeError, "values must be a Stats class .*, not Work"),
        ("a/b", {"values": int}, TypeError, "values must be a Stats class .* not <class 'int'>"),
        ("a/b", {"values": Value}, TypeError, "values must be a Stats class"),
        ("a/b", {"values": 5}, TypeError, "values must be a Stats class .* not 5"),
        ("a/b", {"values": None}, TypeError, "values must be a Stats class"),
        ("a/b", {"values": "requests"}, TypeError, "values must be .* not 'requests'"),
        ("a/b", {"values": [Value("a"), "b"]}, TypeError, "values must be"),
        ("a/b", {"directory": 5}, TypeError, "'a/b': directory must be a path, not 5"),
        ("a/b", {"directory": ""}, TypeError, "'a/b': directory must be a path, not ''"),
        ("a/b", {"directory": "a\0b"}, SegmentError, "'a/b': directory .*null"),
    ],
    ids=str,
)
def test_arguments_of_another_sort_are_named(
    directory: Path, path: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """In one line, without the traceback of an internal error before it."""
    with pytest.raises(error, match=message) as caught:
        publish(path, **{"values": WorkerStats, "directory": directory, **arguments})
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert list(directory.iterdir()) == []


def test_the_processs_own_directory_may_be_gone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative directory is then nowhere."""
    gone = directory / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SegmentError, match="segment 'a' in segments: No such file") as caught:
        publish("a", values=WorkerStats, directory="segments")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("name", ["_fields_", "_anonymous_", "stats_values", "__class__"])
def test_names_that_no_structure_has_are_refused(directory: Path, name: str) -> None:
    """They would be something else than an attribute."""
    with pytest.raises(InvalidNameError, match=name):
        publish("a", values=[Value(name)], directory=directory)


@pytest.mark.parametrize(
    ("worker", "mule", "master", "processes", "refused"),
    [
        (0, 0, "this one", 1, True),
        (0, 0, "this one", 3, True),
        (0, 0, None, 3, True),
        (0, 0, None, 1, False),  # it is the only worker
        (0, 0, "another", 3, False),  # a spooler
        (0, 2, "another", 3, False),
        (3, 0, "another", 3, False),
        (1, 0, None, 3, False),
    ],
)
def test_before_uwsgi_forks(
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    worker: int,
    mule: int,
    master: str | None,
    processes: int,
    refused: bool,
) -> None:
    """It runs no hook of Python's: three workers counted in one segment, and lost half of it."""
    pid = {"this one": os.getpid(), "another": os.getppid(), None: 0}[master]
    uwsgi: Any = types.ModuleType("uwsgi")
    uwsgi.worker_id, uwsgi.mule_id, uwsgi.masterpid = (lambda: worker), (lambda: mule), lambda: pid
    uwsgi.numproc = processes
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    with contextlib.ExitStack() as stack:
        if refused:
            stack.enter_context(pytest.raises(SegmentError, match=r"--lazy-apps or in .*fork_hook"))
        stack.enter_context(publish("a", values=WorkerStats, directory=directory))
    assert list(directory.iterdir()) == []


def test_a_module_of_the_same_name_is_not_uwsgi(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    """A program may call its own module so."""
    monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))
    with publish("a", values=WorkerStats, directory=directory) as segment:
        assert alive(segment.file)


def test_directories_that_are_none(directory: Path) -> None:
    """Missing, a file, or one that strangers may write: the error says which, and its errno."""
    with pytest.raises(SegmentError, match=r"no directory .*/missing: make it") as caught:
        publish("a", values=WorkerStats, directory=directory / "missing")
    assert caught.value.errno == errno.ENOENT
    (directory / "file").touch()
    with pytest.raises(SegmentError, match="Not a directory") as caught:
        publish("a", values=WorkerStats, directory=directory / "file")
    assert caught.value.errno == errno.ENOTDIR
    directory.chmod(0o777)
    with pytest.raises(SegmentError, match="others than its owner may write"):
        publish("a", values=WorkerStats, directory=directory)
    assert segments_in(directory) == []


def test_a_delegated_directory_has_its_paths(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    """What the host's collector would refuse is refused here."""
    monkeypatch.setattr(places, "HOST_DIRECTORY", directory)
    (directory / "web").mkdir(mode=0o755)
    with pytest.raises(SegmentError, match="begin with web/"):
        publish("app/a", values=WorkerStats, directory=directory / "web")
    with publish("web/a", values=WorkerStats, directory=directory / "web") as segment:
        assert alive(segment.file)


@pytest.mark.root
def test_a_full_disk_is_an_error_and_leaves_nothing(directory: Path) -> None:
    """At publish, and not a SIGBUS at the first count; what was published before goes on."""
    disk = directory / "disk"
    disk.mkdir(mode=0o755)
    options = "size=16k,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    try:
        published: list[Segment[WorkerStats]] = []

        def fill() -> None:
            while len(published) < 9:
                published.append(publish("a", values=WorkerStats, directory=disk))

        with pytest.raises(SegmentError, match=r"'a' in .*/disk: No space left") as caught:
            fill()
        assert published
        assert caught.value.errno == errno.ENOSPC
        assert sorted(disk.iterdir()) == sorted(segment.file for segment in published)
        for segment in published:
            segment.stats.requests += 1
            assert read_segment(segment.file).numbers["requests"] == 1
            segment.close()
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("failing", ["hold", "map", "rename"])
def test_what_fails_half_way_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """No file, no mapping, no descriptor."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if failing == "hold":
        monkeypatch.setattr(locks, "hold", lambda fd: False)
    elif failing == "map":
        monkeypatch.setattr(mappings, "map_file", fail)
    else:
        monkeypatch.setattr(os, "rename", fail)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SegmentError, match=r"locked by another process|No locks available"):
        publish("a", values=WorkerStats, directory=directory)
    assert list(directory.iterdir()) == []
    assert os.listdir("/proc/self/fd") == before
    assert str(directory) not in Path("/proc/self/maps").read_text()


def test_a_mapping_that_the_kernel_refuses(directory: Path) -> None:
    """Its errno is the kernel's."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        mappings.map_file(999_999, 4096)


# The end


def test_closing_ends_it(segment: Segment[WorkerStats], directory: Path) -> None:
    """The file is gone, as there is no collector; each attribute raises, in kept views too."""
    stats: Any = segment.stats
    buckets = stats.latency
    stats.requests += 1
    segment.close()
    segment.close()
    assert list(directory.iterdir()) == []
    assert str(directory) not in Path("/proc/self/maps").read_text()
    for touch in (
        lambda: stats.requests,
        lambda: setattr(stats, "requests", 1),
        lambda: segment.stats.latency,
        lambda: stats.unknown,
        lambda: stats.asdict(),
        lambda: stats.adding(requests=1).__exit__(None, None, None),
    ):
        with pytest.raises(SegmentError, match="'app/worker-7' was closed: no '"):
            touch()
    buckets.observe(3)
    assert sum(buckets) == 1, "of this process alone"
    assert not hasattr(stats, "__array__"), "what looks for protocols finds none"
    assert repr(segment).startswith("<Segment 'app/worker-7' ended ")


@pytest.mark.parametrize("where", [".", ".."])
def test_where_a_collector_has_been_the_file_is_left_to_it(directory: Path, where: str) -> None:
    """In the directory, or in that of which it is a part; dead, with all that was counted."""
    place = directory / "web"
    place.mkdir(mode=0o755)
    (place / where / places.COLLECTOR).touch()
    with publish("web/a", values=WorkerStats, directory=place) as segment:
        segment.stats.requests += 5
    assert segments_in(place) == [segment.file]
    assert not alive(segment.file)
    assert read_segment(segment.file).numbers["requests"] == 5


def test_a_removed_file_or_directory_is_no_error(directory: Path) -> None:
    """Counting goes on, and there is nothing to remove in the end."""
    place = directory / "gone"
    place.mkdir(mode=0o755)
    segment = publish("a", values=WorkerStats, directory=place)
    segment.file.unlink()
    place.rmdir()
    segment.stats.requests += 1
    assert segment.stats.requests == 1
    segment.close()


def test_a_segment_lives_without_its_object(directory: Path) -> None:
    """A program that keeps only the attributes may count in them."""
    stats = publish("a", values=WorkerStats, directory=directory).stats
    stats.requests += 1
    (file,) = segments_in(directory)
    assert alive(file)
    assert read_segment(file).numbers["requests"] == 1


def test_threads_publish_and_close_at_the_same_time(directory: Path) -> None:
    """Each has segments of its own, and none is left."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                with publish("t/%d-%d", number, turn, values=WorkerStats,
                             directory=directory) as segment:  # fmt: skip
                    segment.stats.requests += number
                    assert read_segment(segment.file).numbers["requests"] == number
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(directory.iterdir()) == []


# Other users

NOBODY = 65534


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Have the rights of another user."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A host's directory of segments, into which everybody may look."""
    with tempfile.TemporaryDirectory() as name:
        host = Path(name) / "statsfs"
        Path(name).chmod(0o755)
        host.mkdir(mode=0o755)
        monkeypatch.setattr(places, "HOST_DIRECTORY", host)
        for variable in ("STATSFS_DIR", "XDG_RUNTIME_DIR"):
            monkeypatch.delenv(variable, raising=False)
        yield host


@pytest.mark.root
def test_another_user_publishes_where_root_says(public: Path) -> None:
    """Not beside root's segments; in the directory that has the user's name, below that name."""
    user = pwd.getpwuid(NOBODY).pw_name
    with acting_as(NOBODY):
        with pytest.raises(SegmentError, match="STATSFS_DIR"):
            publish("app", values=WorkerStats)
        with pytest.raises(SegmentError, match="Permission denied") as caught:
            publish("app", values=WorkerStats, directory=public)
        assert caught.value.errno == errno.EACCES
    own = public / user
    own.mkdir(mode=0o755)
    os.chown(own, NOBODY, 0)
    with acting_as(NOBODY):
        with pytest.raises(SegmentError, match=f"begin with {user}/"):
            publish("app", values=WorkerStats)
        with publish(f"{user}/app", values=WorkerStats) as segment:
            assert segment.file.parent == own
            assert segment.file.stat().st_uid == NOBODY


@pytest.mark.root
def test_a_stranger_cannot_write_or_lock_a_segment(public: Path) -> None:
    """Nor remove it; reading is what `mode` says."""
    with (
        publish("app", values=WorkerStats, directory=public) as segment,
        publish("own", values=WorkerStats, directory=public, mode=0o600) as private,
        acting_as(NOBODY),
    ):
        for name in (segment.file, private.file):
            with pytest.raises(PermissionError):
                os.open(name, os.O_RDWR)
            with pytest.raises(PermissionError):
                name.unlink()
        assert read_segment(segment.file).head.path == "app"
        with pytest.raises(PermissionError):
            private.file.read_bytes()

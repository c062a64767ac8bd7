"""The C header: it writes what `publish` writes, refuses what it refuses, and lives as it does."""

import errno
import os
import pwd
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import statsfs
from statsfs.exceptions import SegmentError, StatsfsError
from statsfs.model.histograms import make_histogram, make_sum
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.segments import file_format, places, publish
from tests.formats.test_binary import read_as_kvm
from tests.support.c_header import COMPILERS, Header, compile_c
from tests.support.segment_files import alive, read_segment, segments_in
from tests.support.strategies import recipes

pytestmark = pytest.mark.tools

HISTOGRAMS = (
    Value("linear", aggregate=Aggregate.SUM, kind=Kind.LINEAR_HIST, size=4, bucket_size=10),
    Value("log", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=65, description="Waits"),
    Value("few", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3),
    Value("bounds", aggregate=Aggregate.SUM, kind=Kind.HIST, bounds=[0, 5, (1 << 64) - 1]),
)


def with_sums(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Values, and behind each histogram its sum, as the header adds it."""
    return tuple(one for value in values for one in (value, make_sum(value))[: 1 + value.histogram])


@pytest.fixture(scope="module", params=list(COMPILERS))
def header(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Header:
    """The header, as C and as C++."""
    return Header(request.param, tmp_path_factory.mktemp("header"))


# The file itself


@pytest.mark.parametrize(
    ("language", "standard"),
    [("c", "c99"), ("c", "c11"), ("c", "gnu17"), ("c++", "c++11"), ("c++", "c++20")],
)
@pytest.mark.parametrize("first", ["", "#include <stdio.h>\n#include <sys/mman.h>\n"])
def test_it_compiles_without_a_warning(
    tmp_path: Path, language: str, standard: str, first: str
) -> None:
    """In two files of one program, in any standard; behind other headers if they show all."""
    define = "#define _GNU_SOURCE\n" if first and language == "c" else ""
    for name in ("one", "two"):
        body = "int main(void) { return 0; }\n" if name == "one" else ""
        (tmp_path / f"{name}.c").write_text(
            f"{define}{first}#include <statsfs.h>\n#include <statsfs.h>\n{body}"
        )
    files = [tmp_path / "one.c", tmp_path / "two.c"]
    strict = ["-Wconversion", "-Wsign-conversion", "-Wundef", "-Wcast-qual"]
    compile_c(language, *strict, "-o", tmp_path / "program", *files, standard=standard)
    subprocess.run([tmp_path / "program"], check=True, timeout=60)


def test_it_says_what_it_needs(tmp_path: Path) -> None:
    """Strict C behind another header does not have the calls."""
    source = tmp_path / "late.c"
    source.write_text("#include <stdio.h>\n#include <statsfs.h>\nint main(void) { return 0; }\n")
    done = subprocess.run(
        ["gcc", "-std=c99", "-I", statsfs.get_include(), "-c", "-o", tmp_path / "late.o", source],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode
    assert "include statsfs.h before other headers, or define _DEFAULT_SOURCE" in done.stderr


def test_its_own_example_works(tmp_path: Path, directory: Path) -> None:
    """The lines at its top, as a program."""
    text = Path(statsfs.get_include(), "statsfs.h").read_text()
    comment, _, _ = text.partition("*/")
    lines = [line[3:] for line in comment.splitlines() if line.startswith(" *     ")]
    program = tmp_path / "example.c"
    body = "\n".join(lines)
    program.write_text(f"#include <statsfs.h>\nint main(void) {{\n{body}\nreturn 0; }}\n")
    compile_c("c", "-o", tmp_path / "example", program)
    (directory / places.COLLECTOR).touch()
    environment = {**os.environ, "STATSFS_DIR": str(directory)}
    subprocess.run([tmp_path / "example"], check=True, timeout=60, env=environment)
    (file,) = segments_in(directory)
    numbers = read_segment(file).numbers
    assert (numbers["requests"], numbers["latency.sum"]) == (1, 1500)


# What is written


def check_equal(header: Header, directory: Path, path: str, values: Any, labels: Any) -> None:
    """What the header has written is what `encode` makes, to the last byte."""
    segment = header.publish(path, values, labels, directory=directory)
    try:
        assert segment.file is not None
        written = segment.file.read_bytes()
        head = file_format.decode(written)
        assert head is not None
        assert written == file_format.encode(path, values, labels, id=head.id)
        assert segment.file.name.endswith(f"-{head.id}.stats")
        with publish(path, values=values, labels=labels, directory=directory) as ours:
            assert segment.file.name[:-22] == ours.file.name[:-22]
            assert len(segment.file.name) == len(ours.file.name)
    finally:
        segment.close()
    assert segments_in(directory) == []


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_values_are_those_of_python(header: Header, directory: Path, data: Any) -> None:
    """Kinds, units, types, aggregates, modes, texts: byte for byte."""
    recipe = data.draw(recipes())
    values: list[Value] = []
    for index, one in enumerate(recipe.fields):
        fields = dict(one)
        if fields["name"].endswith(".sum"):
            continue
        fields.pop("offset", None)
        fields["name"] = f"{fields['name']}{index}"
        fields["unit"] = data.draw(st.sampled_from(list(Unit)))
        fields["exponent"] = data.draw(st.integers(-0x8000, 0x7FFF))
        fields["base"] = data.draw(st.sampled_from([2, 10]))
        fields["description"] = data.draw(texts)
        values.append(Value(**fields))
    assume(all(value.mode for value in values))
    check_equal(header, directory, "app/a-1", with_sums(tuple(values)), data.draw(some_labels))


# Labels that Prometheus would have under another name.
REWRITTEN = ("my-x", "é", "9p", "le", "__name__", 'a "b"')

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
names = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=40
).filter(lambda name: not name.startswith("."))
some_labels = st.sampled_from([None, (None, None), ("app", None), (None, "_9"), ("A_b", "w")])


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(components=st.lists(names, min_size=1, max_size=8), name=names)
def test_any_names_are_those_of_python(
    header: Header, directory: Path, components: list[str], name: str
) -> None:
    """Of a path, a value and a file, however long."""
    check_equal(header, directory, "/".join(components), [Value(f"v{name}")], None)


def test_the_largest_that_there_are(header: Header, directory: Path) -> None:
    """As many values, names and bytes as there may be."""
    long = "/".join("\u00e4" * 127 for _ in range(8))
    bounded = Value("b", kind=Kind.HIST, bounds=range_of(1024), aggregate=Aggregate.SUM)
    for path, values in (
        (long, [Value("x" * 255), Value("y" * 241, aggregate=Aggregate.COUNT_NONZERO)]),
        ("a", [Value(f"v{number}") for number in range(4096)]),
        ("a", with_sums((bounded, Value("x", description="d" * 4096)))),
        ("a", with_sums((Value("h", kind=Kind.LINEAR_HIST, size=65535, bucket_size=0xFFFFFFFF),))),
    ):
        check_equal(header, directory, path, values, None)


def range_of(size: int) -> list[int]:
    return [*range(size - 1), (1 << 64) - 1]


def test_what_is_left_out_is_the_default(header: Header, directory: Path) -> None:
    """All but a name may be 0."""
    expected = {
        Kind.CUMULATIVE: (Aggregate.SUM, 0o644),
        Kind.INSTANT: (Aggregate.SUM, 0o444),
        Kind.PEAK: (Aggregate.MAX, 0o644),
    }
    for number, (kind, (aggregate, mode)) in enumerate(expected.items()):
        segment = header.publish_raw("a", directory, name=b"n", kind=number)
        assert segment.file is not None
        head = read_segment(segment.file).head
        assert head.values == (Value("n", Type.U64, aggregate, mode, kind=kind),)
        assert head.labels == (None,)
        assert stat.S_IMODE(segment.file.stat().st_mode) == 0o644
        segment.close()


def test_a_decoder_written_for_kvm_reads_it(header: Header, directory: Path) -> None:
    """It is an object of the kernel's format."""
    segment = header.publish("app", [Value("a"), Value("b")], directory=directory)
    segment.slots[1][0] += 7
    assert segment.file is not None
    id, found = read_as_kvm(segment.file.read_bytes())
    assert (id, found["a"].numbers, found["b"].numbers) == ("app", (0,), (7,))
    segment.close()


@pytest.mark.parametrize(
    "observed", [0, 1, 2, 3, 5, 6, 9, 10, 39, 40, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]
)
def test_an_observation_counts_as_in_python(header: Header, directory: Path, observed: int) -> None:
    """In the same bucket, and in the sum; in no other value."""
    values = with_sums(HISTOGRAMS)
    segment = header.publish("a", values, directory=directory)
    for index, value in enumerate(HISTOGRAMS):
        segment.observe(index, observed)
        segment.observe(index, 1)
        ours = make_histogram(value)
        ours.observe(observed)
        ours.observe(1)
        assert segment.file is not None
        numbers = read_segment(segment.file).numbers
        assert numbers[value.name] == list(ours.buckets)
        assert numbers[f"{value.name}.sum"] == ours.sum % (1 << 64)
        assert segment.slots[index][value.size] == ours.sum % (1 << 64)
    segment.close()


# Where


def test_the_directory_is_that_of_python(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The environment's, the host's, the user's of the host, the user's own, or none."""
    host, runtime = tmp_path / "run", tmp_path / "runtime"
    runtime.mkdir()
    (tmp_path / "build").mkdir()
    define = f'-DSTATSFS_HOST_DIRECTORY="{host}"'
    header = Header("c", tmp_path / "build", define)
    monkeypatch.setattr(places, "HOST_DIRECTORY", host)
    user = pwd.getpwuid(os.geteuid()).pw_name

    def both(path: str) -> list[object]:
        found: list[object] = []
        for make in (
            lambda: header.publish(path, [Value("n")]),
            lambda: publish(path, values=[Value("n")]),
        ):
            try:
                segment: Any = make()
            except OSError as error:
                found.append(str(error).partition("] ")[2] or str(error))
            else:
                found.append(segment.file.parent)
                segment.close()
        assert found[0] == found[1]
        return found

    monkeypatch.setenv("STATSFS_DIR", str(directory))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert both("a")[0] == directory
    monkeypatch.chdir(directory.parent)
    monkeypatch.setenv("STATSFS_DIR", f"{directory.name}/")
    assert both("a")[0] == directory
    monkeypatch.setenv("STATSFS_DIR", "")
    assert both("a")[0] == runtime / "statsfs"
    assert stat.S_IMODE((runtime / "statsfs").stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert "cannot make" in str(both("a")[0])
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert "or name one in STATSFS_DIR" in str(both("a")[0])
    host.mkdir(mode=0o755)
    assert both("a")[0] == host
    (host / user).mkdir(mode=0o755)
    monkeypatch.setenv("STATSFS_DIR", str(host / user))
    assert f"begin with {user}/" in str(both("app")[0])
    assert f"begin with {user}/" in str(both(f"{user}x/app")[0])
    assert both(f"{user}/app")[0] == host / user


@pytest.mark.root
def test_a_user_has_the_directory_of_the_name(tmp_path: Path) -> None:
    """In the host's directory, where this one is not the user's to write."""
    user = pwd.getpwuid(65534).pw_name
    program = tmp_path / "program.c"
    program.write_text(
        """#include <statsfs.h>
        int main(int argc, char **argv) {
            static const struct statsfs_value value = { .name = "n" };
            if (setgid(65534) || setuid(65534))
                return 9;
            struct statsfs_segment *segment = statsfs_publish(argv[argc - 1], &value, 1);
            puts(segment ? segment->file : statsfs_error());
            statsfs_close(segment);
            return !segment;
        }"""
    )
    with tempfile.TemporaryDirectory() as name:
        public = Path(name)
        public.chmod(0o755)
        own = public / "host" / user
        own.mkdir(parents=True, mode=0o755)
        os.chown(own, 65534, 65534)
        define = f'-DSTATSFS_HOST_DIRECTORY="{public}/host"'
        compile_c("c", define, "-o", public / "program", program)
        silent = ("STATSFS_DIR", "XDG_RUNTIME_DIR")
        done = subprocess.run(
            [public / "program", f"{user}/app"],
            capture_output=True,
            text=True,
            timeout=60,
            env={key: text for key, text in os.environ.items() if key not in silent},
        )
        assert done.stdout.startswith(f"{own}/{user}_app-")
        assert done.returncode == 0
        assert list(own.iterdir()) == []


# What is refused


@pytest.mark.parametrize(
    "path",
    ["", "a//b", "/a", "a/", "../a", "a/.b", "a\n", "a\x7f", "a\x85", "x" * 256, "a/" * 8 + "a",
     "\ud800", "\u00e4" * 128],
)  # fmt: skip
def test_a_path_that_python_refuses(header: Header, directory: Path, path: str) -> None:
    """EINVAL, and one line that names the path."""
    with pytest.raises((StatsfsError, UnicodeError)):
        publish(path, values=[Value("n")], directory=directory)
    with pytest.raises(OSError, match="segment '") as caught:
        header.publish(path, [Value("n")], directory=directory)
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value).isprintable()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "value 0 has no name"),
        ({"name": b""}, "has 0 bytes"),
        ({"name": b"a/b"}, 'has a "/"'),
        ({"name": b".a"}, 'starts with "."'),
        ({"name": b"\xff"}, "not valid UTF-8"),
        ({"name": b"\xc0\x80"}, "not valid UTF-8"),
        ({"name": b"\xed\xa0\x80"}, "not valid UTF-8"),
        ({"name": b"\xf4\x90\x80\x80"}, "not valid UTF-8"),
        ({"name": b"\xe0\x80\x80"}, "not valid UTF-8"),
        ({"name": b"\xf0\x80\x80\x80"}, "not valid UTF-8"),
        ({"name": b"\xe2\x82"}, "not valid UTF-8"),
        ({"name": b"\xf8\x88\x80\x80\x80"}, "not valid UTF-8"),
        ({"name": b"x" * 256}, "has 256 bytes, not 1 to 255"),
        ({"name": b"x" * 252, "kind": 4, "size": 1}, "has 252 bytes, not 1 to 251"),
        ({"name": b"x" * 242, "aggregate": 33}, "has 242 bytes, not 1 to 241"),
        ({"name": b"n", "kind": 6}, "unknown kind"),
        ({"name": b"n", "unit": 5}, "unknown kind, unit"),
        ({"name": b"n", "type": 9}, "unknown kind, unit or type"),
        ({"name": b"n", "aggregate": 65}, "unknown aggregate"),
        ({"name": b"n", "base": 3}, "base is not"),
        ({"name": b"n", "exponent": 1 << 15}, "exponent does not fit"),
        ({"name": b"n", "mode": 0o755}, "mode is not"),
        ({"name": b"n", "mode": 0o644, "kind": 1}, "kind INSTANT"),
        ({"name": b"n", "description": b"d" * 4097}, "more than 4096 bytes"),
        ({"name": b"n", "description": b"d" * 4096, "kind": 4, "size": 1}, "more than 4096"),
        ({"name": b"n", "description": b"a\xffb"}, "description is not valid UTF-8"),
        ({"name": b"n", "size": 2}, "only histograms have a size"),
        ({"name": b"n", "kind": 4}, "size is not 1 to 65"),
        ({"name": b"n", "kind": 4, "size": 66}, "size is not 1 to 65"),
        ({"name": b"n", "kind": 3, "size": 65536, "bucket_size": 1}, "size is not 1 to 65535"),
        ({"name": b"n", "kind": 3, "size": 4}, "bucket_size is"),
        ({"name": b"n", "kind": 4, "size": 4, "bucket_size": 4}, "bucket_size is"),
        ({"name": b"n", "kind": 4, "size": 4, "aggregate": 4}, "no aggregate but SUM"),
        ({"name": b"n", "kind": 4, "size": 4, "type": 1}, "a histogram has counts"),
        ({"name": b"n", "kind": 5}, "n_bounds is not 1 to 1024"),
        ({"name": b"n", "kind": 5, "n_bounds": 2}, "n_bounds is not 1 to 1024"),
    ],
)
def test_a_value_that_the_collector_would_refuse(
    header: Header, directory: Path, fields: dict[str, Any], message: str
) -> None:
    """In the program that declares it, and not in the daemon's log."""
    with pytest.raises(OSError, match=f"segment 'a/b': .*{message}") as caught:
        header.publish_raw("a/b", directory, **fields)
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value).isprintable()
    assert list(directory.iterdir()) == []


def test_other_things_that_are_refused(header: Header, directory: Path) -> None:
    """Bounds, names that meet, too many and too large; a mode, a label."""
    log = Value("late", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=4)
    wide = Value("w", kind=Kind.LINEAR_HIST, size=65535, bucket_size=1)
    many = [Value(f"v{number}") for number in range(4097)]
    two_bounds = Value("b", kind=Kind.HIST, bounds=[1, 2])
    object.__setattr__(two_bounds, "bounds", (2, 2))
    one: list[Value] = [Value("n")]
    for values, options, message in (
        ([two_bounds], {}, "bounds do not grow"),
        ([Value("n"), Value("m"), Value("n")], {}, "two values 'n'"),
        ([log, Value("late.sum", mode=0o600)], {}, "two values 'late.sum'"),
        ([], {}, "0 values, not 1 to 4096"),
        (many, {}, "4097 values, not 1 to 4096"),
        ([wide, Value("x"), *renamed(wide, "y"), *renamed(wide, "z")], {}, "not at most 1048576"),
        (one, {"mode": 0o664}, "mode 0664, not 0600 and bits to read"),
        (one, {"mode": 0o444}, "mode 0444"),
        (one, {"labels": ("a/b",)}, "a label 'a/b'"),
    ):
        with pytest.raises(OSError, match=f"segment 'a': .*{message}") as caught:
            header.publish("a", values, directory=directory, **options)
        assert caught.value.errno == errno.EINVAL
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("label", REWRITTEN)
def test_labels_that_prometheus_would_rewrite(header: Header, directory: Path, label: str) -> None:
    """As Python refuses them."""
    with pytest.raises(OSError, match=f"segment 'a': label '{label}': Prometheus takes letters"):
        header.publish("a", [Value("n")], (label,), directory=directory)
    assert list(directory.iterdir()) == []


def renamed(value: Value, name: str) -> list[Value]:
    return [Value(name, kind=value.kind, size=value.size, bucket_size=value.bucket_size)]


def test_directories_that_python_refuses(header: Header, directory: Path) -> None:
    """With the same errno and the same line."""
    (directory / "file").touch()
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    for name in ("missing", "file", "open", "x" * 5000):
        with pytest.raises(SegmentError) as ours:
            publish("a", values=[Value("n")], directory=directory / name)
        with pytest.raises(OSError, match="segment 'a'") as theirs:
            header.publish("a", [Value("n")], directory=directory / name)
        assert ours.value.errno in (theirs.value.errno, None)
        if name != "x" * 5000:
            assert str(theirs.value).endswith(str(ours.value))
    assert segments_in(directory) == []


@pytest.mark.root
def test_a_full_disk_is_an_error_and_leaves_nothing(header: Header, directory: Path) -> None:
    """At publish, and not a SIGBUS at the first count; no descriptor and no mapping either."""
    disk = directory / "disk"
    disk.mkdir(mode=0o755)
    options = "size=16k,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    before = os.listdir("/proc/self/fd")
    try:
        made = []

        def fill() -> None:
            for _ in range(9):
                made.append(header.publish("a", [Value("n")], directory=disk))

        with pytest.raises(OSError, match=r"'a' in .*/disk: No space left") as caught:
            fill()
        assert caught.value.errno == errno.ENOSPC
        assert sorted(disk.iterdir()) == sorted(one.file for one in made if one.file)
        assert os.listdir("/proc/self/fd") == before
        for one in made:
            one.slots[0][0] += 1
            one.close()
        assert str(disk) not in Path("/proc/self/maps").read_text()
    finally:
        subprocess.run(["umount", disk], check=True)


# Life and end


@pytest.mark.parametrize("where", [None, ".", ".."])
def test_the_file_is_removed_where_no_collector_has_been(
    header: Header, directory: Path, where: str | None
) -> None:
    """Else it is left, dead, with all that was counted."""
    place = directory / "web"
    place.mkdir(mode=0o755)
    if where:
        (place / where / places.COLLECTOR).touch()
    segment = header.publish("web/a", [Value("n")], directory=place, mode=0o640)
    assert segment.file is not None
    (file,) = segments_in(place)
    assert file == segment.file
    assert alive(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    segment.slots[0][0] += 5
    segment.close()
    assert segments_in(place) == ([file] if where else [])
    assert str(place) not in Path("/proc/self/maps").read_text()
    if where:
        assert not alive(file)
        assert read_segment(file).numbers["n"] == 5


def test_an_optional_segment_counts_privately(header: Header, directory: Path) -> None:
    """Where its directory is missing; what is wrong in the program is an error as ever."""
    missing = directory / "missing"
    segment = header.publish("a", with_sums(HISTOGRAMS), directory=missing, optional=True)
    assert segment.file is None
    segment.observe(1, 5)
    assert (segment.slots[1][3], segment.slots[1][65]) == (1, 5)
    segment.close()
    with pytest.raises(OSError, match="starts with"):
        header.publish(".a", [Value("n")], directory=missing, optional=True)
    there = header.publish("a", [Value("n")], directory=directory, optional=True)
    assert there.file is not None
    there.close()


def test_a_forked_child_has_no_part_in_it(header: Header, directory: Path) -> None:
    """It counts privately, from 0; its end and its close are not the parent's."""
    segment = header.publish("a", [Value("n")], directory=directory)
    segment.slots[0][0] += 5
    file = segment.file
    assert file is not None
    ready, told = os.pipe()
    go, tell = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            before = segment.slots[0][0]
            segment.slots[0][0] += 100
            private = segment.file is None and (before, segment.slots[0][0]) == (0, 100)
            own = header.publish("a", [Value("n")], directory=directory)
            segment.close()
            own.close()
            os.write(told, b"x")
            os.read(go, 1)
            status = 0 if private and str(file) not in Path("/proc/self/maps").read_text() else 2
        finally:
            os._exit(status)
    assert os.read(ready, 1) == b"x"
    segment.slots[0][0] += 1
    assert read_segment(file).numbers["n"] == 6
    (directory / places.COLLECTOR).touch()
    segment.close()
    assert not alive(file), "the child does not keep it alive"
    os.write(tell, b"x")
    _, status = os.waitpid(child, 0)
    for fd in (ready, told, go, tell):
        os.close(fd)
    assert os.waitstatus_to_exitcode(status) == 0
    assert segments_in(directory) == [file]


THREADS = r"""
#include <statsfs.h>
#include <sys/wait.h>

static const struct statsfs_value value = { .name = "n" };
static int turns = 200;

static void *work(void *directory)
{
	struct statsfs_options options = { .directory = (const char *)directory };
	int i, j;

	for (i = 0; i < turns; i++) {
		struct statsfs_segment *segment = statsfs_publish_with("a", &value, 1, &options);

		if (!segment)
			return (void *)statsfs_error();
		for (j = 0; j < 1000; j++)
			++*segment->slots[0];
		if (*segment->slots[0] != 1000)
			return (void *)"lost";
		statsfs_close(segment);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[4];
	void *why;
	int i, status = 0;

	for (i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, work, argv[1]);
	for (i = 0; i < (argc > 2 ? 50 : 0); i++) {
		pid_t child = fork();

		turns = child ? 200 : 2;
		if (!child)
			_exit(work(argv[1]) != NULL);
		if (waitpid(child, &status, 0) < 0 || status)
			return 2;
	}
	for (i = 0; i < 4; i++)
		if (pthread_join(threads[i], &why) || why)
			return fprintf(stderr, "%s\n", (char *)why), 1;
	return 0;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("forks", [False, True])
def test_threads_publish_and_close(tmp_path: Path, directory: Path, forks: bool) -> None:
    """Nothing is lost or left; beside forks too, of which no child waits for a lock.

    The sanitizer of addresses has locks of its own, for which children would wait.
    """
    program = tmp_path / "threads.c"
    program.write_text(THREADS)
    found = "undefined" if forks else "address,undefined"
    checks = [f"-fsanitize={found}", "-fno-sanitize-recover=all", "-g"]
    compile_c("c", *checks, "-o", tmp_path / "threads", program)
    done = subprocess.run(
        [tmp_path / "threads", directory, *(["forks"] if forks else [])],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(directory.iterdir()) == []

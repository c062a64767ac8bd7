"""The command line: real processes, real mounts, real signals."""

import grp
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import statsfs
from statsfs.cli.commands import cli
from tests.support.commands import (
    STATSFS,
    assert_error,
    is_mounted,
    on_terminal,
    run,
    run_here,
    serving,
)
from tests.support.deadlines import DEADLINE, wait_until

# Words


def test_version() -> None:
    """`--version` is the package's, and the script is the module."""
    assert run("--version").stdout == f"statsfs {statsfs.__version__}\n"
    script = Path(sys.executable).with_name("statsfs")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"statsfs {statsfs.__version__}\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", [[], ["demo"], ["mount"], ["umount"], ["install-mount-helper"]])
def test_help(command: list[str]) -> None:
    """Each command has help with an example, and the exit codes."""
    done = run(*command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Example" in done.stdout
    assert f"  statsfs {''.join(command)}" in done.stdout
    for code in range(3):
        assert re.search(rf"^ +{code}  ", done.stdout, re.MULTILINE)


def test_no_command() -> None:
    """Without a command it is the help text, on stderr, and wrong usage."""
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: statsfs" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["nothing"], "nothing"),
        (["demo"], "MOUNTPOINT"),
        (["demo", "stats", "--nothing"], "--nothing"),
        (["demo", "stats", "--vms", "-1"], "--vms"),
        (["demo", "stats", "--vcpus", "0"], "--vcpus"),
        (["demo", "stats", "--vms", "9" * 20], "no more than 10000 vCPUs"),
        (["demo", "stats", "--vms", "5001", "--vcpus", "2"], "5001 VMs of 2 vCPUs"),
        (["demo", "stats", "--rate", "nan"], "--rate"),
        (["demo", "stats", "--for", "inf"], "--for"),
        (["demo", "stats", "--churn", "-1"], "--churn"),
        (["demo", "stats", "--listen", "localhost"], "'localhost' does not end in a port"),
        (["demo", "stats", "--listen", ":65536"], "65535"),
        (["demo", "stats", "--listen", "[::1]"], "port"),
        (["demo", "stats", "--listen", "::1:9100"], "brackets"),
        (["mount", "stats", "--load", "os:getpid", "--listen", "x:"], "port"),
        (["mount", "stats", "--log", "file"], "--background"),
        (["mount", "stats", "--segments", ""], "'--segments': '' is not a directory"),
        (["mount", "stats", "--load", "app"], "module:function"),
        (["mount", "stats", "--load", "app:"], "module:function"),
        (["mount", "stats", "--load", ".app:setup"], "module:function"),
        (["mount", "stats", "--load", "not_there:setup"], "not_there"),
        (["mount", "stats", "--load", "app.not_there:setup"], "app.not_there"),
        (["mount", "stats", "--load", "app:not_there"], "not_there"),
        (["mount", "stats", "--load", "app:number"], "number"),
        (["mount", "stats", "--load", "app:wait"], "coroutine"),
        (
            ["mount", "stats", "--load", "app:setup", "--uid", "nosuchuser"],
            "'--uid': there is no user 'nosuchuser'; a number is from 0 to 4294967294",
        ),
        (
            ["mount", "stats", "--load", "app:setup", "--gid", "nosuchgroup"],
            "'--gid': there is no group 'nosuchgroup'; a number is from 0 to 4294967294",
        ),
        *(
            (
                ["mount", "stats", "--uid", wrong],
                f"'--uid': there is no user '{wrong}'; a number is",
            )
            for wrong in ("-1", "4294967295", "9" * 5000, "0" * 9 + "9" * 10, "1.5", "", "0x1", "٣")
        ),
        (["mount", "stats", "--gid", "-1"], "'--gid': there is no group '-1'; a number is"),
        (["mount", "stats", "--load", "app:setup", "--switch-interval", "0"], "--switch-interval"),
        (["umount"], "MOUNTPOINT"),
    ],
)
def test_wrong_usage(args: list[str], word: str, tmp_path: Path) -> None:
    """What is not there, or not understood, is one line and status 2."""
    (tmp_path / "app.py").write_text("number = 1\nasync def wait(registry): ...\n")
    # What is loaded stays in its process.
    done = (run if "--load" in args else run_here)(*args, cwd=tmp_path)
    assert_error(done, 2, word)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(missing: str) -> None:
    """Where click or rich is not installed, one line says which extra to install."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from statsfs.cli import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert_error(done, 1, missing, "pip install 'statsfs[all]'")


# demo


@pytest.mark.mount
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_demo(number: signal.Signals, tmp_path: Path) -> None:
    """The tree is there, it counts, and a signal ends it without a trace."""
    mountpoint = tmp_path / "stats"
    with serving("demo", mountpoint, "--vms", "2", "--vcpus", "3", "--rate", "500") as server:
        vms = [path for path in (mountpoint / "kvm").iterdir() if path.is_dir()]
        assert len(vms) == 2
        assert len([path for path in vms[0].iterdir() if path.is_dir()]) == 3
        before = server.read("kvm/exits")
        wait_until(lambda: server.read("kvm/exits") > before)
        server.stop(number)
    assert not mountpoint.exists()


@pytest.mark.mount
def test_demo_with_a_background_shells_signals(tmp_path: Path) -> None:
    """SIGINT ends it even where a script's `&` has it ignored."""
    mountpoint = tmp_path / "stats"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with serving("demo", mountpoint, "--vms", "1") as server:
            server.stop(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def show_looking(mountpoint: Path) -> str:
    """What the demo's first line says to try."""
    measured = f"-p {mountpoint} -- sleep 5"
    return (
        f"statsfs top {mountpoint}; statsfs stat {measured}; "
        f"statsfs record -o demo.parquet {measured}"
    )


@pytest.mark.mount
def test_demo_prints_lines(tmp_path: Path) -> None:
    """Where no terminal is, it says what there is now, and then one line a second."""
    options = ("--for", "2.5", "--vms", "2", "--vcpus", "1", "--listen", "0")
    done = run("demo", "stats", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, metrics, page, looking, reading, *lines, last = done.stdout.splitlines()
    assert first == f"statsfs: mounted at {tmp_path}/stats"
    url = metrics.removeprefix("statsfs: metrics at ").removesuffix("metrics")
    assert page == f"statsfs: page at {url}"
    assert looking == f"statsfs: try: {show_looking(tmp_path / 'stats')}"
    assert reading.startswith(f"statsfs: try: cat {tmp_path}/stats/kvm/exits; cat ")
    assert last == f"statsfs: unmounted {tmp_path}/stats"
    assert len(lines) == 2
    for line in lines:
        assert re.match(r"2 VMs  exits [0-9]+ \(\+[0-9]+/s\)  io_exits ", line)


@pytest.mark.mount
def test_demo_that_stands_still(tmp_path: Path) -> None:
    """At rate 0 the numbers come from the seed, and every directory has the sum of those below."""
    mountpoint = tmp_path / "stats"
    trees = []
    for seed in ("7", "7", "8"):
        with serving("demo", mountpoint, "--rate", "0", "--seed", seed, "--vms", "2") as server:
            kvm = mountpoint / "kvm"
            texts = {
                str(path.relative_to(kvm)): path.read_text()
                for path in kvm.rglob("*")
                if path.is_file()
            }
            server.stop()
        trees.append(texts)
        # How long halts took: lines of lower bounds and counts.
        times = {name: text for name, text in texts.items() if name.endswith("_hist")}
        assert len(times) == 3 * (1 + 2 + 2 * 4)
        assert all(re.fullmatch(r"([0-9]+ [1-9][0-9]*\n)+", text) for text in times.values())
        found = {name: int(text) for name, text in texts.items() if name not in times}
        assert all(found.values())
        vms = {name.partition("/")[0] for name in found if "/" in name}
        assert len(vms) == 2
        for name in ("exits", "halt_wait_ns", "guest_mode"):
            assert found[name] == sum(found[f"{vm}/{name}"] for vm in vms)
            for vm in vms:
                assert found[f"{vm}/{name}"] == sum(found[f"{vm}/vcpu{n}/{name}"] for n in range(4))
        peak = "max_mmu_rmap_size"
        assert found[peak] == max(found[f"{vm}/{peak}"] for vm in vms)
        parts = sum(number for name, number in found.items() if re.fullmatch(r"\w+_exits", name))
        assert found["exits"] == parts
    assert trees[0] == trees[1]
    assert trees[0].keys() != trees[2].keys()


@pytest.mark.mount
def test_demo_churn(tmp_path: Path) -> None:
    """Besides those that stay, one VM more comes and goes, again and again."""
    mountpoint = tmp_path / "stats"
    with serving("demo", mountpoint, "--vms", "2", "--churn", "0.2", "--rate", "100") as server:
        kvm = mountpoint / "kvm"

        def vms() -> set[str]:
            return {name for name in os.listdir(kvm) if "-" in name}

        seen: list[set[str]] = []

        def enough() -> bool:
            seen.append(vms())
            return len(set().union(*seen)) >= 6

        wait_until(enough)
        assert {len(names) for names in seen} == {2, 3}
        assert len(set.intersection(*seen)) == 2
        server.stop()


@pytest.mark.mount
def test_demo_without_vms(tmp_path: Path) -> None:
    """With no VM at all the totals are there, and 0."""
    mountpoint = tmp_path / "stats"
    with serving("demo", mountpoint, "--vms", "0") as server:
        assert server.read("kvm/exits") == 0
        server.stop()


@pytest.mark.mount
def test_demo_keeps_a_directory_that_was_there(tmp_path: Path) -> None:
    """A mount point that the demo did not make stays."""
    mountpoint = tmp_path / "stats dir"
    mountpoint.mkdir()
    with serving("demo", mountpoint, "--vms", "1") as server:
        server.stop()
    assert mountpoint.is_dir()


@pytest.mark.mount
@pytest.mark.parametrize("command", [["fusermount3", "-u"], [*STATSFS, "umount"]])
def test_unmounted_by_others(command: list[str], tmp_path: Path) -> None:
    """An unmount by another program ends the server, with status 0."""
    mountpoint = tmp_path / "stats"
    with serving("demo", mountpoint, "--vms", "1") as server:
        done = subprocess.run([*command, mountpoint], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not is_mounted(mountpoint)
        assert server.ended() == (0, "")


@pytest.mark.mount
def test_demo_when_its_reader_goes_away(tmp_path: Path) -> None:
    """`statsfs demo … | head -n 4` ends as the reader does, without a word."""
    program = f"{sys.executable} -m statsfs demo stats --vms 1 | head -n 4"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"statsfs: mounted at {tmp_path}/stats\n")
    assert done.stdout.splitlines()[3].startswith("1 VM ")
    assert not (tmp_path / "stats").exists()


@pytest.mark.mount
def test_demo_refusals(tmp_path: Path) -> None:
    """What cannot be mounted on is one line, and status 1."""
    (tmp_path / "file").write_text("")
    assert_error(run("demo", "file", cwd=tmp_path), 1, "file")
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    assert_error(run("demo", "full", cwd=tmp_path), 1, "full", "empty")
    with serving("demo", tmp_path / "stats", "--vms", "1") as server:
        assert_error(run("demo", "stats", cwd=tmp_path), 1, "mounted")
        server.stop()
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


def test_demo_with_too_many_threads(tmp_path: Path) -> None:
    """Without more threads, one line says how many vCPUs there can be."""
    program = """
import sys, threading
start = threading.Thread.start
def limited(thread):
    if threading.active_count() > 6:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = limited
from statsfs.cli import main
sys.exit(main())
"""
    args = [sys.executable, "-c", program, "demo", "stats", "--vms", "4", "--vcpus", "3"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert_error(done, 1, "6 vCPUs", "threads")


# --listen


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=DEADLINE) as response:
        text: str = response.read().decode()
        return text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9100", ("127.0.0.1", 9100)),
        (":0", ("127.0.0.1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("example.org:80", ("example.org", 80)),
        ("[::1]:9100", ("::1", 9100)),
        ("[::]:0", ("::", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    """A port, or a host and a port; without a host it is the loopback address."""
    command = cli.commands["demo"]
    context = command.make_context("demo", ["stats", "--listen", text])
    assert context.params["listen"] == address


def test_without_what_serves(tmp_path: Path) -> None:
    """One line says what is to be installed for scrapes."""
    program = (
        "import sys; sys.modules['h11'] = None\n"
        "from statsfs.cli import main\n"
        f"sys.exit(main(['demo', {str(tmp_path / 'stats')!r}, '--listen', '0']))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert_error(done, 1, "--listen: serve_metrics needs h11 and trio: pip install 'statsfs[http]'")


@pytest.mark.mount
def test_demo_that_is_scraped(tmp_path: Path) -> None:
    """It says where, by default on the loopback address; what is there is what the files show."""
    mountpoint = tmp_path / "stats"
    args = ("--vms", "1", "--vcpus", "1", "--rate", "0", "--listen", ":0")
    with serving("demo", mountpoint, *args, started="statsfs: metrics at ") as server:
        url = server.line("statsfs: metrics at ").rpartition(" ")[2]
        assert re.fullmatch("http://127[.]0[.]0[.]1:[0-9]+/metrics", url)
        (vm,) = (path.name for path in (mountpoint / "kvm").iterdir() if path.is_dir())
        line = f'kvm_exits_total{{vcpu="vcpu0",vm="{vm}"}} {server.read("kvm/exits")}\n'
        assert line in scrape(url)
        server.stop()
    with pytest.raises(urllib.error.URLError):
        scrape(url)


@pytest.mark.mount
def test_mount_that_is_scraped(tmp_path: Path) -> None:
    """What a function registered is scraped; of two, only one can have the port."""
    program = """
from statsfs import Source, Value
def setup(registry):
    app = Source("app")
    app.add_values([Value("n")], {"n": 5})
    registry.register(app)
"""
    (tmp_path / "app.py").write_text(program)
    args = ("--create", "--load", "app:setup", "--listen")
    mountpoint, started = tmp_path / "stats", "statsfs: metrics at "
    with serving("mount", mountpoint, *args, "0", started=started, cwd=tmp_path) as server:
        url = server.line(started).removeprefix(started)
        assert "app_n_total 5" in scrape(url).splitlines()
        port = url.rpartition(":")[2].partition("/")[0]
        done = run("mount", "other", *args, port, cwd=tmp_path)
        assert_error(done, 1, f"--listen: cannot listen on 127.0.0.1:{port}: ", "in use")
        assert not (tmp_path / "other").exists()
        server.stop()


# demo on a terminal


@pytest.mark.mount
def test_demo_on_a_terminal(tmp_path: Path) -> None:
    """Commands to try, then `statsfs top`; Ctrl-C is the way out, and q."""
    for key, root in ((b"\x03", ()), (b"q", ("--root", "kvm"))):
        with on_terminal(tmp_path, "demo", "stats", "--vms", "2", *root) as until:
            seen = until("2 minutes")
            kvm = tmp_path / "stats" / ("" if root else "kvm")
            for vm in kvm.glob("*-*"):
                until(vm.name)
            commands = re.findall(r"^statsfs: try: (.*)\r$", seen, re.MULTILINE)
            assert commands[0] == show_looking(tmp_path / "stats")
            done = subprocess.run(["sh", "-c", commands[1]], check=True, capture_output=True)
            assert re.match(rb"[0-9]+\n\{", done.stdout)
            assert commands[1].endswith(f"echo 0 > {kvm}/exits")
            seen = until("unmounted", keys=key)
            assert "\x1b[?25h" in seen  # the cursor is back
            assert "Traceback" not in seen
            until("never, so that all of it is read")
        assert not is_mounted(tmp_path / "stats")
        assert not (tmp_path / "stats").exists()


@pytest.mark.mount
def test_demo_ends_its_top_when_its_time_is_over(tmp_path: Path) -> None:
    """The terminal is then as it was."""
    with on_terminal(tmp_path, "demo", "stats", "--vms", "1", "--for", "3") as until:
        seen = until("unmounted")
        assert "\x1b[?1049h" in seen  # another screen
        assert "\x1b[?1049l" in seen[seen.index("\x1b[?1049h") :]  # and back
        assert "Traceback" not in seen


@pytest.mark.mount
def test_demo_without_textual(tmp_path: Path) -> None:
    """A live table; the newest VMs are shown, the others counted."""
    program = tmp_path / "program.py"
    program.write_text(
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: (\n"
        "    None if name == 'textual' else find(name, *more)\n"
        ")\n"
        "from statsfs.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ("demo", "stats", "--vms", "30", "--vcpus", "1")
    with on_terminal(tmp_path, *arguments, program=(sys.executable, str(program))) as until:
        seen = until("19 more")
        assert "per second" in seen
        until("max_mmu_rmap_size")
        assert "\x1b[?25l" in until("\x1b[")  # no cursor while it draws
        seen = until("unmounted", keys=b"\x03")
        assert "\x1b[?25h" in seen  # the cursor is back
        assert "Traceback" not in seen


@pytest.mark.mount
def test_demo_on_a_dumb_terminal(tmp_path: Path) -> None:
    """A terminal that cannot move its cursor gets plain lines."""
    with on_terminal(tmp_path, "demo", "stats", "--vms", "1", term="dumb") as until:
        seen = until("1 VM ")
        assert "\x1b" not in seen
        until("unmounted", keys=b"\x03")


# mount

APP = """
import os, threading
from statsfs.tree.source import Source
from statsfs.model.fields import u64
from statsfs.model.stats import Stats

class AppStats(Stats):
    requests = u64()

def setup(registry):
    stats = AppStats()
    stats.requests = 42
    source = Source("app")
    source.add_values(AppStats, stats)
    registry.register(source)

def second(registry):
    [first] = registry.sources
    registry.register(Source("after-%s", first.name))

def broken(registry):
    raise ValueError("two\\nlines")

def leave(registry):
    raise SystemExit(0)

def hang(registry):
    print("hanging", flush=True)
    threading.Event().wait()

def linger(registry):
    threading.Thread(target=threading.Event().wait, name="lingerer").start()

class Group:
    @staticmethod
    def setup(registry):
        setup(registry)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A directory with programs to load."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "torn.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "wrong.py").write_text("def setup(:\n")
    return tmp_path


@pytest.mark.mount
def test_mount(app: Path) -> None:
    """The functions are called in order, and what they registered is served."""
    mountpoint = app / "new"
    loads = ["--load", "app:setup", "--load", "app:second"]
    with serving("mount", mountpoint, "--create", *loads, cwd=app) as server:
        assert sorted(os.listdir(mountpoint)) == ["after-app", "app", "statsfs"]
        assert server.read("app/requests") == 42
        server.stop()
    assert not mountpoint.exists()


@pytest.mark.mount
@pytest.mark.root
def test_owners_by_name(app: Path) -> None:
    """As for chown(1): a user's name, a group's."""
    mountpoint = app / "there"
    mountpoint.mkdir()
    nobody, daemon = pwd.getpwnam("nobody"), grp.getgrnam("daemon")
    options = ["--uid", nobody.pw_name, "--gid", daemon.gr_name, "--load", "app:Group.setup"]
    with serving("mount", mountpoint, *options, cwd=app) as server:
        status = mountpoint.stat()
        assert (status.st_uid, status.st_gid) == (nobody.pw_uid, daemon.gr_gid)
        server.stop()


@pytest.mark.mount
def test_mount_options(app: Path) -> None:
    """Owners are those that were asked for; a dotted function is found, too."""
    mountpoint = app / "there"
    mountpoint.mkdir()
    options = ["--uid", "1234", "--gid", "4321", "--no-allow-other", "--load", "app:Group.setup"]
    with serving("mount", mountpoint, *options, cwd=app) as server:
        status = (mountpoint / "app" / "requests").stat()
        assert (status.st_uid, status.st_gid) == (1234, 4321)
        line = next(x for x in Path("/proc/mounts").read_text().splitlines() if str(app) in x)
        assert "allow_other" not in line
        server.stop(signal.SIGINT)
    assert mountpoint.is_dir()


SWITCHING = """
import sys
from statsfs import Kind, Source, Value

class Interpreter:
    switch_us = property(lambda self: round(sys.getswitchinterval() * 1e6))

def setup(registry):
    source = Source("interpreter")
    source.add_values([Value("switch_us", kind=Kind.INSTANT)], Interpreter())
    registry.register(source)
"""


@pytest.mark.mount
def test_the_switch_interval(tmp_path: Path) -> None:
    """It is that of the whole process; a tenth of Python's own if nothing is said."""
    (tmp_path / "switching.py").write_text(SWITCHING)
    for options, interval in (((), 500), (("--switch-interval", "0.001"), 1000)):
        load = ["--create", "--load", "switching:setup", *options]
        with serving("mount", tmp_path / "stats", *load, cwd=tmp_path) as server:
            assert server.read("interpreter/switch_us") == interval
            server.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("load", "words"),
    [
        ("app:broken", ["ValueError: two lines (app.py:22)"]),
        ("app:leave", ["SystemExit"]),
        ("app:Group", ["TypeError"]),
        ("torn:setup", ["ModuleNotFoundError", "nothing_of_that_name", "(torn.py:1)"]),
        ("wrong:setup", ["SyntaxError", "wrong.py"]),
    ],
)
def test_a_load_that_fails(load: str, words: list[str], app: Path) -> None:
    """A function or module that raises is one line that says where, and status 1."""
    done = run("mount", "new", "--create", "--load", load, cwd=app)
    assert_error(done, 1, load, *words)
    assert not (app / "new").exists()


def test_nothing_is_called_before_all_are_found(app: Path) -> None:
    """One function that is missing, and none is called."""
    (app / "trace.py").write_text("def setup(registry): open('called', 'w').close()\n")
    done = run("mount", "new", "--create", "--load", "trace:setup", "--load", "app:no", cwd=app)
    assert_error(done, 2, "no")
    assert not (app / "called").exists()


def test_mount_refusals(app: Path) -> None:
    """Without --create the directory must be there."""
    assert_error(run("mount", "new", "--load", "app:setup", cwd=app), 1, "new")


def test_a_signal_while_loading(app: Path) -> None:
    """A function that does not return can be ended, too; nothing was mounted."""
    with subprocess.Popen(
        [*STATSFS, "mount", "new", "--create", "--load", "app:hang"],
        cwd=app,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.terminate()
        assert process.communicate(timeout=DEADLINE) == ("", "")
        assert process.returncode == 0
    assert not (app / "new").exists()


@pytest.mark.mount
def test_threads_that_do_not_end(app: Path) -> None:
    """What keeps the process after it has unmounted is named, and a second signal ends it."""
    mountpoint = app / "new"
    with serving("mount", mountpoint, "--create", "--load", "app:linger", cwd=app) as server:
        server.process.terminate()
        assert "lingerer" in server.line("statsfs: waiting")
        assert not mountpoint.exists()
        server.process.terminate()
        assert server.ended() == (-signal.SIGTERM, "")


# umount


@pytest.mark.mount
def test_umount_refusals(tmp_path: Path) -> None:
    """Only a statsfs is unmounted, and not while it is in use."""
    assert_error(run("umount", "/proc"), 1, "/proc is not a mounted statsfs")
    assert_error(run("umount", "not/there", cwd=tmp_path), 1, "not/there")
    mountpoint = tmp_path / "with a blank\\"
    with serving("demo", mountpoint, "--vms", "1") as server:
        with (mountpoint / "kvm" / "exits").open():
            assert_error(run("umount", str(mountpoint)), 1, "busy", "try again")
        assert run("umount", str(mountpoint)).returncode == 0
        assert server.ended() == (0, "")


@pytest.mark.mount
def test_umount_through_a_link(tmp_path: Path) -> None:
    """A symbolic link to the mount point, or a path through it, will do."""
    mountpoint = tmp_path / "stats"
    link = tmp_path / "link"
    link.symlink_to(mountpoint)
    with serving("demo", mountpoint, "--vms", "1") as server:
        assert run("umount", str(link / "kvm" / "..")).returncode == 0
        assert server.ended() == (0, "")


@pytest.mark.mount
def test_umount_with_a_broken_path(tmp_path: Path) -> None:
    """What unmounts is found where a system has it."""
    mountpoint = tmp_path / "stats"
    with serving("demo", mountpoint, "--vms", "1") as server:
        done = subprocess.run(
            [*STATSFS, "umount", str(mountpoint)],
            env={**os.environ, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert not is_mounted(mountpoint)
        assert server.ended()[0] == 0


@pytest.mark.mount
def test_no_tool_is_missing() -> None:
    """What these tests run is installed; they must not pass for the lack of it."""
    assert shutil.which("fusermount3")
    assert shutil.which("setsid")

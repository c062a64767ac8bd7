"""Pages of the manual: their files and commands, and a shell into which a test types them.

A page stays plain Markdown. What a person sees is what is done:

- A block of code behind a paragraph that ends with "`NAME`:" is the file NAME.
- A block `console` is what a terminal shows. Lines that begin with the prompt, "$ ", are commands;
  if the block begins with "# ", that is its prompt. A line that begins with "> " continues a
  command. All other lines are what the command prints; a line "..." is any number of lines.

A comment before a block, which no reader sees, says how it is tested:

- `<!-- numbers vary -->`: what is printed is compared without its numbers and the width of spaces.
- `<!-- not run: REASON -->`: nobody types it.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.deadlines import wait_until
from tests.support.mounts import ROOT, detach
from tests.support.prometheus_server import free_ports

__all__ = ["Block", "Command", "Shell", "blocks_of", "commands_in", "files_of", "type_page"]

_BLOCK: Final = re.compile(
    r"(?:^<!-- (?P<remark>[^\n]*) -->\n\n?)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_NAMED: Final = re.compile(r"`([\w./-]+)`:\n*(?:<!--[^\n]*-->\n*)?\Z")
# Ports of the pages: each test has others, as several run at a time.
_PORTS: Final = ("8000", "8080", "8081", "9090", "9464")
# What only looks is typed again if it shows something else yet: a person is slower than a test.
_LOOKS: Final = re.compile(r"(cat|grep|ls|promtool query|statsfs top --once|curl [^|]*/metrics)\b")
_REFUSED: Final = 7  # curl's status
# What bash tells of a job that has ended, when it types the next prompt.
_ENDED: Final = re.compile(
    r"^\[\d+\][+-]? +(Done|Exit|Interrupt|Killed|Terminated).*\n", re.MULTILINE
)
_HOME: Final = "/home/you"  # where a reader is
_LOOP: Final = r"""
set -m
while IFS= read -r -u 3 -d '' command; do
    eval "$command" </dev/null 3<&-
    printf '\0%d\0' $?
done
for job in $(jobs -p); do kill -- -$job; kill -CONT -- -$job; done 2>/dev/null
wait 2>/dev/null
"""


class Block(NamedTuple):
    """A block of code.

    Attributes:
        language: what is said behind the fence.
        text: its lines.
        name: that of the file, if it is one.
        remark: what the comment before it says, or nothing.
        line: the number of its first line in the page.
    """

    language: str
    text: str
    name: str | None
    remark: str
    line: int


class Command(NamedTuple):
    """A command, and what it prints."""

    text: str
    output: list[str]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of code of a page, in order."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        before = _NAMED.search(text, 0, match.start())
        name = before[1] if before else None
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(match["language"], match["text"], name, match["remark"] or "", line))
    return found


def files_of(page: Path) -> dict[str, list[str]]:
    """The files of a page by name: each is as often there as the page has it anew."""
    found: dict[str, list[str]] = {}
    for block in blocks_of(page):
        if block.name is not None:
            found.setdefault(block.name, []).append(block.text)
    return found


def commands_in(block: Block) -> list[Command]:
    """The commands of a block `console`."""
    prompt = "# " if block.text.startswith("# ") else "$ "
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith(prompt):
            found.append(Command(line.removeprefix(prompt), []))
        elif line.startswith("> ") and not found[-1].output:
            found[-1] = Command(f"{found[-1].text}\n{line.removeprefix('> ')}", [])
        else:
            found[-1].output.append(line)
    return found


class Shell:
    """A shell in a directory, in which background jobs go on until the end.

    Args:
        directory: where it begins, and where its mounts are.
        environment: variables that are different there.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self._ports = dict(zip(_PORTS, map(str, free_ports(len(_PORTS))), strict=True))
        self._seen = b""
        self._changed = threading.Condition()
        commands, self._commands = os.pipe()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{ROOT}/.venv/debian/usr/bin"
        variables = {"PATH": path, "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
        # As descriptor 3, whatever the number of ours is.
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec 3<&{commands}; {_LOOP}"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[commands],
            env={**os.environ, **variables, **(environment or {})},
            start_new_session=True,
        )
        os.close(commands)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 1 << 16):
            with self._changed:
                self._seen += data
                self._changed.notify_all()

    def adapt(self, text: str) -> str:
        """A text of the page as it is done here: with the ports of this test."""
        return re.sub(rf"\b({'|'.join(_PORTS)})\b", lambda port: self._ports[port[0]], text)

    def _as_on_a_page(self, text: str) -> str:
        for port, ours in self._ports.items():
            text = re.sub(rf"\b{ours}\b", port, text)
        text = text.replace(str(self.directory.resolve()), _HOME)
        text = _ENDED.sub("", text)
        return re.sub(r"^bash: line \d+: ", "bash: ", text, flags=re.MULTILINE)

    def write(self, name: str, text: str) -> None:
        """Save a file."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.adapt(text))

    def run(self, command: str) -> tuple[int, str]:
        """Type a command; return its status and what was printed until its end."""
        with self._changed:
            self._seen = b""
        os.write(self._commands, self.adapt(command).encode() + b"\0")
        found: list[re.Match[bytes]] = []

        def ended() -> bool:
            match = re.search(rb"\0(\d+)\0", self._seen)
            found[:] = [match] if match else []
            return match is not None or self._process.poll() is not None

        wait_until(ended, command, deadline=60)
        assert found, (command, self._seen.decode())
        return int(found[0][1]), self.printed()

    def printed(self) -> str:
        """What was printed since the last command was typed, also in the background."""
        seen = re.sub(rb"\0\d+\0", b"", self._seen).decode(errors="replace")
        return self._as_on_a_page(seen)

    def type(self, command: Command, *, exact: bool = True) -> None:
        """Type a command, and compare what it prints.

        Args:
            command: the command.
            exact: whether numbers are compared, too.
        """
        columns = command.text.startswith("ls ")  # as there are on a terminal
        expected = " ".join(command.output).split() if columns else command.output
        pattern = _pattern_of(expected, exact=exact)
        status, printed = self.run(command.text)

        def is_refused() -> bool:
            # A server that was just started does not listen yet: it was asked for nothing.
            nonlocal status, printed
            if refused := status == _REFUSED and command.text.startswith("curl "):
                status, printed = self.run(command.text)
            return refused

        wait_until(lambda: not is_refused(), command.text)

        def matches() -> bool:
            nonlocal status
            printed = self.printed()
            whole = not printed or printed.endswith("\n")  # a line may come in two parts
            if columns:
                printed = "\n".join(printed.split())
            if whole and pattern.fullmatch(_plain(printed, exact=exact)):
                return True
            if _LOOKS.match(command.text):
                status, _ = self.run(command.text)
            return False

        try:
            wait_until(matches, command.text)
        except AssertionError:
            told = "\n".join(command.output)
            raise AssertionError(
                f"$ {command.text}\n{self.printed()}\nThe page says:\n{told}"
            ) from None
        assert status == 0 or command.output, (status, command.text, printed)

    def close(self) -> None:
        """End what runs in the background, and see that it ends and leaves nothing."""
        self._hang_up()
        self._process.wait(30)
        wait_until(lambda: not [*_processes_of(self._process.pid)], "the end of all processes")
        wait_until(lambda: not self._mounts(), "the unmount")

    def kill(self) -> None:
        """Kill what is left, if there is anything."""
        self._hang_up()
        for process in _processes_of(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        for mountpoint in self._mounts():
            detach(mountpoint)

    def _hang_up(self) -> None:
        if self._commands >= 0:
            os.close(self._commands)
            self._commands = -1

    def _mounts(self) -> list[Path]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        found = [Path(line.split()[4]) for line in lines]
        return [path for path in found if self.directory.resolve() in path.parents]


def _processes_of(session: int) -> Iterator[int]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[3]) == session:
                yield int(status.parent.name)


def _plain(text: str, *, exact: bool) -> str:
    lines = [line.rstrip() for line in text.rstrip("\n").split("\n")]
    if not exact:
        lines = [re.sub(r"\d[\d,.]*(?<=\d)", "0", " ".join(line.split())) for line in lines]
    return "\n".join(lines)


def _pattern_of(lines: list[str], *, exact: bool) -> re.Pattern[str]:
    parts = [
        r"(?:.*\n)*" if line == "..." else re.escape(_plain(line, exact=exact)) + "\n"
        for line in lines
    ]
    # The last line has no end.
    whole = "".join(parts)
    return re.compile(whole.removesuffix("\n") if not whole.endswith("*") else whole + ".*")


def type_page(page: Path, directory: Path, *, exact: bool = True, **environment: str) -> None:
    """Do what a page says, from its beginning to its end, in a fresh directory.

    Args:
        page: the page.
        directory: an empty directory.
        exact: whether numbers are compared where the page does not say otherwise.
        environment: variables that are different in the shell.
    """
    shell = Shell(directory, environment)
    try:
        for block in blocks_of(page):
            if block.remark.startswith("not run: "):
                continue
            if block.name is not None:
                shell.write(block.name, block.text)
            elif block.language == "console":
                for command in commands_in(block):
                    shell.type(command, exact=exact and block.remark != "numbers vary")
        shell.close()
    finally:
        shell.kill()

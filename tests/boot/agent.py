"""Inside of the virtual machine of `make boot`: runs commands that come over a serial line.

`agent.py DEVICE`. A line of JSON each way: {"command", "timeout"}, and back {"status", "output",
"seconds"}. It says {"boot"} first, the id of this boot. It needs nothing but Python.
"""

import json
import subprocess
import sys
import time
import tty
from pathlib import Path
from typing import Any


def run(command: str, timeout: float) -> dict[str, Any]:
    """Run a shell's command; its status is None if it takes too long."""
    begun = time.monotonic()
    try:
        done = subprocess.run(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        status, output = None, expired.output or b""
    seconds = time.monotonic() - begun
    return {"status": status, "output": output.decode(errors="replace"), "seconds": seconds}


def main(device: str) -> None:
    """Answer until the machine ends."""
    with open(device, "r+b", buffering=0) as line:
        tty.setraw(line.fileno())

        def say(answer: dict[str, Any]) -> None:
            text = json.dumps(answer).encode() + b"\n"
            while text:
                text = text[line.write(text) :]

        say({"boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip()})
        waiting = b""
        while said := line.read(4096):
            *lines, waiting = (waiting + said).split(b"\n")
            for one in lines:
                if one:
                    say(run(**json.loads(one)))


if __name__ == "__main__":
    main(sys.argv[1])

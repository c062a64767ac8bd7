"""`make boot`: statsfs on a Debian 12 that systemd boots, in a virtual machine.

`python -m tests.boot [WORD]`. It prints one line for each check, or for those with a word in their
names; a failure is its exit status.
"""

import subprocess
import sys
import time
from pathlib import Path

from tests.boot.checks import CHECKS
from tests.boot.machine import booted

_HERE = Path(__file__).parent
_IMAGES = _HERE.parent.parent / ".cache/boot"


def main(word: str = "") -> int:
    """Make the images, boot, check; return how many checks failed."""
    subprocess.run([_HERE / "image.sh"], check=True)
    begun, failed = time.monotonic(), 0
    with booted(_IMAGES) as machine:
        how = "by KVM" if machine.accelerated else "by software: KVM does not boot it here"
        print(f"booted in {time.monotonic() - begun:.1f} s, {how}", flush=True)
        for number, (name, check) in enumerate(CHECKS.items()):
            if number and word not in name:
                continue  # what the first one starts, the others use
            try:
                print(f"ok    {name}: {check(machine)}", flush=True)
            except (AssertionError, OSError, ValueError) as error:
                failed += 1
                print(f"FAIL  {name}: {error}", flush=True)
    print(f"{failed} failed" if failed else "all is well")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))

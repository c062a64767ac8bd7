"""What holds of a fleet's numbers, whenever they are read; the server and its clients know it."""

from typing import Final

__all__ = ["LIMIT", "OWNERS", "STAYING", "VCPUS"]

OWNERS: Final = 4  # threads; each has a machine `vmN` that comes and goes, and `stable/vcpuN`
VCPUS: Final = 3  # virtual CPUs of a machine that comes and goes
LIMIT: Final = 40  # what each of them, and `cleared`, counts at most
# The directories that stay. An owner counts in `stable/vcpuN`, and only then in `echo/vcpuN`.
STAYING: Final = ("stable", "echo", "cleared")

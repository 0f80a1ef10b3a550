"""Resource limits for a program that reads what others wrote: set in a child of ours, which then becomes the program."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Limits hold for the process that sets them and for all that it starts, so they are set after the fork and before the exec.
#: A parent that was killed meanwhile had no time to put this one on its lifeline.
_LAUNCHER = """\
import os, resource, sys
if os.getppid() != int(sys.argv[1]):
    sys.exit("its parent is gone")
for pair in sys.argv[2].split(","):
    name, _, value = pair.partition("=")
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (int(value), int(value)))
os.execv(sys.argv[3], sys.argv[3:])
"""


def limited(
    arguments: Sequence[str | Path],
    *,
    memory: int | None = None,
    processor_seconds: int | None = None,
    file_bytes: int | None = None,
) -> list[str | Path]:
    """The arguments with which we start `arguments` (the first an absolute path) under these limits; bytes of address space, seconds, bytes of any one file."""
    limits = {"AS": memory, "CPU": processor_seconds, "FSIZE": file_bytes, "CORE": 0}
    text = ",".join(f"{name}={value}" for name, value in limits.items() if value is not None)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), text, *arguments]

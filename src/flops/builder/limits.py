"""Resource limits for a program that reads what others wrote: set in a child of ours, which then becomes the program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Limits hold for the process that sets them and for all that it starts, so they are set after the fork and before the exec.
_LAUNCHER = """\
import os, resource, sys
for pair in sys.argv[1].split(","):
    name, _, value = pair.partition("=")
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (int(value), int(value)))
os.execv(sys.argv[2], sys.argv[2:])
"""


def limited(
    arguments: Sequence[str | Path],
    *,
    memory: int | None = None,
    processor_seconds: int | None = None,
    file_bytes: int | None = None,
) -> list[str | Path]:
    """The arguments that start `arguments` (the first an absolute path) under these limits; bytes of address space, seconds, bytes of any one file."""
    limits = {"AS": memory, "CPU": processor_seconds, "FSIZE": file_bytes, "CORE": 0}
    text = ",".join(f"{name}={value}" for name, value in limits.items() if value is not None)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, text, *arguments]

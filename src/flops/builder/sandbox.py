"""Where somebody else's program may run: bubblewrap's namespaces, without network, with nothing to see but what is named."""

from __future__ import annotations

import shutil
from functools import cache
from typing import TYPE_CHECKING

from flops.errors import FlopsError
from flops.process import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_OPTIONS = ("--unshare-all", "--die-with-parent", "--new-session", "--proc", "/proc", "--dev", "/dev")


@cache
def available() -> bool:
    """Whether bubblewrap is here and this host lets it make namespaces."""
    program = shutil.which("bwrap")
    if program is None:
        return False
    try:
        return run([program, *_OPTIONS, "--ro-bind", "/", "/", "--", "/bin/true"], seconds=10, check=False).code == 0
    except FlopsError:
        return False


def confined(command: Sequence[str | Path], *, seen: Iterable[Path], writable: Path) -> list[str | Path]:
    """The arguments that start `command` where only `seen` (read-only) and `writable` exist, at their own paths."""
    words: list[str | Path] = [shutil.which("bwrap") or "bwrap", *_OPTIONS]
    for path in seen:
        words += ["--ro-bind", path, path]
    return [*words, "--bind", writable, writable, "--chdir", writable, "--", *command]

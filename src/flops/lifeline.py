"""What ends our programs when we are killed: a small process at the other end of a pipe that only we hold.

SIGKILL leaves no time to end anything. PR_SET_PDEATHSIG would not do: it holds for a child and not for what that starts, such
as git's helpers, and it fires when a thread ends.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

from flops import lifeline_child

_guard = threading.Lock()
_groups: set[int] = set()
_child: subprocess.Popen[bytes] | None = None


def add(group: int) -> None:
    """This process group ends with us, however we end."""
    with _guard:
        _groups.add(group)
        _tell(f"+{group}\n")


def drop(group: int) -> None:
    """It has been killed."""
    with _guard:
        _groups.discard(group)
        _tell(f"-{group}\n")


def _tell(line: str) -> None:
    """Where no further process can be started, the groups end by `process` alone, while we live."""
    global _child  # noqa: PLW0603 - one for each process, made when it first starts a program
    with contextlib.suppress(OSError):
        if _child is None or _child.poll() is not None:
            _child = _started()
            line = "".join(f"+{group}\n" for group in _groups)
        if _child.stdin is not None:
            os.write(_child.stdin.fileno(), line.encode())


@atexit.register
def _close() -> None:
    with _guard, contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if _child is not None and _child.stdin is not None:
            _child.stdin.close()
            _child.wait(timeout=1)


def _started() -> subprocess.Popen[bytes]:
    """Without a job's name, so that nobody takes it for a builder, and in a session of its own, which ^C does not reach."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", Path(lifeline_child.__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    if child.stdin is not None:
        os.set_blocking(child.stdin.fileno(), False)  # nobody waits for one that somebody has stopped
    return child

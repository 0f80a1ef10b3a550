"""The other end of a process's lifeline: reads `+GROUP` and `-GROUP` lines, and when they end, kills the groups that are left.

A group's number is not given to a new process while anything of the group is there. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    groups: set[int] = set()
    for line in sys.stdin:  # ends when nobody holds the other end any more
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()

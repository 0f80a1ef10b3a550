"""Processes below a process, whatever session they moved to: Flower puts its executors into sessions of their own."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable


class Member(NamedTuple):
    """A process; its start (clock ticks since boot) tells it from a later one with the same number."""

    pid: int
    start: int

    def alive(self) -> bool:
        found = _read(self.pid)
        return found is not None and found[1:] == (self.start, True)

    def send(self, number: signal.Signals) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def below(roots: Iterable[int]) -> set[Member]:
    """The roots and all that they started, directly or not, and that is alive (Linux, proc(5))."""
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - names are all it needs
    processes = {number: _read(number) for number in numbers}
    family, grown = set(roots), True
    while grown:
        more = {pid for pid, found in processes.items() if found is not None and found[0] in family} - family
        family |= more
        grown = bool(more)
    return {Member(pid, found[1]) for pid in family if (found := processes.get(pid)) is not None and found[2]}


def _read(pid: int) -> tuple[int, int, bool] | None:
    """Parent, start, and whether it runs (a zombie does not); None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:  # noqa: PTH123 - called for every process of the machine
            fields = stream.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[1]), int(fields[19]), fields[0] not in (b"Z", b"X")

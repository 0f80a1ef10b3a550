"""Processes of this machine as /proc shows them, told apart by number and start time: a number is used again, the two are not."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flops_wire.manager import JOB_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

PROC = Path("/proc")
_MARK = JOB_ID.encode() + b"="
#: Where fields lie in /proc/PID/stat behind the program's name, which may hold anything (proc(5): fields 3, 4 and 22).
_STATE, _PARENT, _START = 0, 1, 19
#: Ended, and not yet looked after by its parent: its memory, files and environment are gone.
_ENDED = frozenset("ZXx")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process at the time it was read."""

    pid: int
    start: int
    """In clock ticks since the machine started."""
    parent: int
    job: str
    """Its FLOPS_JOB_ID; empty where it has none, or where we may not look."""

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.start

    def send(self, number: signal.Signals) -> None:
        """A signal to this very process, and to no other that has taken its number meanwhile."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return  # it is gone
        try:
            now = read(self.pid)
            if now is not None and now.identity == self.identity:
                signal.pidfd_send_signal(descriptor, number)
        except (ProcessLookupError, PermissionError):
            pass  # gone, or another user's by now: whoever asks again sees which
        finally:
            os.close(descriptor)


def read(pid: int) -> Process | None:
    """The process with this number; None where there is none, or one that has ended."""
    try:
        text = (PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except (OSError, ValueError):
        return None
    fields = text.rpartition(")")[2].split()
    if len(fields) <= _START or fields[_STATE] in _ENDED:
        return None
    return Process(pid=pid, start=int(fields[_START]), parent=int(fields[_PARENT]), job=_job(pid))


def _job(pid: int) -> str:
    try:
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return ""
    found = (word for word in environment.split(b"\0") if word.startswith(_MARK))
    return next(found, _MARK)[len(_MARK) :].decode("utf-8", "replace")


def scan() -> list[Process]:
    """All that run now; some 30 us for each."""
    found = (read(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdecimal())
    return [one for one in found if one is not None]


def family(processes: Iterable[Process], job: str, also: Collection[tuple[int, int]] = ()) -> list[Process]:
    """Those that carry the job's name, or were known as its (`also`), and all that descend from these.

    A child may have been started with another environment; once its parent is gone, only `also` tells whose it was.
    """
    others = [one for one in processes if one.pid != os.getpid()]
    found = [one for one in others if one.job == job or one.identity in also]
    pids = {one.pid for one in found}
    while more := [one for one in others if one.parent in pids and one.pid not in pids]:
        found += more
        pids |= {one.pid for one in more}
    return found

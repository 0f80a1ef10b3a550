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

PROC = "/proc"
_MARK = JOB_ID.encode() + b"="
#: Where fields lie in /proc/PID/stat behind the program's name, which may hold anything (proc(5): fields 3, 4 and 22).
_STATE, _PARENT, _START = 0, 1, 19
#: Ended, and not yet looked after by its parent: its memory, files and environment are gone.
_ENDED = frozenset((b"Z", b"X", b"x"))
_PIECE = 64 * 1024


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

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        now = _stat(self.pid)
        return now is not None and now[1] == self.start

    def send(self, number: signal.Signals) -> None:
        """A signal to this very process, and to no other that has taken its number meanwhile."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return  # it is gone
        try:
            if self.alive:
                signal.pidfd_send_signal(descriptor, number)
        except (ProcessLookupError, PermissionError):
            pass  # gone, or another user's by now: whoever asks again sees which
        finally:
            os.close(descriptor)


def read(pid: int) -> Process | None:
    """The process with this number; None where there is none, or one that has ended."""
    found = _stat(pid)
    return None if found is None else Process(pid=pid, start=found[1], parent=found[0], job=_job(pid))


def scan() -> list[Process]:
    """All that run now; some 50 us of processor time for each."""
    found = (read(int(name)) for name in os.listdir(PROC) if name.isdecimal())  # noqa: PTH208 - thousands of names
    return [one for one in found if one is not None]


def memory_kills(proc: Path = Path(PROC), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many processes the kernel has killed so far for lack of memory: in our own cgroup (v2), which is our children's too,
    else on the whole machine; None where it tells neither. It counts before it kills.
    """
    own = next((line[3:] for line in _lines(proc / "self/cgroup") if line.startswith("0::")), "/")
    for line in _lines(cgroups / own.lstrip("/") / "memory.events") + _lines(proc / "vmstat"):
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and start of a process that runs."""
    fields = _content(pid, "stat").rpartition(b")")[2].split()
    if len(fields) <= _START or fields[_STATE] in _ENDED:
        return None
    return int(fields[_PARENT]), int(fields[_START])


def _job(pid: int) -> str:
    environment = _content(pid, "environ")
    if _MARK not in environment:
        return ""
    found = (word for word in environment.split(b"\0") if word.startswith(_MARK))
    return next(found, _MARK)[len(_MARK) :].decode("utf-8", "replace")


def _content(pid: int, name: str) -> bytes:
    """Empty for what is gone or not ours to see."""
    try:
        descriptor = os.open(f"{PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        pieces = []
        while piece := os.read(descriptor, _PIECE):
            pieces.append(piece)
        return b"".join(pieces)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


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

"""Builders as processes of this machine: in a session of their own, niced, limited, and outliving the manager.

A builder is known by its process number with its start time, and by FLOPS_JOB_ID, which every process of it carries. So a
manager that comes back finds its builders, and nothing that merely has a number again is ever touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flops import programs
from flops.errors import BadSetting, DeployFailed, DiskFull, FlopsError, OrchestratorUnreachable, ToolMissing
from flops.orchestrators import BuilderPhase, Status
from flops.orchestrators.processes import Process, family, memory_kills, read, scan
from flops.settings import BUILDER_SETTINGS, LOCAL_BUILDER_SETTINGS
from flops_wire.manager import JOB_ID, JOB_TOKEN, JOB_URL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from flops.orchestrators import Deployment, Handle, ManagerContext

#: A builder attempt as a program; -P: nothing is imported from where it happens to be started.
COMMAND = (sys.executable, "-P", "-m", "flops.cli.main", "job")
#: What a builder gets of the manager's environment; whatever else an attempt may use comes with its job.
SETTINGS = (
    *BUILDER_SETTINGS,
    *LOCAL_BUILDER_SETTINGS,
    # where our own modules and the user's directories are found
    *("PYTHONPATH", "HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"),
)
_JOB = re.compile(r"[a-z0-9]{1,30}")
#: Seconds that a builder has after SIGTERM, and that killed processes have to be gone; between two looks.
_GRACE = 3.0
_VANISH = 5.0
_PAUSE = 0.02
_LOOKS = 10
_MEGABYTE = 1024 * 1024
_LOG_SHOWN = 64 * 1024
_LOG_LIMIT = 4 * _MEGABYTE
_KILLED = 128 + signal.SIGKILL


@dataclass(kw_only=True)
class _Known:
    """What this manager itself knows of a builder that it started."""

    child: programs.Detached
    kills: int | None
    """`memory_kills` before it was started."""
    seen: set[tuple[int, int]] = field(default_factory=set)
    """Its processes, as far as a removal has seen them."""


class LocalOrchestrator:
    """An Orchestrator. Logs lie in `directory`, each at most some megabytes, and go `keep_days` after they were last written.

    A builder's temporary files lie in a directory of its own, where temporary files lie here, and go with it.
    """

    name = "local"

    def __init__(
        self,
        directory: Path,
        *,
        command: Sequence[str] = COMMAND,
        settings: Mapping[str, str] | None = None,
        keep_days: float = 90,
        grace: float = _GRACE,
        kills: Callable[[], int | None] = memory_kills,
    ) -> None:
        self._directory = directory
        self._command = tuple(command)
        self._settings = os.environ if settings is None else settings
        self._keep_seconds = keep_days * 86400
        self._grace = grace
        self._kills = kills
        self._known: dict[str, _Known] = {}

    def prepare(self) -> None:
        """See that processes can be told apart here, and that logs can be written."""
        if read(os.getpid()) is None or not hasattr(os, "pidfd_open"):
            raise BadSetting("builders can't run on this machine: it has no /proc or no pidfd", hint="use Linux")
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise BadSetting(
                f"the builders' directory {self._directory} can't be made: {error.strerror}", hint="set FLOPS_DATA_DIR"
            ) from error

    def deploy(self, deployment: Deployment, remember: Handle | None = None) -> Handle:  # noqa: ARG002 - /proc knows better
        """Start a builder, or take on the one that a manager started which did not live to note it."""
        limits = programs.ProcessLimits(memory=deployment.memory * _MEGABYTE if deployment.memory else None)
        log = self._log(deployment.job)
        running = self._running(deployment.job, started=log.exists())
        if running is not None:
            programs.confine(running.pid, limits)
            return _handle(running)
        if log.exists():  # it was started, and has ended since
            known = self._known.get(deployment.job)
            return {"pid": known.child.pid} if known else {}
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            room = self._room(deployment.job)
            shutil.rmtree(room, ignore_errors=True)
            room.mkdir(mode=0o700)
            kills = self._kills()
            child = programs.detach(
                self._command, env=self._environment(deployment), output=log, cwd=self._directory, limits=limits
            )
        except (ToolMissing, OSError) as error:
            log.unlink(missing_ok=True)
            shutil.rmtree(self._room(deployment.job), ignore_errors=True)
            raise _not_started(error) from error
        # it may have ended already; then nobody will find its number with this start
        started = read(child.pid)
        # a look in the very moment of its start sees no environment yet: its name alone would not do
        self._known[deployment.job] = _Known(child=child, kills=kills, seen={started.identity} if started else set())
        return _handle(started) | {"pid": child.pid}

    def status(self, job: str, handle: Handle) -> Status:
        """Ended with its exit code where this manager started it; one that an earlier manager started is merely gone."""
        self._shorten(job)
        known = self._known.get(job)
        if known is not None:
            code = known.child.poll()
            if code is None:
                return Status(phase=BuilderPhase.RUNNING)
            if code == _KILLED:  # by whom, the kernel's count may tell
                now = self._kills()
                since = None if now is None or known.kills is None else max(0, now - known.kills)
                return Status(phase=BuilderPhase.ENDED, exit_code=code, memory_kills=since)
            return Status(phase=BuilderPhase.ENDED, exit_code=code, reason=_reason(code))
        found = read(int(handle.get("pid") or 0))
        if found is not None and found.job == job and found.start == handle.get("start"):
            return Status(phase=BuilderPhase.RUNNING)
        return Status(phase=BuilderPhase.GONE, reason="its process is gone")

    def remove(self, job: str, handle: Handle | None) -> bool:  # noqa: ARG002 - /proc knows better
        """SIGTERM, which a builder heeds, and after a short grace SIGKILL for all that is left; then its temporary files."""
        known = self._known.get(job)
        seen = known.seen if known else set()
        ended = self._ended(job, seen, signal.SIGTERM, self._grace) or self._ended(job, seen, signal.SIGKILL, _VANISH)
        if not ended:
            return False  # in an uninterruptible call, perhaps
        shutil.rmtree(self._room(job), ignore_errors=True)
        if known is not None:
            known.child.poll()
            del self._known[job]
        return True

    def logs(self, job: str, handle: Handle | None) -> str:  # noqa: ARG002 - the file bears the job's name
        return _tail(self._log(job)).decode("utf-8", "replace")

    def orphans(self, prefix: str, known: Collection[str]) -> Mapping[str, Handle]:
        """By one look at all processes. Old logs go on this occasion."""
        self._sweep(known)
        found: dict[str, Handle] = {}
        for one in scan():
            if one.job.startswith(prefix) and one.job not in known and _JOB.fullmatch(one.job):
                found.setdefault(one.job, _handle(one))
        return found

    def _running(self, job: str, *, started: bool) -> Process | None:
        """The builder's own process; one that was `started` this very moment may not bear its name yet."""
        for _ in range(_LOOKS if started and job not in self._known else 1):
            if (found := _first(scan(), job)) is not None:
                return found
            time.sleep(_PAUSE if started else 0)
        return None

    def _family(self, job: str, seen: set[tuple[int, int]]) -> list[Process]:
        """All processes of a builder; remembers them."""
        found = family(scan(), job, seen)
        seen |= {one.identity for one in found}
        return found

    def _ended(self, job: str, seen: set[tuple[int, int]], number: signal.Signals, seconds: float) -> bool:
        """Signal a builder's processes until none is left; whether that was so in time.

        SIGTERM goes, once, to whoever has no parent among them: a builder ends its children itself, and tells no failure of
        theirs.
        """
        end = time.monotonic() + seconds
        asked: set[tuple[int, int]] = set()
        while found := self._family(job, seen):
            pids = {one.pid for one in found}
            for one in found:
                if number is signal.SIGKILL or not (one.parent in pids or one.identity in asked):
                    asked.add(one.identity)
                    one.send(number)
            while any(one.alive for one in found):
                self._reap(job)
                if time.monotonic() > end:
                    return False
                time.sleep(_PAUSE)
                if number is signal.SIGTERM and not all(one.alive for one in found):
                    break  # what is left may have lost its parent
            if time.monotonic() > end:  # they start others faster than they end
                return not self._family(job, seen)
        return True

    def _reap(self, job: str) -> None:
        if (known := self._known.get(job)) is not None:
            known.child.poll()

    def _environment(self, deployment: Deployment) -> dict[str, str]:
        """By allow-list: neither the manager's tokens and credentials nor what happens to stand in its environment."""
        kept = {name: self._settings[name] for name in SETTINGS if name in self._settings}
        job = {JOB_ID: deployment.job, JOB_URL: deployment.url, JOB_TOKEN: deployment.token}
        return programs.environment({**kept, "PYTHONUNBUFFERED": "1", "TMPDIR": str(self._room(deployment.job)), **job})

    def _log(self, job: str) -> Path:
        if not _JOB.fullmatch(job):
            raise DeployFailed(f"{job!r} is no name of a builder", hint="1 to 30 of a-z and 0-9")
        return self._directory / f"{job}.log"

    def _room(self, job: str) -> Path:
        """Where its temporary files lie; a name that somebody else has taken there is not used."""
        self._log(job)
        return Path(self._settings.get("TMPDIR") or tempfile.gettempdir(), f"flops-{job}")

    def _shorten(self, job: str) -> None:
        """A builder writes little; one that does not must not fill the disk."""
        path = self._log(job)
        with contextlib.suppress(OSError):
            if path.stat().st_size > _LOG_LIMIT:
                tail = _tail(path)
                with path.open("r+b") as file:
                    file.truncate(0)
                    file.write(tail)

    def _sweep(self, known: Collection[str]) -> None:
        with contextlib.suppress(OSError):
            for path in self._directory.glob("*.log"):
                if path.stem not in known and time.time() - path.stat().st_mtime > self._keep_seconds:
                    path.unlink(missing_ok=True)


def _not_started(error: ToolMissing | OSError) -> FlopsError:
    """What lacks only now is asked for again later."""
    match error:
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return DiskFull("no space left for the builders' logs", hint="free some, or set FLOPS_DATA_DIR")
        case OSError(errno=errno.EAGAIN | errno.ENOMEM | errno.EMFILE | errno.ENFILE):
            return OrchestratorUnreachable(
                f"this machine can't start a further process now: {error.strerror}", hint="lower FLOPS_BUILDERS"
            )
        case _:
            return DeployFailed(f"the builder can't be started: {error}")


def _first(processes: Sequence[Process], job: str) -> Process | None:
    """The builder itself: the first of its processes, whose parent is none of them."""
    ours = [one for one in processes if one.job == job]
    pids = {one.pid for one in ours}
    return next((one for one in ours if one.parent not in pids), None)


def _handle(found: Process | None) -> Handle:
    return {} if found is None else {"pid": found.pid, "start": found.start}


def _tail(path: Path) -> bytes:
    """The last of a file; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_SHOWN))
            return file.read(_LOG_SHOWN)
    except OSError:
        return b""


def _reason(code: int) -> str:
    return f"it was ended by signal {code - 128}" if code > 128 else f"it ended with exit code {code}"  # noqa: PLR2004


@contextlib.contextmanager
def start(manager: ManagerContext) -> Iterator[LocalOrchestrator]:
    manager.settings.check_cache()
    yield LocalOrchestrator(manager.directory / "logs", keep_days=manager.settings.keep_days)

"""An actor's life: its scratch directory, its child processes, its one end."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from flops_actor.family import below

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

EXIT_DONE = 0
EXIT_FAILED = 1
#: The role that was asked for does not exist in this image (EX_UNAVAILABLE of sysexits.h).
EXIT_UNSUPPORTED = 69
EXIT_STOPPED = 128 + signal.SIGTERM
EXIT_INTERRUPTED = 128 + signal.SIGINT
#: Seconds that children have between SIGTERM and SIGKILL; they hold nothing that must be saved.
STOP_SECONDS = 3.0

log = logging.getLogger("flops.actor")


class ActorFailed(Exception):
    """What an actor ends with; the message is for the log and for FLOps' components."""


class Stopped(BaseException):
    """SIGTERM arrived."""


class Children:
    """The processes that an actor started, each in a session of its own; all are stopped when the actor ends."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop(*self._started)

    def start(
        self, words: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Both outputs of a child go to our stderr: our own stdout is data."""
        child = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            stderr=sys.stderr.fileno(),
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        self._started.append(child)
        return child

    def stop(self, *children: subprocess.Popen[bytes]) -> None:
        """End these children and all that they started, together."""
        if not children:
            return
        family = below(child.pid for child in children)
        for member in family:
            member.send(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        while time.monotonic() < end and any(member.alive() for member in family):
            time.sleep(0.05)
        # what was started in the meantime has lost its parent, and is below none of the children any more if that ended
        for member in family | below(member.pid for member in family):
            member.send(signal.SIGKILL)
        for child in children:
            child.wait()
            if child in self._started:
                self._started.remove(child)


def live(work: Callable[[Children, Path], int]) -> int:
    """Do an actor's work; the exit code. `work` gets its children and a scratch directory, which both end with it."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        with (
            # a Unix socket's path must be short, so TMPDIR does not count here
            tempfile.TemporaryDirectory(prefix="flops-", dir="/tmp", ignore_cleanup_errors=True) as scratch,
            Children() as children,
        ):
            return work(children, Path(scratch))
    except ActorFailed as error:
        log.error("%s", error)  # noqa: TRY400 - the message holds what the user needs; our own frames say nothing
        return EXIT_FAILED
    except Stopped:
        log.warning("stopped by SIGTERM")
        return EXIT_STOPPED
    except KeyboardInterrupt:
        log.warning("interrupted")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)


def start_log() -> None:
    """Our own log on stderr. The root logger stays as it is: Flower's HTTP client would fill the log through it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def ending(child: subprocess.Popen[bytes]) -> str:
    """How an ended child ended, in words."""
    code = child.returncode
    if code >= 0:
        return f"ended with {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


def tell(line: str) -> None:
    """One line of the actor's data on stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _stop(_number: int, _frame: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped

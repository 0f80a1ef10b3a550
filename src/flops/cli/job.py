"""`flops job`: one builder attempt, as an orchestrator runs it."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import NoReturn

from rich.console import Console

from flops import programs
from flops.cli.render import LineReporter
from flops.errors import Cancelled, UsageError
from flops.job.attempt import AttemptClient
from flops.job.run import run
from flops.settings import Settings
from flops_wire.manager import JOB_TOKEN, JOB_URL

#: Seconds that whatever is under way may take to unwind (temporary files go) before the process ends without it.
UNWIND_SECONDS = 5.0


def command() -> int:
    """Run one builder attempt: FLOPS_JOB_URL says where its manager is, FLOPS_JOB_TOKEN is its leave."""
    url, token = os.environ.get(JOB_URL), os.environ.get(JOB_TOKEN)
    if not url or not token:
        raise UsageError(
            f"{JOB_URL} and {JOB_TOKEN} are not set",
            hint="a manager starts this command; to build by hand, use flops build",
        )
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stopped)
    settings = Settings.read()
    lines = LineReporter(Console(stderr=True, soft_wrap=True, highlight=False))
    with AttemptClient(url, token, ca_bundle=settings.ca_bundle) as attempt:
        return run(attempt, settings=settings, reporter=lines, over=lambda: _end_soon(0))


def _stopped(_number: int, _frame: FrameType | None) -> NoReturn:
    """Whoever sends a signal wants the end now: nothing is told to the manager."""
    programs.cancel()
    _end_soon(Cancelled.exit_code)
    raise KeyboardInterrupt


def _end_soon(code: int) -> None:
    """Work of other threads (an upload, a layer) is not waited for any longer than this."""
    timer = threading.Timer(UNWIND_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()

"""One builder attempt: fetch the job, build, tell the manager, end with its leave."""

from __future__ import annotations

import errno
import sys
import tempfile
import threading
import traceback
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops import programs
from flops.errors import (
    AttemptOver,
    BuilderOom,
    Cancelled,
    DeadlineExceeded,
    FlopsError,
    InternalError,
    RegistryError,
    RegistryUnreachable,
)
from flops.job.reporting import Events
from flops.oci.blobs import disk_full
from flops.progress import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flops.errors import Adjustment, Finding
    from flops.job.attempt import AttemptClient, Job
    from flops.progress import Reporter
    from flops.settings import Settings


class Both:
    """A Reporter that tells two others."""

    def __init__(self, first: Reporter, second: Reporter) -> None:
        self._first, self._second = first, second

    @contextmanager
    def stage(self, stage: Stage, message: str) -> Iterator[None]:
        with self._first.stage(stage, message), self._second.stage(stage, message):
            yield

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:
        for one in (self._first, self._second):
            one.progress(stage, done=done, total=total, platform=platform)

    def adjusted(self, adjustment: Adjustment) -> None:
        for one in (self._first, self._second):
            one.adjusted(adjustment)

    def finding(self, finding: Finding) -> None:
        for one in (self._first, self._second):
            one.finding(finding)

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        for one in (self._first, self._second):
            one.warning(stage, message, hint=hint)


#: Seconds after the job's own time in which its failure may still be delivered.
LAST_SECONDS = 60.0
#: Tries at the registry, within a minute or so: nobody sits before a job, and the registry may be the manager's own, which
#: is away while that is started again.
TRIES = 10


def run(
    attempt: AttemptClient, *, settings: Settings, reporter: Reporter, over: Callable[[], None] = lambda: None
) -> int:
    """The exit code: 0 once the manager knows the outcome, also a failure, or wants none; orchestrators repeat others.

    `over` is called, from another thread, as soon as the manager wants no more of this attempt; then everything that
    was started is ended. FlopsError where the manager can't be told.
    """
    unwanted = threading.Event()

    def end(error: FlopsError) -> None:
        unwanted.set()
        sys.stderr.write(f"{error.message}\n")
        programs.cancel()
        over()

    try:
        document = attempt.job()
        with Events(attempt.post, over=end) as events:
            outcome = _outcome(attempt, document, settings, Both(events, reporter), events)
            if isinstance(outcome, FlopsError):
                events.failed(outcome, stage=Stage.PUSH if isinstance(outcome, RegistryError) else Stage.CLONE)
            else:
                events.succeeded(outcome)
    except AttemptOver as error:
        if not unwanted.is_set():
            sys.stderr.write(f"{error.message}\n")
    except Cancelled:  # by `end`, or by a signal
        if not unwanted.is_set():
            raise
    return 0


def _outcome(
    attempt: AttemptClient, document: Any, settings: Settings, reporter: Reporter, events: Events
) -> dict[str, Any] | FlopsError:
    """The result, or what to tell instead; AttemptOver or Cancelled where nobody wants either."""
    # heavy, and a job that nobody wants any more needs none of it
    from flops.job.attempt import Job  # noqa: PLC0415

    try:
        job = Job.parse(document)
    except FlopsError as error:
        return error
    attempt.expires(job.seconds + LAST_SECONDS)
    late = threading.Event()
    try:
        with deadline(job.seconds, late):
            return _patiently(attempt, events, lambda: _build(job, settings, reporter, events))
    except AttemptOver:
        raise
    except Cancelled:
        if not late.is_set():
            raise
        return DeadlineExceeded(
            f"the images were not done within {job.seconds:.0f} s",
            hint="ask for fewer platforms, or raise FLOPS_PROJECT_SECONDS",
        )
    except Exception as error:  # noqa: BLE001 - told as what it is
        return failure(error)


def _patiently(attempt: AttemptClient, events: Events, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Once more where the registry and the manager were away together: they may be one process, that is started again. What
    was made by then lies in the cache.
    """
    while True:
        try:
            return build()
        except RegistryUnreachable as error:
            if not attempt.wait():
                raise
            events.begin_again()
            events.warning(Stage.PUSH, f"the manager was away as the registry was, so the build begins again: {error}")


def _build(job: Job, settings: Settings, reporter: Reporter, events: Events) -> dict[str, Any]:
    from flops.http import Retry  # noqa: PLC0415
    from flops.oci.client import RegistryClient  # noqa: PLC0415
    from flops.publishing.registry_target import RegistryTarget  # noqa: PLC0415
    from flops.use_cases.build import build  # noqa: PLC0415

    request = job.request()
    with ExitStack() as stack:
        client = RegistryClient(
            job.registry,
            credentials=job.registry_credentials,
            verify=settings.ca_bundle,
            retry=Retry(tries=TRIES, unanswered=TRIES, longest=15.0, patience=job.seconds),
        )
        target = RegistryTarget(stack.enter_context(client), pull_name=job.pull_name)
        return build(
            request,
            target,
            settings=settings,
            reporter=reporter,
            before_tags=lambda move: events.ask_to_tag(move.to_json()),
        ).to_json()


@contextmanager
def deadline(seconds: float, late: threading.Event) -> Iterator[None]:
    """After that many seconds, `late` is set and everything that was started is ended."""

    def end() -> None:
        late.set()
        programs.cancel()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def failure(error: Exception) -> FlopsError:
    """Whatever ended a build, as a failure that can be told."""
    if isinstance(error, FlopsError):
        return error
    if isinstance(error, MemoryError):  # a limit of the orchestrator's, met before the kernel had to act
        return BuilderOom(
            "the builder needs more memory than it may use", hint="the operator raises FLOPS_BUILDER_MEMORY"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(
            Path(error.filename or tempfile.gettempdir()), hint="free space there, or move FLOPS_CACHE_DIR and TMPDIR"
        )
    traceback.print_exception(error, file=sys.stderr)
    return InternalError(
        f"{type(error).__name__}: {error}"[:1000],
        hint="this is a bug of the image builder: please report the last lines of its log",
    )

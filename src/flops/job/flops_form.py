"""The command line by which FLOps' own manager starts a builder, with FLOps' messages about what becomes of it.

    python3 main.py REGISTRY_URL PROJECT_ID MQTT_IP OBSERVER_IP --supported_platforms=P,P fl_actors REPO_URL FLAVOR

What it names is trusted no more than what our own manager's jobs name: https and ssh only, addresses inside the operator's
network and directories only where FLOPS_ALLOW_HOSTS and FLOPS_ALLOW_LOCAL say so. `http://` in REGISTRY_URL is the consent
to plain HTTP. The exit code is 0 once FLOps' manager has acknowledged the outcome, also a failure: a one-shot service that
ends otherwise is started again for ever.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from flops import process
from flops.broker import BrokerAddress
from flops.errors import Cancelled, DeadlineExceeded, FlopsError, UsageError
from flops.job.announcer import Announcer
from flops.job.run import deadline, failure
from flops_wire import flops
from flops_wire.manager import JOB_URL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

ACTORS_PLAN, MODEL_PLAN = "fl_actors", "trained_model"
#: Seconds that whatever is under way may take to unwind after a signal.
UNWIND_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Form:
    """FLOps' words, as they came; judged where they are used, so that a wrong one is told like any failure."""

    registry: str
    project: str
    broker: BrokerAddress
    observer: tuple[str, int]
    plan: str
    words: tuple[str, ...]
    """Of `fl_actors`: REPO_URL and FLAVOR."""
    platforms: str
    devel_base_images: bool
    notifications: bool

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Form:
        """Options may stand anywhere, addresses may carry a port. UsageError where nobody could be told of the rest."""
        parser = _Parser(prog="main.py", description="Build FL actor images as FLOps' manager asks for them.")
        for name in ("registry", "project", "broker", "observer"):
            parser.add_argument(name)
        parser.add_argument("plan", choices=(ACTORS_PLAN, MODEL_PLAN))
        parser.add_argument("words", nargs="*")
        parser.add_argument("--supported_platforms", default="linux/amd64")
        parser.add_argument("--use-devel-base-images", action="store_true")
        parser.add_argument("--deactivate-notifications", action="store_true")
        found = parser.parse_intermixed_args(list(arguments))
        observer = BrokerAddress.parse(found.observer, port=flops.OBSERVER_PORT)
        return cls(
            registry=found.registry,
            project=found.project,
            broker=BrokerAddress.parse(found.broker, port=flops.BROKER_PORT),
            observer=(observer.host, observer.port),
            plan=found.plan,
            words=tuple(found.words),
            platforms=found.supported_platforms,
            devel_base_images=found.use_devel_base_images,
            notifications=not found.deactivate_notifications,
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=self.format_usage().strip())


def main(arguments: Sequence[str] | None = None) -> int:
    """FLOps' form, or one attempt of our own manager where it set FLOPS_JOB_URL and there are no words; the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words and os.environ.get(JOB_URL):
        os.execv(sys.executable, [sys.executable, "-m", "flops.cli.main", "job"])  # noqa: S606 - ourselves, in one process
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stopped)
    try:
        form = Form.parse(words)
    except FlopsError as error:
        sys.stderr.write(flops.failure_text(error.to_json()) + "\n")
        return error.exit_code
    try:
        return run(form)
    except KeyboardInterrupt:
        return Cancelled.exit_code


def run(form: Form) -> int:
    """Build and tell; the exit code."""
    told = form.notifications
    with Announcer(broker=form.broker if told else None, observer=form.observer if told else None) as announcer:
        try:
            if form.plan == MODEL_PLAN:
                raise UsageError(  # noqa: TRY301
                    "this builder makes images of FL actors, not of trained models",
                    hint="leave the post training steps out, or give them FLOps' own image builder",
                )
            announcer.manager(flops.BUILDER_STARTED, flops.payload(form.project))
            seconds = _build(form, announcer)
        except Exception as error:  # noqa: BLE001 - told as what it is
            return _failed(form, announcer, failure(error))
        payload = flops.builder_success(form.project, seconds)
        _say(announcer, flops.durations(payload))
        announcer.outcome(flops.BUILDER_SUCCESS, payload)
    return 0


def _failed(form: Form, announcer: Announcer, error: FlopsError) -> int:
    text = flops.failure_text(error.to_json())
    _say(announcer, text)
    topic = flops.BUILDER_FAILED if form.plan == ACTORS_PLAN else flops.TRAINED_MODEL_BUILDER_FAILED
    known = announcer.outcome(topic, flops.failure(form.project, text))
    return 0 if known and form.notifications else error.exit_code


def _build(form: Form, announcer: Announcer) -> dict[str, float]:
    """Seconds by stage. DeadlineExceeded; else whatever a build raises."""
    from flops.job.flops_build import build_actors  # noqa: PLC0415 - heavy; FLOps' manager hears of the start before
    from flops.settings import Settings  # noqa: PLC0415

    settings = Settings.read()
    late = threading.Event()
    try:
        with deadline(settings.project_seconds, late):
            return build_actors(form, settings, say=lambda text: _say(announcer, text))
    except Cancelled as error:
        if not late.is_set():
            raise KeyboardInterrupt from error
        raise DeadlineExceeded(
            f"the images were not done within {settings.project_seconds:.0f} s",
            hint="ask for fewer platforms, or raise FLOPS_PROJECT_SECONDS",
        ) from error


def _say(announcer: Announcer, text: str) -> None:
    sys.stderr.write(text + "\n")
    announcer.observer(text)


def _stopped(_number: int, _frame: FrameType | None) -> NoReturn:
    process.cancel()
    timer = threading.Timer(UNWIND_SECONDS, os._exit, (Cancelled.exit_code,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from flops import programs
from flops.actors import Actor
from flops.compat.announcer import Announcer
from flops.compat.broker import BrokerAddress
from flops.errors import Cancelled, DeadlineExceeded, FlopsError, UsageError
from flops.job.run import deadline, failure
from flops.oci.client import RegistryClient
from flops.oci.credentials import FixedCredentials
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.progress import Silent, Stage
from flops.publishing.registry_target import RegistryTarget
from flops.recipe import Flavor, Recipe
from flops.repository.source import parse_source
from flops.request import Request
from flops.use_cases.build import build
from flops_wire import flops
from flops_wire.manager import JOB_URL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from flops.errors import Adjustment, Finding
    from flops.publishing.delivery import Delivery, Published
    from flops.settings import Settings


def build_actors(form: Form, settings: Settings, *, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds by stage; whatever a build raises."""
    request = _request(form, settings)
    registry = Registry.parse(form.registry)
    pull = Registry.parse(settings.registry_pull) if settings.registry_pull else None
    names = [str((pull or registry).reference(request.source.repository, actor.value)) for actor in Actor]
    credentials = FixedCredentials(by_host={})
    with RegistryClient(registry, credentials=credentials, verify=settings.ca_bundle) as client:
        target = TellingTarget(client, pull_name=pull, say=say)
        milestones = Milestones(say, names)
        if form.devel_base_images:
            milestones.warning(Stage.CLONE, "--use-devel-base-images is ignored: no base image is built")
        result = build(request, target, settings=settings, reporter=milestones)
    if result.python is None:
        say(flops.IMAGES_EXIST)
    return dict(result.seconds)


def _request(form: Form, settings: Settings) -> Request:
    if len(form.words) != 2:  # noqa: PLR2004
        raise UsageError(
            f"fl_actors takes a repository and a flavor, {len(form.words)} words were given",
            hint="write fl_actors REPO_URL FLAVOR",
        )
    source, flavor = form.words
    if flavor not in {one.value for one in Flavor}:
        raise UsageError(f"{flavor[:100]!r} is no flavor", hint=f"use one of {', '.join(one.value for one in Flavor)}")
    hosts = tuple(host.strip() for host in settings.allow_hosts.split(",") if host.strip())
    return Request(
        source=parse_source(source, trusted=False, allow_hosts=hosts, allow_local=settings.allow_local),
        platforms=Platform.parse_list(form.platforms.split(",")),
        recipe=Recipe(flavor=Flavor(flavor)),
        allow_hosts=hosts,
        registry_credentials=FixedCredentials(by_host={}),
    )


class TellingTarget(RegistryTarget):
    """A registry that says which images are built and which are pushed, by the names that FLOps looks for."""

    def __init__(self, client: RegistryClient, *, pull_name: Registry | None, say: Callable[[str], None]) -> None:
        super().__init__(client, pull_name=pull_name)
        self._say = say

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        for actor in delivery.images:
            name = self.reference(delivery.repository, actor, delivery.tags[0])
            self._say(flops.build_finished(name))
        published = super().publish(delivery)
        for one in published.values():
            self._say(flops.image_pushed(one.reference))
        return published


class Milestones(Silent):
    """A Reporter: sentences for the observer where the original has some, lines on stderr for the rest."""

    def __init__(self, say: Callable[[str], None], names: Sequence[str]) -> None:
        self._say = say
        self._names = names

    @contextmanager
    def stage(self, stage: Stage, message: str) -> Iterator[None]:
        _log(f"{stage.value}: {message}")
        if stage is Stage.RESOLVE:  # the repository is as it should be: what follows is what takes time
            for name in self._names:
                self._say(flops.build_begun(name))
        yield

    def adjusted(self, adjustment: Adjustment) -> None:
        self._say(flops.adjusted(adjustment.to_json()))

    def finding(self, finding: Finding) -> None:
        _log(f"note: {finding.where}: {finding.message}")

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        _log(f"warning: {stage.value}: {message}" + (f" ({hint})" if hint else ""))


def _log(text: str) -> None:
    sys.stderr.write(flops.visible(text.replace("\n", "\\n")) + "\n")


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
    programs.cancel()
    timer = threading.Timer(UNWIND_SECONDS, os._exit, (Cancelled.exit_code,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

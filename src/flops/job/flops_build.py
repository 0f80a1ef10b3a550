"""The build that FLOps' form asks for, with the original's sentences for the project's observer at its milestones."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flops.builder.build import build
from flops.builder.images.actors import Actor
from flops.builder.publishing.publish import RegistryTarget
from flops.builder.repository.source import parse_source
from flops.builder.request import Request
from flops.errors import UsageError
from flops.oci.client import RegistryClient
from flops.oci.credentials import FixedCredentials
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.progress import Silent, Stage
from flops.recipe import Flavor, Recipe
from flops_wire import flops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flops.builder.publishing.delivery import Delivery, Published
    from flops.errors import Adjustment, Finding
    from flops.job.flops_form import Form
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

"""What FLOps' own components are told of a project, event by event: MQTT topics and texts of the original. Pure.

The manager's topics (`flops_manager/fl_actors_image_builder/...`) are for projects that got a builder; a project whose images
stood already, or that failed before it had one, is told to its observer alone, as in the original. The observer's
topic is retained, so who comes late sees the last sentence. Milestones on the way are for `verbose` projects.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flops_wire import flops
from flops_wire.events import TAGGING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flops.manager.project import Project

Message = tuple[str, str, bool]
"""Topic, payload, and whether the broker keeps it for who comes late."""
ACTORS = ("learner", "aggregator")


def mirror_messages(project: Project, event: Mapping[str, Any]) -> list[Message]:
    """What one committed event gives, in this order; most give nothing. `project` as it stands after the event."""
    return [
        *_manager(project, event),
        *((flops.observer_topic(project.id), text, True) for text in _texts(project, event)),
    ]


def _manager(project: Project, event: Mapping[str, Any]) -> Iterator[Message]:
    if not project.attempt:
        return
    match event["stage"], event["kind"]:
        case "clone", "started":
            yield _message(flops.BUILDER_STARTED, flops.payload(project.id))
        case _, "succeeded":
            seconds = _seconds(event["data"]["result"])
            yield _message(flops.BUILDER_SUCCESS, flops.builder_success(project.id, seconds))
        case _, "failed":
            yield _message(flops.BUILDER_FAILED, flops.failure(project.id, flops.failure_text(event["data"]["error"])))
        case _, "cancelled":
            yield _message(flops.BUILDER_FAILED, flops.failure(project.id, "the project was cancelled"))


def _message(topic: str, payload: Mapping[str, Any]) -> Message:
    return topic, json.dumps(payload), False


def _texts(project: Project, event: Mapping[str, Any]) -> Iterator[str]:
    match event["stage"], event["kind"]:
        case _, "succeeded":
            yield from _success(project, event["data"]["result"])
        case _, "failed":
            yield flops.failure_text(event["data"]["error"])
            if project.attempt:
                yield flops.BUILDER_GONE
        case _, "cancelled":
            yield "The project was cancelled."
        case stage, kind if project.sla.get("verbose"):
            yield from _milestones(project, stage, kind, event)


def _milestones(project: Project, stage: str, kind: str, event: Mapping[str, Any]) -> Iterator[str]:
    match stage, kind:
        case "deploy", "started":
            yield flops.BUILD_NEEDED
        case "deploy", "finished":
            yield flops.BUILDER_DEPLOYED
        case "resolve", "started":
            yield from map(flops.build_begun, _images(project))
        case _, "adjusted":
            yield flops.adjusted(event["data"])
        case "push", "started" if event.get("code") != TAGGING:
            yield from map(flops.build_finished, _images(project))


def _success(project: Project, result: Mapping[str, Any]) -> Iterator[str]:
    """An outcome without a builder, or of one that found the images in place, is the original's "already exists"."""
    built = project.attempt and result.get("python") is not None
    if not built:
        yield flops.IMAGES_EXIST
    if project.sla.get("verbose"):
        for image in result["images"].values() if built else ():
            yield flops.image_pushed(flops.visible(str(image.get("reference"))))
        if project.attempt:
            yield flops.durations(flops.builder_success(project.id, _seconds(result)))


def _seconds(result: Mapping[str, Any]) -> dict[str, float]:
    """By stage; a result that was read from the registry has none."""
    told = result.get("seconds")
    return {key: one for key, one in told.items() if isinstance(one, int | float)} if isinstance(told, dict) else {}


def _images(project: Project) -> list[str]:
    """The names of the images as far as they are known before these are built: below their registry."""
    if "://" in project.repository:
        path = urlsplit(project.repository).path.strip("/").removesuffix(".git")
    else:
        path = "local/" + project.repository.rstrip("/").rpartition("/")[2]
    name = "/".join(filter(None, (path.lower(), project.subdir.lower())))
    tag = f":{project.commit}" if project.commit else ""
    return [flops.visible(f"{name}/{actor}{tag}") for actor in ACTORS]

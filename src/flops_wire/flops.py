"""Names, ports, topics and texts of FLOps' own components, which read what our actors and builders send."""

from __future__ import annotations

import math
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MANAGER_PORT = 5072
REGISTRY_PORT = 5073
BROKER_PORT = 9027
OBSERVER_PORT = 2727
AGGREGATOR_PORT = 8080
DATA_SERVER_PORT = 11027
#: Characters of a text that a message carries; a longer one is cut.
TEXT_LIMIT = 8000
#: Combining marks on one letter; no script needs more.
MARKS_LIMIT = 6
#: Where a node's data server answers, as seen from a container on the node.
DATA_SERVER_HOST = "172.17.0.1"

_BUILDER = "flops_manager/fl_actors_image_builder"
_AGGREGATOR = "flops_manager/aggregator"
BUILDER_STARTED = f"{_BUILDER}/started"
BUILDER_SUCCESS = f"{_BUILDER}/success"
BUILDER_FAILED = f"{_BUILDER}/failed"
TRAINED_MODEL_BUILDER_FAILED = "flops_manager/trained_model_image_builder/failed"
AGGREGATOR_STARTED = f"{_AGGREGATOR}/started"
AGGREGATOR_SUCCESS = f"{_AGGREGATOR}/success"
AGGREGATOR_FAILED = f"{_AGGREGATOR}/failed"
LEARNER_FAILED = "flops_manager/learner/failed"

CLASSIC_AGGREGATOR = "CLASSIC_AGGREGATOR"
ROOT_AGGREGATOR = "ROOT_AGGREGATOR"
CLUSTER_AGGREGATOR = "CLUSTER_AGGREGATOR"
AGGREGATOR_TYPES = (CLASSIC_AGGREGATOR, ROOT_AGGREGATOR, CLUSTER_AGGREGATOR)


def observer_topic(project: str) -> str:
    """The retained MQTT topic with the plain text that a project's observer shows."""
    return f"project_observer/{project}"


def payload(project: str, **fields: Any) -> dict[str, Any]:
    """What every message to FLOps' manager holds, and the fields of this one."""
    return {"flops_project_id": project, **fields}


def failure(project: str, message: str, **fields: Any) -> dict[str, Any]:
    return payload(project, error_msg=message, **fields)


def aggregator_success(project: str, *, aggregator_type: str, accuracy: float, loss: float) -> dict[str, Any]:
    """An aggregator's last message. `experiment_id` and `run_id` are empty without MLflow tracking; a metric that
    is no finite number is null, since JSON has no word for it.
    """
    return payload(
        project,
        aggregator_type=aggregator_type,
        accuracy=accuracy if math.isfinite(accuracy) else None,
        loss=loss if math.isfinite(loss) else None,
        experiment_id="",
        run_id="",
    )


def builder_success(project: str, seconds: Mapping[str, float]) -> dict[str, Any]:
    """A builder's last message: how long each part took, in FLOps' names and words, from a result's `seconds`.

    FLOps' base image is where a repository's packages go; ours is no image of its own, so nothing is pushed for it.
    """
    return payload(
        project,
        build_preparation=_together(seconds, "clone", "check"),
        base_image_build=_together(seconds, "resolve", "fetch"),
        base_image_push=duration(0),
        actor_images_build=_together(seconds, "assemble", "verify"),
        actor_images_push=_together(seconds, "push"),
        full_builder_process=_together(seconds, "total"),
    )


def _together(seconds: Mapping[str, float], *stages: str) -> str:
    return duration(sum(seconds.get(stage, 0.0) for stage in stages))


def duration(seconds: float) -> str:
    """Seconds in FLOps' words: `12 seconds`, `'4' minutes and 12 seconds`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"'{minutes}' minutes and {rest} seconds" if minutes else f"{rest} seconds"


# --- what a project's observer shows, in the order in which it shows it ---
BUILD_NEEDED = "New FLOps images need to be build. Start build delegation processes."
BUILDER_DEPLOYED = "New Builder service created & deployed"
IMAGES_EXIST = "Latest FLOps images already exists for the provided repo."
BUILDER_GONE = "Builder failed. Terminating this FLOps Project."


def build_begun(image: str) -> str:
    return f"Start building {image} image (This can take a while)"


def build_finished(image: str) -> str:
    return f"Successfully finished building new '{image}' image"


def image_pushed(image: str) -> str:
    return f"Successfully pushed new '{image}' image"


def durations(told: Mapping[str, Any]) -> str:
    """`builder_success` as a sentence for people."""
    return ", ".join(f"{name}: {text}" for name, text in told.items() if name != "flops_project_id")


def adjusted(adjustment: Mapping[str, Any]) -> str:
    """A change that the builder made to what the repository asked for (`{package, before, after, where, reason, platform}`)."""
    get = adjustment.get
    what = change(str(get("before") or ""), str(get("after") or ""))
    where = ", ".join(str(part) for part in (get("where"), get("platform")) if part)
    return visible(f"Adjusted {get('package')}: {what} ({where}): {get('reason')}".replace("\n", "\\n"))


def change(before: str, after: str) -> str:
    """Of a requirement: added, taken out, or another one."""
    if not before:
        return f"added, {after or 'any version'}"
    return f"{before} -> {after}" if after else f"{before} taken out"


def failure_text(error: Mapping[str, Any]) -> str:
    """A failure (`{code, message, hint, findings}`) as text for people: what and why, then every place."""
    lines = [f"error[{error.get('code')}]: {error.get('message')}"]
    if error.get("hint"):
        lines.append(f"hint: {error['hint']}")
    for finding in [one for one in error.get("findings") or () if isinstance(one, dict)]:
        path = str(finding.get("path")).replace("\n", "\\n")
        place = f"{path}:{finding['line']}" if finding.get("line") else path
        lines.append(f"{place}: {finding.get('message')}")
        if finding.get("hint"):
            lines.append(f"  hint: {finding['hint']}")
    text = visible("\n".join(lines))
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 3] + "..."


def visible(text: str) -> str:
    """Foreign text as text: control characters other than a line feed, marks that reorder it, and accents upon accents
    (they reach into other lines) are written out.
    """
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], 0
    for c in text:
        marks = marks + 1 if c > "\x7f" and unicodedata.category(c) in ("Mn", "Me") else 0
        whole = c == "\n" or (c.isprintable() and marks <= MARKS_LIMIT)
        shown.append(c if whole else c.encode("unicode_escape").decode())
    return "".join(shown)

"""What FLOps' broker tells of one project: the manager's messages and its observer's text, as lines and an outcome. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from flops.observer.state import Level
from flops_wire import flops

#: A project's id goes into a topic, where +, # and / have meanings.
ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
MANAGER = "flops_manager/"
_LEVELS = {"failed": Level.ERROR, "success": Level.SUCCESS}


@dataclass(frozen=True, kw_only=True)
class Told:
    """One message as it is shown, in one line or several."""

    source: str
    """`observer`, or a component of FLOps, such as `fl_actors_image_builder`."""
    text: str
    level: Level = Level.INFO


class BrokerFeed:
    """Messages of one project, folded. The broker may repeat any of them: what was just said is not said again."""

    def __init__(self, project: str) -> None:
        self.topics = (f"{MANAGER}#", flops.observer_topic(project))
        self.succeeded: bool | None = None
        """None until the builder's outcome is known."""
        self._project = project
        self._last: dict[str, bytes] = {}

    def take(self, topic: str, payload: bytes, *, repeated: bool = False) -> Told | None:
        """What a message says of this project, if anything; `repeated`: it was kept by the broker, or is sent again."""
        own = topic == flops.observer_topic(self._project)
        document = {} if own else _object(payload)
        if not own and document.get("flops_project_id") != self._project:
            return None
        if repeated and self._last.get(topic) == payload:
            return None
        self._last[topic] = payload
        if own:
            said = payload.decode("utf-8", "replace")
            if said == flops.IMAGES_EXIST:
                self.succeeded = True
            elif said == flops.BUILDER_GONE:
                self.succeeded = False
            return Told(source="observer", text=said)
        self._judge(topic)
        component, _, word = topic.removeprefix(MANAGER).rpartition("/")
        fields = "; ".join(f"{name}: {value}" for name, value in document.items() if name != "flops_project_id")
        return Told(
            source=component or word, text=f"{word}: {fields}" if fields else word, level=_LEVELS.get(word, Level.INFO)
        )

    def _judge(self, topic: str) -> None:
        if topic == flops.BUILDER_SUCCESS:
            self.succeeded = True
        elif topic == flops.BUILDER_FAILED:
            self.succeeded = False


def _object(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}

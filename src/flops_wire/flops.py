"""Names, ports, topics and texts of FLOps' own components, which read what our actors and builders send."""

from __future__ import annotations

import math
from typing import Any

MANAGER_PORT = 5072
REGISTRY_PORT = 5073
BROKER_PORT = 9027
OBSERVER_PORT = 2727
AGGREGATOR_PORT = 8080
DATA_SERVER_PORT = 11027
#: Where a node's data server answers, as seen from a container on the node.
DATA_SERVER_HOST = "172.17.0.1"

_BUILDER = "flops_manager/fl_actors_image_builder"
_AGGREGATOR = "flops_manager/aggregator"
BUILDER_STARTED = f"{_BUILDER}/started"
BUILDER_SUCCESS = f"{_BUILDER}/success"
BUILDER_FAILED = f"{_BUILDER}/failed"
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


def duration(seconds: float) -> str:
    """Seconds in FLOps' words, such as `'4' minutes and 12 seconds`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"'{minutes}' minutes and {rest} seconds"

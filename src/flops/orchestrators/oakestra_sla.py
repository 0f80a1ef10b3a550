"""The documents that Oakestra is asked with (its SLA, version v2.0), and the names in them. Pure.

Names and namespaces match `^[a-zA-Z0-9]{1,30}$`; memory, vcpus and storage are integers, the environment is a list.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from flops.errors import DeployFailed
from flops.orchestrators import BuilderPhase, Status
from flops_wire.manager import JOB_ID, JOB_TOKEN, JOB_URL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.orchestrators import Deployment


CUSTOMER = "Admin"
_APPLICATIONS, _SERVICES = "proj", "builder"
#: Of a job's name: the manager's prefix (6) and the project (12); the attempt stands behind.
_STEM = 18
_NAME = re.compile(r"[a-z0-9]{1,30}")


def application_name(job: str) -> str:
    """One for all attempts of a project; DeployFailed where it can't be one."""
    if not _NAME.fullmatch(job):
        raise DeployFailed(f"{job!r} is no name of a builder", hint="1 to 30 of a-z and 0-9")
    return _APPLICATIONS + job[:_STEM]


def is_ours(application: Mapping[str, Any], job: str) -> bool:
    """Whether this is the application of a job."""
    return stem(application) == job[:_STEM]


def stem(application: Mapping[str, Any]) -> str | None:
    """What the jobs of an application begin with; None where it is none for builders."""
    name = str(application.get("application_name"))
    if application.get("application_namespace") != _APPLICATIONS or not name.startswith(_APPLICATIONS):
        return None
    return name.removeprefix(_APPLICATIONS)


def application_sla(job: str) -> dict[str, Any]:
    """An application without services."""
    return _sla(application_name(job), number="", services=[])


def service_sla(
    deployment: Deployment, *, application: str, image: str, command: Sequence[str], settings: Mapping[str, str]
) -> dict[str, Any]:
    """One builder; `application` is its application's id, `settings` stand in its environment."""
    variables = {**settings, JOB_ID: deployment.job, JOB_URL: deployment.url, JOB_TOKEN: deployment.token}
    service = {
        "microserviceID": "",
        "microservice_name": deployment.job,
        "microservice_namespace": _SERVICES,
        "virtualization": "container",
        "one_shot": True,
        "privileged": False,
        "cmd": list(command),
        "environment": [f"{name}={value}" for name, value in sorted(variables.items())],
        "memory": deployment.memory or 0,
        "vcpus": 0,
        "storage": 0,
        "code": image,
        "constraints": [{"type": "addons", "needs": ["image-builder"]}],
    }
    return _sla(application_name(deployment.job), number=application, services=[service])


def _sla(name: str, *, number: str, services: list[dict[str, Any]]) -> dict[str, Any]:
    application = {
        "applicationID": number,
        "application_name": name,
        "application_namespace": _APPLICATIONS,
        "application_desc": "FLOps image builder",
        "microservices": services,
    }
    return {"sla_version": "v2.0", "customerID": CUSTOMER, "applications": [application]}


#: Never placed, and nobody tries again.
NO_CAPACITY = frozenset(
    {
        "NoActiveClusterWithCapacity",
        "TargetClusterNotActive",
        "TargetClusterNotFound",
        "TargetClusterNoCapacity",
        "NO_WORKER_CAPACITY",
        "NO_QUALIFIED_WORKER_FOUND",
        "NO_NODE_FOUND",
    }
)
_RUNNING = frozenset({"RUNNING", "ACTIVE"})
_BEFORE_A_NODE = frozenset({"", "REQUESTED", "CLUSTER_SCHEDULED"})
_WAITING = _BEFORE_A_NODE | {"NODE_SCHEDULED", "CREATING", "CREATED"}
#: Whoever starts a container says so in one way or another.
_EXIT_CODE = re.compile(r"exit(?:ed)?(?: with)?(?: code| status)?[ :=(]*(\d{1,3})\b", re.IGNORECASE)


def instances(service: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = service.get("instance_list")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def asked(service: Mapping[str, Any]) -> bool:
    """Whether an instance was asked for already: asking again would start another one."""
    return bool(instances(service) or service.get("status"))


def judge(service: Mapping[str, Any], *, ran: bool) -> Status:
    """How a builder stands. `ran`: it was seen running before."""
    listed = instances(service)
    newest = max(listed, key=_number, default={})
    word = str(newest.get("status") or service.get("status") or "")
    detail = str(newest.get("status_detail") or service.get("status_detail") or "")
    reason = f"{word}: {detail}" if detail else word
    ended = _ended(word, detail, reason, ran=ran)
    if ended is not None:
        return ended
    if _number(newest) > 0 or (ran and listed and word in _WAITING):
        return Status(phase=BuilderPhase.ENDED, reason=f"it died and was started again ({reason})")
    if not listed and word not in _BEFORE_A_NODE:
        return Status(phase=BuilderPhase.GONE, reason=f"its instance was taken away ({reason})", evicted=True)
    return Status(phase=BuilderPhase.RUNNING if word in _RUNNING else BuilderPhase.WAITING, reason=reason)


def _ended(word: str, detail: str, reason: str, *, ran: bool) -> Status | None:
    match word:
        case "COMPLETED":
            return Status(phase=BuilderPhase.ENDED, exit_code=0, reason=reason)
        case "FAILED":
            return Status(phase=BuilderPhase.ENDED, reason=reason, failed=not ran)
        case "DEAD":
            return Status(phase=BuilderPhase.ENDED, exit_code=_exit_code(detail), reason=reason)
        case _ if word in NO_CAPACITY:
            return Status(phase=BuilderPhase.ENDED, reason=reason, failed=not ran, no_capacity=not ran)
        case _:
            return None


def _number(instance: Mapping[str, Any]) -> int:
    value = instance.get("instance_number")
    return value if isinstance(value, int) else 0


def _exit_code(detail: str) -> int | None:
    found = _EXIT_CODE.search(detail)
    return int(found[1]) if found else None

"""The documents that Oakestra is asked with (its SLA, version v2.0), and the names in them. Pure.

Names and namespaces match `^[a-zA-Z0-9]{1,30}$`; memory, vcpus and storage are integers, the environment is a list.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from flops.errors import DeployFailed
from flops_wire.manager import JOB_ID, JOB_TOKEN, JOB_URL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.manager.orchestrators import Deployment

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

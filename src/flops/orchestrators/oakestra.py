"""Builders as one-shot services of Oakestra: an application for each project, a service in it for each attempt.

What Oakestra does that others don't: it starts a failed one-shot again for ever, so the first death is final and the service
is deleted; it takes a second instance of a service for another one to be started, so what is there is read before anything
is asked for; a success may hide a failure; and what is gone is answered as a fault of the server.
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from flops.errors import BadSetting, DeployFailed, OrchestratorUnreachable
from flops.orchestrators import BuilderPhase, Status
from flops.orchestrators.oakestra_api import Addresses, OakestraApi
from flops.orchestrators.oakestra_sla import (
    application_name,
    application_sla,
    asked,
    instances,
    is_ours,
    judge,
    service_sla,
    stem,
)
from flops.settings import BUILDER_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from flops.orchestrators import Deployment, Handle, ManagerContext

COMMAND = ("flops", "job")
_NOT_FOUND, _CONFLICT, _TOO_MANY, _SERVER, _ABSENT = 404, 409, 429, 500, 501


class OakestraOrchestrator:
    """An Orchestrator (OrchestratorUnreachable for all that a later call may find otherwise)."""

    name = "oakestra"

    def __init__(
        self,
        api: OakestraApi,
        addresses: Addresses,
        *,
        command: Sequence[str] = COMMAND,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._api = api
        self._addresses = addresses
        self._command = tuple(command)
        self._settings = os.environ if settings is None else settings
        self._ran: set[str] = set()
        """Jobs that were seen running: what waits again has died in between."""
        self._printed: dict[str, str] = {}
        """The last logs of a job: they go with its service."""

    def close(self) -> None:
        self._api.close()

    def prepare(self) -> None:
        self._addresses.check()
        self._api.login()
        self._applications()

    def deploy(self, deployment: Deployment, remember: Handle | None = None) -> Handle:  # noqa: ARG002 - names find it
        """Application, service and instance, each only where it is not there yet. DeployFailed where one is refused."""
        application = self._made_application(deployment.job)
        service = self._service(application, deployment.job)
        if service is None:
            number = self._made_service(application, deployment)
        else:
            number = _id(service)
            if asked(service):  # it has its instance, or has had it
                return {"application": application, "service": number}
        answer = self._api.post(f"/api/service/{number}/instance")
        if not answer.good:
            raise self._refused("POST", f"/api/service/{number}/instance", answer.status)
        return {"application": application, "service": number}

    def status(self, job: str, handle: Handle) -> Status:
        """As Oakestra reports it some seconds later; a builder that has died is taken away from it at once."""
        service = self._read_service(job, handle)
        if service is None:
            return Status(phase=BuilderPhase.GONE, reason="Oakestra has no such service")
        self._remember_logs(job, service)
        status = judge(service, ran=job in self._ran)
        if status.phase is BuilderPhase.RUNNING:
            self._ran.add(job)
        if status.phase is BuilderPhase.ENDED and status.exit_code != 0:
            self._api.delete(f"/api/service/{_id(service)}")  # or it would be started again; `remove` sees to the rest
        return status

    def remove(self, job: str, handle: Handle | None) -> bool:  # noqa: ARG002 - names find what no handle was kept of
        """The service, and its application where nothing else is in it; what counts is what the lists say."""
        application = self._application(job)
        if application is not None:
            number = str(application.get("applicationID"))
            services = self._services(number)
            for service in services:
                if _name(service) == job:
                    self._delete(f"/api/service/{_id(service)}")
            if all(_name(service) == job for service in services):
                self._delete(f"/api/application/{number}")
                if self._application(job) is not None:
                    return False
            elif self._service(number, job) is not None:
                return False
        self._ran.discard(job)
        self._printed.pop(job, None)
        return True

    def logs(self, job: str, handle: Handle | None) -> str:
        """The last 1024 bytes, as Oakestra samples them, while the service is there and until it is removed."""
        service = self._read_service(job, handle or {})
        if service is not None:
            self._remember_logs(job, service)
        return self._printed.get(job, "")

    def orphans(self, prefix: str, known: Collection[str]) -> Mapping[str, Handle]:
        """Services of ours by their names; an application that lacks its service counts as one with the attempt 0."""
        found: dict[str, Handle] = {}
        for application in self._applications():
            project = stem(application)
            if project is None or not project.startswith(prefix):
                continue
            number = str(application.get("applicationID"))
            jobs = {_name(service): _id(service) for service in self._services(number)}
            for job, service in jobs.items():
                if job.startswith(project) and job not in known:
                    found[job] = {"application": number, "service": service}
            if not jobs and not any(job.startswith(project) for job in known):
                found[project + "0"] = {"application": number, "service": None}
        return found

    # --- application ---

    def _applications(self) -> list[dict[str, Any]]:
        answer = self._api.get("/api/applications/")
        if not answer.good or not isinstance(answer.document, list):
            raise self._api.unexpected("GET", "/api/applications/", answer)
        return [one for one in answer.document if isinstance(one, dict)]

    def _application(self, job: str) -> dict[str, Any] | None:
        """By its name in the list: asked for one application, Oakestra answers null."""
        return next((one for one in self._applications() if is_ours(one, job)), None)

    def _made_application(self, job: str) -> str:
        """Its id; one that stands there from an earlier call is taken."""
        answer = self._api.post("/api/application/", application_sla(job))
        if answer.good and isinstance(answer.document, list):
            listed = [one for one in answer.document if isinstance(one, dict)]
            found = next((one for one in listed if is_ours(one, job)), None)
        elif answer.status == _CONFLICT:
            found = self._application(job)
        else:
            raise self._refused("POST", "/api/application/", answer.status)
        number = str((found or {}).get("applicationID") or "")
        if not number:
            raise OrchestratorUnreachable(
                f"Oakestra has the application {application_name(job)} and does not list it (answer {answer.status})",
                hint="the manager asks again by itself; an application of another user may have this name",
            )
        return number

    # --- service ---

    def _services(self, application: str) -> list[dict[str, Any]]:
        answer = self._api.get(f"/api/services/{application}")
        if answer.status == _NOT_FOUND:
            return []
        if not answer.good or not isinstance(answer.document, list):
            raise self._api.unexpected("GET", f"/api/services/{application}", answer)
        return [one for one in answer.document if isinstance(one, dict)]

    def _service(self, application: str, job: str) -> dict[str, Any] | None:
        return next((one for one in self._services(application) if _name(one) == job), None)

    def _made_service(self, application: str, deployment: Deployment) -> str:
        document = service_sla(
            deployment,
            application=application,
            image=self._addresses.code,
            command=self._command,
            settings={name: self._settings[name] for name in BUILDER_SETTINGS if name in self._settings},
        )
        answer = self._api.post("/api/service/", document)
        if not answer.good or not isinstance(answer.document, dict):
            raise self._refused("POST", "/api/service/", answer.status)
        number = answer.document.get("job_id")
        if answer.document.get("failed_services") or not number or not isinstance(number, str):
            raise DeployFailed(
                f"Oakestra did not take the service {deployment.job}, though it answered 200",
                hint="its system manager's log says why",
            )
        return number

    def _read_service(self, job: str, handle: Handle) -> dict[str, Any] | None:
        if number := handle.get("service"):
            answer = self._api.get(f"/api/service/{number}")
            if answer.status == _NOT_FOUND or (answer.good and answer.document is None):
                return None
            if not answer.good or not isinstance(answer.document, dict):
                raise self._api.unexpected("GET", f"/api/service/{number}", answer)
            return answer.document
        application = self._application(job)
        return self._service(str(application.get("applicationID")), job) if application else None

    def _remember_logs(self, job: str, service: Mapping[str, Any]) -> None:
        for instance in instances(service):
            if isinstance(text := instance.get("logs"), str) and text:
                self._printed[job] = text

    def _delete(self, path: str) -> None:
        """500 and 501 may mean that it is gone: who asked looks at the list."""
        answer = self._api.delete(path)
        if not answer.good and answer.status not in (_NOT_FOUND, _SERVER, _ABSENT):
            raise self._api.unexpected("DELETE", path, answer)

    def _refused(self, method: str, path: str, status: int) -> OrchestratorUnreachable | DeployFailed:
        """A server's fault may pass; what is refused now will be refused again."""
        if status >= _SERVER or status == _TOO_MANY:
            return OrchestratorUnreachable(
                f"Oakestra answers {status} to {method} {path}", hint="the manager asks again by itself"
            )
        return DeployFailed(
            f"Oakestra refuses the builder: {status} to {method} {path}", hint="its system manager's log says why"
        )


def _name(service: Mapping[str, Any]) -> str:
    return str(service.get("microservice_name"))


def _id(service: Mapping[str, Any]) -> str:
    return str(service.get("microserviceID"))


@contextmanager
def start(manager: ManagerContext) -> Iterator[OakestraOrchestrator]:
    """BadSetting where a setting is missing, or can't be used by builders on nodes."""
    settings = manager.settings
    url, password, image = settings.oakestra_url, settings.oakestra_password, settings.builder_image
    if url is None or password is None or image is None:
        wanted = {"FLOPS_OAKESTRA_URL": url, "FLOPS_OAKESTRA_PASSWORD": password, "FLOPS_BUILDER_IMAGE": image}
        missing = ", ".join(name for name, value in wanted.items() if not value)
        raise BadSetting(f"the orchestrator oakestra needs {missing}", hint="set them, or use local")
    if settings.sign_key is not None:
        raise BadSetting(
            "builders on Oakestra's nodes can't sign: FLOPS_SIGN_KEY names a file of this machine",
            hint="unset it; a build on a machine that has the key signs existing images: flops build --sign",
        )
    addresses = Addresses(
        manager=manager.url, registry=manager.registry, registry_pull=settings.registry_pull, image=image
    )
    api = OakestraApi(
        url,
        username=settings.oakestra_username,
        password=password.get_secret_value(),
        authorities=settings.ca_bundle,
    )
    with closing(api):
        yield OakestraOrchestrator(api, addresses, settings={**manager.mirrors(), **os.environ})

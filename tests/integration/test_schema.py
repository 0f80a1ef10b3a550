"""The OpenAPI document against what is answered: generated requests, good and bad ones, over a real connection."""

import json
import os
import re
import tempfile
from collections import Counter, defaultdict
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.generation import GenerationMode
from tests.orchestrators import World, failed
from tests.web import open_access, serving

from flops.service.api import create_app
from flops.service.attempts import Tallies
from flops.service.bus import Bus
from flops.service.project import BuilderState, Project, State
from flops.service.streams import Streams
from flops_wire.manager import PROJECTS

pytestmark = pytest.mark.integration

OPERATIONS = {
    f"POST {PROJECTS}",
    f"GET {PROJECTS}",
    f"GET {PROJECTS}/{{project_id}}",
    f"POST {PROJECTS}/{{project_id}}/cancel",
    f"GET {PROJECTS}/{{project_id}}/events",
    f"GET {PROJECTS}/{{project_id}}/logs",
    f"GET {PROJECTS}/{{project_id}}/attempts/{{attempt}}/job",
    f"POST {PROJECTS}/{{project_id}}/attempts/{{attempt}}/events",
    "GET /healthz",
    "GET /metrics",
}


class Service:
    """A manager, and projects for requests that are to find one."""

    def __init__(self, world, url) -> None:
        self.world = world
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        self.seen = defaultdict(Counter)
        self.cases = Counter()
        self.done = world.submit(ml_repo_url="https://git.example.com/acme/other")
        world.steps(4)
        world.post(self.done, failed())
        world.settle()
        self._running: Project | None = None
        self._numbers = count(1)

    @property
    def running(self):
        """A project whose builder runs; another one once this one has ended."""
        if self._running is None or self.world.now(self._running).state.ended:
            for state in (State.ACCEPTED, State.BUILDING):
                for project in self.world.manager.projects(limit=500, state=state).projects:
                    self.world.manager.cancel(project.id)
            number = next(self._numbers)
            self._running = self.world.submit(ml_repo_url=f"https://git.example.com/acme/running-{number}")
            for _ in range(50):
                self.world.clock.move(1)
                self.world.steps()
                if self.world.now(self._running).builder is BuilderState.RUNNING:
                    break
        return self.world.now(self._running)

    def aim(self, case) -> None:
        """Point good requests at projects that are there, as an API's users do."""
        if case.meta.generation.mode is not GenerationMode.POSITIVE:
            return
        if isinstance(case.body, dict) and "ml_repo_url" in case.body:
            # these have grammars, or name what the operator has set, which no schema tells
            case.body["ml_repo_url"] = "https://git.example.com/acme/digits"
            for key in (
                "ml_repo_ref",
                "ml_repo_subdir",
                "base_image",
                "groups",
                "git_credential",
                "registry_credential",
            ):
                case.body.pop(key, None)
            if case.headers and "Idempotency-Key" in case.headers:
                case.headers["Idempotency-Key"] = f"key-{next(self._numbers)}"
        if not case.path_parameters:
            return
        self.cases[case.operation.label] += 1
        if self.cases[case.operation.label] % 4 == 0:
            return  # and some at none
        project = self.done if case.path.endswith(("/{project_id}/events", "/logs")) else self.running
        if case.path.endswith("/cancel"):
            project = self.world.submit(ml_repo_url="https://git.example.com/acme/cancelled")
        if "attempt" in case.path_parameters:
            case.path_parameters["attempt"] = project.attempt
            token = self.world.orchestrator.job_of(project).deployment.token
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {token}"}
        case.path_parameters["project_id"] = project.id


@pytest.fixture(scope="module")
def service():
    memory = Path("/dev/shm")  # some thousand commits, none of which is to outlive this test
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as place:
        yield from served(Path(place))


def served(place):
    world = World(place / "projects.sqlite3")
    app = create_app(
        world.manager, open_access(), checks={"part": lambda: None}, streams=Streams(world.manager, lifetime=0.05)
    )
    with serving(app) as url:
        service = Service(world, url)
        yield service
        service.session.close()
    world.close()


#: The document needs no manager.
_NOBODY = SimpleNamespace(bus=Bus(), tallies=Tallies(), ended_sessions=dict)
schema = schemathesis.openapi.from_dict(create_app(_NOBODY, open_access()).openapi())


def every_answer_is_as_the_document_says(case, service):
    service.aim(case)
    answer = case.call(base_url=service.url, session=service.session, timeout=20)
    service.seen[case.operation.label][answer.status_code] += 1
    assert answer.status_code < 500
    case.validate_response(answer)


def checked(label):
    """A test of one operation. Each has a name of its own: run in several processes, tests of one name count as one."""
    method, path = label.split(" ", 1)

    def test(case, service):
        every_answer_is_as_the_document_says(case, service)

    test.__name__ = "test_" + re.sub(r"[^a-z]+", "_", label.lower()).strip("_")
    bounded = settings(
        max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    return test.__name__, schema.include(method=method, path=path).parametrize()(bounded(test))


globals().update(map(checked, sorted(OPERATIONS)))


def test_every_operation_was_reached(service):
    """Runs after those above: no operation is left out, and each one succeeded at least once."""
    assert set(service.seen) == OPERATIONS
    reached = {name for name, counts in service.seen.items() if any(status < 300 for status in counts)}
    assert reached == OPERATIONS, json.dumps(service.seen, indent=1)

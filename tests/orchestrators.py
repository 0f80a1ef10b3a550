"""A scripted orchestrator, git host and registry: the protocols of `flops.service`, obeyed by a test.

Builders are records, or threads where `builder` is given; how they stand is what the script says.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from flops.errors import OrchestratorUnreachable
from flops.orchestrators import BuilderPhase, Deployment, Status
from flops.service.ledger import SystemClock
from flops.service.manager_settings import ManagerSettings
from flops.service.reconcile import TaskKind
from flops.service.store import Store
from flops.use_cases.lookup import SourceLookup
from flops_wire.events import TAGGING, event

COMMIT = "c" * 40


class Killed(BaseException):
    """Stands for the end of the manager's process at this very place."""


@dataclass
class Builder:
    """What was deployed."""

    deployment: Deployment
    status: Status = field(default_factory=lambda: Status(phase=BuilderPhase.RUNNING))
    log: str = "hello from the builder\n"
    thread: threading.Thread | None = None
    stop: threading.Event = field(default_factory=threading.Event)


class ScriptedOrchestrator:
    """Keeps what an orchestrator would keep, so it outlives the managers that use it.

    `builder(deployment, stop)` is run in a thread for each. `faults` is consumed from the left: a verb with an exception, which
    is raised before (`("deploy", error)`) or after the verb has worked (`("deploy after", error)`).
    """

    name = "scripted"

    def __init__(self, builder=None) -> None:
        self.builder = builder
        self.builders: dict[str, Builder] = {}
        self.deployed: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.faults: list[tuple[str, BaseException]] = []
        self.forgetful = 0
        """So many removals are not done although they were asked for."""
        self.first = Status(phase=BuilderPhase.RUNNING)
        """How a new builder stands."""
        self.most = 0
        """Builders that existed at the same time, at most."""
        self.guard = threading.RLock()

    def prepare(self) -> None:
        self._fault("prepare")

    def deploy(self, deployment, remember=None):
        with self.guard:
            self.calls.append(("deploy", deployment.job))
            self._fault("deploy")
            if deployment.job not in self.builders:
                made = self.builders[deployment.job] = Builder(deployment=deployment, status=self.first)
                self.deployed.append(deployment.job)
                self.most = max(self.most, len(self.builders))
                if self.builder is not None:
                    made.thread = threading.Thread(target=self._run, args=(made,), daemon=True)
                    made.thread.start()
            self._fault("deploy after")
            return {"job": deployment.job}

    def status(self, job, handle):
        with self.guard:
            self.calls.append(("status", job))
            self._fault("status")
            known = self.builders.get(job)
            return known.status if known else Status(phase=BuilderPhase.GONE)

    def remove(self, job, handle):
        with self.guard:
            self.calls.append(("remove", job))
            self._fault("remove")
            if self.forgetful > 0:
                self.forgetful -= 1
                return False
            gone = self.builders.pop(job, None)
            if gone is not None:
                gone.stop.set()
            self._fault("remove after")
            return True

    def logs(self, job, handle):
        with self.guard:
            self._fault("logs")
            known = self.builders.get(job)
            return known.log if known else ""

    def orphans(self, prefix, known):
        with self.guard:
            self._fault("orphans")
            return {job: {"job": job} for job in self.builders if job.startswith(prefix) and job not in known}

    # --- the script ---
    def job_of(self, project) -> Builder:
        """The newest builder of a project."""
        return [one for one in self.builders.values() if one.deployment.project == project.id][-1]

    def lose(self, project, *, code=None, evicted=False, failed=False, memory_kills=None) -> None:
        """Its builder ends without a word."""
        self.job_of(project).status = Status(
            phase=BuilderPhase.ENDED, exit_code=code, evicted=evicted, failed=failed, memory_kills=memory_kills
        )

    def unreachable(self, verb: str, times: int = 1) -> None:
        self.faults += [(verb, OrchestratorUnreachable("the orchestrator does not answer"))] * times

    def _run(self, made: Builder) -> None:
        self.builder(made.deployment, made.stop)
        with self.guard:
            made.status = Status(phase=BuilderPhase.ENDED, exit_code=0)

    def _fault(self, verb: str) -> None:
        if self.faults and self.faults[0][0] == verb:
            raise self.faults.pop(0)[1]


class ScriptedSources:
    """Judges as the real one, and answers commits from a table."""

    def __init__(self, *, allow_local=False, allow_hosts=()) -> None:
        self.lookup = SourceLookup(allow_local=allow_local, allow_hosts=allow_hosts)
        self.commits: dict[str | None, str] = {}
        self.failures: list[BaseException] = []
        self.asked: list[tuple[str, str | None, object]] = []
        self.gate: threading.Event | None = None

    def judge(self, text, *, ref=None, subdir=""):
        return self.lookup.judge(text, ref=ref, subdir=subdir)

    def commit(self, place, ref, credential=None):
        self.asked.append((place.text, ref, credential))
        if self.gate is not None:
            self.gate.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        if place.local:
            return None
        return self.commits.get(ref, COMMIT)


class ScriptedImages:
    """A registry: results by repository, commit, recipe and platform."""

    def __init__(self) -> None:
        self.results: dict[tuple[str, str, str], dict] = {}
        self.failures: list[BaseException] = []
        self.asked = 0
        self.commits: list[tuple[str, bool]] = []
        """Commits whose own tags were looked after, and whether by force."""
        self.refuses: BaseException | None = None

    def add(self, project, platforms=None) -> dict:
        result = result_of(project, platforms or project.platforms)
        self.results[project.repository, result["commit"], project.recipe] = result
        return result

    def existing(self, place, commit, recipe, platforms, credential=None):
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        result = self.results.get((place.text, commit, recipe.digest))
        wanted = {platform.value for platform in platforms}
        if result is None or not all(wanted <= set(one["platforms"]) for one in result["images"].values()):
            return None
        return result

    def move_commit(self, place, commit, recipe, platforms, credential=None, *, force=False):
        if self.refuses is not None:
            raise self.refuses
        self.commits.append((commit, force))
        return True


class HandClock(SystemClock):
    """Stands still until it is moved on."""

    def __init__(self, now=1_800_000_000.0) -> None:
        self.time = now

    def now(self):
        return self.time

    def monotonic(self):
        return self.time

    def move(self, seconds: float) -> None:
        self.time += seconds


def opened(store: Store) -> Store:
    """Open, and without waiting for the disk: no test here cuts the power."""
    store.open()
    store._writer.execute("PRAGMA synchronous = OFF")
    return store


def images_of(platforms, commit=COMMIT) -> dict:
    entries = {
        name: {
            "digest": "sha256:" + "1" * 64,
            "layers": 3,
            "bytes": 1000,
            "uncompressed_bytes": 3000,
            "layer_sizes": [],
        }
        for name in platforms
    }
    return {
        actor: {
            "reference": f"registry.test/acme/digits/{actor}:{commit}",
            "digest": "sha256:" + "2" * 64,
            "platforms": entries,
        }
        for actor in ("learner", "aggregator")
    }


def result_of(project, platforms=None) -> dict:
    """What a build of this project would print."""
    commit = project.commit or COMMIT
    return {
        "repository": project.repository,
        "commit": commit,
        "recipe": project.recipe,
        "registry": "registry.test",
        "images": images_of(platforms or project.platforms, commit),
        "python": {"requested": None, "used": "3.11.2", "provider": "debian"},
        "adjustments": [],
        "findings": [],
        "seconds": {
            "clone": 0.1,
            "check": 0.1,
            "resolve": 0.5,
            "fetch": 1.0,
            "assemble": 1.0,
            "verify": 0.1,
            "push": 0.4,
            "total": 3.2,
        },
        "bytes": {"downloaded": 10, "uploaded": 20, "reused": 30},
    }


def tagging(result=None) -> dict:
    """A builder asks to move tags, for these images or those of a project that says nothing of platforms."""
    result = result or {"commit": COMMIT, "recipe": "sha256:0", "images": images_of(["linux/amd64"])}
    images = {
        actor: {
            "digest": image["digest"],
            "platforms": {name: one["digest"] for name, one in image["platforms"].items()},
        }
        for actor, image in result["images"].items()
    }
    tags = [result["commit"], f"{result['commit']}-{result['recipe'].partition(':')[2][:12]}"]
    return event("push", "started", "tags move", code=TAGGING, data={"tags": tags, "images": images})


def succeeded(project, platforms=None) -> dict:
    return event("push", "succeeded", "images are in place", data={"result": result_of(project, platforms)})


def failed(code="STRUCTURE", message="model_manager.py is missing") -> dict:
    findings = [{"code": code, "path": "model_manager.py", "line": 3, "message": message, "hint": "write it"}]
    error = {"code": code, "message": message, "hint": "write it", "findings": findings}
    return event("check", "failed", message, code=code, data={"error": error})


def sla(**more) -> dict:
    return {"ml_repo_url": "https://git.example.com/acme/digits", "ml_model_flavor": "sklearn", **more}


def settings(**more) -> ManagerSettings:
    given = {
        "registry": "http://127.0.0.1:5073",
        "advertise": "http://127.0.0.1:5072",
        "poll_seconds": 0.05,
        "retry_seconds": 0.02,
    }
    return ManagerSettings(**{**given, **more})


@dataclass
class World:
    """A manager and all that outlives it. `restart` opens its database again as a new process would."""

    path: Path
    settings: ManagerSettings = field(default_factory=settings)
    orchestrator: ScriptedOrchestrator = field(default_factory=ScriptedOrchestrator)
    sources: ScriptedSources = field(default_factory=ScriptedSources)
    images: ScriptedImages = field(default_factory=ScriptedImages)
    clock: HandClock = field(default_factory=HandClock)
    """Or the system's, where a test waits."""

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        from flops.service.operations import Manager

        self.store = opened(Store(self.path))
        self.manager = Manager(
            self.store,
            orchestrator=self.orchestrator,
            sources=self.sources,
            images=self.images,
            settings=self.settings,
            clock=self.clock,
        )

    def close(self) -> None:
        self.manager.close()
        self.store.close()

    def restart(self, **changes) -> None:
        self.close()
        self.settings = replace(self.settings, **changes)
        self.open()

    def submit(self, *, force=False, **more):
        return self.manager.submit(sla(**more), force=force).project

    def now(self, project):
        return self.manager.project(project.id)

    def steps(self, times: int = 1) -> list:
        """All that is due, so often; what was done."""
        done = []
        for _ in range(times):
            reconciler = self.manager.reconciler
            done += [(task.kind.value, task.project.id, reconciler.perform(task)) for task in reconciler.due()]
        return done

    def settle(self, rounds: int = 60) -> None:
        """Steps, with time passing between them, until there is nothing left to do."""
        for _ in range(rounds):
            self.clock.move(61)
            if not self.steps():
                return
        raise AssertionError("it does not come to rest")

    def post(self, project, *events, token=None, attempt=None):
        """As the project's newest builder would."""
        deployment = self.orchestrator.job_of(project).deployment
        number = attempt or int(deployment.url.rpartition("/")[2])
        return self.manager.post_events(self.manager.admit(project.id, number, token or deployment.token), list(events))

    def succeed(self, project, *before):
        """Its builder has put its images in the registry, asks to move tags (unless it has), and reports success; the registry
        is asked.
        """
        now = self.now(project)
        result = self.images.add(now)
        asked = () if now.tagging else (tagging(result),)
        self.post(project, *before, *asked, succeeded(now))
        self.prove()

    def prove(self):
        """Ask the registry for all success that was reported; what became of each."""
        reconciler = self.manager.reconciler
        return [reconciler.perform(task) for task in reconciler.due() if task.kind is TaskKind.PROVE]

    def kinds(self, project) -> list[tuple[str, str]]:
        return [(one["stage"], one["kind"]) for one in self.manager.events(project.id)]

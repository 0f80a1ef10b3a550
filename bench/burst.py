"""A burst of projects at a manager: all end, in order, none is lost; its memory and how quickly it answers meanwhile.

The manager is a process of its own over HTTP, with an orchestrator whose builders are this process: each fetches its job, tells
its events, asks for its leave to tag and tells its result, as a real one does, and builds nothing. Exit code 1 above the limits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx

from flops.orchestrators import BuilderPhase, Status
from flops.service.access import Access, OpenGate, Sessions
from flops.service.api import create_app
from flops.service.manager_settings import ManagerSettings
from flops.service.operations import Manager
from flops.service.server import listen, serve
from flops.service.store import Store
from flops.use_cases.lookup import SourceLookup
from flops_wire.events import TAGGING, event
from flops_wire.manager import PROJECTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from flops.orchestrators import Deployment, Handle
    from flops.platforms import Platform
    from flops.recipe import Recipe
    from flops.use_cases.lookup import ProjectSource

MEMORY = 200
"""Megabytes (PSS) of the manager."""
ANSWER = 100
"""Milliseconds, 99 of 100 answers."""
CLIENTS = 4
"""That post, each the next one as soon as it is answered."""
OVERTAKEN = 16
"""Places in the order of acceptance."""
STAGES = ("clone", "check", "resolve", "fetch", "assemble", "verify", "push")
COMMIT = "c" * 40


# --- the manager's process ---
class Announced:
    """An orchestrator that says on stdout which builder is wanted; whoever reads it is the builder."""

    name = "bench"

    def prepare(self) -> None:
        pass

    def deploy(self, deployment: Deployment, remember: Handle | None = None) -> Handle:  # noqa: ARG002
        line = json.dumps({"job": deployment.job, "url": deployment.url, "token": deployment.token})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        return {"job": deployment.job}

    def status(self, job: str, handle: Handle) -> Status:  # noqa: ARG002
        return Status(phase=BuilderPhase.RUNNING)

    def remove(self, job: str, handle: Handle | None) -> bool:  # noqa: ARG002
        return True

    def logs(self, job: str, handle: Handle | None) -> str:  # noqa: ARG002
        return ""

    def orphans(self, prefix: str, known: Collection[str]) -> Mapping[str, Handle]:  # noqa: ARG002
        return {}


class Commits(SourceLookup):
    def commit(self, place: ProjectSource, ref: str | None, credential: Mapping[str, str] | None = None) -> str | None:  # noqa: ARG002
        return COMMIT


class Images:
    """A registry that holds whatever it is asked for a second time: the first time is before there is a builder."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def existing(
        self,
        place: ProjectSource,
        commit: str,
        recipe: Recipe,
        platforms: tuple[Platform, ...],
        credential: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> dict[str, Any] | None:
        if place.text not in self._asked:
            self._asked.add(place.text)
            return None
        return result(place.text, commit, recipe.digest, [platform.value for platform in platforms])

    def move_commit(self, *_: object, force: bool = False) -> bool:  # noqa: ARG002
        return False


def manage(directory: Path, builders: int) -> None:
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    stop = threading.Event()
    settings = ManagerSettings(registry="http://127.0.0.1:5073", advertise=url, builders=builders)
    with Store(directory / "projects.sqlite3") as store:
        manager = Manager(store, orchestrator=Announced(), sources=Commits(), images=Images(), settings=settings)
        access = Access(gate=OpenGate(), sessions=Sessions(secret=b""), names=frozenset({"127.0.0.1"}))
        manager.run(stop)
        serve(create_app(manager, access), listener, started=lambda: print(json.dumps({"url": url}), flush=True))
        stop.set()
        manager.close()


# --- builders ---
class Builders:
    def __init__(self, wanted: IO[str], count: int) -> None:
        self.order: list[str] = []
        self._wanted = wanted
        self._pool = ThreadPoolExecutor(count)
        self._client = httpx.Client(timeout=60, trust_env=False)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._wanted:
            wanted = json.loads(line)
            self.order.append(wanted["url"].split("/")[-3])
            self._pool.submit(self._build, wanted)

    def _build(self, wanted: Mapping[str, str]) -> None:
        headers = {"Authorization": f"Bearer {wanted['token']}"}
        job = self._client.get(wanted["url"] + "/job", headers=headers).json()
        batches = [
            [event(stage, "started", stage), event(stage, "finished", stage, data={"seconds": 0.1})] for stage in STAGES
        ]
        made = result(job["source"], job["ref"], job["recipe_digest"], job["platforms"])
        images = {
            actor: {**image, "platforms": {name: one["digest"] for name, one in image["platforms"].items()}}
            for actor, image in made["images"].items()
        }
        move = {"tags": [job["ref"]], "images": images}
        batches.append([event("push", "started", "tags move", code=TAGGING, data=move)])
        batches.append([event("push", "succeeded", "done", data={"result": made})])
        for batch in batches:
            answer = self._client.post(wanted["url"] + "/events", headers=headers, json={"events": batch})
            assert answer.status_code == 200, answer.text


def result(source: str, commit: str, recipe: str, platforms: Sequence[str]) -> dict[str, Any]:
    entry = {"digest": "sha256:" + "1" * 64, "layers": 30, "bytes": 1, "uncompressed_bytes": 1}
    images = {
        actor: {
            "reference": f"127.0.0.1:5073/acme/digits/{actor}:{COMMIT}",
            "digest": "sha256:" + "2" * 64,
            "platforms": dict.fromkeys(platforms, entry),
        }
        for actor in ("learner", "aggregator")
    }
    place = {"registry": "127.0.0.1:5073", "repository": source}
    return {**place, "commit": commit, "recipe": recipe, "images": images}


# --- the burst ---
class Burst:
    def __init__(self, url: str, count: int) -> None:
        self.url, self.count = url, count
        self.posts: list[float] = []
        self.gets: list[float] = []
        self.ids: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.done = threading.Event()
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False, limits=httpx.Limits(max_connections=64))

    def post(self, number: int) -> str:
        document = {"ml_repo_url": f"https://git.example.com/acme/digits{number}", "ml_model_flavor": "sklearn"}
        answer, seconds = _timed(lambda: self._client.post(PROJECTS, json=document))
        assert answer.status_code == 200, answer.text
        self.posts.append(seconds)
        project: str = answer.json()["project"]["id"]
        self.ids.put(project)
        return project

    def look(self) -> None:
        """Somebody who looks at the newest project, again and again."""
        last = self.ids.get()
        while not self.done.is_set():
            while not self.ids.empty():
                last = self.ids.get()
            answer, seconds = _timed(partial(self._client.get, f"{PROJECTS}/{last}"))
            assert answer.status_code == 200
            self.gets.append(seconds)
            time.sleep(0.01)

    def ended(self) -> bool:
        found = self._client.get(PROJECTS, params={"state": "images_ready", "limit": 1}).json()
        return bool(found["total"] == self.count)

    def accepted(self) -> list[str]:
        """In the order of their acceptance."""
        pages = (
            self._client.get(PROJECTS, params={"limit": 200, "offset": at}).json() for at in itertools.count(0, 200)
        )
        rows = itertools.chain.from_iterable(itertools.takewhile(bool, (page["projects"] for page in pages)))
        return [one["id"] for one in rows][::-1]


def _timed(call: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    begun = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - begun


def megabytes(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[0]) / 1024


def cpu(pid: int) -> float:
    """Processor seconds so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98] * 1000


def measure(directory: Path, count: int, builders: int) -> bool:
    words = [sys.executable, __file__, "--manage", str(directory), "--builders", str(builders)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            burst = Burst(json.loads(child.stdout.readline())["url"], count)
            return _run(burst, Builders(child.stdout, builders), child.pid)
        finally:
            child.terminate()


def _run(burst: Burst, builders: Builders, pid: int) -> bool:
    threading.Thread(target=burst.look, daemon=True).start()
    begun, most = time.monotonic(), 0.0
    with ThreadPoolExecutor(CLIENTS) as pool:
        posted = list(pool.map(burst.post, range(burst.count)))
    accepted_in = time.monotonic() - begun
    while not burst.ended():
        most = max(most, megabytes(pid))
        if time.monotonic() - begun > 600:
            raise SystemExit("not all of them ended")
        time.sleep(0.2)
    took, most = time.monotonic() - begun, max(most, megabytes(pid))
    burst.done.set()
    accepted = burst.accepted()
    assert sorted(posted) == sorted(accepted), "one was lost"
    assert sorted(builders.order) == sorted(accepted), "one was built twice"
    places = {project: place for place, project in enumerate(accepted)}
    moved = max(abs(places[project] - place) for place, project in enumerate(builders.order))
    figures = {
        "projects": burst.count,
        "accepted in seconds": round(accepted_in, 2),
        "ended in seconds": round(took, 2),
        "projects in a second": round(burst.count / took, 1),
        "out of turn, at most": moved,
        "POST, p99 in ms": round(p99(burst.posts), 1),
        "GET, p99 in ms": round(p99(burst.gets), 1),
        "answers to GET": len(burst.gets),
        "manager, PSS in MB": round(most, 1),
        "manager, CPU seconds": round(cpu(pid), 1),
    }
    for name, value in figures.items():
        print(f"{name:<24}{value}")
    # commits are asked for, and builders deployed, several at a time
    if moved > OVERTAKEN:
        return False
    return most < MEMORY and p99(burst.posts) < ANSWER and p99(burst.gets) < ANSWER


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--projects", type=int, default=200)
    parser.add_argument("--builders", type=int, default=8)
    parser.add_argument("--manage", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.manage is not None:
        manage(words.manage, words.builders)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        return 0 if measure(Path(directory), words.projects, words.builders) else 1


if __name__ == "__main__":
    sys.exit(main())

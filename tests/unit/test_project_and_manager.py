"""`flops project` and the manager itself, over a real connection; builders are threads of the scripted orchestrator."""

import json
import threading

import pytest
from tests.orchestrators import ScriptedOrchestrator, World, failed, succeeded, tagging
from tests.web import open_access, serving

from flops.cli import main as command_line
from flops.service.api import create_app
from flops.service.ledger import SystemClock
from flops_wire.events import event


class Place:
    """A manager at work; `script(project)` gives the events that its builders post."""

    def __init__(self, tmp_path):
        self.script = lambda project: []
        self.go = threading.Event()
        self.world = World(
            tmp_path / "projects.sqlite3", orchestrator=ScriptedOrchestrator(self.build), clock=SystemClock()
        )
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.world.manager.run, args=(self.stop,))
        self.thread.start()

    def build(self, deployment, stop):
        self.go.wait(30)
        if self.stop.is_set():  # the store is being closed
            return
        project = self.world.manager.project(deployment.project)
        attempt = int(deployment.url.rpartition("/")[2])
        self.world.images.add(project)
        for one in self.script(project):
            if stop.is_set():
                return
            self.world.manager.post_events(self.world.manager.admit(project.id, attempt, deployment.token), [one])
        stop.wait(30)

    def close(self):
        self.stop.set()
        self.go.set()
        self.thread.join(30)
        self.world.close()


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("FLOPS_API_TOKEN", "FLOPS_CA_BUNDLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "sla.json").write_text(
        json.dumps({"ml_repo_url": "https://git.example.com/acme/digits", "ml_model_flavor": "sklearn", "odd": 1})
    )
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    try:
        with serving(create_app(place.world.manager, open_access())) as url:
            monkeypatch.setenv("FLOPS_MANAGER", url)
            yield place
    finally:
        place.close()


@pytest.fixture
def run(capsys):
    def call(*words):
        code = command_line.main(words)
        return (code, *capsys.readouterr())

    return call


def build_events(project):
    progress = event("fetch", "progress", "", data={"done": 1, "total": 2, "unit": "bytes"})
    yield event("clone", "started", "cloning")
    yield event("clone", "finished", "", data={"seconds": 0.5})
    yield event("fetch", "started", "wheels \u2028 and \u0085 in a line")
    yield progress
    yield event("fetch", "finished", "", data={"seconds": 1.5})
    yield tagging()
    yield succeeded(project)


def test_a_project_from_its_start_to_its_images(place, run):
    place.script = build_events
    place.go.set()
    code, out, err = run("project", "start", "sla.json", "--watch")
    assert code == 0, err
    assert (out.count("odd"), "odd" in err) == (1, False)  # the manager's warning about an unknown key
    for line in ("clone: cloning", "fetch: done in 1.5 s", "images are ready, built in 3.2 s"):
        assert line in out
    (project,) = json.loads(run("project", "list", "--json")[1])["projects"]
    assert "docker pull registry.test/acme/digits/learner" in run("project", "show", project["id"][:10])[1]
    # at any later time its events tell the same, and the log what it printed
    code, again, _ = run("project", "watch", project["id"][:6])
    assert (code, again) == (0, out)
    told = [json.loads(line) for line in run("project", "watch", project["id"], "--json")[1].splitlines()]
    stored = [one["sequence"] for one in told if one["sequence"]]
    assert stored == sorted(set(stored))
    assert told[-1]["kind"] == "succeeded"
    assert "hello from the builder" in run("project", "logs", project["id"])[1]


def test_images_that_stand_already(place, run):
    project = place.world.submit()
    place.world.manager.cancel(project.id)  # it must not be asked for before the images stand
    place.world.images.add(project)
    again = place.world.submit()
    code, out, _ = run("project", "watch", again.id)
    assert code == 0
    assert "images are ready" in out


def test_a_build_that_fails_ends_with_its_own_code(place, run):
    place.script = lambda project: [event("check", "started", "structure"), failed()]
    place.go.set()
    code, out, _ = run("project", "start", "sla.json", "--watch")
    assert code == 4
    assert "--> model_manager.py:3" in out
    assert "failed at check" in out


def test_cancel_ends_whoever_watches(place, run):
    place.script = lambda project: [event("clone", "started", "cloning")]
    _, out, _ = run("project", "start", "sla.json")
    number = out.strip()
    results = []
    watching = threading.Thread(
        target=lambda: results.append(command_line.main(["project", "watch", number, "--json"]))
    )
    watching.start()
    assert run("project", "cancel", number[:12])[0] == 0
    watching.join(30)
    assert results == [130]
    assert run("project", "cancel", number)[0] == 9


def test_a_refused_sla_names_every_place(place, run, tmp_path):
    (tmp_path / "sla.json").write_text(json.dumps({"ml_repo_url": "https://10.0.0.1/a/b", "supported_platforms": []}))
    code, _, err = run("project", "start", "sla.json")
    assert code in (2, 3)
    assert "error[" in err

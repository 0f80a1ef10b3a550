"""`flops serve` and `flops project start`, as its users have them: images at the end, events on the way, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.service import Service, free_port, processes, wait_until
from tests.faults.world import builders_of, skip_without_parts
from tests.integration.conftest import components  # noqa: F401 - a fixture
from tests.integration.test_registries import DockerRegistry

from flops.oci.client import RegistryClient
from flops.oci.reference import Registry
from flops.platforms import Platform

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
IMAGES = "local/digits-sklearn"
STAGES = ("queue", "deploy", "clone", "check", "resolve", "fetch", "assemble", "verify", "push", "remove")
BUILDER = "flops_manager/fl_actors_image_builder"
PARTS = ("build_preparation", "base_image_build", "base_image_push", "actor_images_build", "actor_images_push")


@pytest.fixture
def sla(tmp_path):
    """The example's SLA, for this machine's platform alone."""
    document = json.loads((ROOT / "examples" / "sla.json").read_text())
    document["supported_platforms"] = ["linux/amd64"]
    document["ml_repo_url"] = str(ROOT / "examples" / "digits-sklearn")
    path = tmp_path / "sla.json"
    path.write_text(json.dumps(document))
    return path


def flops(service, *words):
    environment = {**service.environment, "FLOPS_MANAGER": service.url}
    return subprocess.run(
        [sys.executable, "-m", "flops.cli.main", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def build(service, sla):
    """The project's id, after the command that started and watched it."""
    done = flops(service, "project", "start", sla, "--watch", "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    number = done.stderr.split("project ")[1].split()[0]
    skip_without_parts(service.over(number))
    assert done.returncode == 0, done.stderr
    return number, told


def check(service, number, registry):
    """What stands in the registry is what was told, whole, and nothing else is left."""
    project = service.project(number)
    assert (project["state"], project["builder"]) == ("images_ready", "removed")
    events = service.events(number)
    assert [one["kind"] for one in events].count("succeeded") == 1
    for job in builders_of(events):
        assert processes(job) == []
    with RegistryClient(registry) as client:
        for actor, image in project["images"].items():
            tag = image["reference"].rpartition(":")[2]
            found = client.get_manifest(f"{IMAGES}/{actor}", tag)
            assert found.digest == image["digest"]
            assert client.images(f"{IMAGES}/{actor}", tag).keys() == {Platform.LINUX_AMD64}
    return events


def test_the_example_from_its_sla_to_images_and_all_over_again(tmp_path, sla):
    with Service(tmp_path, "--allow-local") as service:
        registry = Registry.parse(service.places["registry"])
        number, told = build(service, sla)
        events = check(service, number, registry)
        stored = [one for one in told if one["sequence"] is not None]
        assert stored == events[: len(stored)]  # the command ended with the outcome, the removal came after it
        assert stored[-1]["kind"] == "succeeded"
        begun = [one["stage"] for one in events if one["kind"] == "started" and one["code"] is None]
        assert begun == list(STAGES)
        assert {one["stage"] for one in events if one["kind"] == "finished"} == set(STAGES)
        shown = flops(service, "project", "show", number, "--json")
        assert json.loads(shown.stdout)["images"] == service.project(number)["images"]
        assert "--- attempt 1" in flops(service, "project", "logs", number).stdout
        again, told = build(service, sla)
        assert check(service, again, registry)
        first, second = (service.project(one)["images"] for one in (number, again))
        assert [one["digest"] for one in first.values()] == [one["digest"] for one in second.values()]
        assert service.end(15) == 0
    assert not list((tmp_path / "data" / "registry").rglob("*.partial"))


def test_another_registry_and_flops_broker(tmp_path, sla, components):  # noqa: F811
    with DockerRegistry(tmp_path / "distribution") as server:
        words = ("--allow-local", "--registry", server.registry.url, "--broker", components.broker)
        with Service(tmp_path, *words) as service:
            number, _ = build(service, sla)
            check(service, number, server.registry)
            components.wait_for(messages=2)
            wait_until(lambda: "flops_mirror_backlog 0.0" in service.client.get("/metrics").text, "an empty outbox")
    (started, first), (succeeded, last) = components.messages
    assert (started, succeeded) == (f"{BUILDER}/started", f"{BUILDER}/success")
    assert first == {"flops_project_id": number}
    assert tuple(last) == ("flops_project_id", *PARTS, "full_builder_process")
    assert last["flops_project_id"] == number
    assert all(last[name].endswith(" seconds") for name in PARTS)


def test_a_repository_that_breaks_the_contract_ends_with_its_findings(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_manager.py").write_text("class ModelManager:\n    def get_model(self): ...\n")
    (broken / "requirements.txt").write_text("-e ./part\n")
    sla = tmp_path / "sla.json"
    sla.write_text(json.dumps({"ml_repo_url": "./broken", "ml_model_flavor": "sklearn"}))
    with Service(tmp_path, "--allow-local") as service:
        done = flops(service, "project", "start", sla, "--watch")
        assert done.returncode == 4, done.stderr
        number = done.stderr.split("project ")[1].split()[0]
        project = service.over(number)
        assert (project["state"], project["error"]["code"]) == ("failed", "STRUCTURE")
        found = {(one["path"], one["line"], one["code"]) for one in project["error"]["findings"]}
        assert ("requirements.txt", 1, "REQUIREMENT_FORBIDDEN") in found
        assert "fit_model" in done.stdout + done.stderr
        assert [one["kind"] for one in service.events(number)].count("failed") == 1


def test_a_broker_that_is_away_and_an_observer_that_says_nothing_hold_nobody_up(tmp_path, sla):
    """FLOps' own components may be missing: the project ends as ever, and what they were to hear waits for them."""
    words = ("--allow-local", "--broker", f"127.0.0.1:{free_port()}", "--observer-port", str(free_port()))
    with Service(tmp_path, *words) as service:
        number, _ = build(service, sla)
        check(service, number, Registry.parse(service.places["registry"]))
        (backlog,) = [
            line
            for line in service.client.get("/metrics").text.splitlines()
            if line.startswith("flops_mirror_backlog ")
        ]
        assert float(backlog.split()[1]) > 0
        assert service.client.get("/healthz").status_code == 200

"""`flops job` as a process: its events against a real registry, the leave to tag, and being stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.unit import test_job as unit

from flops.recipe import Flavor, Policy, Recipe
from flops.registry.app import EmbeddedRegistry

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits-sklearn"
LEARNER = "local/digits-sklearn/learner"
NOT_HERE = ("BASE_UNAVAILABLE", "INDEX_UNREACHABLE")


@pytest.fixture
def registry(tmp_path):
    with EmbeddedRegistry(tmp_path / "registry") as running:
        yield running.registry


@contextmanager
def builder(manager):
    """The process that an orchestrator starts, and its number in every child's environment."""
    number = f"test{uuid.uuid4().hex[:12]}"
    variables = {"FLOPS_JOB_ID": number, "FLOPS_JOB_URL": manager.url, "FLOPS_JOB_TOKEN": unit.TOKEN}
    with subprocess.Popen(
        [sys.executable, "-m", "flops.cli.main", "job"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **variables},
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            yield child, number
        finally:
            child.kill()


def descendants(number):
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FLOPS_JOB_ID={number}".encode() in place.read_bytes():
                found.append(place)
        except OSError:
            continue
    return found


def gone(number):
    end = time.monotonic() + 20
    while found := descendants(number):
        assert time.monotonic() < end, f"{found} are left"
        time.sleep(0.05)


def run(manager):
    with builder(manager) as (child, number):
        _, said = child.communicate(timeout=600)
    gone(number)
    for event in manager.events:
        if event["code"] in NOT_HERE:
            pytest.skip(event["message"])
    return child.returncode, said


def job(registry, **changes):
    return unit.job_document(source=str(EXAMPLE), allow_local=True, registry=registry.url, **changes)


def test_a_build_s_events_and_tags_that_move_with_the_leave_only(registry):
    tags = []

    def script(method, body, nth):
        if body and any(event["code"] == "TAGGING" for event in body["events"]):
            if not tags:  # the first time: break the connection, so that it is asked again
                tags.append(httpx.get(f"{registry.url}/v2/{LEARNER}/tags/list").status_code)
                return unit.CUT
            tags.append(httpx.get(f"{registry.url}/v2/{LEARNER}/tags/list").json().get("tags"))
        return None

    with unit.ScriptedManager(job=job(registry), script=script) as manager:
        code, said = run(manager)
        assert code == 0, said
        kinds = [
            (event["stage"], event["kind"]) for event in manager.events if event["kind"] not in ("adjusted", "finding")
        ]
    stages = ("clone", "check", "resolve", "fetch", "assemble", "verify", "push")
    expected = [(stage, kind) for stage in stages for kind in ("started", "finished")]
    expected.insert(-1, ("push", "started"))  # TAGGING
    assert kinds == [*expected, ("push", "succeeded")]
    assert not tags[1], "a tag was there before the leave was given"
    result = manager.events[-1]["data"]["result"]
    commit = result["images"]["learner"]["reference"].rpartition(":")[2]
    found = httpx.get(f"{registry.url}/v2/{LEARNER}/tags/list").json()["tags"]
    assert sorted(found, key=len) == [commit, f"{commit}-{unit.RECIPE.short}"]
    assert unit.TOKEN not in said

    def refuse(method, body, nth):
        return 410 if body and any(event["code"] == "TAGGING" for event in body["events"]) else None

    other = Recipe(flavor=Flavor.SKLEARN, policy=Policy.STRICT)  # would be another tag
    changes = {"recipe": {**unit.job_document()["recipe"], "policy": "strict"}, "recipe_digest": other.digest}
    with unit.ScriptedManager(job=job(registry, **changes), script=refuse) as manager:
        code, said = run(manager)
        assert code == 0, said
        assert "wants no more of this attempt" in said
        assert all(event["kind"] not in ("succeeded", "failed") for event in manager.events)
    assert httpx.get(f"{registry.url}/v2/{LEARNER}/tags/list").json()["tags"] == found


def test_it_stops_with_all_its_programs_when_it_is_told(registry):
    """Its git waits for a host that says nothing: by a signal, and by the manager's answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/a/b"
        wanted = unit.job_document(source=url, ref="0" * 40, registry=registry.url, allow_hosts=["127.0.0.1"])
        with unit.ScriptedManager(job=wanted) as manager, builder(manager) as (child, number):
            connection, _ = silent.accept()
            assert descendants(number)
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=60) == 130
            gone(number)
            connection.close()
            assert [event["kind"] for event in manager.events] == ["started"]

        def over(method, body, nth):
            return 410 if body else None

        with unit.ScriptedManager(job=wanted, script=over) as manager, builder(manager) as (child, number):
            assert child.wait(timeout=60) == 0
            gone(number)
            assert manager.events == []

"""All faults of the service in full length: builders and managers killed in every stage and at random, cancels, registries, disks.

FLOPS_SOAK_KILLS is the number of kills at random moments (100). It prints the kills of each stage; none may be zero.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter

import pytest
from tests.faults import builders, scenarios
from tests.faults.service import processes
from tests.faults.world import builders_of
from tests.faults.world import world as made

from flops.observer.fold import between

pytestmark = pytest.mark.integration

KILLS = int(os.environ.get("FLOPS_SOAK_KILLS", "100"))
#: Stages that take some milliseconds are not always hit.
TRIES = 25


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with made(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.mark.timeout(1800)
def test_a_builder_killed_in_every_stage(world):
    kills = Counter()
    for stage in builders.STAGES:
        for _ in range(TRIES):
            seen, project = builders.in_stage(world, stage)
            kills[seen] += 1
            assert (project["state"], project["attempt"]) == ("images_ready", 2)
            if kills[stage]:
                break
    for moved in range(4):
        project = builders.after_tagging(world, moved)
        kills[f"{moved} tags moved"] += 1
        assert project["state"] == ("failed" if moved < 2 else "images_ready")
    for moved in range(4):
        _, project = builders.forced(world, moved)
        kills[f"{moved} tags moved by force"] += 1
        assert project["state"] == ("failed" if moved < 2 else "images_ready")
    print(dict(kills))  # noqa: T201 - what `make soak` is for
    assert all(kills[stage] for stage in builders.STAGES)


@pytest.mark.timeout(3600)
def test_builders_killed_at_random_moments(world):
    """Within the time that a builder lives here; only one that was alive counts as killed."""
    chance, kills, ends = random.Random(7), Counter(), Counter()
    whole = world.audit(world.begin())
    lifetime = between(whole["started"], whole["ended"])
    tries = 0
    while sum(kills.values()) < KILLS:
        tries += 1
        assert tries <= 5 * KILLS, "builders end before they can be killed"
        number = world.begin()
        with world.service.watch(number) as watch:
            pid = watch.builder()
            time.sleep(chance.uniform(0, lifetime))
            moment = " ".join(watch.last)
            killed = builders.kill(pid)
            project = world.audit(number)
        kills.update([moment] if killed else [])
        ends[project["state"], project["attempt"]] += 1
        assert project["state"] == "images_ready" or project["error"]["code"] in ("BUILDER_LOST", "OOM_KILLED")
    print(f"{tries} builders, {sum(kills.values())} killed", dict(kills), dict(ends))  # noqa: T201
    assert len(kills) > 2


@pytest.mark.timeout(1800)
def test_both_builders_of_a_project_killed(world):
    number = world.begin()
    with world.service.watch(number) as watch:
        for attempt in (1, 2):
            assert builders.kill(watch.builder(attempt))
        project = world.audit(number)
    assert (project["state"], project["attempt"]) == ("failed", 2)


@pytest.mark.timeout(1800)
def test_a_manager_killed_in_every_state(world):
    for moment in scenarios.MOMENTS:
        project = scenarios.manager_killed(world, moment)
        print(moment, project["state"], project["attempt"])  # noqa: T201
        assert project["state"] == ("cancelled" if moment == "removing" else "images_ready"), moment
        assert project["attempt"] <= (2 if moment == "deploying" else 1)


@pytest.mark.timeout(1800)
def test_a_manager_killed_at_random_moments_with_its_registry(tmp_path):
    """The embedded registry goes with it, and builders wait for both."""
    chance = random.Random(11)
    with made(tmp_path, embedded=True) as world:
        for _ in range(max(3, KILLS // 10)):
            numbers = [world.begin() for _ in range(3)]
            for _ in range(3):
                time.sleep(chance.uniform(0, 3))
                world.service.kill()
                world.service.start()
            for number in numbers:
                project = world.audit(number)
                assert project["state"] == "images_ready", project["error"]


@pytest.mark.timeout(1800)
def test_cancels_in_every_stage_and_against_the_tags(world):
    for stage in ("clone", "tagging"):
        status, project = scenarios.cancelled_in(world, stage)
        assert (status, project["state"]) in ((200, "cancelled"), (409, "images_ready"))
    races = Counter(scenarios.cancel_races_tags(world)[0] for _ in range(20))
    print(dict(races))  # noqa: T201


@pytest.mark.timeout(1800)
def test_one_commit_for_different_platforms(world):
    """They take turns, and the index gains what is missing."""
    revision = world.commit()
    first = world.begin(revision, "linux/amd64")
    second = world.begin(revision, "linux/arm64")
    both = world.begin(revision, "linux/amd64", "linux/arm64")
    for number in (first, second, both):
        project = world.audit(number)
        assert project["state"] == "images_ready", project["error"]
    for actor in ("learner", "aggregator"):
        for tag in world.tags(actor, revision):
            assert world.whole(actor, tag)[1] == {"linux/amd64", "linux/arm64"}
    assert scenarios.builders_seen(world, [first, second, both]) <= 3


@pytest.mark.timeout(600)
def test_a_registry_that_stays_away(world):
    project = scenarios.registry_away(world, None)
    assert (project["state"], project["error"]["code"]) == ("failed", "REGISTRY_UNREACHABLE")


@pytest.mark.timeout(600)
def test_a_leader_that_is_cancelled_leaves_a_successor(world):
    revision = world.commit()
    world.git_gate.close(builders.is_fetch)
    numbers = [world.begin(revision) for _ in range(4)]
    world.git_gate.wait()
    (led,) = [number for number in numbers if world.service.project(number)["waits_for"] is None]
    assert world.service.cancel(led) == 200
    world.git_gate.open()
    states = Counter(world.audit(number, shared=True)["state"] for number in numbers)
    assert states == {"cancelled": 1, "images_ready": 3}
    assert scenarios.builders_seen(world, numbers) == 2


@pytest.mark.timeout(600)
def test_a_full_disk_is_waited_for(tmp_path):
    """The manager's database on a small file system: nothing is accepted, nothing is lost, and it goes on by itself."""
    with scenarios.small_disk(tmp_path / "small", 16) as disk, made(tmp_path, FLOPS_DATA_DIR=str(disk)) as world:
        before = world.begin()
        assert world.audit(before)["state"] == "images_ready"
        world.git_gate.close(builders.is_fetch)
        during = world.begin()
        world.git_gate.wait()
        filler = scenarios.fill(disk)
        answer = world.service.post(world.sla(world.commit()))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "DISK_FULL")
        world.git_gate.open()
        time.sleep(5)  # its builder has something to tell meanwhile
        assert world.service.project(during)["state"] == "building"
        filler.unlink()
        assert world.audit(during)["state"] == "images_ready"
        assert world.audit(world.begin())["state"] == "images_ready"


@pytest.mark.timeout(1800)
def test_a_full_disk_under_the_builders_cache(tmp_path):
    """From one that holds nothing to one on which all but the images themselves has its place."""
    spares = (0, *(number * 1024 * 1024 for number in (4, 16, 40, 90, 140)))
    variables = {"FLOPS_REUSE": "local"}  # with layers from the registry, an empty cache needs 4 MB
    with (
        scenarios.small_disk(tmp_path / "small", 1000) as disk,
        made(tmp_path, FLOPS_CACHE_DIR=str(disk), **variables) as world,
    ):
        for spare in spares:
            failed, done = scenarios.cache_full(world, disk, spare)
            scenarios.check_disk_full(failed, disk)
            assert (done["state"], done["attempt"]) == ("images_ready", 1), done["error"]
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert world.audit(world.begin())["state"] == "images_ready"
        failed, done = scenarios.cache_full(world, disk, 0)  # where all but its own files is there
        scenarios.check_disk_full(failed, disk)
        assert (done["state"], done["attempt"]) == ("images_ready", 1), done["error"]


def test_nothing_is_left(world):
    """After all of this."""
    time.sleep(1)
    page = world.service.client.get("/api/flops/projects", params={"limit": 200}).json()["projects"]
    assert all(one["builder"] in ("none", "removed") for one in page)
    for one in page:
        for job in builders_of(world.service.events(one["id"])):
            assert processes(job) == []

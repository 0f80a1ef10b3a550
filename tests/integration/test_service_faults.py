"""What becomes of projects when builders and managers are killed, registries vanish and people cancel; in short.

`tests/soak/test_service_faults.py` has all of it. Everything is done from outside: signals, and gates before git host and registry.
"""

from __future__ import annotations

import signal

import pytest
from tests.faults import builders, scenarios
from tests.faults.world import world as made

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with made(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.mark.parametrize("stage", ["deploy", "assemble"])
def test_a_killed_builder_has_one_successor(world, stage):
    _, project = builders.in_stage(world, stage)
    assert (project["state"], project["attempt"]) == ("images_ready", 2)


@pytest.mark.parametrize(("moved", "state"), [(1, "failed"), (2, "images_ready")])
def test_after_the_leave_to_tag_the_registry_decides(world, moved, state):
    project = builders.after_tagging(world, moved)
    assert (project["state"], project["attempt"]) == (state, 1)
    if state == "failed":  # a signal from outside looks like the kernel's own for memory
        assert project["error"]["code"] in ("BUILDER_LOST", "OOM_KILLED")


@pytest.mark.parametrize(("moved", "state"), [(0, "failed"), (2, "images_ready")])
def test_images_that_stood_before_prove_nothing_for_a_forced_project(world, moved, state):
    before, project = builders.forced(world, moved)
    assert (project["state"], project["attempt"]) == (state, 1)
    tags = {
        (actor, tag): world.whole(actor, tag)[0] for actor in before for tag in world.tags(actor, project["commit"])
    }
    assert len(tags) == 4
    stands = [digest == before[actor] for (actor, _), digest in tags.items()]
    assert stands == [state == "failed"] * 4, "all of the one or all of the other"


@pytest.mark.parametrize("moment", ["accepted", "building", "tagging"])
def test_a_manager_that_is_killed_goes_on_with_the_builder_that_it_had(world, moment):
    project = scenarios.manager_killed(world, moment)
    assert (project["state"], project["attempt"]) == ("images_ready", 1)


def test_a_manager_that_is_killed_takes_its_own_children_along_and_leaves_its_builders(world):
    own, builders_before, left = scenarios.killed_between_its_children(world)
    assert len(own) >= 3  # git, what git has started, and what ends them
    assert builders_before
    assert left == builders_before


def test_cancelled_or_tagged_and_never_both(world):
    status, project = scenarios.cancelled_in(world, "clone")
    assert (status, project["state"]) == (200, "cancelled")
    status, project = scenarios.cancelled_in(world, "tagging")
    assert (status, project["state"]) == (409, "images_ready")
    scenarios.cancel_races_tags(world)


def test_twenty_at_once_have_one_builder(world):
    numbers = set(scenarios.at_once(world, [f"key-{index}" for index in range(20)]))
    assert len(numbers) == 20
    assert {world.audit(number)["state"] for number in numbers} == {"images_ready"}
    assert scenarios.builders_seen(world, numbers) == 1
    (number,) = set(scenarios.at_once(world, ["one-key"] * 20))
    assert world.audit(number)["state"] == "images_ready"


def test_a_builder_s_full_cache_directory_ends_its_project_and_room_makes_it_go(world, tmp_path):
    service, revision = world.service, world.commit()
    before = dict(service.environment)
    with scenarios.small_disk(tmp_path / "small", 12) as disk:
        scenarios.fill(disk)
        service.environment["FLOPS_CACHE_DIR"] = str(disk)
        try:
            service.end(signal.SIGTERM)
            service.start()
            scenarios.check_disk_full(world.audit(world.begin(revision)), disk)
        finally:
            service.environment = before
            service.end(signal.SIGTERM)
            service.start()
    done = world.audit(world.begin(revision))
    assert (done["state"], done["attempt"]) == ("images_ready", 1), done["error"]


def test_a_registry_that_is_away_for_a_moment_is_waited_for(world):
    project = scenarios.registry_away(world, 3)
    assert (project["state"], project["attempt"]) == ("images_ready", 1)

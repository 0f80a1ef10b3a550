"""The reconciler: every project comes to its one end, whatever is lost, late, forgotten or killed on the way."""

import contextlib
import copy
import threading
import time
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.orchestrators import (
    COMMIT,
    Killed,
    ScriptedImages,
    ScriptedOrchestrator,
    World,
    failed,
    opened,
    result_of,
    succeeded,
    tagging,
)
from tests.orchestrators import settings as terms

from flops.errors import (
    AccessDenied,
    AttemptOver,
    CloneAuth,
    DeployFailed,
    ImagesUnproven,
    NoCapacity,
    ProjectDecided,
    RegistryAuth,
    RegistryRefused,
    RegistryUnreachable,
)
from flops.orchestrators import BuilderPhase, Status
from flops.service.ledger import SystemClock
from flops.service.project import BuilderState, State
from flops.service.steps import Next
from flops.service.store import Store
from flops.service.tables import Tables
from flops_wire.events import TERMINAL_KINDS, event

OTHER = "https://git.example.com/acme/other"


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "manager.db")
    yield world
    world.close()


def check_ended(world, *projects):
    """One outcome each, told once, and nothing left anywhere."""
    for project in projects:
        now = world.now(project)
        assert now.state.ended
        assert now.builder in (BuilderState.NONE, BuilderState.REMOVED)
        assert now.leader is None
        terminal = [kind for _, kind in world.kinds(project) if kind in TERMINAL_KINDS]
        word = {State.IMAGES_READY: "succeeded", State.FAILED: "failed", State.CANCELLED: "cancelled"}[now.state]
        assert terminal == [word]
        assert (now.error is None) == (now.state is not State.FAILED)
        assert (now.result is None) == (now.state is not State.IMAGES_READY)
        assert now.attempt <= 2
    assert world.orchestrator.builders == {}
    assert len(world.orchestrator.deployed) == len(set(world.orchestrator.deployed)), "no job was started twice"


def running(world, **more):
    project = world.submit(**more)
    world.steps(3)
    assert world.now(project).builder is BuilderState.RUNNING
    return project


# --- before there is a builder ---
def test_a_project_goes_its_way(world):
    project = world.submit()
    world.steps(3)
    world.succeed(project)
    world.settle()
    check_ended(world, project)
    assert world.kinds(project) == [
        ("queue", "started"),
        ("queue", "finished"),
        ("deploy", "started"),
        ("deploy", "finished"),
        ("push", "started"),
        ("push", "succeeded"),
        ("remove", "started"),
        ("remove", "finished"),
    ]


def test_a_source_that_fails_ends_the_project_without_a_builder(world):
    world.sources.failures.append(CloneAuth("the repository is private", hint="name a credential"))
    project = world.submit()
    world.settle()
    check_ended(world, project)
    assert world.now(project).error["code"] == "CLONE_AUTH"
    assert world.orchestrator.deployed == []


def test_images_that_stand_already_need_no_builder(world):
    project = world.submit()
    world.images.add(project)
    forced = world.submit(force=True)
    arm = world.submit(supported_platforms=["linux/arm64"])
    world.steps(3)
    assert world.now(project).state is State.IMAGES_READY
    assert world.now(forced).builder is BuilderState.RUNNING
    assert world.now(arm).leader == forced.id, "another platform has to be built, one builder at a time"


def test_a_registry_that_does_not_answer_is_no_reason_not_to_build(world):
    world.images.failures.append(RegistryUnreachable("no answer"))
    running(world)


def test_the_commit_is_resolved_once(world):
    project = running(world)
    world.restart()
    world.steps(3)
    assert len(world.sources.asked) == 1
    assert world.now(project).commit


def test_places_are_given_in_the_order_of_acceptance(world):
    world.restart(builders=2)
    made = [world.submit(ml_repo_url=f"https://git.example.com/acme/r{number}") for number in range(7)]
    order = []
    for _ in range(40):
        world.clock.move(61)
        world.steps()
        assert len(world.orchestrator.builders) <= 2
        for builder in list(world.orchestrator.builders.values()):
            project = builder.deployment.project
            if project not in order:
                order.append(project)
                world.manager.post_events(world.manager.admit(project, 1, builder.deployment.token), [failed()])
    assert order == [project.id for project in made]
    check_ended(world, *made)


def waits(world, project):
    """What it was told of its waiting."""
    told = [one for one in world.manager.events(project.id) if (one["stage"], one["kind"]) == ("queue", "started")]
    return [one["message"] for one in told][1:]


def test_who_has_to_wait_is_told_how_many_are_before_it(world):
    world.restart(builders=2)
    made = []
    for number in range(4):
        made.append(world.submit(ml_repo_url=f"https://git.example.com/acme/r{number}"))
        world.steps(2)
    assert [waits(world, project) for project in made] == [
        [],
        [],
        ["the project waits for its turn: 2 others are before it"],
        ["the project waits for its turn: 3 others are before it"],
    ]


def test_who_waits_for_another_project_is_told_which(world):
    world.restart(builders=1)
    leader = world.submit()
    world.steps(4)
    one, other = world.submit(supported_platforms=["linux/arm64"]), world.submit(supported_platforms=["linux/arm64"])
    world.steps(4)
    first = f"the project waits for project {leader.id}, which builds the same"
    assert (waits(world, one), waits(world, other)) == ([first], [first])
    world.manager.cancel(leader.id)
    world.steps(4)
    assert waits(world, one) == [first, f"project {leader.id} has ended: a builder of its own is next"]
    assert waits(world, other) == [first, f"the project waits for project {one.id}, which builds the same"]


# --- builders that are lost ---
def test_a_lost_builder_gets_a_second_attempt_after_the_first_is_gone(world):
    project = running(world)
    first = world.orchestrator.job_of(project).deployment
    world.orchestrator.lose(project, code=1)
    world.clock.move(10)
    world.steps(1)
    with pytest.raises(AttemptOver):
        world.post(project, tagging(), token=first.token)
    assert world.now(project).state is State.BUILDING
    world.orchestrator.forgetful = 2
    for _ in range(6):
        assert len(world.orchestrator.builders) <= 1
        world.clock.move(61)
        world.steps(1)
    second = world.orchestrator.job_of(project).deployment
    assert (first.job[:-1], first.job[-1], second.job[-1]) == (second.job[:-1], "1", "2")
    assert first.token != second.token
    with pytest.raises(AccessDenied):
        world.manager.job(project.id, 2, first.token)
    with pytest.raises(AttemptOver):
        world.manager.job(project.id, 1, first.token)
    world.succeed(project)
    world.settle()
    check_ended(world, project)
    assert world.now(project).attempt == 2


@pytest.mark.parametrize(
    ("code", "kills", "expected", "told"),
    [
        (1, 5, "BUILDER_LOST", "exit code 1"),
        (137, None, "OOM_KILLED", "it was killed (signal 9): by the kernel for lack of memory, or by somebody"),
        (137, 1, "OOM_KILLED", "most likely by the kernel"),
        (137, 0, "BUILDER_LOST", "by somebody; the kernel killed nothing for lack of memory meanwhile"),
        (None, None, "BUILDER_LOST", "it ended"),
    ],
)
def test_who_is_lost_twice_is_lost(world, code, kills, expected, told):
    project = running(world)
    for _ in range(2):
        world.orchestrator.lose(project, code=code, memory_kills=kills)
        for _ in range(4):
            world.clock.move(61)
            world.steps()
    world.settle()
    check_ended(world, project)
    assert world.now(project).error["code"] == expected
    assert told in world.now(project).error["message"]
    assert world.now(project).attempt == 2
    assert ("deploy", "failed") in world.kinds(project), "told in the stage that it was lost in"
    assert "attempt 1" in world.manager.log_text(project.id)


def test_who_vanishes_is_lost(world):
    project = running(world)
    world.orchestrator.builders.clear()
    world.clock.move(61)
    world.steps(4)
    assert world.now(project).attempt == 2


def test_lost_after_tagging_is_a_success_if_the_registry_proves_it(world):
    project = running(world)
    world.post(project, tagging())
    world.images.add(world.now(project))
    world.orchestrator.lose(project, code=137)
    world.settle()
    check_ended(world, project)
    assert world.now(project).state is State.IMAGES_READY
    assert world.now(project).images == result_of(world.now(project))["images"]
    assert world.now(project).attempt == 1


def other_images(result, actors=("learner", "aggregator"), **changes):
    """A result with other manifests (or an other index) in some actors' places."""
    result = copy.deepcopy(result)
    for actor in actors:
        image = result["images"][actor]
        image["digest"] = changes.get("digest", image["digest"])
        for one in image["platforms"].values():
            one["digest"] = changes.get("manifest", one["digest"])
    return result


@pytest.mark.parametrize("actors", [("learner",), ("aggregator",), ("learner", "aggregator")])
def test_what_stood_before_proves_nothing_for_who_builds_anew(world, actors):
    """A forced project's builder dies with its leave: the tags that it was to move hold the images of an earlier one."""
    project = running(world, force=True)
    stands = world.images.add(world.now(project))
    world.post(project, tagging(other_images(stands, actors, manifest="sha256:" + "3" * 64)))
    world.orchestrator.lose(project, code=137)
    world.settle()
    check_ended(world, project)
    assert (world.now(project).state, world.now(project).attempt) == (State.FAILED, 1)
    assert world.now(project).error["code"] == "OOM_KILLED"


def test_what_a_lost_builder_was_to_name_proves_it_also_in_an_index_that_has_grown(world):
    project = running(world, force=True)
    ours = result_of(world.now(project))
    world.images.results[project.repository, ours["commit"], project.recipe] = other_images(
        ours, digest="sha256:" + "9" * 64
    )
    world.post(project, tagging(ours))
    world.restart()
    world.orchestrator.lose(project, code=137)
    world.settle()
    check_ended(world, project)
    assert world.now(project).state is State.IMAGES_READY
    assert world.now(project).images["learner"]["digest"] == "sha256:" + "9" * 64


@pytest.mark.parametrize("force", [False, True])
def test_commit_of_a_proved_project_is_looked_after(world, force):
    """From another recipe by a forced builder, and by no other."""
    project = running(world, force=force)
    world.post(project, tagging(world.images.add(world.now(project))))
    world.orchestrator.lose(project, code=137)
    world.settle()
    assert world.now(project).state is State.IMAGES_READY
    assert world.images.commits == [(COMMIT, force)]


def test_commit_is_left_alone_where_nothing_is_proved(world):
    project = running(world)
    ours = world.images.add(world.now(project))
    world.post(project, tagging(other_images(ours, manifest="sha256:" + "3" * 64)))
    world.orchestrator.lose(project, code=137)
    world.settle()
    assert world.now(project).state is State.FAILED
    assert world.images.commits == []


def test_a_registry_that_refuses_to_move_commit_costs_no_outcome(world):
    lost = running(world)
    world.post(lost, tagging(world.images.add(world.now(lost))))
    world.images.refuses = RegistryAuth("pull only")
    world.orchestrator.lose(lost, code=137)
    world.settle()
    again = world.submit()
    world.settle()
    assert [world.now(one).state for one in (lost, again)] == [State.IMAGES_READY] * 2


def test_commit_of_images_that_are_taken_is_looked_after(world):
    first = running(world)
    world.images.add(world.now(first))
    world.succeed(first)
    world.settle()
    assert world.images.commits == []
    again = world.submit()
    world.settle()
    assert world.now(again).state is State.IMAGES_READY
    assert world.images.commits == [(COMMIT, False)]


def test_who_asks_again_is_judged_by_the_last_word(world):
    project = running(world)
    ours = world.images.add(world.now(project))
    world.post(project, tagging(other_images(ours, manifest="sha256:" + "3" * 64)))
    world.post(project, tagging(ours))
    world.orchestrator.lose(project, code=137)
    world.settle()
    assert world.now(project).state is State.IMAGES_READY


def test_lost_after_tagging_without_proof_is_lost_and_gets_no_second_attempt(world):
    project = running(world, supported_platforms=["linux/amd64", "linux/arm64"])
    world.post(project, tagging())
    world.images.add(world.now(project), ["linux/amd64"])
    world.orchestrator.lose(project, code=1)
    world.settle()
    check_ended(world, project)
    assert world.now(project).error["code"] == "BUILDER_LOST"
    assert len(world.orchestrator.deployed) == 1


def test_a_registry_that_does_not_answer_proves_nothing_either_way(world):
    project = running(world)
    world.post(project, tagging())
    world.images.add(world.now(project))
    world.images.failures += [RegistryUnreachable("no answer")] * 3
    world.orchestrator.lose(project, code=1)
    world.settle()
    check_ended(world, project)
    assert world.now(project).state is State.IMAGES_READY


def test_a_registry_that_never_answers_ends_it_in_time(world):
    project = running(world)
    world.post(project, tagging())
    world.images.failures += [RegistryUnreachable("no answer")] * 10_000
    world.orchestrator.lose(project, code=1)
    world.settle(rounds=200)
    check_ended(world, project)
    assert world.now(project).error["code"] == "BUILDER_LOST"


# --- builders that report success ---
def claimed(world, project, result=None):
    """A builder asks for leave to name its images, and reports success; what it says is right, but nothing was pushed."""
    result = result or result_of(world.now(project))
    world.post(project, tagging(result), event("push", "succeeded", "done", data={"result": result}))


def test_success_is_what_the_registry_says_and_nothing_else(world):
    project = running(world)
    ours = copy.deepcopy(world.images.add(world.now(project)))
    layer = {"digest": "sha256:" + "5" * 64, "bytes": 7}
    for image in world.images.results[project.repository, COMMIT, project.recipe]["images"].values():
        image["platforms"]["linux/amd64"] |= {"layer_sizes": [{**layer, "title": ""}]}
    for image in ours["images"].values():
        image |= {"reference": "evil.example/x:latest", "digest": "sha256:" + "8" * 64}
        image["platforms"]["linux/amd64"] |= {"bytes": 1, "layer_sizes": [{**layer, "bytes": 1, "title": "numpy"}, 3]}
    ours |= {
        "repository": "https://evil.example/a/b",
        "commit": "e" * 40,
        "recipe": "sha256:x",
        "registry": "evil.example",
    }
    claimed(world, project, ours)
    world.settle()
    check_ended(world, project)
    now, proof = world.now(project), result_of(world.now(project))
    assert now.state is State.IMAGES_READY
    for name in ("repository", "commit", "recipe", "registry"):
        assert now.result[name] == proof[name], name
    assert now.result["seconds"] == ours["seconds"], "only the builder knows"
    for actor, image in now.images.items():
        assert (image["reference"], image["digest"]) == tuple(
            proof["images"][actor][key] for key in ("reference", "digest")
        )
        (one,) = image["platforms"].values()
        assert (one["bytes"], one["layer_sizes"]) == (1000, [{**layer, "title": "numpy"}])
    (last,) = [one for one in world.manager.events(project.id) if one["kind"] == "succeeded"]
    assert last["data"]["result"] == now.result


@pytest.mark.parametrize("lie", ["nothing", "an older image", "another actor's", "a platform too few"])
def test_images_that_the_registry_does_not_hold_end_the_project_and_its_followers_not_as_ready(world, lie):
    wanted = {"supported_platforms": ["linux/amd64", "linux/arm64"]}
    project = running(world, **wanted)
    follower = world.submit(**wanted)
    world.steps()
    assert world.now(follower).leader == project.id
    ours = result_of(world.now(project))
    if lie != "nothing":
        world.images.add(world.now(project), ["linux/amd64"] if lie == "a platform too few" else None)
    if lie == "an older image":
        ours = other_images(ours, manifest="sha256:" + "3" * 64)
    if lie == "another actor's":
        ours = other_images(ours, ["learner"], manifest="sha256:" + "3" * 64)
    claimed(world, project, ours)
    assert not world.now(project).state.ended
    world.settle()
    check_ended(world, project, follower)
    for one in (project, follower):
        assert world.now(one).error["code"] == "IMAGES_UNPROVEN"
    assert world.images.commits == []


def test_success_waits_for_a_registry_that_is_away_and_says_so_once(world):
    project = running(world)
    world.images.add(world.now(project))
    world.images.failures += [RegistryUnreachable("no answer")] * 2 + [RegistryRefused("it answered 503")] * 2
    claimed(world, project)
    world.orchestrator.lose(project, code=0)
    world.steps()
    assert world.now(project).state is State.BUILDING
    world.restart()
    for _ in range(2):
        world.clock.move(61)
        world.steps()
    assert world.now(project).state is State.BUILDING, "a builder that has ended is not lost"
    world.settle()
    check_ended(world, project)
    assert world.now(project).state is State.IMAGES_READY
    told = [one["message"] for one in world.manager.events(project.id) if one["kind"] == "warning"]
    assert told == [
        f"the registry is asked again for the builder's images: {why}" for why in ("no answer", "it answered 503")
    ]


def test_success_that_a_registry_never_confirms_ends_in_time(world):
    project = running(world)
    world.images.failures += [RegistryUnreachable("no answer")] * 10_000
    claimed(world, project)
    world.settle(rounds=200)
    check_ended(world, project)
    assert world.now(project).error["code"] == "REGISTRY_UNREACHABLE"


def test_success_that_the_manager_may_not_look_at_fails_as_that(world):
    project = running(world)
    world.images.failures.append(RegistryAuth("the manager may not read"))
    claimed(world, project)
    world.settle()
    check_ended(world, project)
    assert world.now(project).error["code"] == "REGISTRY_AUTH"


def test_an_answer_to_success_that_was_lost_is_given_again_before_the_registry_was_asked_and_after(world):
    project = running(world)
    result = world.images.add(world.now(project))
    last = [event("push", "finished", "x", data={"seconds": 1}), tagging(result), succeeded(world.now(project))]
    for _ in range(2):
        assert world.post(project, *last) == {"accepted": 3}
    with pytest.raises(AttemptOver):
        world.post(project, failed())
    assert [outcome for *_, outcome in world.steps()] == [Next.NOW]
    assert world.post(project, *last) == {"accepted": 3}
    assert [kind for _, kind in world.kinds(project)].count("succeeded") == 1


def test_a_look_at_the_builder_that_began_before_its_success_does_not_end_it_as_lost(world):
    project = running(world)
    world.images.failures.append(RegistryUnreachable("no answer"))
    status = world.orchestrator.status

    def ends_meanwhile(job, handle):
        claimed(world, project)
        world.orchestrator.lose(project, code=1)
        return status(job, handle)

    world.orchestrator.status = ends_meanwhile
    world.clock.move(61)
    world.steps()
    assert world.now(project).state is State.BUILDING
    world.orchestrator.status = status
    world.images.add(world.now(project))
    world.settle()
    assert world.now(project).state is State.IMAGES_READY


def test_a_builder_that_cannot_be_started_fails_at_once(world):
    for fault, code in ((DeployFailed("no such image"), "DEPLOY_FAILED"), (NoCapacity("no place"), "NO_CAPACITY")):
        world.orchestrator.faults.append(("deploy", fault))
        project = world.submit()
        world.settle()
        check_ended(world, project)
        assert world.now(project).error["code"] == code
    world.orchestrator.first = Status(phase=BuilderPhase.ENDED, failed=True, reason="ImagePullFailed")
    project = world.submit()
    world.settle()
    check_ended(world, project)
    assert world.now(project).error["code"] == "DEPLOY_FAILED"


def test_an_orchestrator_that_does_not_answer_is_asked_again(world):
    world.orchestrator.unreachable("deploy", 3)
    project = world.submit()
    for _ in range(6):
        world.clock.move(61)
        world.steps()
    assert world.now(project).builder in (BuilderState.DEPLOYING, BuilderState.RUNNING)
    world.orchestrator.unreachable("status", 3)
    for _ in range(5):
        world.clock.move(61)
        world.steps()
    assert world.now(project).builder is BuilderState.RUNNING
    world.post(project, failed())
    world.orchestrator.unreachable("remove", 3)
    world.settle()
    check_ended(world, project)


def test_one_that_never_answers_ends_the_project_in_time(world):
    world.orchestrator.unreachable("deploy", 10_000)
    project = world.submit()
    for _ in range(100):
        world.clock.move(61)
        world.steps()
    assert world.now(project).error["code"] == "DEADLINE_EXCEEDED"
    world.orchestrator.faults.clear()
    world.settle()
    check_ended(world, project)


def test_a_bug_in_an_orchestrator_ends_neither_manager_nor_other_projects(world):
    world.orchestrator.faults.append(("deploy", ZeroDivisionError()))
    project, other = world.submit(), world.submit(ml_repo_url=OTHER)
    world.steps(2)
    assert world.now(other).builder is BuilderState.DEPLOYING
    world.clock.move(61)
    world.steps(2)
    assert world.now(project).builder is BuilderState.RUNNING


def test_too_slow_is_told_as_such(world):
    project = running(world)
    world.clock.move(3599)
    world.steps()
    assert world.now(project).state is State.BUILDING
    world.clock.move(2)
    world.settle()
    check_ended(world, project)
    assert world.now(project).error["code"] == "DEADLINE_EXCEEDED"


def test_a_builder_that_cannot_be_removed_takes_its_place_not_for_ever(world):
    world.restart(builders=1)
    project = running(world)
    world.post(project, failed())
    world.orchestrator.forgetful = 1_000_000
    other = world.submit(ml_repo_url=OTHER)
    for _ in range(10):
        world.clock.move(61)
        world.steps()
    assert world.now(other).builder is BuilderState.RUNNING
    assert world.now(project).builder is BuilderState.REMOVING, "it is tried for ever"
    world.post(other, failed())
    world.orchestrator.forgetful = 0
    world.settle()
    check_ended(world, project, other)


def test_unknown_builders_of_this_manager_are_removed_and_no_others(world):
    project = running(world)
    prefix = world.manager.reconciler.prefix
    known = world.orchestrator.job_of(project)
    world.orchestrator.builders[f"{prefix}0123456789ab1"] = known
    world.orchestrator.builders["ffffff0123456789ab1"] = known
    world.manager.reconciler.chores()
    assert set(world.orchestrator.builders) == {known.deployment.job, "ffffff0123456789ab1"}


def test_old_projects_are_forgotten(world):
    world.restart(keep_days=1, keep_projects=3)
    made = [world.submit(ml_repo_ref=f"v{number}") for number in range(6)]
    for project in made[:5]:
        world.manager.cancel(project.id)
        world.clock.move(1)
    assert world.manager.reconciler.forget() == 2
    assert {one.id for one in world.manager.projects(limit=9).projects} == {one.id for one in made[2:]}
    world.clock.move(100_000)
    assert world.manager.reconciler.forget() == 3
    assert [one.id for one in world.manager.projects(limit=9).projects] == [made[5].id]


# --- projects that want the same ---
def test_twenty_that_want_the_same_are_built_once(world):
    made = [world.submit() for _ in range(20)]
    world.steps(8)
    assert len(world.orchestrator.deployed) == 1
    assert {world.now(one).leader for one in made[1:]} == {made[0].id}
    world.succeed(made[0])
    world.settle()
    check_ended(world, *made)
    assert {world.now(one).state for one in made} == {State.IMAGES_READY}
    assert len(world.orchestrator.deployed) == 1


def test_a_failure_is_shared_too(world):
    made = [world.submit() for _ in range(3)]
    world.steps(4)
    world.post(made[0], failed("NO_WHEEL"))
    world.settle()
    check_ended(world, *made)
    assert [world.now(one).error["code"] for one in made] == ["NO_WHEEL"] * 3


def test_a_shared_result_has_the_platforms_that_were_asked_for(world):
    both = world.submit(supported_platforms=["linux/amd64", "linux/arm64"])
    one = world.submit(supported_platforms=["linux/arm64"])
    world.steps(4)
    world.succeed(both)
    for image in world.now(one).images.values():
        assert list(image["platforms"]) == ["linux/arm64"]


def test_who_wants_another_platform_builds_next(world):
    amd = world.submit()
    arm = world.submit(supported_platforms=["linux/arm64"])
    same = world.submit()
    arm_again = world.submit(supported_platforms=["linux/arm64"])
    world.steps(4)
    world.succeed(amd)
    assert world.now(same).state is State.IMAGES_READY
    assert world.now(arm).builder is BuilderState.NONE, "not before the first builder is gone"
    for _ in range(4):
        world.clock.move(61)
        world.steps()
    assert world.now(arm).builder is BuilderState.RUNNING
    assert world.now(arm_again).leader == arm.id
    assert world.orchestrator.most == 1
    world.succeed(arm)
    world.settle()
    check_ended(world, amd, arm, same, arm_again)


def test_a_leaders_cancel_is_its_own(world):
    made = [world.submit() for _ in range(3)]
    world.steps(4)
    world.manager.cancel(made[0].id)
    world.manager.cancel(made[1].id)
    for _ in range(4):
        world.clock.move(61)
        world.steps()
    assert world.now(made[2]).builder is BuilderState.RUNNING
    world.succeed(made[2])
    world.settle()
    check_ended(world, *made)
    assert world.orchestrator.most == 1


def test_a_leader_that_is_cancelled_in_the_queue_leaves_its_place(world):
    world.restart(builders=1)
    first = running(world, ml_repo_url=OTHER)
    made = [world.submit() for _ in range(2)]
    world.steps(2)
    assert world.now(made[0]).builder is BuilderState.QUEUED
    world.manager.cancel(made[0].id)
    assert world.now(made[0]).builder is BuilderState.NONE
    assert world.now(made[1]).builder is BuilderState.QUEUED
    world.post(first, failed())
    world.steps(4)
    world.post(made[1], failed())
    world.settle()
    check_ended(world, first, *made)


def test_force_waits_and_builds(world):
    first = world.submit()
    forced = world.submit(force=True)
    world.steps(4)
    assert world.now(forced).leader == first.id
    world.succeed(first)
    for _ in range(4):
        world.clock.move(61)
        world.steps()
    assert world.now(forced).builder is BuilderState.RUNNING
    world.succeed(forced)
    world.settle()
    check_ended(world, first, forced)


def test_other_commits_and_recipes_are_other_work(world):
    world.restart(builders=9)
    world.sources.commits["next"] = "d" * 40
    made = [
        world.submit(),
        world.submit(ml_repo_ref="next"),
        world.submit(python="3.11"),
        world.submit(ml_repo_subdir="a"),
    ]
    world.steps(4)
    assert len(world.orchestrator.deployed) == len(made)


def test_who_waits_for_nobody_is_noticed(world):
    first, second = world.submit(), world.submit()
    world.steps(3)
    with world.store.write() as tables:
        tables._connection.execute("DELETE FROM projects WHERE id = ?", (first.id,))
    world.orchestrator.builders.clear()
    world.manager.reconciler.chores()
    world.steps(3)
    assert world.now(second).builder is BuilderState.RUNNING


# --- killed anywhere ---
class MortalStore(Store):
    """Ends the manager at the n-th transaction, before or after it is committed."""

    left = -1
    after = False

    @contextmanager
    def write(self):
        cls = type(self)
        cls.left -= 1
        if cls.left == 0 and not cls.after:
            raise Killed
        with super().write() as tables:
            yield tables
        if cls.left == 0 and cls.after:
            raise Killed


class Story:
    """What builders and a person do; they go on through restarts of the manager, and repeat what was not answered."""

    def __init__(self, world, *, posts, cancel_at=None):
        self.world = world
        self.posts = posts  # by attempt
        self.cancel_at = cancel_at
        self.done = {}
        self.said = {}
        self.beats = 0

    def beat(self):
        """Each builder that runs posts its next event, and ends after its last."""
        self.beats += 1
        if self.cancel_at is not None and self.beats >= self.cancel_at:
            with contextlib.suppress(ProjectDecided):
                self.world.manager.cancel(self.world.manager.projects(limit=9).projects[-1].id)
            self.cancel_at = None
        for job, builder in list(self.world.orchestrator.builders.items()):
            if builder.status.phase is BuilderPhase.RUNNING:
                self._post(job, builder)

    def _post(self, job, builder):
        number = int(builder.deployment.url.rpartition("/")[2])
        posts = self.posts[min(number, len(self.posts)) - 1]
        at = self.done.get(job, 0)
        if at >= len(posts):
            builder.status = Status(phase=BuilderPhase.ENDED, exit_code=1)
            return
        project = self.world.manager.project(builder.deployment.project)
        one = self.said.setdefault((job, at), posts[at](project))
        try:
            self.world.manager.post_events(
                self.world.manager.admit(project.id, number, builder.deployment.token), [one]
            )
            self.done[job] = at + 1
        except (AttemptOver, AccessDenied):
            builder.status = Status(phase=BuilderPhase.ENDED, exit_code=0)


CLONE = lambda project: event("clone", "started", "x")  # noqa: E731
TAG = lambda project: tagging(result_of(project))  # noqa: E731
FAIL = lambda project: failed()  # noqa: E731
STORIES = {
    "success": {"posts": [[CLONE, TAG, succeeded]]},
    "failure": {"posts": [[CLONE, FAIL]]},
    "lost, then success": {"posts": [[CLONE], [CLONE, TAG, succeeded]]},
    "lost twice": {"posts": [[CLONE], []]},
    "lost after tagging": {"posts": [[CLONE, TAG]]},
    "cancelled early": {"posts": [[CLONE, TAG, succeeded]], "cancel_at": 1},
    "cancelled while it runs": {"posts": [[CLONE, CLONE, TAG, succeeded]], "cancel_at": 4},
    "cancelled too late": {"posts": [[TAG, CLONE, succeeded]], "cancel_at": 5},
}
OUTCOMES = {
    "success": {State.IMAGES_READY},
    "failure": {State.FAILED},
    "lost, then success": {State.IMAGES_READY},
    "lost twice": {State.FAILED},
    "lost after tagging": {State.IMAGES_READY},
    "cancelled early": {State.CANCELLED},
    "cancelled while it runs": {State.CANCELLED, State.IMAGES_READY},
    "cancelled too late": {State.IMAGES_READY, State.CANCELLED},
}


def tell(tmp_path, name, kill, *, after=False, fault=None, followers=1):
    """A story with one kill in it; the number of transactions that it took, and whether the kill was reached."""
    world = World(tmp_path / f"{kill}-{after}.db", settings=terms(builders=2))
    world.store.close()
    world.store = opened(MortalStore(world.path))
    MortalStore.left, MortalStore.after = -1, after
    killed = False
    rebuild(world)
    made = [world.submit(supported_platforms=["linux/amd64", "linux/arm64"]) for _ in range(1 + followers)]
    first = made[0]
    world.images = PromisedImages(world)
    rebuild(world)
    if fault is not None:
        world.orchestrator.faults.append((fault, Killed()))
    story = Story(world, **STORIES[name])
    MortalStore.left = kill
    for _ in range(60):
        world.clock.move(61 if kill % 2 else 5)
        try:
            for task in world.manager.reconciler.due():
                world.manager.reconciler.perform(task)
            story.beat()
        except Killed:
            killed = True
            world.manager.close()
            world.store.close()
            world.store = opened(MortalStore(world.path))
            rebuild(world)
            world.manager.reconciler.chores()
        if all(world.now(one).state.ended for one in made) and not world.orchestrator.builders:
            break
    MortalStore.left = -1
    world.settle()
    world.manager.reconciler.chores()
    check_ended(world, *made)
    assert world.now(first).state in OUTCOMES[name], world.kinds(first)
    assert world.orchestrator.most <= 2
    world.close()
    return killed


def rebuild(world):
    """A new manager over the open store."""
    from flops.service.operations import Manager

    world.manager = Manager(
        world.store,
        orchestrator=world.orchestrator,
        sources=world.sources,
        images=world.images,
        settings=world.settings,
        clock=world.clock,
    )


class PromisedImages(ScriptedImages):
    """Holds the images of whatever was given its leave to tag."""

    def __init__(self, world):
        super().__init__()
        self.world = world

    def existing(self, place, commit, recipe, platforms, credential=None):
        tagged = [one for one in self.world.manager.projects(limit=9).projects if one.tagging]
        return result_of(tagged[0]) if tagged else None


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", STORIES)
def test_a_manager_killed_at_any_transaction_brings_every_project_to_its_one_end(tmp_path, name, after):
    kills = 0
    for kill in range(1, 90, 3 if after else 1):
        if not tell(tmp_path, name, kill, after=after):
            break
        kills += 1
    assert 4 <= kills < 30, "the story's transactions were ones to be killed at"


@pytest.mark.parametrize("fault", ["deploy", "deploy after", "status", "remove", "remove after", "logs"])
@pytest.mark.parametrize("name", STORIES)
def test_a_manager_killed_while_it_asks_brings_every_project_to_its_one_end(tmp_path, name, fault):
    tell(tmp_path, name, -1, fault=fault)


# --- anything in any order ---
moves = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "step",
                "submit",
                "force",
                "arm",
                "post",
                "tag",
                "succeed",
                "fail",
                "lose",
                "evict",
                "vanish",
                "cancel",
                "restart",
                "time",
                "unreachable",
                "forget",
            ]
        ),
        st.integers(0, 4),
    ),
    max_size=35,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves)
def test_anything_in_any_order_ends_well(tmp_path_factory, story):
    world = World(tmp_path_factory.mktemp("any") / "manager.db", settings=terms(builders=2))
    made = [world.submit()]
    for name, number in story:
        project = made[number % len(made)]
        builders = list(world.orchestrator.builders.values())
        builder = builders[number % len(builders)] if builders else None
        match name:
            case "step":
                world.steps()
            case "submit" | "force":
                made.append(world.submit(force=name == "force"))
            case "arm":
                made.append(world.submit(supported_platforms=["linux/arm64"]))
            case "time":
                world.clock.move(number * 500)
            case "cancel":
                before = world.now(project)
                with contextlib.suppress(ProjectDecided):
                    world.manager.cancel(project.id)
                    assert not before.state.ended
                    assert not before.tagging
            case "restart":
                world.restart()
            case "unreachable":
                world.orchestrator.unreachable(["deploy", "status", "remove", "logs", "orphans"][number])
            case "forget":
                world.orchestrator.forgetful = number
            case _ if builder is None or builder.status.phase is not BuilderPhase.RUNNING:
                pass
            case "lose" | "evict":
                builder.status = Status(phase=BuilderPhase.ENDED, exit_code=137, evicted=name == "evict")
            case "vanish":
                world.orchestrator.builders.pop(builder.deployment.job)
            case _:
                speak(world, builder, name)
    world.orchestrator.faults.clear()
    world.orchestrator.forgetful = 0
    for _ in range(len(made) * 12):  # every builder that is still there is lost, until there is none
        for builder in world.orchestrator.builders.values():
            builder.status = Status(phase=BuilderPhase.ENDED, exit_code=1)
        world.clock.move(61)
        if not world.steps():
            break
    check_ended(world, *made)
    world.close()


def speak(world, builder, name):
    project = world.manager.project(builder.deployment.project)
    number = int(builder.deployment.url.rpartition("/")[2])
    said = {
        "post": lambda: event("fetch", "started", "x"),
        "tag": lambda: tagging(world.images.add(project)),
        "succeed": lambda: succeeded(project),
        "fail": failed,
    }[name]()
    try:
        world.manager.post_events(world.manager.admit(project.id, number, builder.deployment.token), [said])
    except (AttemptOver, ImagesUnproven):
        builder.status = Status(phase=BuilderPhase.ENDED, exit_code=0)


# --- by itself, with threads ---
def test_a_burst_ends_in_order_by_itself(tmp_path):
    """Real clock, real threads: 60 projects, three places, builders that report and end."""
    world: World
    started = []

    def builder(deployment, stop):
        started.append(deployment.project)
        project = world.manager.project(deployment.project)
        world.images.add(project)
        world.manager.post_events(world.manager.admit(project.id, 1, deployment.token), [tagging(), succeeded(project)])

    world = World(
        tmp_path / "manager.db",
        settings=terms(builders=3),
        orchestrator=ScriptedOrchestrator(builder),
        clock=SystemClock(),
    )
    stop = threading.Event()
    world.manager.run(stop)
    made = [world.submit(ml_repo_url=f"https://git.example.com/acme/r{number}") for number in range(60)]
    wait(lambda: world.manager.counts()["builders"]["removed"] == len(made))
    stop.set()
    world.close()
    world.open()
    check_ended(world, *made)
    assert world.orchestrator.most <= 3
    places = {project.id: number for number, project in enumerate(made)}
    order = [places[one] for one in started]
    assert sorted(order) == list(range(60))
    assert all(abs(number - place) <= 6 for number, place in enumerate(order)), order
    world.close()


def test_one_that_hangs_delays_no_other(tmp_path):
    """An orchestrator's call that does not return holds up its own project only."""
    hang = threading.Event()

    class Hanging(ScriptedOrchestrator):
        def deploy(self, deployment, remember=None):
            if deployment.project == stuck.id:
                hang.wait(60)
            return super().deploy(deployment, remember)

    world: World

    def builder(deployment, stop):
        with contextlib.suppress(AttemptOver):  # of the cancelled one
            world.manager.post_events(world.manager.admit(deployment.project, 1, deployment.token), [failed()])

    world = World(tmp_path / "manager.db", orchestrator=Hanging(builder), clock=SystemClock())
    stuck = world.submit(ml_repo_url=OTHER)
    stop = threading.Event()
    world.manager.run(stop)
    made = [world.submit(ml_repo_url=f"https://git.example.com/acme/r{number}") for number in range(5)]
    wait(lambda: all(world.now(one).state.ended for one in made))
    assert not world.now(stuck).state.ended
    world.manager.cancel(stuck.id)
    hang.set()
    wait(lambda: world.manager.counts()["builders"]["removed"] == 6)
    stop.set()
    check_ended(world, stuck, *made)
    world.close()


def test_a_registry_that_hangs_delays_neither_builders_nor_other_projects(tmp_path):
    hang = threading.Event()
    world: World

    def builder(deployment, stop):
        project = world.manager.project(deployment.project)
        said = claims(project) if project.id == stuck.id else [failed()]
        world.manager.post_events(world.manager.admit(project.id, 1, deployment.token), said)
        posted.add(project.id)

    def claims(project):
        return [tagging(world.images.add(project)), succeeded(project)]

    class Hanging(ScriptedImages):
        def existing(self, place, commit, recipe, platforms, credential=None):
            if posted and "digits" in place.text:
                hang.wait(60)
            return super().existing(place, commit, recipe, platforms, credential)

    posted = set()
    world = World(
        tmp_path / "manager.db", orchestrator=ScriptedOrchestrator(builder), images=Hanging(), clock=SystemClock()
    )
    stuck = world.submit()
    stop = threading.Event()
    world.manager.run(stop)
    wait(lambda: stuck.id in posted)
    made = [world.submit(ml_repo_url=f"https://git.example.com/acme/r{number}") for number in range(5)]
    wait(lambda: all(world.now(one).state.ended for one in made))
    assert not world.now(stuck).state.ended
    hang.set()
    wait(lambda: world.manager.counts()["builders"]["removed"] == 6)
    assert world.now(stuck).state is State.IMAGES_READY
    stop.set()
    world.close()


def test_a_git_host_that_hangs_delays_neither_others_nor_chores(tmp_path):
    hang = threading.Event()
    world: World

    def builder(deployment, stop):
        world.manager.post_events(world.manager.admit(deployment.project, 1, deployment.token), [failed()])

    world = World(tmp_path / "manager.db", orchestrator=ScriptedOrchestrator(builder), clock=SystemClock())
    answer = world.sources.commit

    def commit(place, ref, credential=None):
        if "hangs" in place.text:
            hang.wait(60)
        return answer(place, ref, credential)

    world.sources.commit = commit
    stuck = [world.submit(ml_repo_url=f"https://hangs.example.org/acme/r{number}") for number in range(40)]
    stop = threading.Event()
    world.manager.run(stop)
    made = [world.submit(ml_repo_url=f"https://git.example.com/acme/r{number}") for number in range(5)]
    wait(lambda: all(world.now(one).state.ended for one in made))
    assert not any(world.now(one).state.ended for one in stuck)
    assert "stranded" in world.manager.reconciler._chores, "the last of them"
    hang.set()
    wait(lambda: world.manager.counts()["builders"]["removed"] == 45)
    stop.set()
    check_ended(world, *stuck, *made)
    world.close()


def wait(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_a_pause_of_what_is_no_longer_due_makes_nobody_look_without_end(world):
    project = running(world)
    world.steps()  # to look at the builder again is due later
    world.post(project, failed())
    world.orchestrator.unreachable("remove", times=20)
    for _ in range(8):  # its removal is what is due, and the pauses between two tries grow
        world.clock.move(30)
        world.steps()
    assert world.now(project).builder is BuilderState.REMOVING
    assert world.manager.reconciler._rest() == world.settings.poll_seconds
    world.settle()
    check_ended(world, project)


def test_images_of_a_leader_that_is_being_removed_are_taken_at_once(world):
    project = running(world)
    world.succeed(project)
    world.images.add(world.now(project))
    world.orchestrator.unreachable("remove", times=20)
    world.steps()
    assert world.now(project).builder is BuilderState.REMOVING
    other = world.submit()
    world.steps()
    assert world.now(other).state is State.IMAGES_READY
    world.settle()
    check_ended(world, project, other)
    assert len(world.orchestrator.deployed) == 1


def test_what_was_read_while_a_step_ended_is_not_done_again(world, monkeypatch):
    project = world.submit()
    world.steps()
    (task,) = world.manager.reconciler.due()
    busy = world.manager.reconciler._busy
    busy.add(project.id)  # its deployment is under way
    deployed = Tables.deployed

    def ends(tables):
        found = deployed(tables)
        world.manager.reconciler.perform(task)
        busy.discard(project.id)
        return found

    monkeypatch.setattr(Tables, "deployed", ends)
    assert world.manager.reconciler.due() == []
    monkeypatch.undo()
    assert [one.kind.value for one in world.manager.reconciler.due()] == ["watch"]

"""The manager's use cases over a real database, with a scripted orchestrator, git host and registry."""

import asyncio
import json
import sqlite3
import threading

import pytest
from tests import orchestrators as scripted
from tests.orchestrators import COMMIT, ScriptedSources, World, failed, result_of, succeeded, tagging

from flops.errors import (
    AccessDenied,
    AttemptLimit,
    AttemptOver,
    BadRef,
    BadUrl,
    BlockedAddress,
    CredentialInUrl,
    CredentialUnknown,
    DiskFull,
    ImagesUnproven,
    KeyReused,
    ProjectDecided,
    ProjectNotFound,
    SlaInvalid,
    TooMany,
    UsageError,
)
from flops.service.manager_settings import BaseImages
from flops.service.named_credentials import GIT, REGISTRY, CredentialNames, NamedCredentials
from flops.service.project import BuilderState, State
from flops_wire.events import FIELDS, event

SECRET = "sentinel-of-a-password"


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "manager.db")
    yield world
    world.close()


def building(world, **more):
    """A project whose builder was deployed."""
    project = world.submit(**more)
    world.steps(2)
    assert world.now(project).builder is BuilderState.DEPLOYING
    return project


# --- submission ---
def test_a_project_is_accepted_without_asking_anybody(world):
    submission = world.manager.submit(scripted.sla(surprise=1))
    project = submission.project
    assert submission.created
    assert (project.state, project.builder, project.commit) == (State.ACCEPTED, BuilderState.NONE, None)
    assert world.sources.asked == []
    assert world.manager.project(project.id) == project
    assert world.kinds(project) == [("queue", "started"), ("queue", "warning")]
    assert "/surprise" in project.warnings[0]


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"ml_repo_url": 3}, SlaInvalid),
        ([], SlaInvalid),
        (scripted.sla(ml_repo_url="http://git.example.com/a/b"), BadUrl),
        (scripted.sla(ml_repo_url="/srv/digits"), BadUrl),
        (scripted.sla(ml_repo_url="https://127.0.0.1/a/b"), BlockedAddress),
        (scripted.sla(ml_repo_url="https://u:p@git.example.com/a/b"), CredentialInUrl),
        (scripted.sla(ml_repo_ref="--upload-pack=x"), BadRef),
        (scripted.sla(git_credential="team"), CredentialUnknown),
    ],
)
def test_what_can_be_seen_at_once_is_refused_at_once(world, document, error):
    with pytest.raises(error):
        world.manager.submit(document)
    assert world.manager.projects(limit=9).total == 0


def test_a_source_that_may_not_be_built_is_told_with_all_that_is_wrong_beside_it(world):
    wrong = scripted.sla(ml_repo_url="http://git.example.com/a/b", supported_platforms=["windows"])
    with pytest.raises(SlaInvalid) as caught:
        world.manager.submit(wrong)
    told = {one.path: one.code for one in caught.value.findings}
    assert told == {"/supported_platforms/0": "SLA_INVALID", "/ml_repo_url": "BAD_URL"}
    with pytest.raises(SlaInvalid) as caught:
        world.manager.submit(scripted.sla(ml_repo_ref="-x", python="three"))
    assert {one.path for one in caught.value.findings} == {"/ml_repo_ref", "/python"}


def test_a_source_that_may_not_be_built_has_its_place_and_its_own_code(world):
    with pytest.raises(BadUrl) as caught:
        world.manager.submit(scripted.sla(ml_repo_url="http://git.example.com/a/b", surprise=1))
    (found,) = caught.value.findings
    assert (found.path, found.code) == ("/ml_repo_url", "BAD_URL")
    assert caught.value.message in found.message
    assert "/surprise is unknown" in caught.value.hint


def test_a_document_without_a_bottom_is_refused(world):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SlaInvalid):
        world.manager.submit({"ml_repo_url": deep})


def test_the_same_key_is_the_same_project(world):
    first = world.manager.submit(scripted.sla(), idempotency_key="k")
    again = world.manager.submit(scripted.sla(), idempotency_key="k")
    assert (again.project.id, again.created) == (first.project.id, False)
    with pytest.raises(KeyReused):
        world.manager.submit(scripted.sla(verbose=True), idempotency_key="k")
    with pytest.raises(KeyReused):
        world.manager.submit(scripted.sla(), idempotency_key="k", force=True)
    with pytest.raises(UsageError):
        world.manager.submit(scripted.sla(), idempotency_key="x" * 300)
    world.restart()
    assert not world.manager.submit(scripted.sla(), idempotency_key="k").created


def test_one_key_twenty_times_at_once_is_one_project(world):
    found = []

    def submit():
        found.append(world.manager.submit(scripted.sla(), idempotency_key="k"))

    threads = [threading.Thread(target=submit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.project.id for one in found}) == 1
    assert sum(one.created for one in found) == 1
    assert world.manager.projects(limit=99).total == 1


def test_there_is_an_end_to_what_is_taken(world):
    world.restart(projects=2)
    world.submit()
    world.submit()
    with pytest.raises(TooMany):
        world.submit()
    world.manager.cancel(world.manager.projects(limit=1).projects[0].id)
    world.submit()


def test_projects_are_listed_newest_first_in_pages_and_by_state(world):
    made = [world.submit(ml_repo_ref=f"v{number}") for number in range(5)]
    page = world.manager.projects(limit=2, offset=1)
    assert [one.id for one in page.projects] == [made[3].id, made[2].id]
    assert page.total == 5
    world.manager.cancel(made[0].id)
    assert world.manager.projects(limit=9, state=State.CANCELLED).total == 1
    assert world.manager.projects(limit=9, offset=2**70).projects == ()


def test_unknown_projects_are_told_as_such(world):
    for ask in (world.manager.project, world.manager.events, world.manager.cancel, world.manager.log_text):
        for number in ("nothing", "\ud800", "x" * 5000):
            with pytest.raises(ProjectNotFound):
                ask(number)
    with pytest.raises(ProjectNotFound):
        world.manager.subscribe("nothing")
    with pytest.raises(AccessDenied):
        world.manager.job("nothing", 1, "token")


# --- builders ---
def test_a_job_document_is_whole(world):
    world.restart(registry_pull="registry.test", allow_hosts=("git.internal",))
    project = building(world, ml_repo_subdir="sub", python="3.11", supported_platforms=["linux/arm64"], verbose=True)
    deployment = world.orchestrator.job_of(project).deployment
    assert deployment.url == f"http://127.0.0.1:5072/api/flops/projects/{project.id}/attempts/1"
    world.clock.move(100)
    document = world.manager.job(project.id, 1, deployment.token)
    assert json.loads(json.dumps(document)) == {
        "project": project.id,
        "attempt": 1,
        "source": "https://git.example.com/acme/digits",
        "ref": COMMIT,
        "subdir": "sub",
        "platforms": ["linux/arm64"],
        "recipe": {
            "flavor": "sklearn",
            "python": "3.11",
            "policy": "fix",
            "accelerator": "cpu",
            "compression": "gzip",
            "base": None,
            "subdir": "sub",
            "groups": [],
        },
        "recipe_digest": project.recipe,
        "registry": "http://127.0.0.1:5073",
        "registry_pull": "registry.test",
        "force": False,
        "verbose": True,
        "seconds": 3500.0,
        "allow_local": False,
        "allow_hosts": ["git.internal"],
        "credentials": {"git": None, "registry": [], "base": []},
    }


def named(setting, host):
    text = json.dumps({"team": {"host": host, "username": "u", "password": SECRET}})
    return NamedCredentials.parse(text, setting)


def test_credentials_reach_the_builder_and_nothing_that_is_kept(world):
    names = CredentialNames(git=named(GIT, "git.example.com"), registry=named(REGISTRY, "127.0.0.1:5073"))
    world.restart(credentials=names)
    project = building(world, git_credential="team", registry_credential="team")
    deployment = world.orchestrator.job_of(project).deployment
    given = world.manager.job(project.id, 1, deployment.token)["credentials"]
    assert given["git"] == {"host": "git.example.com", "username": "u", "password": SECRET}
    assert given["registry"] == [{"host": "127.0.0.1:5073", "username": "u", "password": SECRET}]
    assert world.sources.asked[0][2]["password"] == SECRET
    world.succeed(project)
    kept = b"".join(path.read_bytes() for path in world.path.parent.iterdir())
    assert SECRET.encode() not in kept
    assert deployment.token.encode() not in kept
    assert SECRET not in json.dumps(world.manager.events(project.id))
    assert SECRET not in repr(world.manager.settings)
    assert deployment.token not in repr(deployment)


def test_a_base_is_never_read_with_what_builders_push_with(world):
    names = CredentialNames(registry=named(REGISTRY, "127.0.0.1:5073"))
    push = {"host": "127.0.0.1:5073", "username": "flops", "password": "push-secret"}
    world.restart(credentials=names, registry_login=push)
    own = {"host": "127.0.0.1:5073", "username": "u", "password": SECRET}
    for more, expected in (({}, ([push], [])), ({"registry_credential": "team"}, ([own], [own]))):
        project = building(world, ml_repo_url=f"https://git.example.com/acme/{len(more)}", **more)
        deployment = world.orchestrator.job_of(project).deployment
        given = world.manager.job(project.id, 1, deployment.token)["credentials"]
        assert (given["registry"], given["base"]) == expected


def test_base_images_are_those_of_the_operators_list(world):
    listed = "registry.example.org/python:3.11"
    world.restart(base_images=BaseImages.parse(listed))
    assert building(world, base_image=listed).sla["base_image"] == listed
    with pytest.raises(SlaInvalid) as caught:
        building(world, base_image="registry.example.org/python:3.12")
    assert [finding.path for finding in caught.value.findings] == ["/base_image"]
    assert listed in caught.value.hint
    assert "FLOPS_BASE_IMAGES" in caught.value.hint


def test_only_its_own_token_opens_an_attempt(world):
    project = building(world)
    other = building(world, ml_repo_url="https://git.example.com/acme/other")
    token = world.orchestrator.job_of(project).deployment.token
    for wrong in ("", "x", world.orchestrator.job_of(other).deployment.token, "ü"):
        with pytest.raises(AccessDenied):
            world.manager.job(project.id, 1, wrong)
        with pytest.raises(AccessDenied):
            world.manager.post_events(world.manager.admit(project.id, 1, wrong), [tagging()])
    for number in (0, 2, -1, 2**80):
        with pytest.raises(AccessDenied):
            world.manager.job(project.id, number, token)


def test_an_attempt_that_ended_after_its_builder_was_admitted_takes_nothing_more(world):
    project = building(world)
    admitted = world.manager.admit(project.id, 1, world.orchestrator.job_of(project).deployment.token)
    world.manager.cancel(project.id)
    before = world.manager.events(project.id)
    for one in (event("clone", "started", "x"), tagging(), failed()):
        with pytest.raises(AttemptOver):
            world.manager.post_events(admitted, [one])
    assert world.manager.events(project.id) == before


def test_events_are_stored_once_and_in_order_and_are_whole(world):
    project = building(world)
    one, two, three = (
        event("clone", "started", "a"),
        event("clone", "finished", "b", data={"seconds": 1}),
        event("check", "started", "c"),
    )
    assert world.post(project, one, two) == {"accepted": 2}
    assert world.post(project, two, three) == {"accepted": 2}
    told = [each for each in world.manager.events(project.id) if each["stage"] in ("clone", "check")]
    assert [each["message"] for each in told] == ["a", "b", "c"]
    assert set(told[0]) == set(FIELDS)
    assert (told[0]["project"], told[0]["attempt"]) == (project.id, 1)
    assert world.now(project).builder is BuilderState.RUNNING, "whoever speaks runs"
    sequences = [each["sequence"] for each in world.manager.events(project.id)]
    assert sequences == sorted(set(sequences))
    assert world.manager.events(project.id, after=sequences[-2])[0]["sequence"] == sequences[-1]


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        {},
        {**event("clone", "started", "x"), "stage": "lunch"},
        {**event("clone", "started", "x"), "kind": "cancelled"},
        {**event("clone", "started", "x"), "message": "x" * 9000},
        {**event("clone", "started", "x"), "message": "\ud800"},
        {**event("clone", "started", "x"), "id": "../../x"},
        {**event("clone", "started", "x"), "time": "now"},
        {**event("clone", "started", "x"), "time": "\u0662026-01-01T00:00:00Z"},
        {**event("clone", "started", "x"), "data": []},
        {**event("clone", "started", "x"), "data": {"x": nested(50)}},
        {**event("push", "succeeded", "x"), "data": {"result": {"images": {}, "x": nested(900)}}},
        {**event("clone", "started", "x"), "data": {"x": "y" * 3_000_000}},
        {**event("push", "succeeded", "x"), "data": {"result": 1}},
        {**event("push", "succeeded", "x"), "data": {"result": {"images": {"learner": {}}}}},
        {**event("push", "succeeded", "x"), "data": {"result": {"images": {"learner": {"platforms": {"p": 1}}}}}},
        {**event("push", "failed", "x"), "data": {}},
        {**tagging(), "data": {"tags": []}},
        {**tagging(), "data": {"tags": ["../x"], "images": {}}},
        {**tagging(), "data": {"images": {}}},
        {**tagging(), "data": {}},
        {**tagging(), "data": {"images": {"learner": {"platforms": {"linux/amd64": 1}}}}},
    ],
)
def test_events_that_are_none_are_refused_whole(world, wrong):
    project = building(world)
    before = world.kinds(project)
    with pytest.raises(UsageError) as caught:
        world.post(project, event("clone", "started", "fine"), wrong)
    assert caught.value.findings[0].path == "/events/1"
    assert world.kinds(project) == before


def test_data_may_have_as_many_levels_as_every_answer_can_hold(world):
    project = building(world)
    assert world.post(project, event("clone", "started", "x", data={"x": nested(49)})) == {"accepted": 1}
    assert world.manager.events(project.id)[-1]["data"] == {"x": nested(49)}


def test_events_have_limits(world):
    project = building(world)
    with pytest.raises(UsageError):
        world.post(project, *(event("clone", "started", "x") for _ in range(201)))
    with pytest.raises(UsageError):
        world.post(project, event("fetch", "progress", "", data={"x": "y" * 1100}))


def warnings(count, characters=1):
    return [event("clone", "warning", "x" * characters) for _ in range(count)]


@pytest.mark.parametrize(
    ("limits", "batch"),
    [
        ({"events": 100}, warnings(40)),
        ({"event_bytes": 400_000}, warnings(25, 7000)),
        ({"events": 100}, [tagging()] * 40),
    ],
)
def test_an_attempt_that_reports_without_end_is_ended_with_a_clear_error(world, limits, batch):
    world.restart(**limits)
    project = building(world)
    sent = []

    def report():
        while len(sent) < 1000:
            new = [{**one, "id": event("clone", "warning", "")["id"]} for one in batch]
            world.post(project, *new)
            sent.extend(new)

    with pytest.raises(AttemptLimit) as caught:
        report()
    done = world.now(project)
    assert (done.state, done.error["code"]) == (State.FAILED, "ATTEMPT_LIMIT")
    assert "attempt 1 reported more than" in caught.value.message == done.error["message"]
    told = [one for one in world.manager.events(project.id) if one["stage"] == batch[0]["stage"]]
    assert [one["id"] for one in told][: len(sent)] == [one["id"] for one in sent], "what came before stays"
    assert sum(len(json.dumps(one)) for one in told) < 400_000 + 25 * 8000
    with pytest.raises(AttemptOver):
        world.post(project, *warnings(1))
    world.settle()
    assert world.orchestrator.builders == {}


def test_the_outcome_of_an_attempt_at_its_limit_is_taken(world):
    world.restart(events=10)
    project = building(world)
    world.post(project, *warnings(8))
    for number in range(30):  # of FLOps' components, which are nobody's attempt
        world.manager.note(project.id, f"{number}")
    world.post(project, tagging())
    world.succeed(project)
    assert world.now(project).state is State.IMAGES_READY
    assert ("push", "succeeded") in world.kinds(project)


def test_messages_of_flops_components_have_a_bound_of_their_own(world):
    world.restart(notes=20)
    project = building(world)
    world.post(project, *warnings(50))
    for number in range(100):
        world.manager.note(project.id, f"{number}")
    kept = [one for one in world.manager.events(project.id) if one["code"] == "MESSAGE"]
    assert 15 <= len(kept) <= 20
    assert world.manager.statistics()["notes_dropped"] == 100 - len(kept)


def test_success_ends_the_project_and_its_attempt(world):
    project = building(world)
    world.images.add(world.now(project))
    world.post(project, tagging(), succeeded(world.now(project)), event("push", "warning", "after the end"))
    with pytest.raises(AttemptOver):
        world.post(project, event("push", "warning", "late"))
    assert world.now(project).state is State.BUILDING, "until the registry was asked"
    world.prove()
    done = world.now(project)
    assert (done.state, done.builder) == (State.IMAGES_READY, BuilderState.REMOVING)
    assert done.images == result_of(done)["images"]
    assert ("push", "warning") not in world.kinds(project)
    with pytest.raises(AttemptOver):
        world.post(project, event("push", "warning", "late"))
    with pytest.raises(AttemptOver):
        world.post(project, event("push", "progress", ""))
    with pytest.raises(AttemptOver):
        world.manager.job(project.id, 1, world.orchestrator.job_of(project).deployment.token)
    world.settle()
    assert world.now(project).builder is BuilderState.REMOVED
    assert world.orchestrator.builders == {}
    assert world.manager.log_text(project.id).endswith("hello from the builder\n")


def test_failure_is_the_builders_own(world):
    project = building(world)
    world.post(project, failed("NO_WHEEL", "psutil has no wheel"))
    done = world.now(project)
    assert done.state is State.FAILED
    assert (done.error["code"], done.error["findings"][0]["line"]) == ("NO_WHEEL", 3)
    assert done.to_json()["error"] == done.error


def test_an_answer_that_was_lost_is_given_again(world):
    project = building(world)
    last = [event("push", "finished", "x", data={"seconds": 1}), failed()]
    world.post(project, *last)
    assert world.post(project, *last) == {"accepted": 2}
    assert [kind for _, kind in world.kinds(project)].count("failed") == 1


def test_success_that_contradicts_itself_is_refused_and_ends_the_project(world):
    """Nobody is asked: it never had leave, or reports other images than it had leave for, or had it for others than the project's."""
    world.restart(builders=9)
    wrong = {
        "TAGGING": lambda p: [succeeded(p)],
        "other images than those": lambda p: [tagging(), succeeded(p, ["linux/arm64"])],
        "both actors'": lambda p: [tagging(result_of(p, ["linux/arm64"])), succeeded(p, ["linux/arm64"])],
        "for the project's platforms": lambda p: [tagging({**result_of(p), "images": {}}), succeeded(p)],
    }
    for number, (told, events) in enumerate(wrong.items()):
        project = building(world, ml_repo_url=f"https://git.example.com/acme/r{number}")
        before = world.images.asked
        with pytest.raises(ImagesUnproven, match=told):
            world.post(project, *events(world.now(project)))
        done = world.now(project)
        assert (done.state, done.error["code"], done.images) == (State.FAILED, "IMAGES_UNPROVEN", None)
        assert world.images.asked == before
        with pytest.raises(AttemptOver):
            world.post(project, *events(done))


def test_a_terminal_event_is_stored_although_its_id_was_used(world):
    project = building(world)
    first = event("clone", "started", "x")
    world.images.add(world.now(project))
    last = {**succeeded(world.now(project)), "id": first["id"]}
    world.post(project, first, tagging(), last)
    world.prove()
    assert world.now(project).state is State.IMAGES_READY
    assert ("push", "succeeded") in world.kinds(project)


def test_progress_is_told_and_not_stored(world):
    project = building(world)
    before = len(world.manager.events(project.id))
    world.post(project, event("fetch", "progress", "", data={"done": 1, "total": 2, "unit": "bytes"}))
    assert len(world.manager.events(project.id)) == before


# --- cancel ---
def test_cancel_at_any_time_before_the_tags_move(world):
    accepted = world.submit()
    assert world.manager.cancel(accepted.id).state is State.CANCELLED
    project = building(world)
    builder = world.orchestrator.job_of(project)
    cancelled = world.manager.cancel(project.id)
    assert (cancelled.state, cancelled.builder) == (State.CANCELLED, BuilderState.REMOVING)
    with pytest.raises(AttemptOver):
        world.post(project, tagging(), token=builder.deployment.token)
    with pytest.raises(ProjectDecided):
        world.manager.cancel(project.id)
    world.settle()
    assert world.now(project).builder is BuilderState.REMOVED
    assert [kind for _, kind in world.kinds(project)].count("cancelled") == 1


def test_cancel_comes_too_late_once_the_leave_was_given(world):
    project = building(world)
    world.post(project, tagging())
    with pytest.raises(ProjectDecided):
        world.manager.cancel(project.id)
    assert world.now(project).state is State.BUILDING


def test_either_the_leave_or_the_cancel_wins(world):
    """Many races: whoever is first, the other is told."""
    world.restart(builders=30)
    for number in range(15):
        project = building(world, ml_repo_url=f"https://git.example.com/acme/r{number}")
        outcomes = {}
        barrier = threading.Barrier(2)

        def attempt(name, call, outcomes=outcomes, barrier=barrier):
            barrier.wait()
            try:
                call()
                outcomes[name] = True
            except (AttemptOver, ProjectDecided):
                outcomes[name] = False

        calls = {
            "leave": lambda p=project: world.post(p, tagging()),
            "cancel": lambda p=project: world.manager.cancel(p.id),
        }
        threads = [threading.Thread(target=attempt, args=item) for item in calls.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes["leave"] != outcomes["cancel"]
        assert world.now(project).tagging == outcomes["leave"]
        if outcomes["leave"]:
            world.succeed(project)


# --- messages, numbers ---
def test_messages_of_flops_components_are_kept(world):
    project = building(world)
    world.manager.note(project.id, "Start building image\n")
    world.manager.note("unknown", "nobody hears this")
    world.manager.note(project.id, "  ")
    told = world.manager.events(project.id)[-1]
    assert (told["kind"], told["code"], told["message"]) == ("warning", "MESSAGE", "Start building image")
    assert "Start building image" in world.manager.log_text(project.id)
    assert world.manager.statistics()["notes_dropped"] == 1


def test_counts_are_whole(world):
    building(world)
    counts = world.manager.counts()
    assert counts["projects"] == {"accepted": 0, "building": 1, "images_ready": 0, "failed": 0, "cancelled": 0}
    assert counts["builders"]["deploying"] == 1
    assert set(world.manager.statistics()) >= {
        "events",
        "outbox",
        "subscriptions",
        "reconciled_seconds_ago",
    }


def test_a_full_disk_refuses_and_nothing_else_changes(world):
    project = building(world)
    connection = world.store._writer
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    big = [event("clone", "warning", "x" * 7000) for _ in range(100)]
    with pytest.raises(DiskFull):
        world.post(project, *big)
    before = world.kinds(project)
    connection.execute("PRAGMA max_page_count = 1000000")
    world.post(project, *big)
    assert len(world.kinds(project)) == len(before) + 101, "the warnings, and that the builder runs"


def test_directories_of_this_machine_need_the_operators_leave(world, tmp_path):
    (tmp_path / "digits").mkdir()
    world.sources = ScriptedSources(allow_local=True)
    world.restart(allow_local=True)
    first = world.submit(ml_repo_url=str(tmp_path / "digits"))
    second = world.submit(ml_repo_url=str(tmp_path / "digits"), ml_repo_ref="v1")
    (tmp_path / "other").mkdir()
    other = world.submit(ml_repo_url=str(tmp_path / "other"))
    world.steps(3)
    assert world.sources.asked == []
    builders = [world.now(one).builder for one in (first, second, other)]
    assert builders == [BuilderState.RUNNING, BuilderState.NONE, BuilderState.RUNNING], "one builder for a directory"
    assert world.now(second).leader == first.id
    assert world.images.asked == 0
    document = world.manager.job(first.id, 1, world.orchestrator.job_of(first).deployment.token)
    assert (document["source"], document["ref"]) == (str(tmp_path / "digits"), None)
    world.succeed(first)
    assert world.now(first).commit == COMMIT, "the result tells it"
    assert not world.now(second).state.ended, "its files may be others meanwhile"
    world.steps(4)
    assert world.manager.job(second.id, 1, world.orchestrator.job_of(second).deployment.token)["ref"] == "v1"
    world.succeed(second)
    assert world.now(second).state is State.IMAGES_READY


# --- live events ---
def collect(subscription, until, *, first=None):
    """Events until one of this kind; `first` is called once somebody listens."""

    async def run():
        found = []
        with subscription:
            if first is not None:
                asyncio.get_running_loop().run_in_executor(None, first)
            async for one in subscription:
                found.append(one)
                if one["kind"] == until:
                    return found
        return found

    return asyncio.run(asyncio.wait_for(run(), 30))


def test_a_reader_sees_what_was_stored_and_then_what_happens(world):
    project = building(world)

    def later():
        world.post(project, event("fetch", "progress", "", data={"done": 1, "total": 2, "unit": "bytes"}))
        world.succeed(project, event("clone", "started", "live"))

    found = collect(world.manager.subscribe(project.id, after=0), "succeeded", first=later)
    stored = [one for one in found if one["sequence"] is not None]
    last = stored[-1]["sequence"]
    assert stored == [one for one in world.manager.events(project.id) if one["sequence"] <= last]
    assert [one["kind"] for one in found if one["sequence"] is None] in ([], ["progress"])


def test_a_reader_of_now_sees_nothing_old(world):
    project = building(world)
    found = collect(world.manager.subscribe(project.id), "succeeded", first=lambda: world.succeed(project))
    assert ("queue", "started") not in [(one["stage"], one["kind"]) for one in found]


def test_a_slow_reader_loses_no_stored_event_and_delays_nobody(world):
    project = building(world)

    async def run():
        found = []
        with world.manager.subscribe(project.id, after=0) as subscription:
            async for one in subscription:
                found.append(one)
                if len(found) == 1:  # while it dawdles, much more happens than its queue holds
                    await asyncio.to_thread(flood)
                if one["kind"] == "succeeded":
                    break
        return found

    def flood():
        for _ in range(10):
            world.post(project, *(event("clone", "warning", "x") for _ in range(60)), event("fetch", "progress", ""))
        world.succeed(project)

    found = asyncio.run(asyncio.wait_for(run(), 60))
    told = [one["sequence"] for one in found if one["sequence"] is not None]
    every = [one["sequence"] for one in world.manager.events(project.id, limit=5000)]
    assert told == [number for number in every if number <= told[-1]]
    assert len(told) > 600


def test_readers_that_left_cost_nothing(world):
    project = building(world)
    with world.manager.subscribe(project.id), world.manager.subscribe(project.id):
        assert world.manager.statistics()["subscriptions"] == 2
    assert world.manager.statistics()["subscriptions"] == 0


def test_a_listener_that_fails_harms_nobody(world):
    world.manager.bus.listen(lambda project, event: 1 / 0)
    project = building(world)
    world.succeed(project)
    assert world.now(project).state is State.IMAGES_READY


# --- the mirror's outbox ---
def test_messages_for_the_broker_are_put_out_with_the_event(world):
    world.restart(mirror=True)
    project = building(world)
    world.succeed(project, event("clone", "started", "x"))
    rows = world.store.outbox_next(99)
    topics = [row.topic for row in rows]
    assert topics.index("flops_manager/fl_actors_image_builder/started") < topics.index(
        "flops_manager/fl_actors_image_builder/success"
    )
    success = next(row for row in rows if row.topic.endswith("/success"))
    assert json.loads(success.payload)["flops_project_id"] == project.id
    assert {row.project for row in rows} == {project.id}
    world.store.outbox_trim(0)  # what is on the way may go, an outcome may not
    kept = [row.topic for row in world.store.outbox_next(99)]
    assert 0 < len(kept) < len(rows)
    assert kept == topics[-len(kept) :]
    assert kept[0] == success.topic


def test_without_a_broker_nothing_is_put_out(world):
    project = building(world)
    world.succeed(project)
    assert world.store.outbox_count() == 0


def test_foreign_keys_hold(world):
    building(world)
    with pytest.raises(sqlite3.IntegrityError):
        world.store._writer.execute("INSERT INTO events (project, id, body) VALUES ('none', 'x', '{}')")

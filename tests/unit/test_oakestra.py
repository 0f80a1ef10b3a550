"""Builders as services of Oakestra, against a server that has all of its oddities; every request is compared with a golden record.

`FLOPS_REGENERATE=1` writes the records anew; `scripts/replay_oakestra.py` sends them to a real Oakestra.
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from pathlib import Path

import pytest
from tests import fake_oakestra

from flops.errors import BadSetting, DeployFailed, OrchestratorAuth, OrchestratorUnreachable
from flops.orchestrators import BuilderPhase, Deployment, ManagerContext, start_orchestrator
from flops.orchestrators.oakestra import OakestraOrchestrator
from flops.orchestrators.oakestra_api import Addresses, OakestraApi, decode
from flops.orchestrators.oakestra_sla import NO_CAPACITY, judge
from flops.settings import BUILDER_SETTINGS, Settings

TESTS = Path(__file__).parents[1]
RECORDS = TESTS / "oakestra_requests"


IMAGE = "registry.example:5073/flops/builder:1.0-abc"
ADDRESSES = Addresses(manager="http://10.0.0.5:5072", registry="http://10.0.0.5:5073", image=IMAGE)
JOB = "ab12cd8a50af04f9b91"
PROJECT = "8a50af04f9b90c28d40f6f69"


def deployment(attempt=1, **more):
    job = f"{JOB[:-1]}{attempt}"
    url = f"http://10.0.0.5:5072/api/flops/projects/{PROJECT}/attempts/{attempt}"
    return Deployment(**{"job": job, "project": PROJECT, "url": url, "token": "sentinel-token", "memory": 2048} | more)


@pytest.fixture
def fake():
    with fake_oakestra.FakeOakestra() as fake:
        yield fake


@pytest.fixture
def orchestrator(fake):
    made = []

    def another(**more):
        api = OakestraApi(fake.url, username=fake.username, password=fake.password)
        one = OakestraOrchestrator(
            api, ADDRESSES, settings={"FLOPS_DEBIAN_MIRROR": "http://mirror.example/debian", "FLOPS_API_TOKEN": "never"}
        )
        made.append(one)
        return one

    first = another()
    first.another = another
    yield first
    for one in made:
        one.close()


@pytest.fixture
def record(fake, request):
    """Compare all that was sent in this test with what stands under its name."""
    yield
    path = RECORDS / (request.node.name.removeprefix("test_") + ".json")
    text = json.dumps(fake.recorded(), indent=1, sort_keys=True) + "\n"
    if os.environ.get("FLOPS_REGENERATE"):
        RECORDS.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def run_to(fake, job, status):
    while fake.step(job) != status:
        pass


def instances_asked_for(fake):
    return [r for r in fake.requests if r["method"] == "POST" and r["path"].endswith("/instance")]


def nothing_left(fake):
    return not fake.applications and not fake.services


def test_success(fake, orchestrator, record):
    orchestrator.prepare()
    handle = orchestrator.deploy(deployment())
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.WAITING
    run_to(fake, JOB, "RUNNING")
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.RUNNING
    fake.set(JOB, "COMPLETED", logs="built")
    status = orchestrator.status(JOB, handle)
    assert (status.phase, status.exit_code, status.failed) == (BuilderPhase.ENDED, 0, False)
    assert orchestrator.logs(JOB, handle) == "built"
    assert orchestrator.remove(JOB, handle)
    assert nothing_left(fake)
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.GONE
    assert orchestrator.logs(JOB, handle) == ""
    assert orchestrator.remove(JOB, handle)


def test_what_a_builder_gets(fake, orchestrator):
    orchestrator.deploy(deployment())
    service = fake.service(JOB)
    assert service["environment"] == [
        "FLOPS_DEBIAN_MIRROR=http://mirror.example/debian",
        f"FLOPS_JOB_ID={JOB}",
        "FLOPS_JOB_TOKEN=sentinel-token",
        f"FLOPS_JOB_URL={deployment().url}",
    ]
    assert (service["code"], service["cmd"], service["memory"]) == (IMAGE, ["flops", "job"], 2048)
    assert service["one_shot"] is True
    assert not [name for name in BUILDER_SETTINGS if "TOKEN" in name or "CREDENTIAL" in name or "PASSWORD" in name]


def test_failure_to_start(fake, orchestrator, record):
    handle = orchestrator.deploy(deployment())
    run_to(fake, JOB, "NODE_SCHEDULED")
    fake.set(JOB, "FAILED", "image can't be pulled")
    status = orchestrator.status(JOB, handle)
    assert (status.phase, status.failed, status.exit_code) == (BuilderPhase.ENDED, True, None)
    assert "image can't be pulled" in status.reason
    assert not fake.services  # it would be started again
    assert orchestrator.remove(JOB, handle)
    assert nothing_left(fake)


def test_a_lost_builder_and_its_second_attempt(fake, orchestrator, record):
    handle = orchestrator.deploy(deployment())
    run_to(fake, JOB, "RUNNING")
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.RUNNING
    fake.set(JOB, "DEAD", "exit code 137", logs="the last words")
    status = orchestrator.status(JOB, handle)
    assert (status.phase, status.exit_code, status.failed) == (BuilderPhase.ENDED, 137, False)
    assert orchestrator.logs(JOB, handle) == "the last words"  # though its service is gone
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.GONE
    assert orchestrator.remove(JOB, handle)
    second = deployment(2)
    again = orchestrator.deploy(second)
    assert again["service"] != handle["service"]
    run_to(fake, second.job, "RUNNING")
    assert orchestrator.status(second.job, again).phase is BuilderPhase.RUNNING
    assert orchestrator.remove(second.job, again)
    assert nothing_left(fake)


def test_cancel(fake, orchestrator, record):
    handle = orchestrator.deploy(deployment())
    run_to(fake, JOB, "RUNNING")
    assert orchestrator.remove(JOB, handle)
    assert nothing_left(fake)


def test_a_builder_that_was_started_again_before_anybody_looked_has_died(fake, orchestrator):
    handle = orchestrator.deploy(deployment())
    run_to(fake, JOB, "RUNNING")
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.RUNNING
    fake.set(JOB, "DEAD")
    fake.step(JOB)  # for ever
    status = orchestrator.status(JOB, handle)
    assert (status.phase, status.failed) == (BuilderPhase.ENDED, False)
    assert "started again" in status.reason
    assert not fake.services


def test_a_second_instance_is_a_death_too(fake, orchestrator):
    handle = orchestrator.deploy(deployment())
    run_to(fake, JOB, "RUNNING")
    fake.service(JOB)["instance_list"] = [{"instance_number": 1, "status": "RUNNING"}]
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.ENDED
    assert not fake.services


@pytest.mark.parametrize("word", sorted(NO_CAPACITY))
def test_no_capacity(fake, orchestrator, word):
    fake.capacity = False
    handle = orchestrator.deploy(deployment())
    fake.step(JOB)
    fake.service(JOB)["status"] = word
    status = orchestrator.status(JOB, handle)
    assert (status.phase, status.failed, status.no_capacity, status.reason) == (BuilderPhase.ENDED, True, True, word)
    assert orchestrator.remove(JOB, handle)
    assert nothing_left(fake)


def test_an_instance_that_somebody_took_away_deserves_a_second_attempt(fake, orchestrator):
    handle = orchestrator.deploy(deployment())
    run_to(fake, JOB, "RUNNING")
    fake.service(JOB)["instance_list"] = []
    status = orchestrator.status(JOB, handle)
    assert (status.phase, status.evicted) == (BuilderPhase.GONE, True)


def test_tokens_expire(fake, orchestrator, record):
    orchestrator.prepare()
    handle = orchestrator.deploy(deployment())
    fake.expire()
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.WAITING
    fake.expire(refresh=True)
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.WAITING
    fake.expire()
    assert orchestrator.remove(JOB, handle)
    assert nothing_left(fake)


def test_many_threads_renew_a_token_once(fake, orchestrator):
    orchestrator.prepare()
    fake.expire()
    threads = [threading.Thread(target=orchestrator.orphans, args=("ab12cd", [])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r["path"] for r in fake.requests].count("/api/auth/refresh") == 1
    assert [r["path"] for r in fake.requests].count("/api/auth/login") == 1


def test_deploying_again_asks_for_nothing_that_is_there(fake, orchestrator, record):
    handle = orchestrator.deploy(deployment())
    assert orchestrator.another().deploy(deployment(token="another")) == handle  # not scheduled yet
    run_to(fake, JOB, "RUNNING")
    assert orchestrator.another().deploy(deployment()) == handle
    assert len(instances_asked_for(fake)) == 1
    assert len(fake.service(JOB)["instance_list"]) == 1
    assert orchestrator.remove(JOB, handle)


@pytest.mark.parametrize("path", [r"/api/application/", r"/api/service/", r"/api/service/[^/]+/instance"])
def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_doubles(fake, orchestrator, path):
    fake.faults.append(("POST", path, 0))
    with pytest.raises(OrchestratorUnreachable, match="can't be reached"):
        orchestrator.deploy(deployment())
    handle = orchestrator.deploy(deployment())
    run_to(fake, JOB, "RUNNING")
    assert orchestrator.status(JOB, handle).phase is BuilderPhase.RUNNING
    assert (len(fake.applications), len(fake.services)) == (1, 1)
    assert len(fake.service(JOB)["instance_list"]) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 429])
@pytest.mark.parametrize(
    "method_path", [("POST", "/api/service/"), ("GET", "/api/services/.*"), ("POST", "/api/application/")]
)
def test_a_fault_of_the_server_may_pass(fake, orchestrator, method_path, status):
    fake.faults.append((*method_path, status))
    with pytest.raises(OrchestratorUnreachable, match=str(status)):
        orchestrator.deploy(deployment())
    assert orchestrator.deploy(deployment())["service"] in fake.services


@pytest.mark.parametrize("status", [400, 422, 404])
def test_what_is_refused_is_refused_again(fake, orchestrator, status):
    fake.faults.append(("POST", "/api/service/", status))
    with pytest.raises(DeployFailed, match=str(status)):
        orchestrator.deploy(deployment())
    assert orchestrator.remove(JOB, None)
    assert nothing_left(fake)


def test_a_success_that_hides_a_failure_is_seen(fake, orchestrator):
    fake.insert_fails = True
    with pytest.raises(DeployFailed, match="did not take"):
        orchestrator.deploy(deployment())
    assert not instances_asked_for(fake)


def test_removal_needs_no_handle_and_believes_the_list_alone(fake, orchestrator):
    orchestrator.deploy(deployment())
    fake.faults += [("DELETE", "/api/application/.*", 501)]
    assert not orchestrator.remove(JOB, None)
    assert orchestrator.remove(JOB, None)
    assert nothing_left(fake)


def test_removal_leaves_another_attempt_alone(fake, orchestrator):
    orchestrator.deploy(deployment())
    second = deployment(2)
    handle = orchestrator.deploy(second)
    assert orchestrator.remove(JOB, None)
    assert orchestrator.status(second.job, handle).phase is BuilderPhase.WAITING
    assert orchestrator.orphans("ab12cd", []) == {second.job: handle}


def test_orphans_are_what_this_manager_made_and_does_not_know(fake, orchestrator):
    lost, known, foreign = deployment(), deployment(job="ab12cdffffffffffff1"), deployment(job="zz12cdffffffffffff1")
    handles = {one.job: orchestrator.deploy(one) for one in (lost, known, foreign)}
    fake.faults.append(("POST", "/api/service/", 500))
    with pytest.raises(OrchestratorUnreachable):
        orchestrator.deploy(deployment(job="ab12cdeeeeeeeeeeee1"))
    found = orchestrator.orphans("ab12cd", [known.job])
    assert found.keys() == {lost.job, "ab12cdeeeeeeeeeeee0"}
    assert found[lost.job] == handles[lost.job]
    assert "ab12cdeeeeeeeeeeee0" not in orchestrator.orphans("ab12cd", [known.job, "ab12cdeeeeeeeeeeee1"])
    for job, handle in found.items():
        assert orchestrator.remove(job, handle)
    assert orchestrator.orphans("ab12cd", [known.job]) == {}
    assert {one["microservice_name"] for one in fake.services.values()} == {known.job, foreign.job}


def test_a_wrong_password_is_told_without_it(fake):
    api = OakestraApi(fake.url, username="Admin", password="sentinel-wrong")
    with pytest.raises(OrchestratorAuth, match="does not take the password of 'Admin'") as caught:
        OakestraOrchestrator(api, ADDRESSES).prepare()
    assert "sentinel" not in caught.value.message + caught.value.hint
    api.close()


def test_nobody_there_and_no_address():
    for url, error in (("http://127.0.0.1:9", OrchestratorUnreachable), ("host:10000", BadSetting)):
        api = OakestraApi(url, username="Admin", password="p")
        with pytest.raises(error):
            api.login()
        api.close()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"manager": "http://127.0.0.1:5072"}, "FLOPS_ADVERTISE is 127.0.0.1"),
        ({"manager": "http://[::1]:5072"}, "FLOPS_ADVERTISE is ::1"),
        ({"manager": "http://0.0.0.0:5072"}, "FLOPS_ADVERTISE is 0.0.0.0"),
        ({"manager": "10.0.0.5"}, "FLOPS_ADVERTISE names no host"),
        ({"registry": "http://localhost:5073"}, "FLOPS_REGISTRY is localhost"),
        ({"registry_pull": "127.0.0.1:5073"}, "FLOPS_REGISTRY_PULL is 127.0.0.1"),
        ({"image": "localhost:5073/flops/builder:1"}, "FLOPS_BUILDER_IMAGE is localhost"),
        ({"image": "registry.example/flops/builder"}, "can name another image tomorrow"),
        ({"image": "registry.example/flops/builder:latest"}, "can name another image tomorrow"),
        ({"image": "builder"}, "is no image"),
    ],
)
def test_what_a_node_cannot_use_is_refused_before_anything_is_asked(fake, wrong, named):
    addresses = Addresses(**{"manager": "http://10.0.0.5", "registry": "10.0.0.5:5073", "image": IMAGE} | wrong)
    api = OakestraApi(fake.url, username=fake.username, password=fake.password)
    with pytest.raises(BadSetting, match=named.replace("[", r"\[")):
        OakestraOrchestrator(api, addresses).prepare()
    assert not fake.requests


def test_an_image_is_named_as_an_engine_takes_it():
    digest = "sha256:" + "a" * 64
    addresses = Addresses(manager="http://m", registry="r.example", image=f"http://10.0.0.5:5073/b@{digest}")
    addresses.check()
    assert addresses.code == f"10.0.0.5:5073/b@{digest}"


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'"[{\\"a\\": 1}]"', [{"a": 1}]),
        (b"[1]", [1]),
        (b"null", None),
        (b'"null"', None),
        (b"<html>", None),
        (b'"word"', None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_documents_come_once_and_twice_encoded(body, value):
    assert decode(body) == value


def test_words_that_nobody_knows_are_waited_for():
    assert (
        judge({"status": "PONDERING", "instance_list": [{"instance_number": 0}]}, ran=False).phase
        is BuilderPhase.WAITING
    )
    assert judge({}, ran=False).phase is BuilderPhase.WAITING
    assert judge({"status": "COMPLETED", "instance_list": []}, ran=False).exit_code == 0
    assert judge({"status": "REQUESTED", "instance_list": "?"}, ran=False).phase is BuilderPhase.WAITING


def test_another_of_our_names_is_not_sent_anywhere(orchestrator, fake):
    with pytest.raises(DeployFailed, match="no name of a builder"):
        orchestrator.deploy(deployment(job="../x"))
    assert not fake.requests


def test_the_records_can_be_replayed(fake, monkeypatch, capsys):
    path = TESTS.parent / "scripts" / "replay_oakestra.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    replay = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(replay)
    monkeypatch.setenv("FLOPS_OAKESTRA_PASSWORD", fake.password)
    monkeypatch.setattr("sys.argv", ["replay", fake.url])
    assert replay.main() == 0
    assert nothing_left(fake)
    assert len(capsys.readouterr().out.splitlines()) > 50
    fake.insert_fails = True
    assert replay.main() == 1


def test_builders_on_nodes_can_not_sign_and_say_so(tmp_path):
    settings = Settings(
        oakestra_url="http://root.example:10000",
        oakestra_password="secret",
        builder_image="registry.example/flops/builder:1",
        sign_key=tmp_path / "key.pem",
    )
    context = ManagerContext(
        settings=settings, directory=tmp_path, url="http://m.example", registry="registry.example", mirrors=dict
    )
    with pytest.raises(BadSetting, match="can't sign: FLOPS_SIGN_KEY"), start_orchestrator("oakestra", context):
        pass

"""Wrong tokens: after a few an address waits, is told for how long, stands in the log, and costs a bounded memory."""

import re
from dataclasses import replace

import httpx
import pytest
from tests.orchestrators import HandClock, World
from tests.web import URL, Web

from flops import throttle
from flops.registry.app import EmbeddedRegistry
from flops.service.access import Access
from flops.service.api import create_app
from flops.settings import Settings
from flops.throttle import FORGOTTEN, FREE, LONGEST, Throttle
from flops_wire.manager import PROJECTS

TOKEN = "t0ken-of-the-operator-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
GUESS = {"Authorization": "Bearer guess"}


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def doors(clock):
    return Throttle("a door", clock.monotonic)


def test_pauses_grow_and_end(doors, clock):
    waits = []
    for _ in range(FREE + 10):
        waits.append(doors.wait("a", "guess"))
        clock.move(waits[-1])
        doors.failed("a")
    assert waits == [0] * FREE + [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert doors.wait("b", "guess") == 0
    clock.move(LONGEST + FORGOTTEN + 1)
    assert doors.wait("a", "guess") == 0
    doors.failed("a")
    assert doors.wait("a", "guess") == 0, "it began anew"


def test_who_logged_in_before_is_judged_at_once_and_from_there_alone(doors):
    doors.passed("a", "right")
    for _ in range(20):
        doors.failed("a")
        doors.failed("b")
    assert doors.wait("a", "right") == 0
    assert doors.wait("a", "guess") > 0
    assert doors.wait("b", "right") > 0


def test_what_is_remembered_has_a_bound(doors, monkeypatch):
    monkeypatch.setattr(throttle, "REMEMBERED", 100)
    for number in range(1000):
        doors.failed(f"a{number}")
        doors.passed(f"b{number}", "right")
    assert (len(doors._failures), len(doors._right)) == (100, 100)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "projects.sqlite3")
    yield world
    world.close()


@pytest.fixture
def web(world, clock):
    access = Access.of(Settings(auth="token", api_token=TOKEN), "127.0.0.1")
    return Web(create_app(world.manager, replace(access, throttle=Throttle("the manager", clock.monotonic))))


def log_in(web, token):
    return web.post("/login", data={"token": token}, headers={"Origin": URL})


def failures(world):
    return world.manager.statistics()["logins_failed"]


def test_thirty_wrong_tokens_are_not_all_judged(web, world, clock, caplog):
    answers = [web.get(PROJECTS, headers=GUESS) for _ in range(30)]
    assert [one.status_code for one in answers] == [401] * FREE + [429] * (30 - FREE)
    assert (answers[-1].headers["retry-after"], answers[-1].json()["error"]["code"]) == ("1", "LOGIN_THROTTLED")
    assert web.get(PROJECTS, headers=BEARER).status_code == 429, "nobody could be told apart from who guessed right"
    assert log_in(web, TOKEN).status_code == 429
    clock.move(1)
    assert web.get(PROJECTS, headers=BEARER).status_code == 200
    assert failures(world) == FREE
    told = [record.getMessage() for record in caplog.records if "login failed" in record.getMessage()]
    assert len(told) == FREE
    assert all("127.0.0.1" in line and "guess" not in line for line in told)
    text = web.get("/metrics", headers=BEARER).text
    assert f"flops_logins_failed_total {FREE}.0" in text


def test_the_form_says_how_long(web):
    answers = [log_in(web, "guess") for _ in range(FREE + 1)]
    assert [one.status_code for one in answers] == [401] * FREE + [429]
    assert answers[-1].headers["retry-after"] == "1"
    assert re.search(r'role="alert".*try again in 1 s', answers[-1].text, re.DOTALL)


def test_others_and_whoever_is_logged_in_notice_nothing(web, world):
    assert web.get(PROJECTS, headers=BEARER).status_code == 200
    assert log_in(web, TOKEN).status_code == 303
    guesser = Web(web.app)
    for _ in range(30):
        guesser.get(PROJECTS, headers=GUESS)
    assert guesser.get(PROJECTS, headers=GUESS).status_code == 429
    assert web.get(PROJECTS).status_code == 200, "by its session"
    assert Web(web.app).get(PROJECTS, headers=BEARER).status_code == 200, "by the token that was right from there"
    assert Web(web.app, client=("192.0.2.7", 1)).get(PROJECTS, headers=GUESS).status_code == 401
    assert guesser.get("/healthz").status_code == 200


def test_no_token_is_no_guess(web, world):
    for _ in range(30):
        assert web.get(PROJECTS).status_code == 401
        assert log_in(web, "").status_code == 401
    assert failures(world) == 0


def test_wrong_tokens_of_attempts_are_counted_and_make_no_builder_wait(web, world, caplog):
    project = world.submit()
    world.steps(4)
    job = f"{PROJECTS}/{project.id}/attempts/1/job"
    own = {"Authorization": f"Bearer {world.orchestrator.job_of(project).deployment.token}"}
    for _ in range(30):
        assert web.get(job, headers=GUESS).status_code == 401
        assert web.post(job.replace("/job", "/events"), json={"events": []}, headers=GUESS).status_code == 401
    assert failures(world) == 60
    assert web.get(job, headers=own).status_code == 200
    assert web.get(PROJECTS, headers=BEARER).status_code == 200
    told = [record for record in caplog.records if "login failed" in record.getMessage()]
    assert len(told) == FREE


def test_the_embedded_registry_too(tmp_path, clock):
    heard = []
    doors = Throttle("the registry", clock.monotonic)
    doors.on_failure = lambda: heard.append(1)
    with (
        EmbeddedRegistry(tmp_path, token=TOKEN, throttle=doors) as server,
        httpx.Client(base_url=server.registry.url, trust_env=False) as client,
    ):
        short = client.get("/token", auth=("x", TOKEN)).json()["token"]
        forged = {"Authorization": f"Bearer push.9999999999.{'0' * 64}"}
        for _ in range(30):  # what has ended looks so too
            assert client.get("/v2/", headers=forged).status_code == 401
        assert heard == []
        found = [client.get("/v2/", auth=("x", "guess")).status_code for _ in range(FREE)]
        found += [client.get("/token", auth=("x", "guess")).status_code]
        found += [client.post("/token", data={"password": "guess"}).status_code, client.get("/v2/", headers=GUESS).status_code]  # fmt: skip
        assert found == [401] * FREE + [429] * 3
        assert len(heard) == FREE
        answer = client.get("/v2/", auth=("x", "guess"))
        assert (answer.headers["retry-after"], answer.json()["errors"][0]["code"]) == ("1", "TOOMANYREQUESTS")
        assert client.get("/v2/", headers={"Authorization": f"Bearer {short}"}).status_code == 200
        assert client.get("/v2/", auth=("x", TOKEN)).status_code == 200, "it was right from there"

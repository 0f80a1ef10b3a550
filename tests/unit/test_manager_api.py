"""The manager over HTTP: every route in process, and event streams over a real connection."""

import json
import threading
import time

import httpx
import pytest
from tests.orchestrators import COMMIT, World, failed, settings, sla, succeeded, tagging
from tests.web import URL, Reader, Web, open_access, serving

from flops.errors import StoreError
from flops.service import streams
from flops.service.api import create_app
from flops.service.health import Health
from flops.service.streams import Streams
from flops_wire.events import FIELDS, event
from flops_wire.manager import BODY_LIMIT, EVENTS_LIMIT, PROJECTS


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "projects.sqlite3")
    yield world
    world.close()


@pytest.fixture
def web(world):
    return Web(create_app(world.manager, open_access(), checks={"part": lambda: None}))


def started(world, **more):
    """A project whose builder runs."""
    project = world.submit(**more)
    world.steps(4)
    return world.now(project)


def bearer(world, project):
    return {"Authorization": f"Bearer {world.orchestrator.job_of(project).deployment.token}"}


def posting(*events):
    return {"events": list(events)}


class TestProjects:
    def test_start_answers_200_with_message_and_project(self, web):
        answer = web.post(PROJECTS, json=sla())
        assert answer.status_code == 200
        document = answer.json()
        assert document["project"]["state"] == "accepted"
        assert document["project"]["id"] in document["message"]
        assert answer.headers["location"] == f"{PROJECTS}/{document['project']['id']}"

    @pytest.mark.parametrize("path", [PROJECTS, PROJECTS + "/"])
    def test_with_and_without_a_slash(self, web, path):
        assert web.post(path, json=sla()).status_code == 200
        assert web.get(path).json()["total"] == 1

    def test_json_without_a_content_type_is_believed(self, web):
        assert web.post(PROJECTS, content=json.dumps(sla())).status_code == 200

    def test_the_same_key_is_the_same_project(self, web):
        first, second = (web.post(PROJECTS, json=sla(), headers={"Idempotency-Key": "k"}).json() for _ in "ab")
        assert first["project"] == second["project"]
        assert "before" in second["message"]
        other = web.post(PROJECTS, json=sla(verbose=True), headers={"Idempotency-Key": "k"})
        assert (other.status_code, other.json()["error"]["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")

    @pytest.mark.parametrize(
        ("document", "code"),
        [
            ([], "SLA_INVALID"),
            ({}, "SLA_INVALID"),
            (sla(supported_platforms=["linux/s390x"]), "SLA_INVALID"),
            (sla(git_credential="unknown"), "CREDENTIAL_UNKNOWN"),
            (sla(ml_repo_url="https://10.0.0.1/a/b"), "BLOCKED_ADDRESS"),
            (sla(ml_repo_url="https://u:p@git.example.com/a/b"), "CREDENTIAL_IN_URL"),
            (sla(ml_repo_url="file:///etc"), "BAD_URL"),
            (sla(ml_repo_ref="--upload-pack=x"), "BAD_REF"),
            (sla(base_image="registry.example.org/python:3.11"), "SLA_INVALID"),
        ],
    )
    def test_what_can_be_seen_at_submission_is_422(self, web, document, code):
        answer = web.post(PROJECTS, json=document)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
        assert set(answer.json()["error"]) == {"code", "message", "hint", "findings"}
        assert web.get(PROJECTS).json()["total"] == 0

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b'{"a": NaN}',
            b'{"a": -1e999}',
            b'{"a": "\\ud800"}',
            b"[" * 100_000,
            b'{"a": ' + b"9" * 5000 + b"}",
        ],
    )
    def test_what_is_no_json_is_400(self, web, body):
        answer = web.post(PROJECTS, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]

    def test_the_place_where_json_ends_is_told(self, web):
        body = b'{"ml_repo_url": "secret",\n "verbose": true,}'
        answer = web.post(PROJECTS, content=body, headers={"Content-Type": "application/json"})
        message = answer.json()["error"]["message"]
        assert "line 2, column 18" in message
        assert "secret" not in message

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
    def test_forms_are_415(self, web, kind):
        answer = web.post(PROJECTS, content=json.dumps(sla()), headers={"Content-Type": kind})
        assert answer.status_code == 415

    def test_too_large_is_413_also_without_a_length(self, web):
        assert web.post(PROJECTS, content=b" " * 300_000).status_code == 413
        sent = []

        async def chunks():
            for number in range(1000):
                sent.append(number)
                yield b" " * 10_000

        answer = web.post(PROJECTS, content=chunks())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "USAGE")
        assert len(sent) < 1000, "the rest is not even read"

    def test_too_many_are_429(self, tmp_path):
        world = World(tmp_path / "few.sqlite3", settings=settings(projects=1))
        web = Web(create_app(world.manager, open_access()))
        assert web.post(PROJECTS, json=sla()).status_code == 200
        answer = web.post(PROJECTS, json=sla())
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
        world.close()

    def test_pages_lead_to_each_other(self, web):
        ids = [web.post(PROJECTS, json=sla()).json()["project"]["id"] for _ in range(5)]
        seen, path = [], f"{PROJECTS}?limit=2"
        while path:
            answer = web.get(path)
            seen += [project["id"] for project in answer.json()["projects"]]
            path = answer.links.get("next", {}).get("url")
        assert seen == ids[::-1]

    def test_only_what_a_text_finds(self, web):
        other = web.post(PROJECTS, json=sla(ml_repo_url="https://git.example.com/acme/Other")).json()["project"]["id"]
        ids = [web.post(PROJECTS, json=sla()).json()["project"]["id"] for _ in range(3)]
        for text, found in (("me/oth", [other]), (ids[0], [ids[0]]), (other[1:], []), ("\0é\U0001f600%", [])):
            answer = web.get(PROJECTS, params={"q": text})
            assert ([one["id"] for one in answer.json()["projects"]], answer.json()["total"]) == (found, len(found))
        following = web.get(PROJECTS, params={"q": "acme/", "limit": 3}).links["next"]["url"]
        assert [one["id"] for one in web.get(following).json()["projects"]] == [other]
        assert web.get(PROJECTS, params={"q": "x" * 256}).status_code == 422

    def test_from_beyond_the_end_a_page_leads_back_to_the_last_ones(self, web):
        ids = [web.post(PROJECTS, json=sla()).json()["project"]["id"] for _ in range(3)]
        back = web.get(f"{PROJECTS}?limit=2&offset=50").links["prev"]["url"]
        assert [one["id"] for one in web.get(back).json()["projects"]] == [ids[1], ids[0]]

    def test_only_one_state(self, web, world):
        done = web.post(PROJECTS, json=sla()).json()["project"]["id"]
        web.post(PROJECTS, json=sla())
        world.manager.cancel(done)
        assert [one["id"] for one in web.get(f"{PROJECTS}?state=cancelled").json()["projects"]] == [done]

    @pytest.mark.parametrize("query", ["limit=0", "limit=x", "offset=-1", f"offset={2**63}", "state=done", "limit=201"])
    def test_a_query_that_can_not_be_meant_is_422(self, web, query):
        answer = web.get(f"{PROJECTS}?{query}")
        assert answer.status_code == 422
        assert answer.json()["error"]["findings"][0]["path"] == f"/query/{query.partition('=')[0]}"

    @pytest.mark.parametrize("name", ["0" * 24, "x", "%2e%2e", "A" * 24, "%00", "é" * 12])
    @pytest.mark.parametrize("more", ["", "/events", "/logs"])
    def test_unknown_projects_are_404(self, web, name, more):
        answer = web.get(f"{PROJECTS}/{name}{more}")
        assert (answer.status_code, "error" in answer.json()) == (404, True)

    def test_cancel_once(self, web):
        project = web.post(PROJECTS, json=sla()).json()["project"]["id"]
        assert web.post(f"{PROJECTS}/{project}/cancel").json()["state"] == "cancelled"
        answer = web.post(f"{PROJECTS}/{project}/cancel/")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "PROJECT_DECIDED")

    def test_cancel_comes_too_late_once_tags_move(self, web, world):
        project = started(world)
        assert web.post(_events(project), json=posting(tagging()), headers=bearer(world, project)).status_code == 200
        assert web.post(f"{PROJECTS}/{project.id}/cancel").status_code == 409

    def test_logs_are_plain_text(self, web, world):
        project = started(world)
        world.orchestrator.job_of(project).log = "<b>\x1b[31m\udcff"
        answer = web.get(f"{PROJECTS}/{project.id}/logs")
        assert answer.headers["content-type"].startswith("text/plain")
        assert "<b>" in answer.text


def _attempt(project):
    return f"{PROJECTS}/{project.id}/attempts/{project.attempt}"


def _stream(project):
    return f"{PROJECTS}/{project.id}/events"


def _events(project):
    return _attempt(project) + "/events"


class TestBuilders:
    def test_the_job_is_for_its_own_builder(self, web, world):
        project = started(world)
        document = web.get(_attempt(project) + "/job", headers=bearer(world, project)).json()
        assert (document["project"], document["ref"], document["attempt"]) == (project.id, COMMIT, 1)
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic x"}):
            answer = web.get(_attempt(project) + "/job", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")

    def test_who_may_not_is_not_read_from(self, web, world):
        project = started(world)
        sent = []

        async def chunks():
            for number in range(1000):
                sent.append(number)
                yield b" " * 10_000

        headers = {"Authorization": "Bearer x"}
        assert web.post(_events(project), content=chunks(), headers=headers).status_code == 401
        assert not sent

    def test_a_token_of_another_project_opens_nothing(self, web, world):
        one, other = started(world), started(world, ml_repo_url="https://git.example.com/acme/other")
        assert web.get(_attempt(one) + "/job", headers=bearer(world, other)).status_code == 401
        assert web.post(_events(one), json=posting(failed()), headers=bearer(world, other)).status_code == 401
        assert not world.now(one).state.ended

    def test_events_are_stored_once_and_the_outcome_is_one(self, web, world):
        project = started(world)
        headers, told = bearer(world, project), event("check", "started", "looking")
        for _ in range(2):
            assert web.post(_events(project), json=posting(told), headers=headers).json() == {"accepted": 1}
        last = posting(tagging(world.images.add(project)), succeeded(project))
        assert web.post(_events(project), json=last, headers=headers).status_code == 200
        assert web.post(_events(project), json=posting(failed()), headers=headers).status_code == 410
        world.prove()
        kinds = [one["kind"] for one in world.manager.events(project.id) if one["stage"] in ("check", "push")]
        assert kinds == ["started", "started", "succeeded"]
        assert web.get(f"{PROJECTS}/{project.id}").json()["images"]["learner"]["digest"]

    def test_success_without_leave_to_tag_is_a_conflict_and_then_over(self, web, world):
        project = started(world)
        headers, told = bearer(world, project), posting(succeeded(project))
        answer = web.post(_events(project), json=told, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "IMAGES_UNPROVEN")
        assert web.post(_events(project), json=told, headers=headers).status_code == 410
        assert web.get(f"{PROJECTS}/{project.id}").json()["state"] == "failed"

    @pytest.mark.parametrize(
        "document",
        [
            [],
            {},
            {"events": {}},
            {"events": [1]},
            posting({}),
            posting({**event("check", "started", ""), "stage": "other"}),
            posting({**event("check", "started", ""), "kind": "cancelled"}),
            posting({**event("check", "started", ""), "message": "x" * 8001}),
            posting({**event("check", "started", ""), "id": "../x"}),
        ],
    )
    def test_events_that_are_none_are_422(self, web, world, document):
        project = started(world)
        before = world.manager.events(project.id)
        answer = web.post(_events(project), json=document, headers=bearer(world, project))
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "USAGE")
        assert world.manager.events(project.id) == before

    def test_bounds(self, web, world):
        project = started(world)
        headers = bearer(world, project)
        many = posting(*(event("check", "started", "") for _ in range(EVENTS_LIMIT + 1)))
        assert web.post(_events(project), json=many, headers=headers).status_code == 429
        assert web.post(_events(project), json=many, headers={"Authorization": "Bearer x"}).status_code == 401
        many["events"].pop()
        assert web.post(_events(project), json=many, headers=headers).json() == {"accepted": EVENTS_LIMIT}
        assert web.post(_events(project), content=b" " * (BODY_LIMIT + 1), headers=headers).status_code == 413
        assert web.post(_events(project), content=b" " * BODY_LIMIT, headers=headers).status_code == 400

    def test_who_may_not_is_refused_before_the_body_is_read(self, web, world):
        project = started(world)

        async def body():
            yield pytest.fail("the body was read")

        for headers in ({}, {"Authorization": "Bearer x"}):
            assert web.post(_events(project), content=body(), headers=headers).status_code == 401

    def test_a_post_asks_the_database_once_before_it_writes(self, web, world, monkeypatch):
        project = started(world)
        asked, read = [], world.store.read

        def record(**more):
            asked.append(1)
            return read(**more)

        monkeypatch.setattr(world.store, "read", record)
        for one in (event("check", "started", ""), event("check", "progress", "")):
            assert web.post(_events(project), json=posting(one), headers=bearer(world, project)).status_code == 200
            assert len(asked) == 1
            asked.clear()


class TestEveryAnswer:
    @pytest.mark.parametrize("path", [PROJECTS, "/healthz", "/nothing", "/docs", "/metrics", "/openapi.json", "/"])
    def test_has_the_headers_that_browsers_go_by(self, web, path):
        headers = web.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"

    def test_unknown_paths_and_methods_tell_it_in_the_same_shape(self, web):
        assert web.get("/api/flops/else").json()["error"]["code"] == "USAGE"
        answer = web.request("PUT", PROJECTS)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
        assert answer.json()["error"]["message"]

    def test_a_bug_is_told_without_what_it_was(self, world):
        def broken(*_, **__):
            raise ZeroDivisionError("secret")

        world.manager.projects = broken
        answer = Web(create_app(world.manager, open_access()), failures=False).get(PROJECTS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "INTERNAL")
        assert "secret" not in answer.text
        assert "content-security-policy" in answer.headers

    def test_headers_and_addresses_are_bounded(self, web):
        assert web.get(PROJECTS, headers={"X": "x" * 40_000}).status_code == 431
        assert web.get(f"{PROJECTS}?x={'x' * 9000}").status_code == 414


class TestService:
    def test_health_is_200_or_503_and_says_which_part(self, world):
        wrong = []

        def check():
            if wrong:
                raise StoreError("the disk is gone")

        now = [0.0]
        health = Health({"database": check, "other": lambda: None}, clock=lambda: now[0])
        assert health.look() == {"database": "ok", "other": "ok"}
        wrong.append(1)
        assert health.look()["database"] == "ok", "an answer is good for a moment"
        now[0] += 10
        assert health.look() == {"database": "STORE", "other": "ok"}
        web = Web(create_app(world.manager, open_access(), checks={"database": check}))
        answer = web.get("/healthz")
        assert (answer.status_code, answer.json()["status"]) == (503, "failing")
        assert web.request("HEAD", "/healthz").status_code == 503

    def test_metrics(self, web, world):
        project = started(world)
        headers = bearer(world, project)
        finished = {**event("resolve", "finished", "locked"), "data": {"seconds": 1.5}}
        last = tagging(world.images.add(project)), succeeded(project)
        web.post(_events(project), json=posting(finished, *last), headers=headers)
        world.prove()
        text = web.get("/metrics").text
        for line in (
            'flops_projects{state="images_ready"} 1.0',
            'flops_stage_seconds_sum{stage="resolve"} 1.5',
            'flops_events_total{kind="succeeded",stage="push"} 1.0',
            'flops_build_bytes_total{what="uploaded"} 20.0',
            "flops_mirror_backlog 0.0",
        ):
            assert line in text, line
        route = "/api/flops/projects/{project_id}/attempts/{attempt}/events"
        assert f'flops_http_request_seconds_count{{method="POST",route="{route}",status="200"}} 1.0' in text
        assert project.id not in text

    @pytest.mark.parametrize("seconds", [-1, "x", None, True, 1e300, [1]])
    def test_metrics_survive_what_builders_write(self, web, world, seconds):
        project = started(world)
        odd = {**event("resolve", "finished", ""), "data": {"seconds": seconds}}
        assert web.post(_events(project), json=posting(odd), headers=bearer(world, project)).status_code == 200
        assert 'flops_stage_seconds_count{stage="resolve"}' not in web.get("/metrics").text

    def test_docs_list_every_operation_and_load_nothing_from_elsewhere(self, web):
        page = web.get("/docs").text
        document = web.get("/openapi.json").json()
        for path, entry in document["paths"].items():
            for method in entry:
                assert f"{method.upper()} {path}" in page
        assert "http://" not in page.replace(URL, "").replace("http://127.0.0.1:5073", "")
        assert "<script" not in page
        assert "<style" not in page
        assert web.get("/static/manager.css").headers["content-type"].startswith("text/css")


@pytest.fixture
def live(world, monkeypatch):
    monkeypatch.setattr(streams, "_ENDING", 0.05)
    monkeypatch.setattr(streams, "_IDLE", 0.2)
    app = create_app(world.manager, open_access())
    with serving(app) as url, httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        yield client


def post(world, project, *events):
    world.post(world.now(project), *events)


class TestEvents:
    def test_a_stream_tells_all_and_ends_once_the_builder_is_gone(self, live, world):
        project = started(world)
        reader = Reader(live, _stream(project))
        reader.wait_for(2)
        post(world, project, event("check", "started", "looking <b>"))
        progress = {**event("fetch", "progress", ""), "data": {"done": 1, "total": None, "unit": "bytes"}}
        post(world, project, progress)
        world.succeed(project)
        world.settle()
        told = reader.end()
        documents = [json.loads(one["data"]) for one in told]
        assert all(set(document) == set(FIELDS) for document in documents)
        assert [one["event"] for one in told] == [document["kind"] for document in documents]
        stored = world.manager.events(project.id)
        assert [document for document in documents if document["kind"] != "progress"] == stored
        assert [one["id"] for one in told if "id" in one] == [str(one["sequence"]) for one in stored]
        assert all("id" not in one for one in told if one["event"] == "progress")
        assert stored[-1]["stage"] == "remove"
        assert ["retry" in one for one in told] == [True] + [False] * (len(told) - 1)
        assert reader.headers["cache-control"] == "no-store"
        assert reader.headers["content-type"].startswith("text/event-stream")

    def test_a_reader_comes_back_where_it_was(self, live, world):
        project = started(world)
        post(world, project, event("check", "started", "looking"), failed())
        world.settle()
        whole = Reader(live, _stream(project)).end()
        place = whole[1]["id"]
        for more in ({"headers": {"Last-Event-ID": place}}, {"params": {"after": place}}):
            assert [one["data"] for one in Reader(live, _stream(project), **more).end()] == [
                one["data"] for one in whole[2:]
            ]
        for header in ("x", "-1", "9" * 400 + "x"):  # nothing of ours: from the beginning
            again = Reader(live, _stream(project), headers={"Last-Event-ID": header}).end()
            assert len(again) == len(whole)

    def test_who_has_everything_is_told_204(self, live, world):
        project = started(world)
        post(world, project, failed())
        world.settle()
        last = world.manager.events(project.id)[-1]["sequence"]
        for place in (str(last), "9" * 30):
            answer = live.get(f"{PROJECTS}/{project.id}/events", headers={"Last-Event-ID": place})
            assert (answer.status_code, answer.content) == (204, b"")

    def test_without_following_it_ends_at_what_is_there(self, live, world):
        project = started(world)
        told = Reader(live, _stream(project), params={"follow": "false"}).end()
        assert [json.loads(one["data"]) for one in told] == world.manager.events(project.id)

    def test_a_reader_that_does_not_read_holds_up_nobody(self, live, world):
        project = started(world)
        slow = live.stream("GET", f"{PROJECTS}/{project.id}/events")
        slow.__enter__()  # and never read from
        quick = Reader(live, _stream(project))
        for number in range(40):
            post(world, project, *(event("assemble", "warning", f"{number} " + "x" * 7000) for _ in range(20)))
        post(world, project, failed())
        world.settle()
        told = [one for one in quick.end() if one["event"] == "warning"]
        assert len(told) == 800
        slow.__exit__(None, None, None)

    def test_streams_cost_no_thread_and_are_counted(self, live, world):
        project = started(world)
        Reader(live, _stream(project)).wait_for(2)
        before = {thread for thread in threading.enumerate() if not thread.daemon or "ThreadPool" in thread.name}
        limits = httpx.Limits(max_connections=100)
        with httpx.Client(base_url=live.base_url, timeout=20, trust_env=False, limits=limits) as many:
            readers = [Reader(many, _stream(project)) for _ in range(40)]
            for reader in readers:
                reader.wait_for(2)
            ours = {reader.thread for reader in readers}
            added = set(threading.enumerate()) - before - ours
            assert len(added) <= 60, "the server's pools are all there is"
            assert "flops_event_streams 41.0" in live.get("/metrics").text
            post(world, project, failed())
            world.settle()
            for reader in readers:
                reader.end()

    def test_silence_is_kept_alive(self, world, monkeypatch):
        monkeypatch.setattr(streams, "KEEPALIVE", 0.05)
        project = started(world)
        with (
            httpx.Client(timeout=20, trust_env=False) as client,
            serving(create_app(world.manager, open_access())) as url,
        ):
            reader = Reader(client, url + _stream(project))
            reader.wait_for(2)
            until = time.monotonic() + 20
            while not reader.comments and time.monotonic() < until:
                time.sleep(0.01)
            assert reader.comments[0].startswith(": ping")

    def test_a_database_that_fails_ends_the_stream_and_nothing_else(self, live, world, monkeypatch):
        project = started(world)
        reader = Reader(live, _stream(project))
        reader.wait_for(2)

        def broken(*_, **__):
            raise StoreError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(world.manager, "project", broken)
            reader.thread.join(20)
            assert not reader.thread.is_alive()
        assert Reader(live, _stream(project), params={"follow": "false"}).end()

    def test_more_than_there_may_be_are_429(self, world):
        project = started(world)
        app = create_app(world.manager, open_access(), streams=Streams(world.manager, most=1))
        with httpx.Client(timeout=20, trust_env=False) as client, serving(app) as url:
            Reader(client, url + _stream(project)).wait_for(2)
            answer = client.get(url + _stream(project))
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "TOO_MANY")
            assert client.get(f"{url}{PROJECTS}/{project.id}").status_code == 200

    def test_streams_end_with_the_manager(self, world):
        project = started(world)
        with httpx.Client(timeout=20, trust_env=False) as client:
            with serving(create_app(world.manager, open_access())) as url:
                readers = [Reader(client, url + _stream(project)) for _ in range(5)]
                for reader in readers:
                    reader.wait_for(2)
            for reader in readers:
                reader.end()
        assert not world.now(project).state.ended

    def test_a_stream_has_its_time(self, world):
        project = started(world)
        app = create_app(world.manager, open_access(), streams=Streams(world.manager, lifetime=0.3))
        with serving(app) as url, httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
            reader = Reader(client, _stream(project))
            assert len(reader.end()) == len(world.manager.events(project.id))

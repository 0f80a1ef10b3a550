"""Who may call the manager: tokens, sessions, names that it is called by, and pages of other origins."""

import asyncio
import base64
import json
import re

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.orchestrators import World, sla
from tests.web import URL, Web, open_access

from flops.cli.main import main
from flops.errors import AccessDenied, BadSetting, CredentialUnknown, OrchestratorUnreachable
from flops.service.access import COOKIE, Access, OakestraGate, OpenGate, Sessions, TokenGate
from flops.service.api import create_app
from flops.service.named_credentials import GIT, CredentialNames, NamedCredentials
from flops.settings import Settings
from flops_wire.manager import PROJECTS

TOKEN = "t0ken-of-the-operator-0123456789"


def settings(**more):
    return Settings(**more)


def token_access(host="127.0.0.1", **more):
    return Access.of(settings(auth="token", api_token=TOKEN, **more), host)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "projects.sqlite3")
    yield world
    world.close()


@pytest.fixture
def web(world):
    return Web(create_app(world.manager, token_access(), checks={}))


@pytest.fixture
def unlocked(world):
    return Web(create_app(world.manager, open_access(), checks={}))


BEARER = {"Authorization": f"Bearer {TOKEN}"}


class TestSettings:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "build.example.com", ""])
    def test_without_auth_it_is_loopback_only(self, host):
        with pytest.raises(BadSetting, match="loopback"):
            Access.of(settings(), host)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
    def test_loopback_needs_none(self, host):
        assert isinstance(Access.of(settings(), host).gate, OpenGate)

    @pytest.mark.parametrize("token", [None, "", "with space", "line\nfeed", "\u00fcmlaut"])
    def test_token_needs_one(self, token):
        with pytest.raises(BadSetting, match="FLOPS_API_TOKEN"):
            Access.of(settings(auth="token", api_token=token), "0.0.0.0")

    def test_oakestra_needs_its_address(self):
        with pytest.raises(BadSetting, match="FLOPS_OAKESTRA_URL"):
            Access.of(settings(auth="oakestra"), "0.0.0.0")

    @pytest.mark.parametrize("advertise", ["flops.example.org", "ftp://flops.example.org", "http://"])
    def test_an_address_that_is_none(self, advertise):
        with pytest.raises(BadSetting, match="FLOPS_ADVERTISE"):
            Access.of(settings(advertise=advertise), "127.0.0.1")

    def test_serve_refuses_to_be_open_to_others(self, monkeypatch, tmp_path, capsys):
        for name in ("FLOPS_AUTH", "FLOPS_API_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("FLOPS_DATA_DIR", str(tmp_path / "data"))
        assert main(["serve", "--host", "0.0.0.0", "--port", "0", "--registry-port", "0"]) == 2
        told = capsys.readouterr().err
        assert "error[BAD_SETTING]" in told
        assert "FLOPS_AUTH" in told
        assert not (tmp_path / "data").exists(), "nothing was begun"


class TestToken:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", PROJECTS),
            ("POST", PROJECTS),
            ("GET", f"{PROJECTS}/{'0' * 24}"),
            ("GET", f"{PROJECTS}/{'0' * 24}/events"),
            ("GET", f"{PROJECTS}/{'0' * 24}/logs"),
            ("POST", f"{PROJECTS}/{'0' * 24}/cancel"),
            ("GET", f"{PROJECTS}/{'0' * 24}/attempts/1/else"),
            ("GET", f"{PROJECTS}/{'0' * 24}/x/attempts/1/job"),
            ("GET", "/metrics"),
            ("GET", "/docs"),
            ("GET", "/openapi.json"),
            ("GET", "/projects"),
            ("GET", "/nothing"),
            ("DELETE", PROJECTS),
        ],
    )
    def test_nothing_without_it(self, web, method, path):
        for headers in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Cookie": COOKIE + "=1.2.3", "Origin": URL},
        ):
            answer = web.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "ACCESS_DENIED"
            assert TOKEN not in answer.text
        assert web.request(method, path, headers=BEARER).status_code != 401

    def test_probes_and_the_login_need_none(self, web):
        assert web.get("/healthz").status_code == 200
        assert web.get("/login").status_code == 200
        assert web.get("/static/manager.css").status_code == 200

    def test_it_opens_no_attempt_and_an_attempts_token_opens_nothing_else(self, web, world):
        project = world.submit()
        world.steps(4)
        token = world.orchestrator.job_of(project).deployment.token
        own = {"Authorization": f"Bearer {token}"}
        job = f"{PROJECTS}/{project.id}/attempts/1/job"
        assert web.get(job, headers=own).status_code == 200
        assert web.get(job, headers=BEARER).status_code == 401
        assert web.get(f"{PROJECTS}/{project.id}", headers=own).status_code == 401
        assert web.post(f"{PROJECTS}/{project.id}/cancel", headers=own).status_code == 401

    def test_a_browser_is_led_to_the_login(self, web):
        answer = web.get("/projects/x", headers={"Accept": "text/html"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/projects/x")

    def test_the_document_says_which_token(self, web, unlocked):
        paths = web.get("/openapi.json", headers=BEARER).json()["paths"]
        assert paths[PROJECTS]["post"]["security"] == [{"operator": []}]
        assert paths[PROJECTS + "/{project_id}/attempts/{attempt}/job"]["get"]["security"] == [{"attempt": []}]
        assert "security" not in paths["/healthz"]["get"]
        assert "security" not in unlocked.get("/openapi.json").json()["paths"][PROJECTS]["post"]


class TestLogin:
    def enter(self, web, token=TOKEN, target=""):
        form = {"token": token, "next": target}
        return web.post("/login", data=form, headers={"Origin": URL, "Sec-Fetch-Site": "same-origin"})

    def test_a_session_opens_the_page_and_the_api(self, web):
        answer = self.enter(web, target="/projects/x")
        assert (answer.status_code, answer.headers["location"]) == (303, "/projects/x")
        told = answer.headers["set-cookie"]
        assert "HttpOnly" in told
        assert "SameSite=Strict" in told
        assert TOKEN not in told
        assert web.get(PROJECTS).status_code == 200
        assert web.post(PROJECTS, json=sla(), headers={"Origin": URL}).status_code == 200

    def test_a_session_changes_nothing_from_elsewhere(self, web, world):
        self.enter(web)
        for headers in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}):
            assert web.post(PROJECTS, json=sla(), headers=headers).status_code == 403
        assert world.manager.projects(limit=1).total == 0

    def test_leaving_ends_it(self, web):
        self.enter(web)
        answer = web.post("/logout", headers={"Origin": URL})
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert web.get(PROJECTS).status_code == 401

    def test_a_copy_of_its_cookie_opens_nothing_after_it_and_after_a_restart(self, web, world):
        self.enter(web)
        copies = [f"{COOKIE}={web.cookies[COOKIE]}"]
        others = Web(web.app)
        self.enter(others)
        copies.append(f"{COOKIE}={others.cookies[COOKIE]}")
        web.post("/logout", headers={"Origin": URL})
        found = [Web(web.app).get(PROJECTS, headers={"Cookie": copy}).status_code for copy in copies]
        assert found == [401, 200], "another session stays"
        world.restart()
        again = create_app(world.manager, token_access())
        found = [Web(again).get(PROJECTS, headers={"Cookie": copy}).status_code for copy in copies]
        assert found == [401, 200]

    def test_whoever_has_no_session_ends_none(self, web, world):
        for cookie in ("", "x", f"{2**40}.x.y", "1.2.3"):
            assert web.post("/logout", headers={"Origin": URL, "Cookie": f"{COOKIE}={cookie}"}).status_code == 303
        assert world.manager.ended_sessions() == {}

    @pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "x" * 5000])
    def test_a_wrong_token_is_told_on_the_page(self, web, token):
        answer = self.enter(web, token)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert 'role="alert"' in answer.text
        assert token == "" or token not in answer.text

    @pytest.mark.parametrize(
        "target", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:x", "/a b"]
    )
    def test_it_leads_nowhere_else(self, web, target):
        assert self.enter(web, target=target).headers["location"] == "/projects"
        page = web.get("/login", params={"next": target}).text
        assert 'value="/projects"' in page

    def test_the_form_is_text(self, web):
        page = web.get("/login", params={"next": '/"><b>'}).text
        assert "<b>" not in page

    def test_forms_without_end(self, web):
        assert web.post("/login", content=b"a=1&" * 1000, headers={"Origin": URL}).status_code == 401

    def test_where_nothing_is_locked_there_is_no_form(self, unlocked):
        assert unlocked.get("/login").headers["location"] == "/projects"
        assert unlocked.post("/login", data={"token": "x"}).headers["location"] == "/projects"


class TestSessions:
    def test_another_token_ends_them(self):
        one, other = (Sessions(secret=TokenGate(token).secret()) for token in (TOKEN, TOKEN + "2"))
        assert one.valid(one.make(60))
        assert not other.valid(one.make(60))

    def test_they_end(self):
        now = [1000.0]
        sessions = Sessions(secret=b"k" * 32, clock=lambda: now[0])
        cookie = sessions.make(60)
        now[0] += 59
        assert sessions.valid(cookie)
        now[0] += 2
        assert not sessions.valid(cookie)

    def test_what_was_ended_is_remembered_as_long_as_it_would_have_lasted(self, world):
        now = [1000.0]
        sessions = Sessions(secret=b"k" * 32, clock=lambda: now[0])
        for length in (60, 600):
            ended = sessions.end(sessions.make(length))
            world.manager.end_session(ended[0], world.clock.now() + ended[1] - now[0])
        assert (len(sessions.ended), len(world.manager.ended_sessions())) == (2, 2)
        now[0] += 61
        world.clock.move(61)
        ended = sessions.end(sessions.make(60))
        world.manager.end_session(ended[0], world.clock.now() + ended[1] - now[0])
        assert (len(sessions.ended), len(world.manager.ended_sessions())) == (2, 2)

    @given(st.text(max_size=80))
    def test_no_other_text_is_one(self, text):
        sessions = Sessions(secret=b"k" * 32)
        assert not sessions.valid(text)

    @given(st.integers(0, 200), st.characters())
    def test_a_changed_one_is_none(self, place, character):
        sessions = Sessions(secret=b"k" * 32)
        cookie = sessions.make(3600)
        place %= len(cookie)
        changed = cookie[:place] + character + cookie[place + 1 :]
        assert changed == cookie or not sessions.valid(changed)

    def test_only_by_https_where_pages_come_so(self):
        assert "Secure" in token_access(advertise="https://flops.example.org").sessions.cookie("x", 1)
        assert "Secure" not in token_access().sessions.cookie("x", 1)


class TestHosts:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1:5072", "127.0.0.1", "localhost:9", "[::1]:5072", "LOCALHOST", "localhost."]
    )
    def test_names_of_this_machine(self, host):
        assert Access.of(settings(), "127.0.0.1").knows_host(host)

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "192.0.2.7",
            "",
            "127.0.0.1:x",
            "a@127.0.0.1",
            "127.0.0.1/",
            "127.0.0.1 evil",
        ],
    )
    def test_other_names(self, host):
        assert not Access.of(settings(), "127.0.0.1").knows_host(host)

    def test_beyond_loopback_addresses_and_the_advertised_name(self):
        access = token_access("0.0.0.0", advertise="https://flops.example.org:8443")
        for host in (
            "192.0.2.7:5072",
            "[2001:db8::1]:5072",
            "flops.example.org",
            "flops.example.org:8443",
            "127.0.0.1",
        ):
            assert access.knows_host(host), host
        assert not access.knows_host("evil.example")

    def test_a_rebound_name_is_answered_by_nothing(self, unlocked, world):
        for method, path in (("GET", PROJECTS), ("POST", PROJECTS), ("GET", "/healthz"), ("GET", "/projects")):
            answer = unlocked.request(method, path, headers={"Host": "evil.example:5072"}, json=sla())
            assert answer.status_code == 421
        assert world.manager.projects(limit=1).total == 0


class TestOrigins:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "http://evil.example"},
            {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"},
            {"Origin": "http://localhost:5072"},
            {"Origin": "http://127.0.0.1:5072.evil.example"},
            {"Origin": "http://127.0.0.1"},
            {"Origin": "file://"},
            {"Origin": "chrome-extension://127.0.0.1:5072"},
            {"Origin": ""},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ],
    )
    @pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
    def test_a_page_of_another_origin_changes_nothing(self, unlocked, world, headers, kind):
        project = world.submit()
        before = world.manager.events(project.id)
        changing = [
            ("POST", PROJECTS),
            ("POST", f"{PROJECTS}/{project.id}/cancel"),
            ("POST", f"{PROJECTS}/{project.id}/attempts/1/events"),
            ("POST", "/login"),
            ("POST", "/logout"),
            ("DELETE", f"{PROJECTS}/{project.id}"),
            ("OPTIONS", PROJECTS),
        ]
        for method, path in changing:
            body = json.dumps(sla())
            answer = unlocked.request(method, path, content=body, headers={**headers, "Content-Type": kind})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "ACCESS_DENIED"), path
            assert "access-control-allow-origin" not in answer.headers
        assert world.manager.projects(limit=1).total == 1
        assert world.manager.events(project.id) == before

    @pytest.mark.parametrize(
        "headers",
        [{}, {"Origin": URL}, {"Origin": URL, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}],
    )
    def test_our_own_page_and_programs_may(self, unlocked, headers):
        assert unlocked.post(PROJECTS, json=sla(), headers=headers).status_code == 200

    def test_behind_a_proxy_that_rewrites_host(self, world):
        access = token_access(advertise="https://flops.example.org")
        web = Web(create_app(world.manager, access))
        headers = {**BEARER, "Origin": "https://flops.example.org", "Sec-Fetch-Site": "same-origin"}
        assert web.post(PROJECTS, json=sla(), headers=headers).status_code == 200

    @pytest.mark.parametrize("path", [PROJECTS, "/healthz", "/docs"])
    def test_no_answer_may_be_read_by_another_origin(self, unlocked, path):
        headers = unlocked.get(path, headers={"Origin": "http://evil.example"}).headers
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["cross-origin-resource-policy"] == "same-origin"


def oakestra(answer, clock=lambda: 0.0):
    """A gate before an Oakestra that answers so, and what it was asked."""
    asked = []

    def handle(request):
        asked.append(request)
        told = answer(request) if callable(answer) else answer
        if isinstance(told, Exception):
            raise told
        return httpx.Response(told)

    gate = OakestraGate("http://oak:10000/", secret=b"s" * 32, transport=httpx.MockTransport(handle), clock=clock)
    return gate, asked


class TestOakestra:
    def test_its_yes_is_believed_for_a_minute(self):
        now = [0.0]
        gate, asked = oakestra(200, lambda: now[0])
        for _ in range(3):
            asyncio.run(gate.admit("t"))
        assert [(str(one.url), one.headers["authorization"]) for one in asked] == [
            ("http://oak:10000/api/applications/", "Bearer t")
        ]
        now[0] = 60.0
        asyncio.run(gate.admit("t"))
        assert len(asked) == 2

    @pytest.mark.parametrize("status", [401, 403, 404, 422, 302])
    def test_all_else_is_a_no_for_this_token_alone(self, status):
        gate, asked = oakestra(lambda request: 200 if "good" in request.headers["authorization"] else status)
        for _ in range(3):
            with pytest.raises(AccessDenied):
                asyncio.run(gate.admit("bad"))
        assert len(asked) == 1
        asyncio.run(gate.admit("good"))

    @pytest.mark.parametrize("answer", [500, 503, httpx.ConnectError("no"), httpx.ReadTimeout("slow")])
    def test_nobody_gets_in_while_it_can_not_tell(self, answer):
        gate, asked = oakestra(answer)
        for _ in range(2):
            with pytest.raises(OrchestratorUnreachable):
                asyncio.run(gate.admit("t"))
        assert len(asked) == 2

    def test_many_at_once_ask_once(self):
        gate, asked = oakestra(200)

        async def all_of_them():
            await asyncio.gather(*(gate.admit("t") for _ in range(50)))

        asyncio.run(all_of_them())
        assert len(asked) == 1

    def test_what_is_remembered_is_bounded_and_holds_no_token(self):
        gate, _ = oakestra(200)

        async def many():
            for number in range(1200):
                await gate.admit(f"token-{number}")

        asyncio.run(many())
        assert len(gate._known) <= 1000
        assert not any(b"token" in key for key in gate._known)

    def test_through_the_api(self, world):
        gate, _ = oakestra(lambda request: 200 if request.headers["authorization"] == "Bearer good" else 401)
        access = Access(gate=gate, sessions=Sessions(secret=gate.secret()), names=frozenset({"127.0.0.1"}))
        web = Web(create_app(world.manager, access))
        assert web.get(PROJECTS, headers={"Authorization": "Bearer good"}).status_code == 200
        assert web.get(PROJECTS, headers={"Authorization": "Bearer bad"}).status_code == 401
        gate._asking.clear()
        down, _ = oakestra(503)
        access = Access(gate=down, sessions=Sessions(secret=b"s"), names=frozenset({"127.0.0.1"}))
        answer = Web(create_app(world.manager, access)).get(PROJECTS, headers={"Authorization": "Bearer good"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ORCHESTRATOR_UNREACHABLE")

    def test_a_session_ends_with_its_token_at_the_latest(self):
        gate, _ = oakestra(200)

        def web_token(claims):
            body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
            return f"e30.{body}.x"

        assert gate.session_seconds(web_token({"exp": 0})) == 0
        assert gate.session_seconds(web_token({"exp": 1e12})) == 600
        for odd in (
            "",
            "x",
            "a.b.c",
            web_token([]),
            web_token({"exp": "x"}),
            "a." + "!" * 9,
            web_token({"exp": 1e400}),
        ):
            assert 0 <= gate.session_seconds(odd) <= 600


class TestCredentials:
    def parse(self, document):
        return NamedCredentials.parse(json.dumps(document), GIT)

    def test_found_by_name_and_for_its_host_only(self):
        known = self.parse({"ours": {"host": "Git.Example.com:8443", "username": "bot", "password": "s3cret"}})
        assert known.find("ours", "git.example.com:8443").to_json() == {
            "host": "git.example.com:8443",
            "username": "bot",
            "password": "s3cret",
        }
        for name, host in (("ours", "git.example.com"), ("ours", "evil.example"), ("other", "git.example.com:8443")):
            with pytest.raises(CredentialUnknown) as caught:
                known.find(name, host)
            assert "s3cret" not in str(caught.value) + caught.value.hint
        assert "s3cret" not in repr(known)

    @pytest.mark.parametrize("text", [None, "", "{}"])
    def test_none(self, text):
        assert not list(NamedCredentials.parse(text, GIT))

    @pytest.mark.parametrize(
        "text",
        [
            "s3cret",
            "[]",
            "[" * 100_000,
            '{"a": "s3cret"}',
            '{"a": {"host": "h", "username": "u"}}',
            '{"a": {"host": "https://h", "username": "u", "password": "s3cret"}}',
            '{"a": {"host": "h", "username": "u", "password": ""}}',
            '{"a": {"host": "h", "username": "u", "password": 5}}',
            '{"a": {"host": "h", "username": "u\\n", "password": "s3cret"}}',
            '{"a": {"host": "h", "username": "u", "password": "s3cret", "x": 1}}',
            '{"../a": {"host": "h", "username": "u", "password": "s3cret"}}',
        ],
    )
    def test_a_setting_that_can_not_be_read_is_told_without_what_it_holds(self, text):
        with pytest.raises(BadSetting) as caught:
            NamedCredentials.parse(text, GIT)
        assert GIT in caught.value.message
        assert "s3cret" not in caught.value.message + caught.value.hint

    def test_from_the_settings(self):
        entry = {"host": "h", "username": "u", "password": "p"}
        names = CredentialNames.of(
            settings(git_credentials=json.dumps({"g": entry}), registry_credentials=json.dumps({"r": entry}))
        )
        assert (list(names.git.by_name), list(names.registry.by_name)) == (["g"], ["r"])

    def test_tokens_stand_in_no_representation(self):
        access = token_access()
        assert not re.search(TOKEN, repr(access) + repr(vars(access.gate)))

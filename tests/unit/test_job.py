"""One builder attempt: its conversation with a manager that answers, refuses, breaks and forgets; and the job it is given."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ports import unused_port

from flops import programs
from flops.errors import (
    Adjustment,
    AttemptOver,
    BadSetting,
    Cancelled,
    Finding,
    FlopsError,
    ManagerRefused,
    ManagerUnreachable,
    RegistryUnreachable,
    StructureError,
)
from flops.job import attempt as attempt_module
from flops.job import run as run_module
from flops.job.attempt import AttemptClient, Job
from flops.job.reporting import Events
from flops.job.run import deadline, run
from flops.progress import Silent, Stage
from flops.recipe import Flavor, Recipe
from flops.settings import Settings
from flops_wire.events import FIELDS, KINDS, STAGES, TERMINAL_KINDS
from flops_wire.manager import EVENTS_LIMIT, TEXT_LIMIT

TOKEN = "the-attempt's-token"

CUT = "cut"
"""Read the request and break the connection without an answer."""
COMMIT_AND_CUT = "commit and cut"
"""Commit, then break the connection: the builder can't know."""


class ScriptedManager:
    """Use as a context. `script(method, body, nth)` gives a status, CUT, COMMIT_AND_CUT or a number of seconds to wait; None: 200."""

    def __init__(self, job=None, script=lambda method, body, nth: None, *, port=0, headers=None) -> None:
        self.job, self.script, self.port, self.headers = job, script, port, headers or {}
        self.events: list[dict] = []
        """What was committed, each id once, in order."""
        self.requests: list[tuple[str, str]] = []
        self.live: list[dict] = []
        """Progress, which nobody stores."""
        self.doubled = 0
        self._seen: set[str] = set()
        self._count = Counter()
        self._guard = threading.Lock()

    def __enter__(self):
        manager = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_) -> None:
                pass

            def do_GET(self) -> None:
                manager._answer(self, None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                manager._answer(self, json.loads(body))

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/flops/projects/p/attempts/1"
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def _answer(self, handler, body) -> None:
        with self._guard:
            self._count[handler.command] += 1
            nth = self._count[handler.command]
            self.requests.append((handler.command, handler.path))
        order = self.script(handler.command, body, nth)
        if isinstance(order, float):
            time.sleep(order)
            order = None
        if handler.headers["authorization"] != f"Bearer {TOKEN}":
            order = 401
        if order == CUT:
            return self._cut(handler)
        status = order if isinstance(order, int) else 200
        if status == 200 and body is not None:
            self._commit(body["events"])
        if order == COMMIT_AND_CUT:
            return self._cut(handler)
        answer = json.dumps(
            {"error": {"code": "SCRIPTED", "message": "as scripted", "hint": "", "findings": []}}
            if status != 200
            else self.job
            if body is None
            else {"accepted": len(body["events"])}
        ).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)
        return None

    def _commit(self, events) -> None:
        with self._guard:
            for event in events:
                if event["kind"] == "progress":
                    self.live.append(event)
                elif event["id"] in self._seen:
                    self.doubled += 1
                else:
                    self._seen.add(event["id"])
                    self.events.append(event)

    @staticmethod
    def _cut(handler) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.close_connection = True
        handler.connection.close()
        handler.wfile = open("/dev/null", "wb")  # noqa: SIM115 - what the handler flushes at its end


RECIPE = Recipe(flavor=Flavor.SKLEARN)
MOVE = {"tags": ["v1"], "images": {"learner": {"digest": "sha256:1", "platforms": {"linux/amd64": "sha256:2"}}}}


def job_document(**changes):
    recipe = {
        "flavor": "sklearn",
        "python": None,
        "policy": "fix",
        "accelerator": "cpu",
        "compression": "gzip",
        "base": None,
        "subdir": "",
        "groups": [],
    }
    return {
        "project": "0123456789abcdef01234567",
        "attempt": 1,
        "source": "/nowhere",
        "ref": None,
        "subdir": "",
        "platforms": ["linux/amd64"],
        "recipe": recipe,
        "recipe_digest": RECIPE.digest,
        "registry": "http://127.0.0.1:1",
        "registry_pull": None,
        "force": False,
        "verbose": False,
        "seconds": 3600,
        "allow_local": False,
        "allow_hosts": [],
        "credentials": {"git": None, "registry": [], "base": []},
        **changes,
    }


@pytest.fixture(autouse=True)
def _not_cancelled():
    """What `process.cancel` did must not reach other tests."""
    yield
    programs._cancelled.clear()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(attempt_module, "_FIRST", 0.01)
    monkeypatch.setattr(attempt_module, "_LONGEST", 0.05)


def connect(manager, token=TOKEN):
    return AttemptClient(manager.url, token)


def told(manager):
    return [(event["stage"], event["kind"], event["code"]) for event in manager.events]


# --- the conversation ---
def test_stages_of_a_build_arrive_in_order_with_every_field():
    with ScriptedManager() as manager, connect(manager) as attempt:
        with Events(attempt.post) as events:
            with events.stage(Stage.CLONE, "https://example.org/a/b"):
                events.warning(Stage.CLONE, "sub is a submodule", hint="leave it")
            with events.stage(Stage.CHECK, "structure"):
                events.finding(Finding(path="a.py", line=3, code="NOTE", message="seen", hint="look"))
            with events.stage(Stage.RESOLVE, "locks"):
                events.adjusted(
                    Adjustment(
                        code="PIN_RELAXED",
                        package="psutil",
                        before="==5.9.8",
                        after="==6.0.0",
                        path="conda.yaml",
                        line=12,
                        reason="no wheel",
                        platform="linux/arm64",
                    )
                )
            with events.stage(Stage.PUSH, "registry"):
                events.ask_to_tag(MOVE)
            events.succeeded({"images": {}})
        assert told(manager) == [
            ("clone", "started", None),
            ("clone", "warning", None),
            ("clone", "finished", None),
            ("check", "started", None),
            ("check", "finding", "NOTE"),
            ("check", "finished", None),
            ("resolve", "started", None),
            ("resolve", "adjusted", "PIN_RELAXED"),
            ("resolve", "finished", None),
            ("push", "started", None),
            ("push", "started", "TAGGING"),
            ("push", "finished", None),
            ("push", "succeeded", None),
        ]
        for event in manager.events:
            assert set(event) == set(FIELDS) - {"sequence", "project", "attempt"}
            assert event["stage"] in STAGES
            assert event["kind"] in KINDS
            assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", event["id"])
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        kinds = {event["kind"]: event for event in manager.events}
        assert kinds["adjusted"]["platform"] == "linux/arm64"
        assert kinds["adjusted"]["data"]["before"] == "==5.9.8"
        assert kinds["finding"]["data"] == {
            "code": "NOTE",
            "path": "a.py",
            "line": 3,
            "message": "seen",
            "hint": "look",
        }
        assert kinds["warning"]["hint"] == "leave it"
        assert kinds["finished"]["data"]["seconds"] >= 0
        assert kinds["succeeded"]["data"] == {"result": {"images": {}}}


@pytest.mark.parametrize("trouble", [503, 500, 429, 408, CUT, COMMIT_AND_CUT])
def test_trouble_on_the_way_loses_and_doubles_nothing(trouble):
    def script(method, body, nth):
        return trouble if nth % 3 else None

    with ScriptedManager(script=script) as manager, connect(manager) as attempt:
        with Events(attempt.post) as events:
            for number in range(50):
                events.warning(Stage.PUSH, str(number))
            events.ask_to_tag(MOVE)
            events.succeeded({})
        assert [event["message"] for event in manager.events][:50] == [str(number) for number in range(50)]
        assert told(manager)[50:] == [("push", "started", "TAGGING"), ("push", "succeeded", None)]
        assert (manager.doubled > 0) == (trouble == COMMIT_AND_CUT)


@pytest.mark.parametrize(
    ("url", "token", "told"),
    [
        ("file:///etc/passwd", TOKEN, "FLOPS_JOB_URL is no http"),
        ("http://", TOKEN, "FLOPS_JOB_URL is no http"),
        ("http://127.0.0.1:9", "clé", "FLOPS_JOB_TOKEN holds characters"),
        ("http://127.0.0.1:9", "two\nlines", "FLOPS_JOB_TOKEN holds characters"),
    ],
)
def test_an_environment_that_no_manager_made_is_told(url, token, told):
    with pytest.raises(BadSetting, match=told):
        AttemptClient(url, token)


@settings(max_examples=20, deadline=None)
@given(orders=st.lists(st.sampled_from([None, None, 503, CUT, COMMIT_AND_CUT]), max_size=12), count=st.integers(1, 20))
def test_whatever_happens_order_and_number_stay(orders, count):
    def script(method, body, nth):
        return orders[nth - 1] if nth <= len(orders) else None

    with ScriptedManager(script=script) as manager, connect(manager) as attempt:
        with Events(attempt.post) as events:
            for number in range(count):
                with events.stage(Stage.CHECK, str(number)):
                    pass
        assert [(event["kind"], event["message"]) for event in manager.events] == [
            (kind, str(number)) for number in range(count) for kind in ("started", "finished")
        ]


def test_a_manager_that_is_away_and_comes_back_hears_everything():
    """Nobody listens at first; the builder goes on meanwhile."""
    port = unused_port()
    url = f"http://127.0.0.1:{port}/api/flops/projects/p/attempts/1"
    with AttemptClient(url, TOKEN) as attempt, Events(attempt.post) as events:
        with events.stage(Stage.CLONE, "early"):
            pass
        with ScriptedManager(port=port) as manager:
            events.succeeded({})
            assert told(manager) == [
                ("clone", "started", None),
                ("clone", "finished", None),
                ("push", "succeeded", None),
            ]


def test_batches_are_no_larger_than_a_manager_takes():
    sizes = []
    gate = threading.Event()

    def post(batch):
        gate.wait(10)
        sizes.append(len(batch))

    with Events(post) as events:
        for number in range(3 * EVENTS_LIMIT):
            events.warning(Stage.CHECK, str(number))
        gate.set()
    assert sum(sizes) == 3 * EVENTS_LIMIT
    assert max(sizes) == EVENTS_LIMIT


def test_long_and_strange_texts_are_cut_and_can_be_stored():
    with ScriptedManager() as manager, connect(manager) as attempt:
        with Events(attempt.post) as events:
            events.warning(Stage.CHECK, "x" * (TEXT_LIMIT + 5), hint="y" * (TEXT_LIMIT + 5))
            events.finding(Finding(path="\udcff.py", line=1, code="N", message="half \ud800"))
        assert [len(event["message"]) for event in manager.events] == [TEXT_LIMIT, len("half \\ud800")]
        assert len(manager.events[0]["hint"]) == TEXT_LIMIT
        assert manager.events[1]["data"]["path"] == "\\udcff.py"


def test_a_failure_of_a_hundred_thousand_findings_still_fits():
    findings = [Finding(path=f"{number}.py", line=1, code="N", message="m" * 100) for number in range(100_000)]
    with ScriptedManager() as manager, connect(manager) as attempt:
        with Events(attempt.post) as events:
            events.failed(StructureError("many", findings=findings))
        (event,) = manager.events
        assert 1000 < len(event["data"]["error"]["findings"]) < 100_000
        assert len(json.dumps(event)) < 2 * 1024 * 1024


# --- progress ---
def test_progress_is_told_at_most_twice_a_second_and_only_within_its_stage():
    with ScriptedManager() as manager, connect(manager) as attempt:
        with Events(attempt.post) as events:
            events.progress(Stage.FETCH, done=1, total=9)  # early: not told before the stage begins
            with events.stage(Stage.FETCH, "wheels"):
                begun = time.monotonic()
                end = begun + 1.3
                done = 1
                while time.monotonic() < end:
                    done += 1
                    events.progress(Stage.FETCH, done=done, total=done)
                    time.sleep(0.001)
            lasted = time.monotonic() - begun
            events.progress(Stage.FETCH, done=done + 1, total=done + 1)  # late: the stage is over
            time.sleep(0.6)
            events.warning(Stage.PUSH, "last")
        assert told(manager) == [("fetch", "started", None), ("fetch", "finished", None), ("push", "warning", None)]
        numbers = [event["data"]["done"] for event in manager.live]
        assert 1 <= len(numbers) <= 2 * lasted + 2
        assert numbers == sorted(set(numbers))
        assert numbers[-1] <= done
        assert all(event["data"]["unit"] == "bytes" for event in manager.live)


def test_a_slow_manager_gets_less_progress_and_the_build_does_not_wait():
    def script(method, body, nth):
        return 0.7

    with ScriptedManager(script=script) as manager, connect(manager) as attempt:
        with Events(attempt.post) as events, events.stage(Stage.PUSH, "registry"):
            begun = time.monotonic()
            for done in range(20_000):
                events.progress(Stage.PUSH, done=done)
            time.sleep(1.5)
            lasted = time.monotonic() - begun
        assert 1 <= len(manager.live) <= lasted / 0.7 + 2  # 20,000, if each were posted
        assert told(manager) == [("push", "started", None), ("push", "finished", None)]


# --- being stopped ---
@pytest.mark.parametrize("status", [401, 404, 410])
def test_an_attempt_that_is_over_is_told_once_and_sends_nothing_more(status):
    ends = []
    with ScriptedManager(script=lambda method, body, nth: status) as manager, connect(manager) as attempt:
        with Events(attempt.post, over=ends.append) as events:
            with pytest.raises(AttemptOver):
                events.ask_to_tag(MOVE)
            events.warning(Stage.PUSH, "nobody hears this")
            with pytest.raises(AttemptOver):
                events.succeeded({})
        assert len(ends) == 1
        assert len(manager.requests) == 1
        assert manager.events == []


def test_a_wrong_token_ends_the_attempt_and_stands_in_no_message():
    with ScriptedManager() as manager, connect(manager, "another") as attempt:
        with pytest.raises(AttemptOver) as failure:
            attempt.job()
        assert "another" not in failure.value.message


def test_an_interrupt_waits_for_nobody_and_posts_nothing_more():
    gate = threading.Event()
    posted = []

    def post(batch):
        posted.extend(batch)
        gate.wait(30)

    def build():
        with Events(post) as events, events.stage(Stage.CLONE, "a"):
            while not posted:
                time.sleep(0.005)
            events.warning(Stage.CLONE, "never sent")
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build()
    assert time.monotonic() - begun < 15
    gate.set()
    assert [event["kind"] for event in posted] == ["started"]


def test_a_manager_that_never_answers_is_given_up_when_the_time_is_over():
    def script(method, body, nth):
        if nth == 3:
            attempt.expires(0)
        return 503

    with ScriptedManager(script=script) as manager, connect(manager) as attempt:
        with Events(attempt.post) as events, pytest.raises(ManagerUnreachable, match="503"):
            events.succeeded({})
        assert len(manager.requests) == 3


def test_retry_after_is_respected():
    times = []

    def script(method, body, nth):
        times.append(time.monotonic())
        return 429 if nth == 1 else None

    with ScriptedManager(script=script, headers={"retry-after": "1"}) as manager, connect(manager) as attempt:
        attempt.post([])
    assert times[1] - times[0] >= 1


def test_an_event_that_is_refused_is_left_out_and_named_in_the_log(caplog):
    def script(method, body, nth):
        return 422 if any(event["message"] == "bad" for event in body["events"]) else None

    with ScriptedManager(script=script) as manager, connect(manager) as attempt:
        with caplog.at_level(logging.WARNING, "flops.job"), Events(attempt.post) as events:
            for message in ("a", "bad", "b"):
                events.warning(Stage.CHECK, message)
            events.succeeded({})
        assert [event["message"] for event in manager.events] == ["a", "b", "images are in place"]
        assert "SCRIPTED" in caplog.text


def test_a_result_that_is_refused_is_no_success():
    with (
        ScriptedManager(script=lambda method, body, nth: 422) as manager,
        connect(manager) as attempt,
        Events(attempt.post) as events,
        pytest.raises(ManagerRefused),
    ):
        events.succeeded({})


# --- the whole attempt ---
EXAMPLE = Path(__file__).parents[2] / "examples/digits-sklearn"


def attempt_of(manager, tmp_path, **options):
    with connect(manager) as attempt:
        return run(
            attempt,
            settings=Settings(cache_dir=tmp_path / "cache", data_dir=tmp_path / "data"),
            reporter=Silent(),
            **options,
        )


@pytest.mark.parametrize(
    ("changes", "code", "stage"),
    [
        ({"source": "/etc"}, "BAD_URL", "clone"),
        (
            {"source": str(EXAMPLE), "allow_local": True, "registry": "http://127.0.0.1:1"},
            "REGISTRY_UNREACHABLE",
            "push",
        ),
        ({"source": "https://127.0.0.1/a/b"}, "BLOCKED_ADDRESS", "clone"),
        ({"source": "https://user:secret@example.org/a/b"}, "CREDENTIAL_IN_URL", "clone"),
        ({"source": "git@example.org:a/b"}, "BAD_URL", "clone"),
        ({"recipe_digest": "sha256:" + "0" * 64}, "MANAGER_REFUSED", "clone"),
        ({"platforms": ["plan9/mips"]}, "UNKNOWN_PLATFORM", "clone"),
        ({"recipe": None}, "MANAGER_REFUSED", "clone"),
        ({"registry": "UPPER/../x"}, "BAD_TARGET", "clone"),
    ],
)
def test_what_can_not_be_built_fails_in_one_terminal_event_and_exit_code_0(tmp_path, monkeypatch, changes, code, stage):
    monkeypatch.setattr(run_module, "TRIES", 2)
    with ScriptedManager(job=job_document(**changes)) as manager:
        assert attempt_of(manager, tmp_path) == 0
        (event,) = [one for one in manager.events if one["kind"] in TERMINAL_KINDS]
        assert event == manager.events[-1]
        # the registry is asked while the repository is read, so the stage is either's
        assert (event["kind"], event["code"]) == ("failed", code)
        assert event["stage"] == stage or code == "REGISTRY_UNREACHABLE"
        assert event["data"]["error"]["code"] == code
        assert "secret" not in json.dumps(event)


def scripted_build(monkeypatch, work):
    monkeypatch.setattr(run_module, "_build", lambda job, settings, reporter, events: work(job, reporter, events))


def test_the_terminal_event_carries_the_stage_that_failed(tmp_path, monkeypatch):
    def work(job, reporter, events):
        with reporter.stage(Stage.CLONE, "a"):
            pass
        with reporter.stage(Stage.CHECK, "b"):
            raise StructureError("wrong", findings=[Finding(path="a.py", line=1, code="X", message="m")])

    scripted_build(monkeypatch, work)
    with ScriptedManager(job=job_document()) as manager:
        assert attempt_of(manager, tmp_path) == 0
        assert told(manager)[-1] == ("check", "failed", "STRUCTURE")
        assert manager.events[-1]["data"]["error"]["findings"][0]["path"] == "a.py"


def test_a_registry_that_is_away_with_its_manager_is_waited_for(tmp_path, monkeypatch):
    """An embedded one is, while the manager is started again, however long that takes."""
    builds = []

    def work(job, reporter, events):
        builds.append(job)
        with reporter.stage(Stage.CLONE, "a"):
            events.finding(Finding(path="a.py", line=1, code="NOTE", message="m"))
        with reporter.stage(Stage.PUSH, "b"):
            if len(builds) == 1:
                raise RegistryUnreachable("nobody answers")
        return {"images": {}}

    def script(method, _body, nth):
        return CUT if method == "GET" and nth in (2, 3) else None

    scripted_build(monkeypatch, work)
    with ScriptedManager(job=job_document(), script=script) as manager:
        assert attempt_of(manager, tmp_path) == 0
        note = ("clone", "finding", "NOTE")
        once = [("clone", "started", None), note, ("clone", "finished", None), ("push", "started", None)]
        again = [one for one in once if one != note]
        ends = [("push", "finished", None), ("push", "succeeded", None)]
        assert told(manager) == [*once, ("push", "warning", None), *again, *ends]
    # where the manager is there, so would its registry be: nothing is to be waited for
    builds.clear()
    with ScriptedManager(job=job_document()) as manager:
        assert attempt_of(manager, tmp_path) == 0
        assert told(manager) == [*once, ("push", "failed", "REGISTRY_UNREACHABLE")]


def test_what_fails_in_a_second_build_is_told_with_its_own_stage(tmp_path, monkeypatch):
    builds = []

    def work(job, reporter, events):
        builds.append(job)
        with reporter.stage(Stage.PUSH if len(builds) == 1 else Stage.FETCH, "a"):
            raise RegistryUnreachable("nobody answers") if len(builds) == 1 else StructureError("wrong")

    def script(method, _body, nth):
        return CUT if (method, nth) == ("GET", 2) else None

    scripted_build(monkeypatch, work)
    with ScriptedManager(job=job_document(), script=script) as manager:
        assert attempt_of(manager, tmp_path) == 0
        assert told(manager)[-1] == ("fetch", "failed", "STRUCTURE")


def test_a_bug_is_told_as_one(tmp_path, monkeypatch, capsys):
    scripted_build(monkeypatch, lambda job, reporter, events: 1 / 0)
    with ScriptedManager(job=job_document()) as manager:
        assert attempt_of(manager, tmp_path) == 0
        assert told(manager) == [("clone", "failed", "INTERNAL")]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_memory_limit_is_told_as_one(tmp_path, monkeypatch):
    def work(job, reporter, events):
        raise MemoryError

    scripted_build(monkeypatch, work)
    with ScriptedManager(job=job_document()) as manager:
        assert attempt_of(manager, tmp_path) == 0
        assert told(manager) == [("clone", "failed", "OOM_KILLED")]


def test_a_full_disk_is_told_with_its_directory_and_bytes_whoever_met_it(tmp_path, monkeypatch):
    def work(job, reporter, events):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "some" / "file"))

    scripted_build(monkeypatch, work)
    with ScriptedManager(job=job_document()) as manager:
        assert attempt_of(manager, tmp_path) == 0
        assert told(manager) == [("clone", "failed", "DISK_FULL")]
        message = manager.events[-1]["data"]["error"]["message"]
    assert re.fullmatch(rf"no space left in {tmp_path}/some/file: \d+ of \d+ bytes are free now", message)


def test_tags_move_only_after_the_leave(tmp_path, monkeypatch):
    moved = []

    def work(job, reporter, events):
        with reporter.stage(Stage.PUSH, "a"):
            events.ask_to_tag(MOVE)
            moved.append(job.project)
        return {"images": {}}

    scripted_build(monkeypatch, work)

    def refuse(method, body, nth):
        return 410 if body and any(event["code"] == "TAGGING" for event in body["events"]) else None

    with ScriptedManager(job=job_document(), script=refuse) as manager:
        assert attempt_of(manager, tmp_path) == 0
        assert moved == []
        assert ("push", "succeeded", None) not in told(manager)
    programs._cancelled.clear()
    with ScriptedManager(job=job_document()) as manager:
        assert attempt_of(manager, tmp_path) == 0
        assert moved == ["0123456789abcdef01234567"]
        assert told(manager)[-1] == ("push", "succeeded", None)
        (asked,) = [event for event in manager.events if event["code"] == "TAGGING"]
        assert asked["data"] == MOVE, "the manager can look for these"


def test_a_build_whose_project_was_cancelled_stops_at_once(tmp_path, monkeypatch):
    """The builder learns it by the answer to any event, and its programs end."""
    ends = []

    def work(job, reporter, events):
        with reporter.stage(Stage.CLONE, "a"):
            programs.run(["sleep", "60"], seconds=100)

    scripted_build(monkeypatch, work)
    with ScriptedManager(job=job_document(), script=lambda method, body, nth: 410 if body else None) as manager:
        begun = time.monotonic()
        assert attempt_of(manager, tmp_path, over=lambda: ends.append(True)) == 0
        assert time.monotonic() - begun < 30
        assert ends == [True]
        assert manager.events == []


def test_a_build_that_takes_too_long_is_ended_and_told(tmp_path, monkeypatch):
    def work(job, reporter, events):
        with reporter.stage(Stage.RESOLVE, "a"):
            programs.run(["sleep", "60"], seconds=100)

    scripted_build(monkeypatch, work)
    with ScriptedManager(job=job_document(seconds=1.5)) as manager:
        assert attempt_of(manager, tmp_path) == 0
        assert told(manager) == [("resolve", "started", None), ("resolve", "failed", "DEADLINE_EXCEEDED")]


def test_a_build_in_time_is_not_ended():
    late = threading.Event()
    with deadline(60, late):
        pass
    programs.check_cancelled()
    assert not late.is_set()


def test_a_signal_is_not_told_as_a_failure(tmp_path, monkeypatch):
    def work(job, reporter, events):
        raise Cancelled("interrupted")

    scripted_build(monkeypatch, work)
    with ScriptedManager(job=job_document()) as manager:
        with pytest.raises(Cancelled):
            attempt_of(manager, tmp_path)
        assert manager.events == []


def test_a_job_is_given_what_it_may_use_and_shows_no_secret():
    secrets = {
        "git": {"host": "git.example.org", "username": "u", "password": "git-secret"},
        "registry": [{"host": "r.example.org:5000", "username": "u", "password": "registry-secret"}],
        "base": [{"host": "r.example.org:5000", "username": "u", "password": "base-secret"}],
    }
    job = Job.parse(job_document(credentials=secrets, source="https://git.example.org/a/b", allow_hosts=["10.0.0.1"]))
    request = job.request()
    assert request.git_credential.password == "git-secret"
    assert job.registry_credentials.find("r.example.org:5000").password == "registry-secret"
    assert request.registry_credentials.find("r.example.org:5000").password == "base-secret"
    assert request.registry_credentials.find("example.org") is None
    assert request.registry == job.registry
    assert request.allow_hosts == ("10.0.0.1",)
    assert request.recipe == RECIPE
    assert not request.source.trusted
    assert "secret" not in repr(job) + repr(request)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(job_document())), inner),
        max_leaves=8,
    )
)
def test_no_document_is_a_bug(strange):
    changes = strange if isinstance(strange, dict) else {"recipe": strange, "credentials": strange}
    with contextlib.suppress(FlopsError):
        assert Job.parse(job_document(**changes)).seconds > 0

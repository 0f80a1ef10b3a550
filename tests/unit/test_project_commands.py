"""`flops project`: against a real HTTP server that speaks the manager's contract, with cut connections, restarts and hostile text."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import project_events as events
from tests import scripted_manager as scripted

from flops.cli import main as command_line
from flops.cli import manager_client, watching
from flops.cli.manager_client import ManagerClient, manager_url, parse
from flops.cli.project import read_sla, resolved
from flops.cli.refusal import failure_from
from flops.errors import BadSetting, FlopsError, SlaInvalid
from flops.http import Retry
from flops.settings import Settings

OTHER = "65f0c1d2e3a4b5c6d7e8f902"
LOOSE = "aaf0c1d2e3a4b5c6d7e8f903"


def project(number=events.PROJECT, state="building", **more):
    return {
        "id": number,
        "state": state,
        "builder": "removed" if state != "building" else "running",
        "repository": "https://git.example.org/acme/digits",
        "subdir": "",
        "ref": None,
        "commit": events.COMMIT,
        "recipe": "sha256:" + "ab" * 32,
        "platforms": ["linux/amd64", "linux/arm64"],
        "flavor": "sklearn",
        "images": None,
        "result": None,
        "error": None,
        "warnings": [],
        "force": False,
        "attempt": 1,
        "waits_for": None,
        "created": "2026-01-01T12:00:00.000Z",
        "started": None,
        "ended": "2026-01-01T12:00:09.000Z" if state != "building" else None,
    } | more


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    for name in (
        "FLOPS_API_TOKEN",
        "FLOPS_CA_BUNDLE",
        "FORCE_COLOR",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(manager_client, "RETRY", Retry(tries=5, first=0.01))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def manager(monkeypatch):
    server = scripted.ScriptedManager()
    monkeypatch.setenv("FLOPS_MANAGER", server.url)
    server.projects[events.PROJECT] = project(
        state="images_ready", result=events.result(), images=events.result()["images"]
    )
    server.events[events.PROJECT] = events.success()
    yield server
    if server.thread.is_alive():
        server.stop()


@pytest.fixture
def run(capsys):
    def call(*words):
        code = command_line.main(words)
        return (code, *capsys.readouterr())

    return call


def sla(tmp_path, **more):
    file = tmp_path / "sla.json"
    file.write_text(json.dumps({"ml_repo_url": "https://git.example.org/acme/digits", **more}))
    return str(file)


def no_escapes(text):
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), repr(text)


# --- start ---
def test_start_prints_the_id(run, manager, tmp_path):
    code, out, err = run("project", "start", sla(tmp_path))
    assert (code, out) == (0, events.PROJECT + "\n")
    assert "watch" in err
    (_, path, headers, body) = manager.requests[-1]
    assert path == "/api/flops/projects"
    assert json.loads(body)["ml_repo_url"] == "https://git.example.org/acme/digits"
    assert headers["Idempotency-Key"]


@pytest.mark.parametrize(
    "faults",
    [
        [scripted.hang_up],
        [scripted.status(503), scripted.status(502), scripted.hang_up],
        [scripted.done_but_silent],
        [scripted.done_but_silent, scripted.done_but_silent],
    ],
)
def test_start_keeps_its_key_over_tries_and_makes_one_project(run, manager, tmp_path, faults):
    manager.projects[OTHER] = project(OTHER)
    manager.faults = list(faults)
    code, out, _ = run("project", "start", sla(tmp_path))
    assert (code, out.strip()) == (0, events.PROJECT)
    assert len({headers["Idempotency-Key"] for _, _, headers, _ in manager.requests}) == 1
    assert len(manager.keys) == 1
    assert run("project", "start", sla(tmp_path))[1].strip() == OTHER  # another call is another project


def test_start_force_and_token(run, manager, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOPS_API_TOKEN", "s3cret")
    assert run("project", "start", sla(tmp_path), "--force", "--json")[0] == 0
    _, path, headers, _ = manager.requests[-1]
    assert path.endswith("?force=true")
    assert headers["Authorization"] == "Bearer s3cret"


def test_start_watch_ends_as_the_project_does(run, manager, tmp_path):
    code, out, err = run("project", "start", sla(tmp_path), "--watch")
    assert code == 0
    assert events.PROJECT in err
    assert "images are ready" in out


def test_every_finding_of_a_refused_sla_is_shown(run, manager, tmp_path):
    findings = [
        {"code": "SLA_INVALID", "path": f"/{name}", "line": 0, "message": "is wrong", "hint": ""} for name in "ab"
    ]
    manager.refusal = (422, "SLA_INVALID", "the SLA can't be accepted", "see there", findings)
    code, out, err = run("project", "start", sla(tmp_path))
    assert (code, out) == (2, "")
    assert "--> /a" in err
    assert "--> /b" in err
    code, out, _ = run("project", "start", sla(tmp_path), "--json")
    assert (code, json.loads(out)["error"]["code"], len(json.loads(out)["error"]["findings"])) == (2, "SLA_INVALID", 2)


def test_directories_are_meant_from_the_files_place(tmp_path):
    place = tmp_path / "deep"
    (place / "repo").mkdir(parents=True)
    assert resolved("repo", place) == str(place / "repo")
    assert resolved("~nobody-of-this-name/x", place) == str(place / "~nobody-of-this-name/x")
    assert resolved("./repo", place) == str(place / "repo")
    assert resolved("../deep/repo", place) == str(place / "repo")
    assert resolved("./missing", place) == str(place / "missing")
    assert resolved("/srv/x", place) == "/srv/x"
    assert resolved("~/x", place) == str(Path.home() / "x")
    for url in ("https://h.example/a/b", "git@h.example:a/b", "ssh://git@h/a", "h.example/a/b", "ext::x", "", " "):
        assert resolved(url, place) == url
    (place / "sla.json").write_text('\ufeff{"ml_repo_url": "./repo"}')
    assert read_sla(str(place / "sla.json"))["ml_repo_url"] == str(place / "repo")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", '{"a": 1', "{'a': 1}", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\udcff",
        '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', '{"\\udfff": 1}', '{"ml_repo_url": "./\\ud800"}',
        '{"a": "' + "x" * 256 * 1024 + '"}',
    ],
)  # fmt: skip
def test_what_is_no_sla(text, tmp_path):
    file = tmp_path / "sla.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SlaInvalid) as caught:
        read_sla(str(file))
    assert "sla.json" in caught.value.message


def test_the_line_where_json_ends_is_told(tmp_path, run, manager):
    file = tmp_path / "sla.json"
    file.write_text('{\n  "a": 1,\n}')
    code, _, err = run("project", "start", str(file))
    assert code == 2
    assert "sla.json:3" in err
    assert run("project", "start", str(tmp_path / "none.json"))[0] == 2
    assert manager.requests == []


# --- list, show, logs, cancel ---
def test_list(run, manager, monkeypatch):
    manager.projects[OTHER] = project(
        OTHER, "failed", error={"code": "NO_WHEEL", "message": "m", "hint": "", "findings": []}
    )
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run("project", "list")
    assert code == 0
    assert out.splitlines()[2].split()[0] == OTHER
    assert out.splitlines()[2].endswith("linux/amd64,linux/arm64")
    assert "failed (NO_WHEEL)" in out
    assert json.loads(run("project", "list", "--json", "--state", "failed")[1])["total"] == 1
    _, out, err = run("project", "list", "--limit", "1")
    assert "1 of 2" in err
    assert run("project", "list", "--state", "nonsense")[0] == 2
    manager.projects.clear()
    assert run("project", "list")[1:] == ("", "no projects\n")


def test_a_list_fits_a_narrow_terminal(run, manager, monkeypatch):
    """As much of the ids as tells projects apart, and each on one line; wide terminals have all of it."""
    manager.projects.clear()
    for identity in ("0" * 9 + "1" * 15, "0" * 10 + "2" * 14):
        error = {"code": "PACKAGE_NOT_FOUND", "message": "m", "hint": "", "findings": []}
        manager.projects[identity] = project(identity, "failed", error=error, repository="https://h.example/a/b")
    monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
    monkeypatch.setenv("COLUMNS", "80")
    head, *rows = re.sub(r"\x1b\[[0-9;]*m", "", run("project", "list")[1]).splitlines()
    assert head.split() == ["id", "state", "created", "repository"]
    assert sorted(row.split()[0] for row in rows) == ["0" * 10, "0" * 9 + "1"]
    assert all(row.split()[-1] == "h.example/a/b" and len(row) <= 80 for row in rows)
    monkeypatch.setenv("COLUMNS", "200")
    assert "linux/amd64,linux/arm64" in run("project", "list")[1]


def test_a_list_longer_than_a_page(run, manager):
    manager.projects.update({f"{number:024x}": project(f"{number:024x}") for number in range(450)})
    assert len(json.loads(run("project", "list", "--limit", "430", "--json")[1])["projects"]) == 430


def test_a_list_that_moves_while_it_is_read_has_nothing_twice(run, manager):
    manager.projects.clear()
    manager.projects.update({f"{number:024x}": project(f"{number:024x}") for number in range(300)})

    def meanwhile(_handler):
        manager.projects = {OTHER: project(OTHER)} | manager.projects
        return False

    manager.faults = [lambda _handler: False, meanwhile]
    ids = [one["id"] for one in json.loads(run("project", "list", "--limit", "300", "--json")[1])["projects"]]
    assert ids == [f"{number:024x}" for number in range(300)]


def test_a_list_says_what_is_waited_for(run, manager):
    manager.projects.clear()
    manager.projects[OTHER] = project(OTHER, "accepted", builder="queued")
    manager.projects[LOOSE] = project(LOOSE, "accepted", builder="none", waits_for=OTHER)
    out = run("project", "list")[1]
    assert "accepted (queued)" in out
    assert f"accepted (waits for {OTHER[:8]})" in out


def test_show(run, manager):
    code, out, _ = run("project", "show", events.PROJECT[:6])
    assert code == 0
    assert "images_ready" in out
    assert f"docker pull 127.0.0.1:5073/acme/digits/learner:{events.COMMIT}" in out
    assert "150.0 MB" in out
    assert json.loads(run("project", "show", events.PROJECT, "--json")[1])["id"] == events.PROJECT
    error = {"code": "STRUCTURE", "message": "broken", "hint": "mend it", "findings": [events.FINDING]}
    manager.projects[OTHER] = project(OTHER, "failed", error=error)
    _, out, _ = run("project", "show", OTHER)
    assert "--> model_manager.py:7" in out
    assert "error[STRUCTURE]: broken" in out


def test_what_is_piped_has_whole_lines(run, manager, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    reason = "a reason that is longer than a narrow terminal, " * 3
    told = {**events.result(), "adjustments": [{**events.ADJUSTMENT, "reason": reason + "and its end"}]}
    manager.projects[OTHER] = project(OTHER, "images_ready", result=told)
    manager.events[OTHER] = events.numbered(
        events.make("resolve", "adjusted", data=told["adjustments"][0]),
        events.make("push", "succeeded", data={"result": told}),
    )
    for words in (("show", OTHER), ("watch", OTHER)):
        (line,) = [line for line in run("project", *words)[1].splitlines() if line.rstrip().endswith("and its end")]
        assert line.startswith("conda.yaml:12")
        assert reason in line


def test_a_prefix_must_be_of_one_project(run, manager):
    manager.projects[OTHER] = project(OTHER)
    manager.projects[LOOSE] = project(LOOSE)
    assert json.loads(run("project", "show", "aa", "--json")[1])["id"] == LOOSE
    assert "q=aa" in manager.requests[-2][1], "of ten thousand projects not all are asked for"
    code, _, err = run("project", "show", "65f0")
    assert code == 2
    assert OTHER in err
    for wrong in ("ff", "../../x", "zz", "0" * 25, OTHER[:-1] + "f"):
        code, _, err = run("project", "show", wrong)
        assert (code, "PROJECT_NOT_FOUND" in err) == (9, True)


def test_logs_are_text(run, manager):
    manager.logs[events.PROJECT] = f"a\tb\r\nline {events.HOSTILE}\n"
    code, out, _ = run("project", "logs", events.PROJECT)
    assert code == 0
    no_escapes(out)
    assert out.splitlines()[0] == "a       b"
    assert "\\x1b[2J" in out


def test_logs_of_a_builder_that_has_printed_nothing(run, manager):
    assert run("project", "logs", events.PROJECT) == (0, "", "nothing was printed so far\n")


def test_cancel(run, manager):
    manager.projects[OTHER] = project(OTHER)
    assert json.loads(run("project", "cancel", OTHER, "--json")[1])["state"] == "cancelled"
    code, _, err = run("project", "cancel", OTHER)
    assert code == 9
    assert "PROJECT_DECIDED" in err


def test_a_cancel_whose_answer_was_lost_is_one(run, manager):
    manager.projects[OTHER] = project(OTHER)
    manager.faults = [scripted.done_but_silent]
    assert run("project", "cancel", OTHER)[0] == 0


# --- failures of the manager ---
def test_no_manager(run, monkeypatch):
    monkeypatch.setenv("FLOPS_MANAGER", "127.0.0.1:9")
    code, out, err = run("project", "list", "--json")
    assert code == 9
    assert json.loads(out)["error"]["code"] == "MANAGER_UNREACHABLE"
    assert "flops serve" in err


@pytest.mark.parametrize(
    ("answer", "code", "exit_code"),
    [
        ((401, "ACCESS_DENIED", "no token"), "ACCESS_DENIED", 9),
        ((429, "TOO_MANY", "many"), "TOO_MANY", 9),
        ((422, "BLOCKED_ADDRESS", "private"), "BLOCKED_ADDRESS", 3),
        ((422, "FROM_THE_FUTURE", "new"), "FROM_THE_FUTURE", 9),
        ((500, "INTERNAL", "bug"), "INTERNAL", 70),
    ],
)
def test_failures_keep_code_and_exit_code(run, manager, answer, code, exit_code):
    manager.refusal = answer
    got, out, _ = run("project", "list", "--json")
    assert (got, json.loads(out)["error"]["code"]) == (exit_code, code)


@pytest.mark.parametrize("words", [("watch", OTHER), ("start", "sla.json", "--watch")])
def test_json_of_what_follows_has_one_object_in_each_line_in_failure_too(run, manager, tmp_path, words):
    sla(tmp_path)
    manager.refusal = (422, "SLA_INVALID", "the SLA can't be accepted", "see there", [])
    code, out, _ = run("project", *words, "--json")
    assert code == 2
    assert [json.loads(line)["error"]["code"] for line in out.splitlines()] == ["SLA_INVALID"]


def test_who_sends_no_token_is_told_which_setting_holds_it(run, manager, monkeypatch):
    manager.refusal = (401, "ACCESS_DENIED", "this needs a login", "send the token: Authorization: Bearer TOKEN")
    assert "hint: set FLOPS_API_TOKEN\n" in run("project", "list")[2]
    monkeypatch.setenv("FLOPS_API_TOKEN", "of another day")
    manager.refusal = (401, "ACCESS_DENIED", "Oakestra does not know this token", "log in to Oakestra again")
    assert "hint: log in to Oakestra again\n" in run("project", "list")[2]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"projects": 3}', b"[" * 100_000])
def test_an_answer_of_something_else(run, manager, body):
    manager.faults = [scripted.status(200, body)]
    code, _, err = run("project", "list")
    assert code == 9
    assert "MANAGER_REFUSED" in err


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.sampled_from(["code", "message", "hint", "findings"]), st.none() | st.integers() | st.text() | st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3))))  # fmt: skip
def test_any_error_document_is_a_failure(document):
    error = failure_from(document)
    assert isinstance(error, FlopsError)
    json.dumps(error.to_json())


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://u:p@h", "http://h/?x=1", "http://h:x", "http://h#f"])
def test_addresses_of_no_manager(url):
    with pytest.raises(BadSetting) as caught:
        manager_url(url)
    assert "u:p" not in caught.value.message
    assert manager_url(" h.example:5072/ ") == "http://h.example:5072"


# --- watch ---
@pytest.mark.parametrize(
    ("story", "state", "error", "code"),
    [
        ("success", "images_ready", None, 0),
        ("failure", "failed", {"code": "STRUCTURE", "message": "m", "hint": "", "findings": []}, 4),
        ("cancelled", "cancelled", None, 130),
        ("second_attempt", "images_ready", None, 0),
    ],
)
def test_watch_ends_as_the_project_does(run, manager, story, state, error, code):
    manager.projects[events.PROJECT] = project(state=state, error=error)
    manager.events[events.PROJECT] = getattr(events, story)()
    got, out, err = run("project", "watch", events.PROJECT[:4])
    assert (got, err) == (code, "")
    assert {"success": "images are ready", "failure": "failed at check", "cancelled": "cancelled", "second_attempt": "attempt 2"}[story] in out  # fmt: skip
    got, out, err = run("project", "watch", events.PROJECT, "--json")
    assert (got, err) == (code, "")
    told = [json.loads(line) for line in out.splitlines()]
    assert told[-1]["kind"] in ("succeeded", "failed", "cancelled")
    assert told == manager.events[events.PROJECT][: len(told)]


def test_a_lost_connection_loses_and_doubles_nothing(run, manager):
    told = manager.events[events.PROJECT]
    manager.cut_after = [0, 3, 0, 5, 1]
    code, out, err = run("project", "watch", events.PROJECT, "--json")
    assert code == 0
    got = [one["sequence"] for one in map(json.loads, out.splitlines()) if one["sequence"]]
    last = next(one["sequence"] for one in told if one["kind"] == "succeeded")
    assert got == list(range(1, last + 1))
    assert "reconnecting" in err
    places = [headers.get("Last-Event-ID") for _, path, headers, _ in manager.requests if path.endswith("/events")]
    assert len(places) == 6
    assert places[:3] == [None, None, "3"]


def test_a_manager_that_restarts_is_waited_for(monkeypatch, manager, capsys):
    """It goes away after the first events, and comes back at the same port with all of them."""
    told = manager.events[events.PROJECT]
    manager.events[events.PROJECT] = told[:5]
    manager.projects[events.PROJECT] = project()
    codes = []
    heard = threading.Event()
    monkeypatch.setattr(watching, "say", lambda _: heard.set())

    def follow():
        with ManagerClient.of(manager.url, Settings.read()) as client:
            codes.append(watching.watch(client, events.PROJECT, as_json=True))

    thread = threading.Thread(target=follow)
    thread.start()
    assert heard.wait(20)
    manager.stop()
    ended = project(state="images_ready", result=events.result())
    again = scripted.ScriptedManager(manager.port, projects={events.PROJECT: ended}, events={events.PROJECT: told})
    try:
        thread.join(30)
        assert codes == [0]
    finally:
        again.stop()
    got = [one["sequence"] for one in map(json.loads, capsys.readouterr().out.splitlines()) if one["sequence"]]
    assert got == sorted(set(got)) == list(range(1, len(got) + 1))


def test_a_project_that_is_forgotten_meanwhile_ends_the_watch(run, manager):
    manager.projects[events.PROJECT] = project()
    manager.events[events.PROJECT] = manager.events[events.PROJECT][:3]
    manager.faults = [lambda _: False, lambda _: False, lambda handler: handler.manager.projects.clear()]
    code, _, err = run("project", "watch", events.PROJECT)
    assert code == 9
    assert "PROJECT_NOT_FOUND" in err


def test_hostile_events_are_text(run, manager):
    hostile = events.HOSTILE + "\nerror[FORGED]: line"
    error = {"code": hostile, "message": hostile, "hint": hostile, "findings": [{**events.FINDING, "path": hostile, "message": hostile, "hint": hostile, "quote": hostile}]}  # fmt: skip
    told = [
        events.make("check", "started", hostile),
        events.make("check", "finding", hostile, code=hostile, hint=hostile, data={**events.FINDING, "path": hostile}),
        events.make("resolve", "adjusted", hostile, code=hostile, data=dict.fromkeys(events.ADJUSTMENT, hostile)),
        events.make("resolve", "warning", hostile, hint=hostile),
        events.make(hostile, "started", hostile),
        events.make("fetch", "failed", hostile, code=hostile, hint=hostile, data={"error": error}),
    ]
    manager.events[events.PROJECT] = events.numbered(*told)
    manager.projects[events.PROJECT] = project(state="failed", error=error, repository=hostile, warnings=[hostile])
    for words in (("watch", events.PROJECT), ("show", events.PROJECT), ("list",), ("watch", events.PROJECT, "--json")):
        code, out, err = run("project", *words)
        no_escapes(out + err)
        assert code == (9 if "watch" in words else 0)
        assert not re.search(r"^error\[FORGED\]", out, re.MULTILINE)
        assert "[bold red]" in out


def test_watch_into_a_closed_pipe(manager):
    """As in `flops project watch ID --json | head -1`."""
    words = [
        sys.executable,
        "-m",
        "flops.cli.main",
        "project",
        "watch",
        events.PROJECT,
        "--json",
        "--manager",
        manager.url,
    ]
    done = subprocess.run(
        f"{' '.join(words)} | head -1", shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert json.loads(done.stdout)["sequence"] == 1
    assert "Traceback" not in done.stderr


def test_an_interrupt_leaves_the_project_alone_and_says_so(manager):
    manager.projects[events.PROJECT] = project()
    manager.events[events.PROJECT] = manager.events[events.PROJECT][:3]
    words = [sys.executable, "-m", "flops.cli.main", "project", "watch", events.PROJECT, "--manager", manager.url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout.readline() == "queue: queue begins\n"
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=30)
    assert command.returncode == 130
    assert f"flops project cancel {events.PROJECT[:12]}" in err
    assert "Traceback" not in err


# --- the stream's format ---
@settings(deadline=None, max_examples=40)
@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=12), min_size=1), max_size=6), st.data())
def test_a_stream_in_any_pieces(told, data):
    ends = data.draw(st.sampled_from(["\n", "\r\n"]))
    text = f": comment{ends}{ends}retry: 5{ends}" + "".join(f"id: 1{ends}data: {json.dumps(one, ensure_ascii=False)}{ends}{ends}" for one in told)  # fmt: skip
    raw = text.encode("utf-8", "surrogatepass")
    chunks = []
    while raw:
        size = data.draw(st.integers(1, len(raw)))
        chunks.append(raw[:size])
        raw = raw[size:]
    assert list(parse(chunks)) == told

"""A project on a terminal, in plain lines, and what FLOps' broker tells of one; hostile text stays text everywhere."""

import io
import json
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests import project_events as events

from flops.observer import terminal
from flops.observer.feed import BrokerFeed, Feed, Told
from flops.observer.state import Level
from flops_wire import flops
from flops_wire.events import MESSAGE

NOW = "2026-01-01T12:00:20.000Z"


def shown(*things, color=False):
    out = io.StringIO()
    console = Console(file=out, width=160, soft_wrap=True, highlight=False, force_terminal=color, legacy_windows=False)
    for thing in things:
        console.print(thing)
    return out.getvalue()


def lines_of(told):
    out = io.StringIO()
    with terminal.view(Console(file=out, width=160, soft_wrap=True, highlight=False), "title") as view:
        feed = Feed()
        for event in told:
            view.show(feed, feed.add([event]))
    return out.getvalue().splitlines()


def test_the_tree_while_it_runs():
    told = events.success()
    until = next(index for index, one in enumerate(told) if one["stage"] == "fetch" and one["kind"] == "finished")
    text = shown(terminal.tree(Feed(told[:until]), "project x", now=NOW))
    assert text == (
        "project x\n"
        "├── ✓ queue        1.0 s\n"
        "├── ✓ deploy       1.0 s\n"
        "├── ✓ clone        1.0 s\n"
        "├── ✓ check        0.2 s\n"
        "├── ✓ resolve      1.2 s\n"
        "├── ● fetch        6.0 s  30 wheels\n"
        "│   ├── linux/amd64   0.0 MB\n"
        "│   └── linux/arm64  ━━━━━━━━━━            50% 0.0 of 0.0 MB\n"
        "├── · assemble \n"
        "├── · verify   \n"
        "├── · push     \n"
        "├── · remove   \n"
        "└── adjustments (1)\n"
        "    └── psutil ==5.9.8 -> ==6.0.0 on linux/arm64 (conda.yaml:12): no wheel of 5.9.8\n"
    )


def test_adjustments_in_one_line():
    def told(before, after, code="PIN_RELAXED"):
        made = {**events.ADJUSTMENT, "code": code, "before": before, "after": after, "platform": None}
        feed = Feed(events.numbered(events.make("resolve", "adjusted", data=made)))
        return terminal.change(feed.adjustments[0])

    assert told("", "", "ADDED") == "psutil added, any version (conda.yaml:12): no wheel of 5.9.8"
    assert told("", "", "REMOVED") == "psutil taken out (conda.yaml:12): no wheel of 5.9.8"
    assert told("==1", "").startswith("psutil ==1 taken out (")
    assert told("==1", "==2").startswith("psutil ==1 -> ==2 (")


def test_both_attempts_are_in_the_tree():
    text = shown(terminal.tree(Feed(events.second_attempt()), "x", now=NOW))
    assert text.index("attempt 1") < text.index("✗ resolve") < text.index("attempt 2") < text.index("✓ resolve")


def test_a_second_attempt_fits_a_small_terminal():
    """What runs stands at the bottom; a terminal cuts off what it has no room for there."""
    told = events.second_attempt()
    more = [{**one, "sequence": 1000 + n} for n in range(8) for one in told if one["kind"] == "adjusted"]
    at = [number for number, one in enumerate(told) if one["stage"] == "fetch" and one["kind"] == "progress"][-1]
    feed = Feed([*told[: at + 1], *({**one, "attempt": 2} for one in more)])
    lines = shown(terminal.tree(feed, "x", now=NOW)).splitlines()
    assert len(lines) <= 23
    assert [line for line in lines if "● fetch" in line]
    assert lines[-1].split()[1] == "psutil"


def test_a_line_that_does_not_fit_says_so():
    told = events.numbered(events.make("clone", "started", "https://git.example.org/" + "a" * 200))
    out = io.StringIO()
    console = Console(file=out, width=80, soft_wrap=True, force_terminal=True, legacy_windows=False)
    with terminal.view(console, "project x: " + "b" * 200) as view:
        feed = Feed()
        view.show(feed, feed.add(told))
    rows = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).splitlines()
    (title,), (clone,) = ({row for row in rows if part in row} for part in ("project x: bb", "● clone"))
    assert all(len(row) <= 80 and row.endswith("…") for row in (title, clone))


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_what_is_said_on_stderr_while_a_tree_is_live_goes_to_stderr(monkeypatch, on_a_terminal):
    out, err = io.StringIO(), io.StringIO()
    err.isatty = lambda: on_a_terminal
    monkeypatch.setattr("sys.stderr", err)
    with terminal.view(Console(file=out, force_terminal=True, width=100), "project x"):
        sys.stderr.write("reconnecting\n")
    assert ("reconnecting" in out.getvalue(), "reconnecting" in err.getvalue()) == (on_a_terminal, not on_a_terminal)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines_as_they_come(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    with terminal.view(Console(file=out, force_terminal=True, width=100), "x") as view:
        feed = Feed()
        view.show(feed, feed.add(events.success()[:1]))
        assert out.getvalue() == "queue: queue begins\n"


def test_adjustments_on_a_narrow_terminal_are_lines():
    feed = Feed(events.success())
    told = "psutil ==5.9.8 -> ==6.0.0 on linux/arm64 (conda.yaml:12): no wheel of 5.9.8"
    for width, line in ((80, "where          package"), (70, told)):
        out = io.StringIO()
        Console(file=out, width=width, soft_wrap=True, highlight=False).print(terminal.summary(feed))
        assert out.getvalue().startswith(f"adjustments\n{line}")


def test_the_tree_of_what_has_ended_waits_for_nothing():
    for told in (events.success()[:-2], events.failure()[:-2], events.cancelled()):
        assert "·" not in shown(terminal.tree(Feed(told), "x", now=NOW))


def test_the_live_tree_stays_on_a_terminal():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    told = events.success()
    with terminal.view(console, "project x") as view:
        assert isinstance(view, terminal.LiveTree)
        feed = Feed()
        for event in told:
            view.show(feed, feed.add([event]))
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).count("✓ push") >= 1
    assert "the index is slow" in out.getvalue()


def test_plain_lines():
    told = lines_of(events.success())
    assert told[0] == "queue: queue begins"
    assert "adjusted[PIN_RELAXED]: resolve: psutil changed" in told
    assert "note[NOTE]: check: model_manager.py:7: fit_model is missing" in told
    at = told.index("warning: resolve: the index is slow")
    assert told[at + 1] == "  hint: wait"
    assert "resolve: done in 1.2 s" in told
    assert not [line for line in told if "progress" in line or "%" in line]
    assert "attempt 2" in lines_of(events.second_attempt())


def test_what_a_component_of_flops_sends_is_no_warning():
    told = events.numbered(events.make("push", "warning", "Training begins", code=MESSAGE))
    assert lines_of(told) == ["note[MESSAGE]: push: Training begins"]


def test_the_summary_of_success():
    text = shown(terminal.summary(Feed(events.success())))
    assert "learner     linux/amd64  150.0 MB  480.0 MB  31" in text
    assert f"  docker pull 127.0.0.1:5073/acme/digits/aggregator:{events.COMMIT}\n" in text
    assert text.endswith("images are ready, built in 6.3 s\n")


def test_the_summary_of_failure():
    text = shown(terminal.summary(Feed(events.failure())))
    assert text == (
        "error[STRUCTURE]: fit_model is missing\n  --> model_manager.py:7\n    | class ModelManager:\nhint: add it\n"
        "error[STRUCTURE]: fit_model is missing\n  --> model_manager.py:9\n    | class ModelManager:\nhint: add it\n"
        "error[STRUCTURE]: the repository breaks the contract\nhint: see above\n"
        "failed at check\n"
    )


def test_a_hint_is_told_once():
    (finding,) = findings = [events.FINDING]
    error = {"code": "STRUCTURE", "message": finding["message"], "hint": finding["hint"], "findings": findings}
    told = events.numbered(events.make("check", "failed", "x", data={"error": error}))
    assert shown(terminal.summary(Feed(told))).count("hint: add it") == 1


def test_images_without_a_registry_have_no_pull_command():
    result = events.result(registry="local")
    told = events.numbered(events.make("push", "succeeded", data={"result": result}))
    assert "docker pull" not in shown(terminal.summary(Feed(told)))


def hostile_events(text):
    result = events.result()
    result["images"] = {text: {**result["images"]["learner"], "reference": f"h.example/{text}"}}
    error = {"code": text, "message": text, "hint": text, "findings": [dict.fromkeys(events.FINDING, text)]}
    common = [
        events.make("check", "started", text),
        events.make(
            "check", "finding", text, code=text, hint=text, data={**dict.fromkeys(events.FINDING, text), "line": 3}
        ),
        events.make("resolve", "adjusted", text, code=text, platform=text, data=dict.fromkeys(events.ADJUSTMENT, text)),
        events.make("resolve", "warning", text, hint=text),
        events.make("resolve", "progress", platform=text, data={"done": 1, "total": 2, "unit": text}),
        events.make(text, text, text),
    ]
    yield events.numbered(*common, events.make("check", "failed", text, code=text, hint=text, data={"error": error}))
    yield events.numbered(*common, events.make("push", "succeeded", text, data={"result": result}))
    yield events.numbered(*common)


def no_escapes(text):
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]", text), (
        repr(text)
    )


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=30) | st.just(events.HOSTILE + "\n[/]error[FORGED]: line\r\x85\u2028x"))
def test_foreign_text_is_text(foreign):
    for told in hostile_events(foreign):
        feed = Feed(told)
        no_escapes(shown(terminal.tree(feed, foreign, now=NOW), terminal.summary(feed)))
        for line in (text := lines_of(told)):
            no_escapes(line)
        if "FORGED" in foreign:
            assert not [line for line in text if line.startswith(("error[FORGED]", "[/]error[FORGED]"))]
            assert "[bold red]x[/]" in shown(terminal.summary(feed)) or feed.outcome is None


def test_a_line_as_long_as_a_book_leaves_a_terminal_its_lines():
    (told, *_) = hostile_events("L" * 100_000)
    feed = Feed(told)
    for shown_line in (*lines_of(told), *shown(terminal.summary(feed)).splitlines()):
        assert len(shown_line) < 10_000
    assert "(98000 more characters)" in shown(terminal.summary(feed))


def test_a_message_of_thousands_of_lines_is_cut_and_says_so():
    told = shown(*terminal.told_lines(Told(source="observer", text="first" + "\nx" * 5000))).splitlines()
    assert (told[0], told[-1], len(told)) == ("observer: first", "  (4800 more lines)", 202)


def test_no_markup_on_a_terminal_with_colours():
    (told, *_) = hostile_events("[bold red]x[/bold red] [link=https://evil.example]y[/link]")
    text = shown(terminal.summary(Feed(told)), color=True)
    assert "[link=https://evil.example]" in text
    assert "\x1b]8;" not in text


# --- the broker ---
def test_what_the_broker_tells_of_one_project():
    feed = BrokerFeed("p1")
    assert feed.topics == ("flops_manager/#", "project_observer/p1")
    assert feed.take("project_observer/p1", b"hello") == Told(source="observer", text="hello")
    assert feed.take("project_observer/p1", b"hello", repeated=True) is None
    assert feed.take(flops.BUILDER_STARTED, json.dumps(flops.payload("p2")).encode()) is None
    started = feed.take(flops.BUILDER_STARTED, json.dumps(flops.payload("p1")).encode())
    assert (started.source, started.text) == ("fl_actors_image_builder", "started")
    ends = [feed.succeeded]
    done = feed.take(flops.BUILDER_SUCCESS, json.dumps(flops.payload("p1", full_builder_process="9 seconds")).encode())
    assert (done.text, done.level) == ("success: full_builder_process: 9 seconds", Level.SUCCESS)
    ends.append(feed.succeeded)
    feed.take(flops.BUILDER_FAILED, json.dumps(flops.failure("p1", "no")).encode())
    assert [*ends, feed.succeeded] == [None, True, False]


@pytest.mark.parametrize(
    ("text", "succeeded"), [(flops.IMAGES_EXIST, True), (flops.BUILDER_GONE, False), ("else", None)]
)
def test_an_outcome_that_only_the_observers_text_tells(text, succeeded):
    feed = BrokerFeed("p1")
    feed.take("project_observer/p1", text.encode())
    assert feed.succeeded is succeeded


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["flops_manager/x", "project_observer/p1", flops.BUILDER_FAILED]),
    st.binary(max_size=40),
    st.text(max_size=20),
)
def test_any_payload_is_shown_as_text(topic, raw, text):
    feed = BrokerFeed("p1")
    for payload in (raw, json.dumps({"flops_project_id": "p1", "error_msg": text, text: text}).encode()):
        told = feed.take(topic, payload)
        if told is not None:
            no_escapes(shown(*terminal.told_lines(told)))

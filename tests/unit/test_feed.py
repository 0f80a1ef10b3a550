"""Events folded into what people see: stages, attempts, cards, images, and the same state however the events arrive."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import project_events as events

from flops.observer.feed import Feed
from flops.observer.state import Level, StageState
from flops_wire.events import KINDS, STAGES

STORIES = {
    "success": events.success(),
    "failure": events.failure(),
    "second": events.second_attempt(),
    "lost": events.lost_at_once(),
    "cancelled": events.cancelled(),
}


def states(attempt):
    return {stage.name: stage.state.value for stage in attempt.stages}


def test_nothing_yet():
    feed = Feed()
    (attempt,) = feed.attempts
    assert [stage.name for stage in attempt.stages] == list(STAGES)
    assert set(states(attempt).values()) == {"waiting"}
    assert (feed.last, feed.outcome, feed.images, feed.cards, feed.lines) == (0, None, (), (), ())


def test_a_build_that_succeeds():
    feed = Feed(STORIES["success"])
    (attempt,) = feed.attempts
    assert set(states(attempt).values()) == {"done"}
    seconds = {stage.name: stage.seconds for stage in attempt.stages}
    assert (seconds["resolve"], seconds["assemble"], seconds["push"]) == (1.25, 2.5, 0.5)
    assert feed.outcome.kind == "succeeded"
    assert feed.outcome.seconds == 6.3
    assert feed.tagging
    assert [image.actor for image in feed.images] == ["learner", "aggregator"]
    assert feed.images[0].pull == f"docker pull 127.0.0.1:5073/acme/digits/learner:{events.COMMIT}"
    assert [one.bytes for one in feed.images[0].platforms] == [150_000_000, 140_000_000]
    assert [one.to_json() for one in feed.adjustments] == [events.ADJUSTMENT]
    (note,) = feed.cards
    assert (note.level, note.path, note.line) == (Level.NOTE, "model_manager.py", 7)
    lines = {line.level: line for line in feed.lines}
    assert lines[Level.WARNING].hint == "wait"
    assert lines[Level.NOTE].text == "model_manager.py:7: fit_model is missing"
    assert any(line.text == "done in 1.2 s" for line in feed.lines)


def test_while_it_runs():
    told = STORIES["success"]
    until = next(index for index, event in enumerate(told) if event["stage"] == "fetch" and event["kind"] == "finished")
    feed = Feed(told[:until])
    fetch = next(stage for stage in feed.attempts[0].stages if stage.name == "fetch")
    assert fetch.state is StageState.RUNNING
    assert [(one.platform, one.done, one.total) for one in fetch.progress] == [("linux/amd64", 5, None), ("linux/arm64", 20, 40)]  # fmt: skip
    assert states(feed.attempts[0])["assemble"] == "waiting"
    feed.add(told[until : until + 1])
    assert next(stage for stage in feed.attempts[0].stages if stage.name == "fetch").progress == ()


def test_a_build_that_fails_shows_where_and_everything_that_was_wrong():
    feed = Feed(STORIES["failure"])
    found = states(feed.attempts[0])
    assert (found["clone"], found["check"], found["resolve"], found["remove"]) == ("done", "failed", "skipped", "done")
    assert [(card.path, card.line, card.code) for card in feed.cards] == [
        ("model_manager.py", 7, "STRUCTURE"),
        ("model_manager.py", 9, "STRUCTURE"),
        ("", 0, "STRUCTURE"),
    ]
    assert feed.outcome.error.hint == "see above"
    assert feed.cards[0].quote == "class ModelManager:"


def test_waiting_for_another_attempt_is_no_failure_of_the_first():
    told = events.lost_at_once()
    waiting = next(at for at, one in enumerate(told, 1) if "another attempt" in one["message"])
    first, second = Feed(told[:waiting]).attempts
    assert (states(first)["queue"], states(first)["deploy"], states(second)["queue"]) == ("done", "done", "running")
    first, second = Feed(told).attempts
    assert (states(first)["queue"], states(second)["queue"], states(second)["clone"]) == ("done", "done", "running")
    assert "failed" not in states(first).values()
    first, _ = Feed(events.lost_at_once([events.make("clone", "started")])).attempts
    assert [name for name, state in states(first).items() if state == "failed"] == ["clone"]


def test_a_second_attempt_begins_anew_and_the_first_stays_visible():
    feed = Feed(STORIES["second"])
    first, second = feed.attempts
    assert (first.number, second.number) == (1, 2)
    assert (states(first)["resolve"], states(first)["assemble"], states(first)["remove"]) == (
        "failed",
        "skipped",
        "done",
    )
    assert states(second)["resolve"] == "done"
    assert len(feed.adjustments) == 1


def test_a_stage_that_did_nothing_new_to_say_is_told_once():
    told = events.numbered(
        events.make("clone", "started", "x"), events.make("clone", "finished", "x", data={"seconds": 2})
    )
    assert [line.text for line in Feed(told).lines] == ["x", "done in 2.0 s"]
    told = events.numbered(
        events.make("clone", "started", "x"), events.make("clone", "finished", "y", data={"seconds": 2})
    )
    assert [line.text for line in Feed(told).lines] == ["x", "y; done in 2.0 s"]


def test_a_builder_is_removed_after_the_outcome():
    told = [one for one in STORIES["success"] if one["stage"] != "remove"]
    assert states(Feed(told).attempts[0])["remove"] == "waiting"
    assert states(Feed(STORIES["success"]).attempts[0])["remove"] == "done"


def test_waiting_for_a_builder_is_over_when_it_works():
    told = events.numbered(
        events.make("queue", "started"), events.make("deploy", "started"), events.make("clone", "started")
    )
    found = states(Feed(told).attempts[0])
    assert (found["queue"], found["deploy"], found["clone"]) == ("done", "done", "running")


def test_cancelled():
    feed = Feed(STORIES["cancelled"])
    found = states(feed.attempts[0])
    assert (found["deploy"], found["clone"], found["queue"]) == ("done", "skipped", "done")
    assert feed.outcome.kind == "cancelled"


def test_images_that_existed_already():
    feed = Feed(events.numbered(events.make("push", "succeeded", "made before", data={"result": events.result()}, attempt=None)))  # fmt: skip
    assert set(states(feed.attempts[0]).values()) == {"skipped"}
    assert len(feed.images) == 2


def test_the_first_outcome_counts():
    told = events.numbered(
        events.make("queue", "cancelled", "first"), events.make("push", "succeeded", data={"result": events.result()})
    )
    for order in (told, told[::-1]):
        assert Feed(order).outcome.message == "first"


def test_the_new_lines_are_told_once():
    feed = Feed()
    told = [line.sequence for event in STORIES["success"] for line in feed.add([event, event])]
    assert told == sorted({event["sequence"] for event in STORIES["success"] if event["sequence"]})
    assert feed.add(STORIES["success"]) == ()
    late = Feed(STORIES["success"][4:])
    assert [line.sequence for line in late.add(STORIES["success"])] == [1, 2, 3, 4]


@pytest.mark.parametrize("story", STORIES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_batches_doubles_and_orders_give_the_same_state(story, data):
    told = STORIES[story]
    whole = Feed(told).to_json()
    shuffled = data.draw(st.permutations(told + data.draw(st.lists(st.sampled_from(told), max_size=8))))
    feed = Feed()
    while shuffled:
        cut = data.draw(st.integers(1, len(shuffled)))
        feed.add(shuffled[:cut])
        shuffled = shuffled[cut:]
    assert feed.to_json() == whole


@pytest.mark.parametrize("story", STORIES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_gaps_are_survived_and_filled(story, data):
    told = STORIES[story]
    known = data.draw(st.lists(st.sampled_from(told), max_size=20))
    feed = Feed(known)
    json.dumps(feed.to_json())
    feed.add(told)
    assert feed.to_json() == Feed(told).to_json()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
event_like = st.fixed_dictionaries(
    {},
    optional={
        "id": anything,
        "sequence": st.integers(-1, 20) | anything,
        "attempt": st.integers(0, 3) | anything,
        "time": st.just("2026-01-01T12:00:00.000Z") | st.just("2026-01-01") | anything,
        "stage": st.sampled_from(STAGES) | anything,
        "kind": st.sampled_from(KINDS) | anything,
        "message": anything,
        "code": anything,
        "data": st.just({"result": {"images": {"learner": {"platforms": {"x": 1}}}}})
        | st.just({"error": {"findings": [1, {"path": 3}]}})
        | anything,
    },
)


@settings(deadline=None, max_examples=30)
@given(st.lists(event_like, max_size=12))
def test_no_event_however_odd_is_too_much(told):
    feed = Feed(told)
    for one in told:
        feed.add([one])
    json.dumps(feed.to_json())

"""What FLOps' own components are told of a project: exact topics, payloads and sentences, in the original's order."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops.service.mirror import mirror_messages
from flops.service.project import Project
from flops_wire import flops
from flops_wire.events import KINDS, STAGES, TAGGING, event

ID = "65f0c1d2e3a4b5c6d7e8f901"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OBSERVER = f"project_observer/{ID}"
SECONDS = {
    "clone": 2.0,
    "check": 0.5,
    "resolve": 3.0,
    "fetch": 60.0,
    "assemble": 5.0,
    "verify": 1.0,
    "push": 4.0,
    "total": 75.5,
}
RESULT = {
    "images": {
        "learner": {"reference": f"registry:5073/acme/digits/learner:{COMMIT}", "platforms": {}},
        "aggregator": {"reference": f"registry:5073/acme/digits/aggregator:{COMMIT}", "platforms": {}},
    },
    "python": {"used": "3.11.2"},
    "seconds": SECONDS,
}
DURATIONS = {
    "build_preparation": "2 seconds",
    "base_image_build": "'1' minutes and 3 seconds",
    "base_image_push": "0 seconds",
    "actor_images_build": "6 seconds",
    "actor_images_push": "4 seconds",
    "full_builder_process": "'1' minutes and 16 seconds",
}
ERROR = {
    "code": "STRUCTURE",
    "message": "the repository breaks the contract",
    "hint": "correct these lines",
    "findings": [
        {"code": "X", "path": "model_manager.py", "line": 3, "message": "no \x1b[2Jfit_model", "hint": "write it"},
        {"code": "Y", "path": "conda.yaml", "line": 0, "message": "is missing", "hint": ""},
    ],
}
TOLD = (
    "error[STRUCTURE]: the repository breaks the contract\n"
    "hint: correct these lines\n"
    "model_manager.py:3: no \\x1b[2Jfit_model\n"
    "  hint: write it\n"
    "conda.yaml: is missing"
)


def project(**changes):
    fields = {
        "id": ID,
        "repository": "https://github.com/Acme/Digits.git",
        "commit": COMMIT,
        "recipe": "sha256:" + "0" * 64,
        "platforms": ("linux/amd64",),
        "sla": {"verbose": True},
        "created": 0.0,
        "attempt": 1,
        **changes,
    }
    return Project(**fields)


def told(events, one):
    """Topic, payload (read, where it is JSON), retained."""
    messages = [message for each in events for message in mirror_messages(one, each)]
    return [(topic, text if topic.startswith("project_") else json.loads(text), kept) for topic, text, kept in messages]


BUILD = [
    event("queue", "started", "accepted"),
    event("queue", "finished", "its turn"),
    event("deploy", "started", "being deployed"),
    event("deploy", "finished", "runs"),
    event("clone", "started", "https://github.com/Acme/Digits.git"),
    event("clone", "finished", ""),
    event("check", "started", ""),
    event("check", "finished", ""),
    event("resolve", "started", ""),
    event(
        "resolve",
        "adjusted",
        "",
        data={
            "code": "PIN_RELAXED",
            "package": "psutil",
            "before": "==5.9.8",
            "after": "==6.0.0",
            "where": "conda.yaml:12",
            "reason": "no\nwheel",
            "platform": "linux/arm64",
        },
    ),
    event("resolve", "finished", ""),
    event("push", "started", ""),
    event("push", "started", "tags move", code=TAGGING),
    event("push", "finished", ""),
    event("push", "succeeded", "images are in place", data={"result": RESULT}),
    event("remove", "started", ""),
    event("remove", "finished", ""),
]


def test_a_verbose_project_s_build_from_its_beginning_to_its_end():
    name = f"acme/digits/{{}}:{COMMIT}"
    assert told(BUILD, project()) == [
        (OBSERVER, "New FLOps images need to be build. Start build delegation processes.", True),
        (OBSERVER, "New Builder service created & deployed", True),
        ("flops_manager/fl_actors_image_builder/started", {"flops_project_id": ID}, False),
        (OBSERVER, f"Start building {name.format('learner')} image (This can take a while)", True),
        (OBSERVER, f"Start building {name.format('aggregator')} image (This can take a while)", True),
        (OBSERVER, "Adjusted psutil: ==5.9.8 -> ==6.0.0 (conda.yaml:12, linux/arm64): no\\nwheel", True),
        (OBSERVER, f"Successfully finished building new '{name.format('learner')}' image", True),
        (OBSERVER, f"Successfully finished building new '{name.format('aggregator')}' image", True),
        ("flops_manager/fl_actors_image_builder/success", {"flops_project_id": ID, **DURATIONS}, False),
        (OBSERVER, f"Successfully pushed new 'registry:5073/{name.format('learner')}' image", True),
        (OBSERVER, f"Successfully pushed new 'registry:5073/{name.format('aggregator')}' image", True),
        (OBSERVER, ", ".join(f"{key}: {text}" for key, text in DURATIONS.items()), True),
    ]


def test_a_quiet_project_tells_its_outcome_only():
    assert told(BUILD, project(sla={"verbose": False})) == [
        ("flops_manager/fl_actors_image_builder/started", {"flops_project_id": ID}, False),
        ("flops_manager/fl_actors_image_builder/success", {"flops_project_id": ID, **DURATIONS}, False),
    ]


def test_images_that_exist_need_no_builder():
    events = [event("push", "succeeded", "", data={"result": {**RESULT, "python": None, "seconds": {}}})]
    assert told(events, project(attempt=0, sla={})) == [
        (OBSERVER, "Latest FLOps images already exists for the provided repo.", True)
    ]


@pytest.mark.parametrize("verbose", [True, False])
def test_a_failure_is_told_whole_and_as_text(verbose):
    events = [event("check", "failed", "x", code="STRUCTURE", data={"error": ERROR})]
    assert told(events, project(sla={"verbose": verbose})) == [
        ("flops_manager/fl_actors_image_builder/failed", {"flops_project_id": ID, "error_msg": TOLD}, False),
        (OBSERVER, TOLD, True),
        (OBSERVER, "Builder failed. Terminating this FLOps Project.", True),
    ]


def test_a_failure_before_there_was_a_builder_is_the_observer_s_alone():
    events = [
        event("queue", "failed", "x", code="REF_NOT_FOUND", data={"error": {**ERROR, "findings": [], "hint": ""}})
    ]
    assert told(events, project(attempt=0)) == [
        (OBSERVER, "error[STRUCTURE]: the repository breaks the contract", True)
    ]


def test_a_cancelled_project_s_builder_has_failed_in_flops_words():
    assert told([event("queue", "cancelled", "")], project()) == [
        (
            "flops_manager/fl_actors_image_builder/failed",
            {"flops_project_id": ID, "error_msg": "the project was cancelled"},
            False,
        ),
        (OBSERVER, "The project was cancelled.", True),
    ]


def test_a_failure_of_many_findings_keeps_what_matters_and_the_limit():
    many = {**ERROR, "findings": ERROR["findings"] * 5000}
    text = flops.failure_text(many)
    assert len(text) == flops.TEXT_LIMIT
    assert text.startswith("error[STRUCTURE]: the repository breaks the contract\nhint: correct these lines\n")


@given(st.text())
def test_shown_text_never_controls_a_terminal(text):
    shown = flops.visible(text)
    assert all(character == "\n" or character.isprintable() for character in shown)
    assert flops.visible(shown) == shown


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    stage=st.sampled_from(STAGES),
    kind=st.sampled_from(KINDS),
    message=st.text(max_size=20),
    strange=DATA,
    attempt=st.integers(0, 2),
    verbose=st.booleans(),
    repository=st.sampled_from(["https://h/A/b.git", "ssh://git@h/a/b", "/srv/repositories/a"]),
)
def test_whatever_a_builder_says_makes_no_trouble(stage, kind, message, strange, attempt, verbose, repository):
    """The shapes that the manager checks (a result with images, an error with code and message), anything else in them."""
    data = {
        "succeeded": {
            "result": {"images": {"learner": {"platforms": {}, "x": strange}}, "seconds": strange, "python": strange}
        },
        "failed": {"error": {"code": "X", "message": "m", "findings": strange if isinstance(strange, list) else []}},
    }.get(kind, strange if isinstance(strange, dict) else {})
    one = replace(project(attempt=attempt, sla={"verbose": verbose}), repository=repository)
    for topic, text, retained in mirror_messages(one, event(stage, kind, message, data=data)):
        assert retained == (topic == OBSERVER)
        assert isinstance(text, str)
        assert len(text) < 3 * flops.TEXT_LIMIT

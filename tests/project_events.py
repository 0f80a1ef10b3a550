"""Events as a manager stores them, for tests of what shows and carries them."""

import itertools

from flops_wire.events import TAGGING

PROJECT = "65f0c1d2e3a4b5c6d7e8f901"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \u202egnp.exe\u202c \x00 <script>alert(1)</script>"


def make(stage, kind, message="", *, attempt=1, sequence=None, second=0, **fields):
    return {
        "id": f"0198c0de-0000-7000-8000-{second:012d}",
        "sequence": sequence,
        "project": PROJECT,
        "attempt": attempt,
        "time": f"2026-01-01T12:{second // 60:02d}:{second % 60:02d}.000Z",
        "stage": stage,
        "kind": kind,
        "platform": None,
        "message": message,
        "code": None,
        "hint": None,
        "data": {},
        **fields,
    }


def numbered(*events):
    """The events with sequences and times, one after the other; progress has no sequence."""
    counter = itertools.count(1)
    return [
        {
            **event,
            "sequence": None if event["kind"] == "progress" else next(counter),
            "id": f"0198c0de-0000-7000-8000-{index:012d}",
            "time": f"2026-01-01T12:{index // 60:02d}:{index % 60:02d}.000Z",
        }
        for index, event in enumerate(events, 1)
    ]


def stage(name, seconds=1.0, **fields):
    return [
        make(name, "started", f"{name} begins", **fields),
        make(name, "finished", data={"seconds": seconds}, **fields),
    ]


def result(registry="127.0.0.1:5073"):
    facts = {"digest": "sha256:" + "ab" * 32, "layers": 31, "bytes": 150_000_000, "uncompressed_bytes": 480_000_000}
    return {
        "repository": "https://git.example.org/acme/digits",
        "commit": COMMIT,
        "recipe": "sha256:" + "cd" * 32,
        "registry": registry,
        "images": {
            actor: {
                "reference": f"{registry}/acme/digits/{actor}:{COMMIT}",
                "digest": "sha256:" + "ef" * 32,
                "platforms": {"linux/amd64": dict(facts), "linux/arm64": {**facts, "bytes": 140_000_000}},
            }
            for actor in ("learner", "aggregator")
        },
        "python": {"requested": "3.10.14", "used": "3.11.2", "provider": "debian"},
        "adjustments": [],
        "findings": [],
        "seconds": {"total": 6.3},
        "bytes": {"downloaded": 1, "uploaded": 2, "reused": 3},
    }


ADJUSTMENT = {
    "code": "PIN_RELAXED",
    "package": "psutil",
    "before": "==5.9.8",
    "after": "==6.0.0",
    "where": "conda.yaml:12",
    "reason": "no wheel of 5.9.8",
    "platform": "linux/arm64",
}
FINDING = {"code": "STRUCTURE", "path": "model_manager.py", "line": 7, "message": "fit_model is missing", "hint": "add it", "quote": "class ModelManager:"}  # fmt: skip


def success(attempt=1):
    return numbered(
        *stage("queue", attempt=None),
        *stage("deploy", attempt=attempt),
        *stage("clone", attempt=attempt),
        make("check", "started", "structure", attempt=attempt),
        make("check", "finding", "a note", code="NOTE", data={**FINDING, "code": "NOTE"}, attempt=attempt),
        make("check", "finished", data={"seconds": 0.2}, attempt=attempt),
        make("resolve", "started", "locks", attempt=attempt),
        make("resolve", "adjusted", "psutil changed", code="PIN_RELAXED", data=ADJUSTMENT, attempt=attempt),
        make("resolve", "warning", "the index is slow", hint="wait", attempt=attempt),
        make("resolve", "finished", data={"seconds": 1.25}, attempt=attempt),
        make("fetch", "started", "30 wheels", attempt=attempt),
        make("fetch", "progress", data={"done": 10, "total": 40, "unit": "bytes"}, platform="linux/arm64", attempt=attempt),
        make("fetch", "progress", data={"done": 20, "total": 40, "unit": "bytes"}, platform="linux/arm64", attempt=attempt),
        make("fetch", "progress", data={"done": 5, "total": None, "unit": "bytes"}, platform="linux/amd64", attempt=attempt),
        make("fetch", "finished", data={"seconds": 2}, attempt=attempt),
        *stage("assemble", 2.5, attempt=attempt),
        *stage("verify", 0.1, attempt=attempt),
        make("push", "started", "two images", attempt=attempt),
        make("push", "started", "tags move", code=TAGGING, attempt=attempt),
        make("push", "finished", data={"seconds": 0.5}, attempt=attempt),
        make("push", "succeeded", "images are in place", data={"result": result()}, attempt=attempt),
        *stage("remove", 0.3, attempt=attempt),
    )  # fmt: skip


def failure():
    error = {"code": "STRUCTURE", "message": "the repository breaks the contract", "hint": "see above", "findings": [FINDING, {**FINDING, "line": 9}]}  # fmt: skip
    return numbered(
        *stage("queue", attempt=None),
        *stage("deploy"),
        *stage("clone"),
        make("check", "started", "structure"),
        make("check", "failed", "the repository breaks the contract", code="STRUCTURE", hint="see above", data={"error": error}),
        *stage("remove"),
    )  # fmt: skip


def second_attempt():
    first = [*stage("queue", attempt=None), *stage("deploy"), *stage("clone"), make("resolve", "started", "locks"),
             make("resolve", "adjusted", "x", data=ADJUSTMENT), make("remove", "started", "lost"), make("remove", "finished", data={"seconds": 1})]  # fmt: skip
    return numbered(*first, *[{**event} for event in success(attempt=2)[2:]])


def lost_at_once(running=()):
    """As a manager tells it: a builder that was killed while it ran these stages, and the one after it, which waits for its turn."""
    return numbered(
        *stage("queue", attempt=None), *stage("deploy"), *running,
        make("deploy", "warning", "attempt 1 was lost", code="BUILDER_LOST"), *stage("remove"),
        make("queue", "started", "the project is queued for another attempt"),
        make("queue", "finished", "its turn has come", attempt=2), *stage("deploy", attempt=2), make("clone", "started", attempt=2),
    )  # fmt: skip


def cancelled():
    return numbered(
        *stage("queue", attempt=None), *stage("deploy"), make("clone", "started"), make("queue", "cancelled", "the project was cancelled")
    )  # fmt: skip

"""Events as a builder posts them, judged one by one: only what `flops_wire.events` describes is stored and told. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from flops.errors import Finding, UsageError
from flops_wire.events import KINDS, STAGES, TAGGING, TERMINAL_KINDS
from flops_wire.manager import EVENTS_LIMIT, TEXT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping

_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NAME_LIMIT = 100
#: Bytes of the data of an outcome, a result or an error with all its findings, and of any other event.
OUTCOME_LIMIT = 2 * 1024 * 1024
DATA_LIMIT = 128 * 1024
#: Progress is not stored, so it counts for no attempt, and every viewer gets it.
PROGRESS_LIMIT = 1024
#: Levels of an event's data: an answer that is written from within more calls than the request was read in must hold it too.
DEPTH_LIMIT = 50
#: What only the manager itself says.
_OURS = ("cancelled",)


def judge_events(posted: object, *, project: str, attempt: int) -> list[dict[str, Any]]:
    """The events, whole and with the project's and the attempt's own names; UsageError names every place that is wrong."""
    if not isinstance(posted, list) or len(posted) > EVENTS_LIMIT:
        raise UsageError(f"events are a list of at most {EVENTS_LIMIT}", hint="post further ones in another request")
    findings: list[Finding] = []
    events = []
    for number, event in enumerate(posted):
        wrong = _wrong(event)
        if wrong:
            findings.append(Finding(path=f"/events/{number}", line=0, code=UsageError.code, message=wrong))
        else:
            events.append(_whole(event, project, attempt))
    if findings:
        raise UsageError(f"an event can't be taken: {findings[0].path} {findings[0].message}", findings=findings)
    return events


def is_tagging(event: Mapping[str, Any]) -> bool:
    """Whether this asks for the leave to move tags."""
    return (event.get("code"), event["stage"], event["kind"]) == (TAGGING, "push", "started")


def _wrong(event: object) -> str:
    if not isinstance(event, dict):
        return "is not an object"
    for key, pattern in (("id", _ID), ("time", _TIME)):
        if not isinstance(event.get(key), str) or not pattern.fullmatch(event[key]):
            return f"has no {key} that can be read"
    if event.get("stage") not in STAGES or event.get("kind") not in KINDS or event["kind"] in _OURS:
        return "has a stage or kind that builders don't have"
    for key, limit in (("message", TEXT_LIMIT), ("hint", TEXT_LIMIT), ("code", _NAME_LIMIT), ("platform", _NAME_LIMIT)):
        if not _is_text(event.get(key), limit):
            return f"has a {key} that is no text of at most {limit} characters"
    wrong = _wrong_data(event["kind"], event.get("data"))
    if not wrong and is_tagging(event) and not _is_move(event.get("data") or {}):
        return "asks to move tags and does not name them, and images with the digests of their platforms"
    return wrong


def _wrong_data(kind: str, data: object) -> str:
    if data is None:
        data = {}
    if not isinstance(data, dict) or _is_deep(data):
        return f"has data that is not an object of at most {DEPTH_LIMIT} levels"
    try:
        size = len(json.dumps(data, ensure_ascii=False).encode())
    except (ValueError, RecursionError):
        return "has data that can't be written as text"
    limit = OUTCOME_LIMIT if kind in TERMINAL_KINDS else PROGRESS_LIMIT if kind == "progress" else DATA_LIMIT
    if size > limit:
        return f"has more than {limit} bytes of data"
    if kind == "succeeded" and not _is_result(data.get("result")):
        return "has no result with images, each with its platforms"
    if kind == "failed" and not _is_error(data.get("error")):
        return "has no error with code and message"
    return ""


def _is_deep(data: dict[str, Any]) -> bool:
    level: list[Any] = [data]
    for _ in range(DEPTH_LIMIT):
        inner = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        level = [one for one in inner if isinstance(one, dict | list)]
    return bool(level)


def _is_text(value: object, limit: int) -> bool:
    if value is None:
        return True
    if not isinstance(value, str) or len(value) > limit:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _is_result(result: object) -> bool:
    images = result.get("images") if isinstance(result, dict) else None
    return isinstance(images, dict) and all(
        isinstance(image, dict)
        and isinstance(image.get("platforms"), dict)
        and all(isinstance(one, dict) for one in image["platforms"].values())
        for image in images.values()
    )


def _is_move(data: Mapping[str, Any]) -> bool:
    tags, images = data.get("tags"), data.get("images")
    if not isinstance(tags, list) or not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags):
        return False
    return isinstance(images, dict) and all(
        isinstance(image, dict)
        and isinstance(image.get("platforms"), dict)
        and all(isinstance(digest, str) for digest in image["platforms"].values())
        for image in images.values()
    )


def _is_error(error: object) -> bool:
    return (
        isinstance(error, dict)
        and all(isinstance(error.get(key), str) for key in ("code", "message"))
        and isinstance(error.get("hint", ""), str)
        and isinstance(error.get("findings", []), list)
    )


def _whole(event: Mapping[str, Any], project: str, attempt: int) -> dict[str, Any]:
    return {
        "id": event["id"],
        "project": project,
        "attempt": attempt,
        "time": event["time"],
        "stage": event["stage"],
        "kind": event["kind"],
        "platform": event.get("platform"),
        "message": event.get("message") or "",
        "code": event.get("code"),
        "hint": event.get("hint"),
        "data": event.get("data") or {},
    }

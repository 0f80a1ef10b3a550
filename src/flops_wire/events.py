"""The shape of an event: one type serves the progress bar, the observer, the manager and the record.

An event is a JSON object with the keys of FIELDS. The builder makes `id` (UUIDv7, RFC 9562), the manager `sequence`
when it commits. `platform`, `code` and `hint` are null where they say nothing.

What `data` holds, by kind:

    kind        keys
    started     (none); with the code TAGGING: tags, and images: {actor: {digest, platforms: {platform: digest}}},
                both actors' indexes that get these tags, with the manifests of all requested platforms; without this
                event, and without these very images in the registry, no success is believed
    progress    done, total (numbers; total null where unknown), unit; at most twice a second, never stored
    finished    seconds
    adjusted    code, package, before, after, where, reason, platform
    finding     code, path, line, message, hint
    warning     (none)
    failed      error: {code, message, hint, findings}
    succeeded   result: the object that `flops build --json` prints
    cancelled   (none)
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from typing import Any

FIELDS = (
    "id",
    "sequence",
    "project",
    "attempt",
    "time",
    "stage",
    "kind",
    "platform",
    "message",
    "code",
    "hint",
    "data",
)
STAGES = ("queue", "deploy", "clone", "check", "resolve", "fetch", "assemble", "verify", "push", "remove")
KINDS = (
    "started",
    "progress",
    "finished",
    "adjusted",
    "finding",
    "warning",
    "failed",
    "succeeded",
    "cancelled",
)
#: Code of the event (stage push, kind started) whose answer 200 is the leave to move tags; from then on cancel comes too late.
TAGGING = "TAGGING"
#: Code of a warning that tells what one of FLOps' components sent to the observer's port.
MESSAGE = "MESSAGE"
#: The first of these that the manager commits is a project's one outcome.
TERMINAL_KINDS = ("failed", "succeeded", "cancelled")


def event(
    stage: str,
    kind: str,
    message: str,
    *,
    code: str | None = None,
    hint: str | None = None,
    data: dict[str, Any] | None = None,
    now: float | None = None,
) -> dict[str, Any]:
    """An event of now (or of `now`, seconds since the epoch), without project, attempt and sequence."""
    moment = time.time() if now is None else now
    return {
        "id": uuid7(moment),
        "time": rfc3339(moment),
        "stage": stage,
        "kind": kind,
        "platform": None,
        "message": message,
        "code": code,
        "hint": hint,
        "data": data or {},
    }


def rfc3339(seconds: float) -> str:
    """A moment since the epoch in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)  # noqa: UP017 - Python 3.9
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def uuid7(seconds: float) -> str:
    """A UUID of version 7 (RFC 9562, 5.7): milliseconds since the epoch, then 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    high = (int(seconds * 1000) & (1 << 48) - 1) << 80
    value = high | 7 << 76 | (random >> 62 & 0xFFF) << 64 | 2 << 62 | random & (1 << 62) - 1
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

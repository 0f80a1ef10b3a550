"""The shape of an event: one type serves the progress bar, the observer, the manager and the record.

An event is a JSON object with the keys of FIELDS. The builder makes `id` (UUIDv7, RFC 9562), the manager `sequence`
when it commits. `platform`, `code` and `hint` are null where they say nothing.

What `data` holds, by kind:

    kind        keys
    started     (none)
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
#: The first of these that the manager commits is a project's one outcome.
TERMINAL_KINDS = ("failed", "succeeded", "cancelled")

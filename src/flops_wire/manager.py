"""Paths and variables between the manager, the builders that it deploys, and its clients (ARCHITECTURE.md, "HTTP")."""

from __future__ import annotations

PROJECTS = "/api/flops/projects"

#: The three variables of a deployed builder. JOB_ID is no secret: every process of a builder carries it.
JOB_ID = "FLOPS_JOB_ID"
JOB_URL = "FLOPS_JOB_URL"
JOB_TOKEN = "FLOPS_JOB_TOKEN"  # noqa: S105 - a variable's name

#: Bytes of an SLA.
SLA_LIMIT = 256 * 1024
#: Events in one request, and bytes of its body.
EVENTS_LIMIT = 200
BODY_LIMIT = 8 * 1024 * 1024
#: Characters of an event's message and hint; longer ones are cut by whoever makes the event.
TEXT_LIMIT = 8000

STATES = ("accepted", "building", "images_ready", "failed", "cancelled")
#: A project in one of these has its one outcome.
ENDED = ("images_ready", "failed", "cancelled")
BUILDER_STATES = ("none", "queued", "deploying", "running", "removing", "removed")
#: What a client's command ends with, by the state of the project that it watched; a failure's own code stands above.
EXIT_CODES = {"images_ready": 0, "failed": 9, "cancelled": 130}


def attempt_path(project: str, attempt: int) -> str:
    """Below it: `/job` (GET) and `/events` (POST), with the attempt's token as bearer."""
    return f"{PROJECTS}/{project}/attempts/{attempt}"

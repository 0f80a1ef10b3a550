"""What travels over HTTP, as the OpenAPI document describes it; the values themselves are made elsewhere."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ProjectState = Literal["accepted", "building", "images_ready", "failed", "cancelled"]

#: An SLA as FLOps' users write it; every key but the first two may be left out.
SLA_EXAMPLE: dict[str, Any] = {
    "ml_repo_url": "https://git.example.org/acme/digits",
    "ml_model_flavor": "sklearn",
    "customerID": "Admin",
    "verbose": False,
    "supported_platforms": ["linux/amd64", "linux/arm64"],
    "training_configuration": {
        "mode": "classic",
        "data_tags": ["digits"],
        "training_cycles": 1,
        "training_rounds": 3,
        "min_available_clients": 1,
        "min_fit_clients": 1,
        "min_evaluate_clients": 1,
    },
    "post_training_steps": [],
    "resource_constraints": {"memory": 1000, "vcpus": 1, "storage": 0},
    "ml_repo_ref": "main",
    "policy": "fix",
}

PROJECT_EXAMPLE: dict[str, Any] = {
    "id": "65f0c1d2e3a4b5c6d7e8f901",
    "state": "building",
    "builder": "running",
    "repository": "https://git.example.org/acme/digits",
    "subdir": "",
    "ref": "main",
    "commit": "0123456789abcdef0123456789abcdef01234567",
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
    "started": "2026-01-01T12:00:01.000Z",
    "ended": None,
}

EVENT_EXAMPLE: dict[str, Any] = {
    "id": "0198c0de-0000-7000-8000-000000000000",
    "time": "2026-01-01T12:00:02.000Z",
    "stage": "resolve",
    "kind": "finished",
    "platform": "linux/arm64",
    "message": "locked 31 packages",
    "data": {"seconds": 1.5},
}


JOB_EXAMPLE: dict[str, Any] = {
    "project": PROJECT_EXAMPLE["id"],
    "attempt": 1,
    "source": "https://git.example.org/acme/digits",
    "ref": PROJECT_EXAMPLE["commit"],
    "subdir": "",
    "platforms": ["linux/amd64", "linux/arm64"],
    "recipe": {
        "flavor": "sklearn",
        "python": None,
        "policy": "fix",
        "accelerator": "cpu",
        "compression": "gzip",
        "base": None,
        "subdir": "",
        "groups": [],
    },
    "recipe_digest": PROJECT_EXAMPLE["recipe"],
    "registry": "http://127.0.0.1:5073",
    "registry_pull": None,
    "force": False,
    "verbose": False,
    "seconds": 3600,
    "allow_local": False,
    "allow_hosts": [],
    "credentials": {"git": None, "registry": []},
}


class ApiDocument(BaseModel):
    model_config = ConfigDict(extra="allow")


class FindingDocument(ApiDocument):
    """As a builder told it: other keys may be there, or fewer."""

    code: str = ""
    path: str = Field(default="", description="Of a file; for an SLA the JSON pointer (RFC 6901) of the place.")
    line: int = Field(default=0, description="From 1; 0 where the whole file is meant.")
    message: str = ""
    hint: str = ""


class ErrorDetail(ApiDocument):
    code: str = Field(description="Stable; what programs go by.")
    message: str
    hint: str
    findings: list[FindingDocument]


class ErrorDocument(ApiDocument):
    """How every failure is told."""

    error: ErrorDetail


class ProjectDocument(ApiDocument):
    """One request and its one outcome."""

    id: str
    state: ProjectState
    builder: Literal["none", "queued", "deploying", "running", "removing", "removed"]
    repository: str
    subdir: str
    ref: str | None
    commit: str | None = Field(description="Resolved once, after the project was accepted; null until then.")
    recipe: str
    platforms: list[str]
    flavor: str | None
    images: dict[str, Any] | None = Field(description="By actor: reference, digest, platforms.")
    result: dict[str, Any] | None = Field(description="In success: what `flops build --json` prints.")
    error: ErrorDetail | None
    warnings: list[str]
    force: bool
    attempt: int
    waits_for: str | None = Field(description="The project whose builder makes the same images.")
    created: str
    started: str | None
    ended: str | None


class SubmissionDocument(ApiDocument):
    message: str
    project: ProjectDocument


class PageDocument(ApiDocument):
    projects: list[ProjectDocument]
    total: int
    limit: int
    offset: int


class JobDocument(ApiDocument):
    """What `flops job` is given; the only answer that holds credentials."""

    project: str
    attempt: int
    source: str
    ref: str | None = Field(description="The commit; null for a directory.")
    subdir: str
    platforms: list[str]
    recipe: dict[str, Any]
    recipe_digest: str
    registry: str
    registry_pull: str | None
    force: bool
    verbose: bool
    seconds: float
    allow_local: bool
    allow_hosts: list[str]
    credentials: dict[str, Any]


class AcceptedDocument(ApiDocument):
    accepted: int = Field(description="Events that were taken, those among them that were here already.")


class HealthDocument(ApiDocument):
    status: Literal["ok", "failing"]
    checks: dict[str, str] = Field(description="By part: `ok`, or the code of what is wrong with it.")
    version: str

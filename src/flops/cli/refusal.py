"""What a manager's answer tells: a document, a project, or a failure of ours."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flops.errors import AccessDenied, Finding, FlopsError, ManagerRefused, OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx


def failure_of(answer: httpx.Response) -> FlopsError:
    """What a manager's error document tells; ManagerRefused where there is none."""
    document = json_of(answer)
    if not isinstance(document, dict) or not isinstance(document.get("error"), dict):
        if answer.status_code in (401, 403):
            return AccessDenied(f"{answer.url.host} wants a token", hint="set FLOPS_API_TOKEN")
        return strange(answer)
    error = failure_from(document["error"])
    if answer.status_code == HTTPStatus.UNAUTHORIZED and "authorization" not in answer.request.headers:
        error.hint = "set FLOPS_API_TOKEN"  # the manager's own words are for programs
    return error


def failure_from(document: Mapping[str, Any]) -> FlopsError:
    """The failure that an error document tells, with its code; one that this version does not know is an OrchestratorError."""
    code = _code(document)
    kind: type[FlopsError] = _kinds().get(code) or type("Told", (OrchestratorError,), {"code": code})
    findings = document.get("findings")
    return kind(
        str(document.get("message") or code),
        hint=str(document.get("hint") or ""),
        findings=[_finding(one) for one in (findings if isinstance(findings, list) else ()) if isinstance(one, dict)],
    )


def _finding(one: Mapping[str, Any]) -> Finding:
    line = one.get("line")
    words = {key: str(one.get(key) or "") for key in ("path", "message", "hint", "quote")}
    return Finding(line=line if isinstance(line, int) else 0, code=_code(one), **words)


def _code(document: Mapping[str, Any]) -> str:
    """Codes are shown as they are, so nothing but a code will do."""
    code = document.get("code")
    return code if isinstance(code, str) and re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", code) else ManagerRefused.code


def _kinds() -> dict[str, type[FlopsError]]:
    found: dict[str, type[FlopsError]] = {}
    left: list[type[FlopsError]] = [FlopsError]
    while left:
        kind = left.pop()
        if kind.__module__ == FlopsError.__module__:
            found.setdefault(kind.code, kind)
        left += kind.__subclasses__()
    return found


def json_of(answer: httpx.Response) -> Any:
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError):
        return None


def project_of(answer: httpx.Response, key: str | None = None) -> dict[str, Any]:
    document = json_of(answer)
    if key is not None and isinstance(document, dict):
        document = document.get(key)
    if not isinstance(document, dict) or not isinstance(document.get("id"), str):
        raise strange(answer)
    return document


def strange(answer: httpx.Response) -> ManagerRefused:
    return ManagerRefused(
        f"{answer.url.host} answered with status {answer.status_code}, and not as a manager does",
        hint="check the address in --manager or FLOPS_MANAGER",
    )

"""The SLA that a user wrote: read from its file, its directories made absolute; judged by the manager."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from flops.errors import Finding, SlaInvalid
from flops_wire.manager import SLA_LIMIT

SOURCE = "ml_repo_url"


def read_sla(name: str) -> dict[str, Any]:
    """The SLA in a file (`-`: standard input); a directory in `ml_repo_url` is meant from the file's place. SlaInvalid."""
    shown = "standard input" if name == "-" else name
    try:
        data = sys.stdin.buffer.read(SLA_LIMIT + 1) if name == "-" else _bytes(Path(name))
    except OSError as error:
        raise SlaInvalid(
            f"{shown} can't be read: {error.strerror}", hint="name the SLA's file, or - for stdin"
        ) from error
    if len(data) > SLA_LIMIT:
        raise SlaInvalid(f"{shown} has more than {SLA_LIMIT} bytes", hint="an SLA is a small JSON object")
    document = _document(data, shown)
    if isinstance(source := document.get(SOURCE), str):
        document[SOURCE] = resolved(source, Path.cwd() if name == "-" else Path(name).resolve().parent)
    return document


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SLA_LIMIT + 1)


def _document(data: bytes, shown: str) -> dict[str, Any]:
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SlaInvalid(f"{shown} is not UTF-8", hint="save it as UTF-8") from error
    except RecursionError as error:
        raise SlaInvalid(f"{shown} is nested too deeply") from error
    except ValueError as error:
        line, told = (
            (error.lineno, error.msg) if isinstance(error, json.JSONDecodeError) else (0, "a number is too long")
        )
        finding = Finding(path=shown, line=line, code=SlaInvalid.code, message=told[0].lower() + told[1:])
        raise SlaInvalid(f"{shown} is not JSON", hint="write one JSON object", findings=[finding]) from error
    if not isinstance(document, dict):
        raise SlaInvalid(f"{shown} holds no JSON object", hint="write one object, as in examples/sla.json")
    try:
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # Python reads NaN, 1e999 and half a surrogate pair; nobody else does
        raise SlaInvalid(f"{shown} holds a number or a text that can't be sent as JSON") from error
    return document


def resolved(source: str, place: Path) -> str:
    """A source as the manager understands it: URLs as they are, directories absolute."""
    if "://" in source or re.match(r"[A-Za-z0-9+.-]+::|[^/]*@", source) or not source.strip() or "\0" in source:
        return source
    path = place / os.path.expanduser(source)  # noqa: PTH111 - leaves the name of a user that is none; pathlib fails
    looks_like_one = source in (".", "..") or source.startswith(("/", "./", "../", "~"))
    return str(path.resolve()) if looks_like_one or path.is_dir() else source

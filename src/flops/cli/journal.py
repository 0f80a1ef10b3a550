"""The service's log on stderr: a line for people, or JSON for programs; project and attempt stand in each that is about one."""

from __future__ import annotations

import json
import logging
import sys
import time
from enum import Enum
from typing import Any

from flops.cli.render import one_line

_ABOUT = ("project", "attempt", "stage", "kind", "code")


class LogFormat(Enum):
    TEXT = "text"
    JSON = "json"


def start(form: LogFormat, *, verbose: bool = False) -> None:
    """Send what the product logs to stderr, and of the server underneath what is a warning."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form is LogFormat.JSON else _Text())
    ours = logging.getLogger("flops")
    ours.handlers[:] = [handler]
    ours.setLevel(logging.DEBUG if verbose else logging.INFO)
    ours.propagate = False
    # a reader that was let go is no news
    server = logging.getLogger("uvicorn")
    server.handlers[:] = [handler]
    server.setLevel(logging.CRITICAL if not verbose else logging.WARNING)
    server.propagate = False


def heard(project: Any, event: dict[str, Any]) -> None:
    """A stored event of a project, for `--verbose` (`Bus.listen`)."""
    about = {key: event.get(key) for key in _ABOUT}
    logging.getLogger("flops.events").debug("%s", event.get("message"), extra={**about, "project": project.id})


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record.created, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: getattr(record, key) for key in _ABOUT if getattr(record, key, None) is not None}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    """Text from repositories and builders stands in messages, so a line stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        about = ", ".join(f"{key} {getattr(record, key)}" for key in _ABOUT if getattr(record, key, None) is not None)
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = f"{_time(record.created, '%H:%M:%S')} {level}{one_line(record.getMessage())}"
        line += f" ({one_line(about)})" if about else ""
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(seconds: float, form: str) -> str:
    return time.strftime(form, time.gmtime(seconds))

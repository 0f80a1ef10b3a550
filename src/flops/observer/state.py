"""The parts of a project's state as people see it: stages, lines, cards, images, the outcome. Values only."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


_REFERENCE = re.compile(r"[\[A-Za-z0-9][\[\]A-Za-z0-9._:/@-]*")


class StageState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Not needed, or not reached."""


class Level(Enum):
    """How a line is meant."""

    INFO = "info"
    ADJUSTED = "adjusted"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"
    SUCCESS = "success"


class _Value:
    def to_json(self) -> dict[str, Any]:
        return {key: _plain(value) for key, value in asdict(self).items()}  # type: ignore[call-overload]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class Progress(_Value):
    platform: str | None
    done: float
    total: float | None
    """None where it is not known."""
    unit: str = "bytes"


@dataclass(frozen=True, kw_only=True)
class StageView(_Value):
    name: str
    """One of `flops_wire.events.STAGES`."""
    state: StageState = StageState.WAITING
    message: str = ""
    """What was told when it began, or since."""
    started: str | None = None
    """RFC 3339, as the next one."""
    ended: str | None = None
    seconds: float | None = None
    """As measured by whoever did it; None while it runs."""
    progress: tuple[Progress, ...] = ()
    """By platform, while it runs."""


@dataclass(frozen=True, kw_only=True)
class AttemptView(_Value):
    number: int
    """From 1."""
    stages: tuple[StageView, ...]
    """All of them, in the order of the wire."""


@dataclass(frozen=True, kw_only=True)
class Line(_Value):
    """One line of the log."""

    sequence: int
    time: str
    attempt: int
    stage: str
    level: Level
    text: str
    code: str = ""
    hint: str = ""
    platform: str | None = None


@dataclass(frozen=True, kw_only=True)
class Card(_Value):
    """Something at a place of the repository (or of the SLA), or the failure itself (then without a place)."""

    level: Level
    """NOTE or ERROR."""
    code: str
    message: str
    hint: str = ""
    path: str = ""
    line: int = 0
    """From 1; 0 where the whole file is meant."""
    quote: str = ""


@dataclass(frozen=True, kw_only=True)
class PlatformImage(_Value):
    platform: str
    digest: str
    layers: int
    bytes: int
    """Compressed, as pulled."""
    uncompressed_bytes: int


@dataclass(frozen=True, kw_only=True)
class ImageView(_Value):
    actor: str
    reference: str
    digest: str
    """Of the index."""
    platforms: tuple[PlatformImage, ...]

    @property
    def pull(self) -> str:
        """The command that brings it to a machine; empty for an image that no registry holds."""
        first = self.reference.partition("/")[0]
        if not _REFERENCE.fullmatch(self.reference):
            return ""  # it is copied into terminals
        return f"docker pull {self.reference}" if "." in first or ":" in first or first == "localhost" else ""

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"pull": self.pull}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it ended; there is one of them for each project."""

    kind: str
    """succeeded, failed or cancelled."""
    time: str
    message: str
    stage: str = ""
    """Where it failed."""
    error: Card | None = None
    """In failure."""
    findings: tuple[Card, ...] = ()
    """All that the failure is about."""
    images: tuple[ImageView, ...] = ()
    seconds: float | None = None
    """The whole build, in success."""
    result: Mapping[str, Any] | None = None
    """In success: what `flops build --json` prints."""

    @property
    def cards(self) -> tuple[Card, ...]:
        return (*self.findings, *([self.error] if self.error else ()))

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "time": self.time,
            "message": self.message,
            "stage": self.stage,
            "error": self.error.to_json() if self.error else None,
            "findings": [one.to_json() for one in self.findings],
            "images": [one.to_json() for one in self.images],
            "seconds": self.seconds,
        }

"""How far a learner is: written by Flower's short-lived processes, read by the launcher, in a file between them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Where Flower's processes, which inherit the launcher's environment, find the file.
VARIABLE = "FLOPS_STANDING"


@dataclass(frozen=True, kw_only=True)
class Standing:
    round: int
    rounds: int
    phase: str
    """The last one that was answered: fit or evaluate."""
    failure: str = ""
    """The user's exception in that phase, with its traceback."""

    @property
    def finished(self) -> bool:
        """The last round was evaluated: the aggregator asks for nothing more."""
        return self.phase == "evaluate" and self.round >= self.rounds


def write(standing: Standing, path: Path) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(standing)))
    os.replace(temporary, path)  # noqa: PTH105 - atomic, so that no reader sees half a file


def read(path: Path) -> Standing | None:
    """None as long as the learner took no part."""
    try:
        return Standing(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None

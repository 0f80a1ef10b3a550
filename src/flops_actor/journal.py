"""What the federation tells its launcher: lines of JSON in a file, written by Flower's process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Where Flower's process, which inherits the launcher's environment, finds the file and the plan (JSON).
VARIABLE = "FLOPS_JOURNAL"
PLAN_VARIABLE = "FLOPS_PLAN"

ROUND = "round"
TROUBLE = "trouble"
"""A learner failed; `text` says which and how."""
FINISHED = "finished"
FAILED = "failed"


class Writer:
    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"kind": kind, **fields}) + "\n"
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line)


class Reader:
    """Each call of `new` yields what was written since the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)

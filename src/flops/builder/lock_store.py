"""Locks kept on disk, so that the same request gives the same wheels next week and asks no index."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

#: Raised when the shape of what is kept or the meaning of a key changes.
FORMAT = 1
#: Seconds that a lock is reused: seven days.
LIFETIME = 7 * 24 * 3600


class LockStore:
    """A directory of JSON documents by key; what can't be read counts as absent, what can't be written is not kept."""

    def __init__(self, root: Path, *, lifetime: float = LIFETIME) -> None:
        self._root = root
        self._lifetime = lifetime

    def get(self, request: Any) -> Any:
        """What was kept for this request (JSON values), unless it is damaged or too old; None otherwise."""
        try:
            document = json.loads(self._path(request).read_bytes())
            age = time.time() - document["created"]
            if document["format"] != FORMAT or not 0 <= age < self._lifetime:
                return None
            return document["content"] if document["sha256"] == _digest(document["content"]) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, request: Any, content: Any) -> None:
        """Keep JSON content; atomic, and a disk that is full or read-only costs only the next lookup."""
        document = {"format": FORMAT, "created": time.time(), "sha256": _digest(content), "content": content}
        path = self._path(request)
        with contextlib.suppress(OSError):
            self._root.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._root, prefix=".new-")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(document, file)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink()
                raise

    def _path(self, request: Any) -> Path:
        return self._root / f"{_digest([FORMAT, request])}.json"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

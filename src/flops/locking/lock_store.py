"""Locks kept on disk, so that the same request gives the same wheels next week and asks no index."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops.store.shared import LOCK

if TYPE_CHECKING:
    from flops.store.shared import SharedCache

#: Raised when the shape of what is kept or the meaning of a key changes.
FORMAT = 1
#: Seconds that a lock is reused: seven days.
LIFETIME = 7 * 24 * 3600


class LockStore:
    """A directory of JSON documents by key; what can't be read counts as absent, what can't be written is not kept.

    With `shared`, what other builders kept counts as long, and they hear of what is kept here.
    """

    def __init__(self, root: Path, *, lifetime: float = LIFETIME, shared: SharedCache | None = None) -> None:
        self._root = root
        self._lifetime = lifetime
        self._shared = shared

    def get(self, request: Any) -> Any:
        """What was kept for this request (JSON values), unless it is damaged or too old; None otherwise."""
        found = self._local(request)
        if found is None and self._shared is not None:
            note = self._shared.find(LOCK, _key(request))
            if note is not None and note.age < self._lifetime:
                return note.content
        return found

    def _local(self, request: Any) -> Any:
        try:
            document = json.loads(self._path(request).read_bytes())
            age = time.time() - document["created"]
            if document["format"] != FORMAT or not 0 <= age < self._lifetime:
                return None
            return document["content"] if document["sha256"] == _digest(document["content"]) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, request: Any, content: Any, *, shared: bool = True) -> None:
        """Keep JSON content; atomic, and a disk that is full or read-only costs only the next lookup.

        Without `shared` it is about this machine alone.
        """
        if shared and self._shared is not None:
            self._shared.keep(LOCK, _key(request), content)
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
        return self._root / f"{_key(request)}.json"


def _key(request: Any) -> str:
    return _digest([FORMAT, request])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

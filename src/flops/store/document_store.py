"""JSON documents remembered by their request: in a directory of this machine, and in the registry where builders share one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

from flops.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from flops.store.shared import SharedCache

#: Raised when the shape of the files or the meaning of a key changes.
FORMAT = 1
#: Seconds that locks and package sets are reused: seven days.
LIFETIME = 7 * 24 * 3600


class DocumentStore:
    """JSON documents of one kind. A file that can't be read counts as absent; one that can't be written is skipped.

    With `shared`, documents of other builders are found too, and this builder's are uploaded. `lifetime` is in seconds;
    None keeps documents for ever.
    """

    def __init__(
        self, root: Path, *, kind: str, lifetime: float | None = LIFETIME, shared: SharedCache | None = None
    ) -> None:
        self._root = root
        self._kind = kind
        self._lifetime = lifetime
        self._shared = shared

    def get(self, request: Any, *, any_age: bool = False) -> Any:
        """The content for this request (JSON values), from this machine or else the registry; None if there is none."""
        found = self.local(request, any_age=any_age)
        return self.shared(request, any_age=any_age) if found is None else found

    def local(self, request: Any, *, any_age: bool = False) -> Any:
        """The content from this machine; None if it is absent, damaged or too old."""
        try:
            document = json.loads(self._path(request).read_bytes())
            with contextlib.suppress(OSError):
                os.utime(self._path(request))  # the cache's bound keeps what is used
            age = time.time() - document["created"]
            if document["format"] != FORMAT or age < 0 or not (any_age or self._fresh(age)):
                return None
            return document["content"] if document["sha256"] == _digest(document["content"]) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def shared(self, request: Any, *, any_age: bool = False) -> Any:
        """The content that another builder uploaded; the caller has to check it, since anyone may have made it."""
        found = self._shared.find(self._kind, _key(request)) if self._shared else None
        return found.content if found is not None and (any_age or self._fresh(found.age)) else None

    def put(self, request: Any, content: Any, *, shared: bool = True) -> None:
        """Remember JSON content, without `shared` only on this machine. A full or read-only disk is no failure."""
        if shared and self._shared is not None:
            self._shared.put(self._kind, _key(request), content)
        document = {"format": FORMAT, "created": time.time(), "sha256": _digest(content), "content": content}
        with contextlib.suppress(OSError), replacing(self._path(request)) as file:
            file.write(json.dumps(document).encode())

    def _fresh(self, age: float) -> bool:
        return self._lifetime is None or age < self._lifetime

    def _path(self, request: Any) -> Path:
        return self._root / f"{_key(request)}.json"


def _key(request: Any) -> str:
    return _digest([FORMAT, request])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

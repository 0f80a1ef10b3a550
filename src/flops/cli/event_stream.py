"""Server-sent events out of bytes (HTML, 9.2.6), as a manager sends them: each one a JSON object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Bytes of one event: more than a manager takes from a builder.
LIMIT = 16 * 1024 * 1024


def parse(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The events whose data are an object, each as soon as it is whole; one that is cut off at the end is left out."""
    data: list[bytes] = []
    size = 0
    for line in _lines(chunks):
        if not line:
            event = _object(b"\n".join(data))
            data, size = [], 0
            if event is not None:
                yield event
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            size += len(value)
            if size <= LIMIT:
                data.append(value.removeprefix(b" "))


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, which are LF or CR LF. Text may hold what Unicode takes for ends of lines, so bytes are split."""
    rest: list[bytes] = []
    kept = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        for part in (first, *others[:-1]) if others else ():
            rest.append(part)
            yield b"".join(rest).removesuffix(b"\r")
            rest, kept = [], 0
        last = others[-1] if others else first
        kept += len(last)
        if kept <= LIMIT:
            rest.append(last)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data) if data else None
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None

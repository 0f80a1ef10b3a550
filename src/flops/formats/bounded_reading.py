"""Reads a repository's dependency files once in a bounded child process, before this one reads them.

The child runs the code that follows here on the same bytes, and tells only which file it reads and that it came to an end:
nothing that it makes of hostile text is carried back. Each format bounds what it parses; this holds for what was not foreseen.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import packaging
import yaml

from flops import programs
from flops.errors import Finding, FlopsError, InternalError, RequirementSyntax
from flops.formats import requirements
from flops.platforms import Platform
from flops.sandbox import limited

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Bytes of data; the largest files within the formats' bounds take a fifth.
MEMORY = 512 * 1024**2
PROCESSOR_SECONDS = 20
#: Starts the child with the libraries that this process has, and without its other places, such as a repository's directory.
_CHILD = """\
import json, sys
asked = json.load(sys.stdin)
sys.path += asked["libraries"]
from flops.formats import bounded_reading
bounded_reading.read(asked)
"""


def rehearse(root: Path, paths: Iterable[str], *, groups: Sequence[str], platforms: Sequence[Platform]) -> None:
    """RequirementSyntax where `requirements.read` would need more memory or time than any honest files do."""
    asked = {
        "libraries": sorted(
            {str(Path(__file__).parents[2]), *(str(Path(str(it.__file__)).parents[1]) for it in (packaging, yaml))}
        ),
        "root": str(root),
        "paths": list(paths),
        "groups": list(groups),
        "platforms": [platform.value for platform in platforms],
    }
    done = programs.run(
        limited([sys.executable, "-I", "-S", "-c", _CHILD], data=MEMORY, processor_seconds=PROCESSOR_SECONDS),
        seconds=PROCESSOR_SECONDS * 10,
        stdin=json.dumps(asked),
        check=False,
    )
    if done.code == 0:
        return
    if done.code > 0 and not re.search("MemoryError|SystemError", done.stderr):  # the latter where the first was lost
        raise InternalError(f"the reader of dependency files ended with {done.code}: {done.stderr.strip()[-300:]}")
    path = json.loads((done.stdout.splitlines() or ['""'])[-1])
    message, hint = "reading it takes more memory or time than any dependency file needs", "write less into it"
    finding = Finding(path=path, line=0, code=RequirementSyntax.code, message=message, hint=hint)
    raise RequirementSyntax(f"{path}: {message}", hint=hint, findings=[finding])


def read(asked: Mapping[str, Any]) -> None:
    """What the child does."""
    platforms = [Platform(name) for name in asked["platforms"]]
    with contextlib.suppress(FlopsError):  # it is raised again where these files are read to be used
        requirements.read(_Told(Path(asked["root"]), asked["paths"]), groups=asked["groups"], platforms=platforms)


class _Told(Mapping[str, bytes]):
    """Files by path; each is named on stdout when it is read, so that the last of a child that was ended is known."""

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self._root, self._paths = root, frozenset(paths)

    def __getitem__(self, path: str) -> bytes:
        if path not in self._paths:
            raise KeyError(path)
        sys.stdout.write(json.dumps(path) + "\n")
        sys.stdout.flush()
        return (self._root / path).read_bytes()

    def __contains__(self, path: object) -> bool:
        return path in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._paths))

    def __len__(self) -> int:
        return len(self._paths)

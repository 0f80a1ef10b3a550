"""The line of the repository that a finding is about, so that whoever reads it need not look it up.

Quotes travel beside messages, in a field of their own: messages and hints never hold what a file says.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from flops.errors import Finding, FlopsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from flops.errors import Adjustment
    from flops.progress import Reporter, Stage

#: Bytes of a file that is read, and characters of a line that is shown.
FILE_LIMIT = 1024**2
LINE_LIMIT = 200
#: A line that names something like this is not shown at all: what stands beside it may be one.
SECRET = re.compile(r"secret|token|passw|api_?key|credential|auth", re.IGNORECASE)
USER_PART = re.compile(r"//[^/\s]*@")


def with_source_lines(finding: Finding, root: Path) -> Finding:
    """The finding with its line out of the checkout at `root`, where there is one that may be shown."""
    if finding.quote or finding.line < 1:
        return finding
    return replace(finding, quote=line_of(root, finding.path, finding.line))


def line_of(root: Path, path: str, number: int) -> str:
    """Line `number` (1-based), shortened and without user names in URLs; empty where it can't or must not be shown."""
    try:
        place = (root / path).resolve(strict=True)
        if not place.is_relative_to(root.resolve()):
            return ""
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            lines = stream.read(FILE_LIMIT).decode("utf-8", "replace").splitlines()
    except (OSError, ValueError, RuntimeError):
        return ""
    line = lines[number - 1].strip() if number <= len(lines) else ""
    if SECRET.search(line):
        return ""
    line = USER_PART.sub("//", line)
    return line if len(line) <= LINE_LIMIT else line[:LINE_LIMIT] + "..."


@contextmanager
def source_lines(root: Path) -> Iterator[None]:
    """Whatever fails inside leaves with the lines that its findings are about."""
    try:
        yield
    except FlopsError as error:
        error.findings = tuple(with_source_lines(finding, root) for finding in error.findings)
        raise


class SourceLineReporter:
    """Passes everything on; findings with their lines."""

    def __init__(self, reporter: Reporter, root: Path) -> None:
        self._reporter = reporter
        self._root = root

    def stage(self, stage: Stage, message: str) -> AbstractContextManager[None]:
        return self._reporter.stage(stage, message)

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:
        self._reporter.progress(stage, done=done, total=total, platform=platform)

    def adjusted(self, adjustment: Adjustment) -> None:
        self._reporter.adjusted(adjustment)

    def finding(self, finding: Finding) -> None:
        self._reporter.finding(with_source_lines(finding, self._root))

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        self._reporter.warning(stage, message, hint=hint)

"""`flops check --write`: repairs become lines of the repository's own file, and are checked once more from there."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

from flops.cli.render import plain
from flops.errors import DependencyError, FlopsError, OutputError, UsageError
from flops.formats import requirements as requirement_files
from flops.repair import rewrite
from flops.repository.tree_writer import TreeLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.errors import Adjustment
    from flops.request import Request
    from flops.use_cases.result import Report


#: Edits that follow from one another: a line that is spelt right, a name that is known then, what else it takes.
ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and the check of it."""

    report: Report
    patch: str
    """As a unified diff; empty where there was nothing to write."""
    left: tuple[Adjustment, ...]
    """Repairs that stand in no file: their places can't be edited."""


def check_and_write(request: Request, check: Callable[[], Report]) -> Written:
    """Check, write the repairs into the directory, and check again; whatever fails then, the files are as they were before.

    UsageError where the source is no directory as it lies there; the errors of `check`; OutputError.
    """
    root = _root(request)
    before = _read(root)
    with _Restored(root, before) as files:
        for _ in range(ROUNDS):
            report, changes = _checked(check)
            groups = request.recipe.groups
            edit = rewrite.edit(files.now, changes, main=_main(files.now, request), groups=groups)
            if not edit.files:
                break
            requirement_files.read(
                {**files.now, **edit.files}, groups=request.recipe.groups, platforms=request.platforms
            )
            files.write(edit.files)
        else:
            report, _ = _checked(check)
        if report is None:
            raise UsageError("the repairs could not be written", hint="flops check says which lines to change")
        files.keep()
        changed = {path: data for path, data in files.now.items() if data != before[path]}
    return Written(report=report, patch=rewrite.patch(before, changed), left=edit.left)


def _checked(check: Callable[[], Report]) -> tuple[Report | None, Sequence[Adjustment]]:
    """The report, if there is one, and the repairs. DependencyError where there is no repair."""
    try:
        report = check()
    except DependencyError as error:
        if not error.repairs:
            raise
        return None, error.repairs
    return report, report.adjustments


def show(written: Written) -> None:
    """On stderr: stdout is the report's."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text(plain(f"written:\n{written.patch}" if written.patch else "there was nothing to write")))
    for change in written.left:
        console.print(Text(plain(f"not written: {change.package} {change.after} ({change.where}): {change.reason}")))


def _root(request: Request) -> Path:
    directory = request.source.directory
    if directory is None or request.ref is not None:
        raise UsageError(
            "--write needs a directory whose files are as they are to be changed",
            hint="clone the repository, check out the branch, and run flops check DIRECTORY --write",
        )
    root = (directory / request.recipe.subdir).resolve()
    if not root.is_relative_to(directory):
        raise UsageError("--subdir leads out of the directory")
    return root


def _read(root: Path) -> dict[str, bytes]:
    """The files that repairs may be in: no links, and none below the repository's root but those that `-r` could name."""
    found: dict[str, bytes] = {}
    for place, directories, names in os.walk(root):
        near = len(Path(place).relative_to(root).parts) < TreeLimits.depth  # what lies deeper is refused by the check
        directories[:] = sorted(name for name in directories if near and not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            relative = path.relative_to(root).as_posix()
            if requirement_files.is_candidate(relative) and path.is_file() and not path.is_symlink():
                found[relative] = path.read_bytes()
    return found


def _main(files: Mapping[str, bytes], request: Request) -> str:
    """The dependency file that counts; empty where it can't be read yet."""
    read = partial(requirement_files.read, groups=request.recipe.groups, platforms=request.platforms)
    try:
        return read(files).path
    except FlopsError:
        return ""


class _Restored:
    """Files that are as they were at the end, unless they are to be kept."""

    def __init__(self, root: Path, before: Mapping[str, bytes]) -> None:
        self._root = root
        self._before = before
        self.now = dict(before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.write({path: data for path, data in self._before.items() if self.now[path] != data})

    def keep(self) -> None:
        self._before = {}

    def write(self, files: Mapping[str, bytes]) -> None:
        """Each file at once, with its mode. OutputError."""
        for path, data in files.items():
            target = self._root / path
            try:
                handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
                try:
                    with os.fdopen(handle, "wb") as file:
                        file.write(data)
                    Path(name).chmod(target.stat().st_mode & 0o7777)
                    Path(name).replace(target)
                except BaseException:
                    Path(name).unlink(missing_ok=True)
                    raise
            except OSError as error:
                raise OutputError(f"{target} can't be written: {error.strerror}", hint="see its permissions") from error
            self.now[path] = data

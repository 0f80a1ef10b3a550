"""Repairs that need the author's consent, and repairs shown as a patch of the author's file.

A corrected name installs a package that nobody named, and a removed line leaves one out. Such a repair is proposed, with a
lock that proves it, and never made silently.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING

from flops.errors import Adjustment, DependencyError
from flops.formats import conda
from flops.repair import line_edit, rewrite
from flops.repair.pin_repairs import Repair
from flops.repair.similar_names import similar_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.formats.requirement import Requirement
    from flops.repair.pin_repairs import FailedTrial

#: Searches for one proposal.
SEARCHES = 3


def propose(
    failed: FailedTrial, search: Callable[[tuple[Requirement, ...]], Repair | FailedTrial]
) -> tuple[Adjustment, ...]:
    """Changes with which everything locks, for requirements that no version can satisfy; () where none is found."""
    causes = failed.causes()
    options = {position: _options(failed, position) for position in failed.unrepairable}
    if not options or not all(options.values()):
        return ()
    for chosen in islice(product(*options.values()), SEARCHES):
        changed = dict(zip(options, chosen, strict=True))
        entries = [changed.get(position, entry) for position, entry in enumerate(failed.entries)]
        try:
            repair = search(tuple(entry for entry in entries if entry is not None))
        except DependencyError:
            continue
        if isinstance(repair, Repair):
            own = (_adjustment(failed.entries[at], new, causes[at].message) for at, new in changed.items())
            return (*own, *repair.adjustments)
    return ()


def _options(failed: FailedTrial, position: int) -> list[Requirement | None]:
    """The requirement with other names, then None (without it) where nothing needs it."""
    entry = failed.entries[position]
    tops = {module.partition(".")[0].lower() for module in failed.modules}
    if conda.names().reason(entry.name) is not None and entry.name not in failed.imported | tops:
        return [None]
    options: list[Requirement | None] = []
    present = {one.name for one in failed.entries}
    similar = similar_names(entry.name, failed.modules)
    for name in similar:
        if name not in present and failed.trial.versions_with_wheels(name, failed.trial.platforms):
            renamed = replace(entry, name=name, hashes=())
            options.append(replace(renamed, text=renamed.pep508))
    if entry.name not in failed.imported or any(name in present for name in similar):
        options.append(None)
    return options


def _adjustment(entry: Requirement, new: Requirement | None, message: str) -> Adjustment:
    if new is None:
        reason = conda.names().reason(entry.name) or f"{message}, and nothing needs it"
        return entry.adjustment(line_edit.TAKEN_OUT, before=entry.name + entry.specifier, after="", reason=reason)
    reason = f"{message}; {new.name} is the nearest name that can be used"
    return entry.adjustment(line_edit.CORRECTED, before=entry.name, after=new.name, reason=reason)


def with_patch(
    error: DependencyError, files: Mapping[str, bytes] | None, locks: Callable[[Mapping[str, bytes]], bool]
) -> DependencyError:
    """The error with its repairs in its hints: in words, and as a patch of the files if the patched files lock.

    They may not lock: conda files, for example, have no pins for a single platform.
    """
    if not error.repairs:
        return error
    error.findings = tuple(
        replace(finding, hint=hint) if (hint := _instructions(error.repairs, finding.where)) else finding
        for finding in error.findings
    )
    edit = rewrite.edit(files, error.repairs) if files else None
    diff = rewrite.patch(files, edit.files) if files and edit and locks({**files, **edit.files}) else ""
    error.hint = f"{_instructions(error.repairs)} (this locks on every requested platform)" + (
        f"; as a patch:\n{diff.rstrip()}" if diff else ""
    )
    return error


def _instructions(changes: Sequence[Adjustment], where: str | None = None) -> str:
    """What to do for these repairs, or for those at one place."""
    return "; ".join(dict.fromkeys(_instruction(one) for one in changes if where in {None, one.where}))


def _instruction(change: Adjustment) -> str:
    if change.code == line_edit.TAKEN_OUT:
        return f"remove {change.package} ({change.where})"
    if change.code == line_edit.CORRECTED:
        return f"write {change.after} instead of {change.before} ({change.where})"
    specifier = change.after if change.after[:1] in "<>=!~" else f"=={change.after}"
    where = f" for {change.platform}" if change.platform else ""
    return f"write {change.package}{specifier}{where} ({change.where})"

"""What would help but is not done unasked: another name, a line taken out; and repairs as a patch of the user's file.

A name that was corrected installs what nobody named, so it is proposed, with a lock that proves it, and never done silently.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING

from flops.errors import Adjustment, DependencyError, Finding
from flops.formats import conda
from flops.repair import line_edit, rewrite, similar_names
from flops.repair.similar_names import distributions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from flops.formats.requirement import Requirement
    from flops.repair.repair import Case, Repair

#: Searches for one proposal.
SEARCHES = 3


def propose(
    case: Case, modules: Collection[str] | None, search: Callable[[tuple[Requirement, ...]], Repair]
) -> tuple[Adjustment, ...]:
    """Changes with which everything locks, for requirements that no version can help; () where none is found."""
    causes = case.causes()
    options: dict[int, list[Requirement | None]] = {}
    for place in case.lacking:
        if case.is_hopeless(place):
            options[place] = _options(case, place, modules)
    if not options or not all(options.values()):
        return ()
    for chosen in islice(product(*options.values()), SEARCHES):
        changed = dict(zip(options, chosen, strict=True))
        entries = tuple(
            entry
            for place, one in enumerate(case.entries)
            if (entry := changed.get(place, one) if place in changed else one) is not None
        )
        try:
            repair = search(entries)
        except DependencyError:
            continue
        told = [_told(case.entries[place], new, causes[place].message) for place, new in changed.items()]
        return (*told, *repair.adjustments)
    return ()


def _options(case: Case, place: int, modules: Collection[str] | None) -> list[Requirement | None]:
    """The same line with other names, then without it where that can't be missed."""
    entry = case.entries[place]
    own = {module.partition(".")[0].lower() for module in modules or ()} | distributions(modules or ())
    if conda.names().reason(entry.name) is not None and entry.name not in own:
        return [None]
    others: list[Requirement | None] = []
    present = {one.name for one in case.entries}
    for name in similar_names.names(entry.name, modules or ()):
        if name not in present and case.trial.with_wheels(name, case.trial.platforms):
            renamed = replace(entry, name=name, hashes=())
            others.append(replace(renamed, text=renamed.pep508))
    unused = modules is not None and entry.name not in distributions(modules)
    doubled = any(name in present for name in similar_names.names(entry.name, modules or ()))
    if doubled or unused:
        others.append(None)
    return others


def _told(entry: Requirement, new: Requirement | None, message: str) -> Adjustment:
    if new is None:
        reason = conda.names().reason(entry.name) or f"{message}, and nothing needs it"
        return Adjustment(
            code=line_edit.TAKEN_OUT,
            package=entry.name,
            before=entry.name + entry.specifier,
            after="",
            where=entry.where,
            reason=reason,
        )
    return Adjustment(
        code=line_edit.CORRECTED,
        package=entry.name,
        before=entry.name,
        after=new.name,
        where=entry.where,
        reason=f"{message}; {new.name} is the nearest name that can be used",
    )


def with_patch(
    error: DependencyError, files: Mapping[str, bytes] | None, locks: Callable[[Mapping[str, bytes]], bool]
) -> DependencyError:
    """The error with its repairs as a patch behind its hint; in words where no file is at hand.

    `locks` makes sure that the files with the patch in them are read as what was repaired: conda has no pins for one platform.
    """
    if not error.repairs:
        return error
    words = "; ".join(dict.fromkeys(words_of(change) for change in error.repairs))
    edit = rewrite.edit(files, error.repairs) if files else None
    diff = rewrite.patch(files, edit.files) if files and edit and locks({**files, **edit.files}) else ""
    error.findings = tuple(_hinted(finding, error.repairs) for finding in error.findings)
    error.hint = f"{words} (this locks on every requested platform)" + (
        f"; as a patch:\n{diff.rstrip()}" if diff else ""
    )
    return error


def words_of(change: Adjustment) -> str:
    """A repair as an instruction."""
    where = f" for {change.platform}" if change.platform else ""
    match change.code:
        case line_edit.TAKEN_OUT:
            return f"take {change.package} out ({change.where})"
        case line_edit.CORRECTED:
            return f"write {change.after} instead of {change.before} ({change.where})"
        case line_edit.SPELLED:
            return f"write {change.after} ({change.where})"
    return f"write {change.package}{change.after if change.after[:1] in '<>=!~' else f'=={change.after}'}{where} ({change.where})"


def _hinted(finding: Finding, repairs: Sequence[Adjustment]) -> Finding:
    """The finding with the repairs of its own line as its hint."""
    own = [words_of(change) for change in repairs if change.where == finding.where]
    return replace(finding, hint="; ".join(dict.fromkeys(own))) if own else finding

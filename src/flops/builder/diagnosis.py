"""Why requirements can't be locked, by experiment, as one error that names each line."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

from flops.builder.pins import pinned
from flops.errors import DependencyError, Finding, NoWheel, PackageNotFound, Unresolvable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.builder.requirement import Requirement
    from flops.builder.trial import Outcome, Trial
    from flops.platforms import Platform


def explain(
    trial: Trial,
    entries: Sequence[Requirement],
    outcome: Outcome,
    missing: Mapping[Requirement, tuple[Platform, ...]],
) -> DependencyError:
    """The error for a lock that failed; IndexUnreachable is raised where the index can't be asked."""
    if missing:
        return _missing(trial, missing)
    platform, failure = next(iter(outcome.failures.items()))
    python = trial.choice.minor
    alone = trial.unlockable(entries, platform)
    if alone:
        findings = [
            _finding(
                entry,
                NoWheel.code,
                f"{entry.text or entry.pep508} needs packages that have no wheel for Python {python} on {platform}",
                "use another version of it, or pin what it depends on to a version that has a wheel",
            )
            for entry in alone
        ]
        return NoWheel(
            f"{findings[0].where}: {findings[0].message}: {failure.message}", hint=findings[0].hint, findings=findings
        )
    named = [entry for entry in entries if _mentions(failure.message, entry.name)] or list(entries)
    findings = [
        _finding(entry, Unresolvable.code, f"{entry.text or entry.pep508} takes part in a conflict", "")
        for entry in named
    ]
    places = ", ".join(finding.where for finding in findings[:4])
    return Unresolvable(
        f"the requirements contradict each other on {platform} with Python {python} ({places}): {failure.message}",
        hint="loosen or change one of these lines",
        findings=findings,
    )


def _missing(trial: Trial, missing: Mapping[Requirement, tuple[Platform, ...]]) -> DependencyError:
    findings = [_why(trial, entry, platforms) for entry, platforms in missing.items()]
    unknown = [finding for finding in findings if finding.code == PackageNotFound.code]
    first = (unknown or findings)[0]
    kind = PackageNotFound if unknown else NoWheel
    return kind(f"{first.where}: {first.message}", hint=first.hint, findings=findings)


def _why(trial: Trial, entry: Requirement, platforms: tuple[Platform, ...]) -> Finding:
    names = " and ".join(map(str, platforms))
    python = trial.choice.minor
    newest = trial.probe(entry.name, platforms[0])
    if newest is None:
        with trial.locker.index() as index:
            known = index.knows(entry.name)
        if not known:
            message = f"the package index has no package {entry.name}"
            return _finding(entry, PackageNotFound.code, message, "correct the name, or take the line out")
        message = f"no version of {entry.name} has a wheel for Python {python} on {names}"
        return _finding(entry, NoWheel.code, message, "packages that must be built can't be used; take another one")
    version = pinned(entry)
    if version is None:
        message = f"no version that {entry.specifier or 'it'} allows of {entry.name} has a wheel for Python {python} on {names}"
        return _finding(entry, NoWheel.code, message, f"the newest that has one is {newest}")
    message = f"{entry.name} {version} has no wheel for Python {python} on {names}"
    for near in islice(trial.nearest(entry.name, version, platforms), 1):
        return _finding(entry, NoWheel.code, message, f"the nearest that has one is {near}: write {entry.name}=={near}")
    return _finding(entry, NoWheel.code, message, "no version of it has one for all of these platforms")


def _finding(entry: Requirement, code: str, message: str, hint: str) -> Finding:
    return Finding(path=entry.path, line=entry.line, code=code, message=message, hint=hint)


def _mentions(text: str, name: str) -> bool:
    """Whether the package's name stands in the text as a word of its own."""
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text) is not None

"""Reads a repository before anything is resolved: its files at one commit, its structure, its requirements."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from flops.contract import structure as contract
from flops.errors import DependencyError
from flops.formats import requirements as requirement_files
from flops.formats.bounded_reading import rehearse
from flops.progress import Stage
from flops.repair.spelling import explained
from flops.repository.checkout import Checkout, checkout

if TYPE_CHECKING:
    from pathlib import Path

    from flops.contract.structure import Structure
    from flops.formats.requirements import Requirements
    from flops.progress import Reporter, StageClock
    from flops.recipe import Flavor
    from flops.request import Request
    from flops.settings import Settings

#: The checkout's directory in a job's working directory.
FILES = "repository"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A repository that fulfils the contract, and what it requires."""

    checkout: Checkout
    structure: Structure
    requirements: Requirements
    flavor: Flavor | None
    """As requested, else by the imports, else by the requirements; None where neither shows one."""


def inspect(
    request: Request, work_dir: Path, *, settings: Settings, clock: StageClock, reporter: Reporter
) -> Inspection:
    """Check out into `work_dir` and read; SourceError, StructureError or DependencyError with all findings at once."""
    with clock.stage(Stage.CLONE, request.source.text):
        files = checkout(
            request.source,
            work_dir / FILES,
            ref=request.ref,
            subdir=request.recipe.subdir,
            allow_secrets=[name.strip() for name in settings.allow_secrets.split(",") if name.strip()],
            ca_bundle=settings.ca_bundle,
            reporter=reporter,
            credential=request.git_credential,
            allow_hosts=request.allow_hosts,
        )
    with clock.stage(Stage.CHECK, "structure and requirements"):
        structure, requirements = _check(files, request)
    for note in (*structure.notes, *requirements.notes):
        reporter.finding(note)
    for adjustment in requirements.adjustments:
        reporter.adjusted(adjustment)
    required = {entry.name for entry in requirements.entries}
    by_package = next((flavor for _, package, flavor in contract.FLAVORS if package in required), None)
    flavor = request.recipe.flavor or structure.flavor or by_package
    if flavor is None:
        message = "neither imports nor requirements show the ML framework"
        reporter.warning(Stage.CHECK, message, hint="name it with --flavor")
    return Inspection(checkout=files, structure=structure, requirements=requirements, flavor=flavor)


def _check(files: Checkout, request: Request) -> tuple[Structure, Requirements]:
    """Both halves are read before either fails, so that one run reports everything that is wrong."""
    sources = files.read(requirement_files.is_candidate)
    groups, platforms = request.recipe.groups, request.platforms
    with ThreadPoolExecutor(1) as pool:
        rehearsal = pool.submit(rehearse, files.path, sources, groups=groups, platforms=platforms)
        structure = contract.check(files.path, files.files)
    read = partial(requirement_files.read, groups=groups, platforms=platforms)
    try:
        rehearsal.result()
        requirements = read(sources)
    except DependencyError as error:
        if structure.findings:
            contract.require(replace(structure, findings=(*structure.findings, *error.findings)))
        if rehearsal.exception() is not None:
            raise
        raise explained(error, sources, read) from error.__cause__
    contract.require(structure)
    return structure, requirement_files.with_data_packages(requirements, structure)

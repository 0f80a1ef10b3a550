"""What a repository is, before anything is resolved: its files at one commit, its structure, its requirements."""

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
from flops.recipe import Flavor
from flops.repository.checkout import Checkout, checkout

if TYPE_CHECKING:
    from pathlib import Path

    from flops.contract.structure import Structure
    from flops.formats.requirements import Requirements
    from flops.progress import Reporter, StageClock
    from flops.request import Request
    from flops.settings import Settings

#: Which package stands for which flavor, where the code's imports do not tell; the first that is required counts.
FLAVORS = {
    "keras": Flavor.KERAS,
    "tensorflow": Flavor.TENSORFLOW,
    "torch": Flavor.PYTORCH,
    "scikit-learn": Flavor.SKLEARN,
}
#: Where in a job's room the checkout lies.
FILES = "repository"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A repository that fulfils the contract, and what it asks for."""

    checkout: Checkout
    structure: Structure
    requirements: Requirements
    flavor: Flavor | None
    """As requested, else told by the imports, else by the requirements; None where nothing tells."""


def inspect(request: Request, room: Path, *, settings: Settings, clock: StageClock, reporter: Reporter) -> Inspection:
    """Check out into `room` and check; SourceError, StructureError or DependencyError with every finding at once."""
    with clock.stage(Stage.CLONE, request.source.text):
        files = checkout(
            request.source,
            room / FILES,
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
    flavor = request.recipe.flavor or structure.flavor or _flavor(requirements)
    if flavor is None:
        reporter.warning(
            Stage.CHECK, "neither imports nor requirements tell the ML framework", hint="name it with --flavor"
        )
    return Inspection(checkout=files, structure=structure, requirements=requirements, flavor=flavor)


def _check(files: Checkout, request: Request) -> tuple[Structure, Requirements]:
    """Both halves are read before either fails, so that one run tells everything that is wrong."""
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
        from flops.repair.spelling import explained  # noqa: PLC0415 - only failures need it, and a check is short

        raise explained(error, sources, read) from error.__cause__
    contract.require(structure)
    return structure, requirement_files.with_data_packages(requirements, structure)


def _flavor(requirements: Requirements) -> Flavor | None:
    required = {entry.name for entry in requirements.entries}
    return next((flavor for name, flavor in FLAVORS.items() if name in required), None)

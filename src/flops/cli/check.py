"""How a check is shown: adjustments, sizes with the largest first, findings, and what a rebuild would take."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flops.cli import options
from flops.cli.render import adjustment_table, finding_lines, megabytes, plain, print_json, reporter, untold
from flops.progress import Reporter
from flops.recipe import Accelerator, Policy
from flops.settings import Settings
from flops.use_cases.check import AskedRegistry, check

if TYPE_CHECKING:
    from flops.locking.lock import Lock
    from flops.platforms import Platform
    from flops.use_cases.result import Amount, Preflight, Rebuild, Report


#: Packages shown per platform; the rest is summed up.
SHOWN = 8


def show(report: Report, progress: Reporter) -> None:
    """On stdout, as everything that a command was asked for."""
    console = Console(soft_wrap=True, highlight=False)
    if adjustments := untold(progress, report.adjustments):
        console.print(adjustment_table(adjustments, width=console.width))
        console.print()
    for platform, lock in report.locks.items():
        console.print(_packages(platform, lock))
        for line in _cuda(platform, report.preflight):
            console.print(line)
        console.print()
    notes = untold(progress, report.findings)
    for finding in notes:
        for line in finding_lines(finding, "note", "bold yellow"):
            console.print(line)
    if notes:
        console.print()
    console.print(_rebuild(report.preflight.rebuild))
    python = report.python
    console.print(Text(plain(f"commit {report.commit}, Python {python.used} ({python.provider}): can be built")))


def _packages(platform: Platform, lock: Lock) -> Table:
    table = Table(
        title=f"{platform}: {len(lock.wheels)} packages, {megabytes(lock.bytes)}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("package")
    table.add_column("version")
    table.add_column("size", justify="right")
    largest = sorted(lock.wheels, key=lambda wheel: wheel.size or 0, reverse=True)
    for wheel in largest[:SHOWN]:
        table.add_row(Text(plain(wheel.name)), Text(plain(wheel.version)), _size(wheel.size))
    if len(largest) > SHOWN:
        rest = sum(wheel.size or 0 for wheel in largest[SHOWN:])
        table.add_row(f"and {len(largest) - SHOWN} more", "", megabytes(rest))
    return table


def _size(size: int | None) -> str:
    return "unknown" if size is None else megabytes(size)


def _cuda(platform: Platform, preflight: Preflight) -> list[Text]:
    one = preflight.cuda.get(platform)
    if one is None or not one.packages:
        return []
    text = f"for GPUs: {megabytes(one.bytes)} in {len(one.packages)} packages ({', '.join(one.packages)})"
    return [Text(plain(text))]


def _rebuild(rebuild: Rebuild) -> Text:
    where = f" to {rebuild.registry}" if rebuild.registry else ""
    without = "" if rebuild.runtime else ", and the FL runtime, which was never built here"
    return Text(
        plain(
            f"a build would fetch {_amount(rebuild.fetch, 'wheel')}, make {_amount(rebuild.make, 'layer')}, "
            f"push {_amount(rebuild.push, 'layer')}{where} and reuse {_amount(rebuild.keep, 'layer')}; "
            f"beside these the base and the repository's own files{without}"
        )
    )


def _amount(amount: Amount, noun: str) -> str:
    plural = "" if amount.count == 1 else "s"
    return f"{amount.count} {noun}{plural} ({megabytes(amount.bytes)})" if amount.count else f"no {noun}s"


RegistryOption = Annotated[
    str | None,
    typer.Option("--registry", metavar="[http://]HOST[:PORT][/PREFIX]", help="Ask it which layers it holds already."),
]


def command(
    source: options.SourceArgument,
    ref: options.Ref = None,
    subdir: options.Subdir = "",
    platform: options.Platforms = None,
    flavor: options.FlavorOption = None,
    python: options.Python = None,
    policy: options.PolicyOption = Policy.FIX,
    accelerator: options.AcceleratorOption = Accelerator.CPU,
    base_image: options.BaseImage = None,
    group: options.Groups = None,
    registry: RegistryOption = None,
    upgrade: options.Upgrade = False,
    write: Annotated[bool, typer.Option("--write", help="Write the repairs into the repository's file.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check structure and dependencies, and lock them for every platform."""
    settings = Settings.read()
    request = options.request(
        source,
        ref=ref,
        subdir=subdir,
        platforms=platform,
        flavor=flavor,
        python=python,
        policy=policy,
        accelerator=accelerator,
        base_image=base_image,
        groups=group,
        upgrade=upgrade,
    )
    with reporter(quiet=quiet) as progress:
        asked = _asked_registry(settings, registry, progress)
        checked = partial(check, request, settings=settings, reporter=progress, registry=asked)
        if write:
            from flops.cli import write as writing  # noqa: PLC0415 - seldom wanted, and a check is short

            done = writing.check_and_write(request, checked)
            report = done.report
        else:
            report = checked()
    if write and not quiet:
        writing.show(done)
    if as_json:
        print_json(report.to_json())
    else:
        show(report, progress)


def _asked_registry(settings: Settings, name: str | None, progress: Reporter) -> AskedRegistry | None:
    """The registry that the option or FLOPS_REGISTRY names."""
    name = name or settings.registry
    if not name:
        return None
    # slow to import, and not needed without a registry
    from flops.actors import Actor  # noqa: PLC0415
    from flops.cli import image_sources  # noqa: PLC0415
    from flops.http import Retry  # noqa: PLC0415
    from flops.oci.reference import Registry  # noqa: PLC0415
    from flops.store.shared import REPOSITORY, SharedCache  # noqa: PLC0415

    registry = Registry.parse(name)
    client = image_sources.client(settings, registry, retry=Retry(tries=2))
    shared = SharedCache(client, registry.repository(*REPOSITORY), progress, read_only=True)
    return AskedRegistry(
        name=str(registry),
        holds=lambda repository, digest: client.has_blob(registry.repository(repository, Actor.LEARNER.value), digest),
        shared=shared if settings.reuse == "registry" else None,
    )

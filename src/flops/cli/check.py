"""`flops check`: everything up to the locks; no layers, seconds."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flops.builder.build import check
from flops.builder.result import Report
from flops.cli import options
from flops.cli.render import adjustment_table, megabytes, plain, print_json, reporter
from flops.errors import UsageError
from flops.recipe import Accelerator, Policy
from flops.settings import Settings

#: Packages shown per platform; the rest is summed up.
SHOWN = 8


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
    upgrade: options.Upgrade = False,
    write: Annotated[bool, typer.Option("--write", help="Write the repairs into the repository's file.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check structure and dependencies, and lock them for every platform."""
    if write:
        raise UsageError(
            "--write is not available yet", hint="the adjustments that are printed say which lines to change"
        )
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
        upgrade=upgrade,
    )
    with reporter(quiet=quiet) as progress:
        report = check(request, settings=settings, reporter=progress)
    if as_json:
        print_json(report.to_json())
    else:
        show(report)


def show(report: Report) -> None:
    """Adjustments, then each platform's packages, the largest first."""
    console = Console(soft_wrap=True, highlight=False)
    if report.adjustments:
        console.print(adjustment_table(report.adjustments))
        console.print()
    for platform, lock in report.locks.items():
        total = sum(wheel.size or 0 for wheel in lock.wheels)
        table = Table(
            title=f"{platform}: {len(lock.wheels)} packages, {megabytes(total)}",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        table.add_column("package")
        table.add_column("version")
        table.add_column("size", justify="right")
        largest = sorted(lock.wheels, key=lambda wheel: wheel.size or 0, reverse=True)
        for wheel in largest[:SHOWN]:
            table.add_row(Text(plain(wheel.name)), Text(plain(wheel.version)), megabytes(wheel.size or 0))
        if len(largest) > SHOWN:
            table.add_row(
                f"and {len(largest) - SHOWN} more", "", megabytes(sum(wheel.size or 0 for wheel in largest[SHOWN:]))
            )
        console.print(table)
    python = report.python
    console.print(Text(plain(f"\ncommit {report.commit}, Python {python.used} ({python.provider}): can be built")))

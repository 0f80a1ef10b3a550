"""How a check is shown: adjustments, sizes with the largest first, findings, and what a rebuild would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flops.cli.render import adjustment_table, finding_lines, megabytes, plain, untold

if TYPE_CHECKING:
    from flops.builder.locking.lock import Lock
    from flops.builder.preflight import Amount, Preflight, Rebuild
    from flops.builder.result import Report
    from flops.platforms import Platform
    from flops.progress import Reporter

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

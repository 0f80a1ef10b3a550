"""`flops images prune`: old builds leave a registry or a layout, with all that belongs to them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from flops.cli import image_sources, options
from flops.cli.render import megabytes, one_line, print_json, reporter
from flops.oci.layout import Layout
from flops.prune.listing import list_images
from flops.prune.removal import foretell, remove
from flops.prune.retention import RetentionRule, plan
from flops.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from flops.prune.retention import Pruning

Keep = Annotated[
    int, typer.Option("--keep", metavar="N", min=0, help="Builds of each repository that stay, the newest first.")
]
Older = Annotated[float, typer.Option("--older", metavar="DAYS", min=0, help="Younger builds stay anyway.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and delete nothing.")]
Repositories = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="REPOSITORY",
        show_default=False,
        help="Whole names, with or without the actor [default: all that it lists].",
    ),
]
#: Seconds that what was brought is left alone by the collector of an embedded registry's directory, or of a layout.
GRACE = 3600.0


def command(
    repositories: Repositories = None,
    keep: Keep = 10,
    older: Older = 30,
    dry_run: DryRun = False,
    registry: image_sources.RegistryOption = None,
    directory: image_sources.DirectoryOption = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Delete builds that are neither among the newest nor young, and what builders shared for them."""
    settings = Settings.read()
    place = image_sources.on_disk(settings, registry=registry, directory=directory)
    with (
        image_sources.look(settings, registry=registry, directory=directory) as stock,
        reporter(quiet=quiet) as progress,
    ):
        inventory = list_images(stock, repositories or ())
        pruning = plan(inventory, RetentionRule(keep=keep, days=older), datetime.now(UTC))
        if dry_run:
            foretell(stock, pruning)
        removed = None if dry_run else remove(stock, pruning, progress)
    collected = _collect(place, older) if place is not None and not dry_run else None
    if as_json:
        counts = asdict(removed) if removed else None
        print_json({**document(pruning), "dry_run": dry_run, "removed": counts, "collected": collected})
        return
    show(pruning, dry_run=dry_run, collected=collected)


def document(pruning: Pruning) -> dict[str, Any]:
    """What the plan names; `freed` in bytes."""
    return {
        "builds": [{"repository": path, "commit": commit, "recipe": recipe} for path, commit, recipe in pruning.builds],
        "images": sum(len(one.indexes) for one in pruning.removals),
        "manifests": sum(len(one.digests) for one in pruning.removals),
        "shared": len(pruning.shared),
        "freed": pruning.freed,
    }


def show(pruning: Pruning, *, dry_run: bool, collected: int | None) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for path, commit, recipe in pruning.builds:
        recipe12 = recipe.removeprefix("sha256:")[:12]
        console.print(Text(one_line(f"{'would delete' if dry_run else 'deleted'} {path} {commit} recipe {recipe12}")))
    counts = document(pruning)
    console.print(
        Text(
            f"{len(pruning.builds)} builds ({counts['images']} images, {counts['manifests']} manifests with their "
            f"records), {counts['shared']} shared records: {megabytes(pruning.freed)}"
        )
    )
    if dry_run:
        return
    if collected is not None:
        console.print(Text(f"{megabytes(collected)} left the disk"))
    elif pruning.builds or pruning.shared:
        console.print(Text("the registry's own garbage collection takes these bytes from its disk"))


def _collect(directory: Path, days: float) -> int:
    """Bytes that left the disk, those of indexes among them that no name stands for any more."""
    if not image_sources.is_registry(directory):
        return Layout(directory).collect(GRACE) if directory.is_dir() else 0
    from flops.prune.removal import remove_superseded  # noqa: PLC0415 - for this kind of place only
    from flops.registry.garbage import collect  # noqa: PLC0415
    from flops.registry.storage import RegistryStore  # noqa: PLC0415

    store = RegistryStore(directory)
    remove_superseded(store, max(GRACE, days * 86400))
    return collect(store, GRACE).bytes

"""`flops images list`: what a registry or layout holds of ours."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from flops.cli import image_sources, options
from flops.cli.render import data_console, fits, megabytes, one_line, print_json
from flops.prune.listing import list_images
from flops.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flops.prune.inventory import Inventory, StoredIndex
    from flops.prune.retention import Build

Repositories = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="REPOSITORY",
        show_default=False,
        help="Whole names, with or without the actor [default: all that it lists].",
    ),
]


def command(
    repositories: Repositories = None,
    registry: image_sources.RegistryOption = None,
    directory: image_sources.DirectoryOption = None,
    as_json: options.Json = False,
) -> None:
    """List images with their commits, names, platforms and sizes."""
    settings = Settings.read()
    with image_sources.look(settings, registry=registry, directory=directory) as stock:
        inventory = list_images(stock, repositories or ())
    if as_json:
        print_json(document(inventory))
    else:
        show(inventory)


def document(inventory: Inventory) -> dict[str, Any]:
    """The object that `--json` prints; sizes in bytes, `shared_bytes` of blobs that other builds have too."""
    return {
        "builds": [
            {
                "repository": path,
                "commit": commit,
                "recipe": recipe,
                "built": _iso(indexes),
                "bytes": sum(_blobs(indexes).values()),
                "shared_bytes": shared,
                "images": [_image(one) for one in indexes],
            }
            for ((path, commit, recipe), indexes), shared in _shared_bytes(inventory)
        ],
        "foreign": len(inventory.foreign),
        "shared": {kind: len([one for one in inventory.shared if one.kind == kind]) for kind in _kinds(inventory)},
        "bytes": sum(inventory.sizes().values()),
    }


def _image(one: StoredIndex) -> dict[str, Any]:
    return {
        "repository": one.repository,
        "digest": one.digest,
        "actor": one.actor,
        "tags": list(one.tags),
        "platforms": {
            image.platform.value: {"digest": image.digest, "bytes": sum(layer.size for layer in image.layers)}
            for image in one.images
            if image.platform is not None
        },
        "records": sorted({it.artifact_type for it in one.referrers}),
    }


def _shared_bytes(inventory: Inventory) -> Iterator[tuple[tuple[Build, list[StoredIndex]], int]]:
    """Each build (path, commit, recipe) with its indexes, oldest first, and what of it others have too."""
    builds: dict[Build, list[StoredIndex]] = defaultdict(list)
    for one in inventory.indexes:
        builds[one.path, one.commit, one.recipe].append(one)
    holders: dict[str, int] = defaultdict(int)
    for indexes in builds.values():
        for digest in _blobs(indexes):
            holders[digest] += 1
    for build, indexes in sorted(builds.items(), key=lambda item: (item[0][0], _iso(item[1]) or "", item[0])):
        shared = sum(size for digest, size in _blobs(indexes).items() if holders[digest] > 1)
        yield (build, indexes), shared


def _blobs(indexes: Iterable[StoredIndex]) -> dict[str, int]:
    return dict(blob for one in indexes for blob in one.blobs)


def _iso(indexes: Iterable[StoredIndex]) -> str | None:
    times = [one.when for one in indexes if one.when is not None]
    return max(times).isoformat() if times else None


def show(inventory: Inventory) -> None:
    console = data_console()
    if inventory.indexes:
        table = _table(inventory, "images", "actors", "names", "platforms", "built", "bytes", "shared")
        console.print(table if fits(console, table) else _table(inventory, "images", "commit", "built", "bytes"))
        console.print()
    told = f"{len(inventory.indexes)} images, {megabytes(sum(inventory.sizes().values()))} in all"
    told += f"; {len(inventory.foreign)} of others" if inventory.foreign else ""
    told += "".join(f"; {_count(inventory, kind)}" for kind in _kinds(inventory))
    console.print(Text(told))


def _table(inventory: Inventory, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        right = name in ("bytes", "shared")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "images", overflow="fold")
    for ((path, commit, _), indexes), shared in _shared_bytes(inventory):
        cells = {
            "images": path,
            "commit": _short(commit),
            "actors": ", ".join(sorted({one.actor for one in indexes})),
            "names": ", ".join(sorted({_short(tag) for one in indexes for tag in one.tags})),
            "platforms": ", ".join(sorted({str(platform) for one in indexes for platform in one.platforms})),
            "built": (_iso(indexes) or "-")[:16].replace("T", " "),
            "bytes": megabytes(sum(_blobs(indexes).values())),
            "shared": megabytes(shared),
        }
        table.add_row(*(Text(one_line(cells[name])) for name in columns))
    return table


def _kinds(inventory: Inventory) -> list[str]:
    return sorted({one.kind for one in inventory.shared})


def _count(inventory: Inventory, kind: str) -> str:
    return f"{len([one for one in inventory.shared if one.kind == kind])} shared {kind} records"


def _short(tag: str) -> str:
    """A commit by its first digits, as people know it."""
    commit, dash, rest = tag.partition("-")
    return f"{commit[:12]}{dash}{rest}" if len(commit) == 40 else tag  # noqa: PLR2004 - a commit

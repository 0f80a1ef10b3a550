"""`flops images builder`: the image that orchestrators of containers run builders from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flops.cli import image_sources, options
from flops.cli.build import Output, RegistryOption
from flops.cli.render import megabytes, one_line, print_json, reporter
from flops.errors import UsageError
from flops.oci.client import RegistryClient
from flops.oci.layout import Layout, write_archive
from flops.oci.reference import Registry, check_tag
from flops.platforms import Platform
from flops.settings import Settings
from flops.use_cases.builder_image import REPOSITORY, BuilderImage, builder_image
from flops.use_cases.published_base import publish_base, suite_with

Tag = Annotated[
    str | None, typer.Option("--tag", metavar="TAG", help="Another tag than the unique one; nodes never pull it twice.")
]
Platforms = Annotated[
    list[str] | None, typer.Option("--platform", metavar="P[,P]", help="linux/amd64, linux/arm64 [default: both].")
]


def builder_command(
    registry: RegistryOption = None,
    output: Output = None,
    platform: Platforms = None,
    tag: Tag = None,
    upgrade: options.Upgrade = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make the builder image and push it; FLOPS_BUILDER_IMAGE names it to `flops serve`."""
    settings = Settings.read()
    place = registry or (settings.registry if output is None else None)
    if (place is None) == (output is None):
        raise UsageError(
            "the builder image needs one place to go to", hint="--registry [http://]HOST[:PORT][/PREFIX], or --output"
        )
    if tag is not None:
        check_tag(tag)
    client = _client(place, settings) if place else None
    platforms = Platform.parse_list(platform) if platform else tuple(Platform)
    settings.check_cache()
    with reporter(quiet=quiet) as progress:
        image = builder_image(platforms, settings=settings, reporter=progress, upgrade=upgrade)
    name = _deliver(image, tag or image.tag, client=client, output=output, pull=settings.registry_pull)
    document = _document(image, name)
    if as_json:
        print_json(document)
    else:
        _show(document)


def _client(place: str, settings: Settings) -> RegistryClient:
    """Asked now, before anything is made."""
    client = image_sources.client(settings, Registry.parse(place))
    client.ping()
    return client


def _deliver(
    image: BuilderImage, tag: str, *, client: RegistryClient | None, output: Path | None, pull: str | None
) -> str:
    """The name that it has in its place; by digest where a registry has it."""
    if client is not None:
        with client:
            client.push_index(client.registry.repository(REPOSITORY), image.index, image.store, (tag,))
            named = Registry.parse(pull) if pull else client.registry
        return str(named.reference(REPOSITORY, tag=tag, digest=image.index.digest))
    name = f"{REPOSITORY}:{tag}"
    if output is not None and output.suffix == ".tar":
        write_archive(output, {name: image.index}, image.store)
    elif output is not None:
        Layout(output).write(name, image.index, image.store)
    return name


def _document(image: BuilderImage, name: str) -> dict[str, Any]:
    platforms = {
        str(one.platform): {
            "digest": one.digest,
            "layers": len(one.layers),
            "bytes": sum(layer.size for layer in one.layers),
            "uncompressed_bytes": sum(layer.uncompressed_size for layer in one.layers),
        }
        for one in image.index.images
    }
    return {"reference": name, "digest": image.index.digest, "platforms": platforms}


def _show(document: dict[str, Any]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("platform", "layers", "compressed", "unpacked", "digest"):
        table.add_column(heading, justify="right" if heading in ("layers", "compressed", "unpacked") else "left")
    for platform, one in document["platforms"].items():
        sizes = megabytes(one["bytes"]), megabytes(one["uncompressed_bytes"])
        table.add_row(platform, str(one["layers"]), *sizes, one["digest"][:19])
    console.print(table)
    console.print(Text(f"\nFLOPS_BUILDER_IMAGE={document['reference']}"))


PythonOption = Annotated[
    str | None, typer.Option("--python", metavar="V", help="3.11 or 3.13 [default: 3.11, as Debian 12 has it].")
]


def base_command(
    registry: image_sources.RegistryOption = None,
    python: PythonOption = None,
    platform: options.Platforms = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Publish the base that images stand on, so that hosts without apt can build upon it."""
    settings = Settings.read()
    suite = suite_with(python)
    platforms = Platform.parse_list(platform) if platform else tuple(Platform)
    with image_sources.open_registry(settings, registry) as client, reporter(quiet=quiet) as progress:
        client.ping()
        done = publish_base(client, suite, platforms, settings=settings, reporter=progress)
    if as_json:
        print_json({**asdict(done), "platforms": [one.value for one in done.platforms]})
        return
    console = Console(soft_wrap=True, highlight=False)
    names = ", ".join(map(str, done.platforms))
    console.print(Text(f"Python {done.python} for {names}: {megabytes(done.bytes)}, {done.digest}"))
    for line in (done.reference, done.exact, "", "Build upon it:", f"  flops build SOURCE --base-image {done.exact}"):
        console.print(Text(one_line(line)))

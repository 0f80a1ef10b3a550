"""`flops build`: an ML repository to learner and aggregator images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flops.cli import image_sources, options
from flops.cli.render import adjustment_table, megabytes, plain, print_json, reporter, untold
from flops.errors import UsageError
from flops.oci.engine import find_engine
from flops.oci.reference import Registry
from flops.progress import Reporter
from flops.publishing.delivery import Target
from flops.publishing.local_targets import ArchiveTarget, EngineTarget, LayoutTarget
from flops.publishing.registry_target import RegistryTarget
from flops.recipe import Accelerator, Compression, Policy
from flops.settings import Settings
from flops.use_cases.build import build
from flops.use_cases.result import Result

RegistryOption = Annotated[
    str | None, typer.Option("--registry", metavar="[http://]HOST[:PORT][/PREFIX]", help="Where to push.")
]
Output = Annotated[
    Path | None, typer.Option("--output", metavar="DIR|FILE.tar", help="An OCI layout, or an archive of one.")
]
Load = Annotated[bool, typer.Option("--load", help="Load this machine's images into podman or docker.")]
Force = Annotated[bool, typer.Option("--force", help="Build although a matching image exists; move a taken tag.")]
Sign = Annotated[
    Path | None, typer.Option("--sign", metavar="KEY", help="Sign the images with a private key (PEM, ECDSA P-256).")
]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="Check the composed images before they are pushed.")]


def command(
    source: options.SourceArgument,
    ref: options.Ref = None,
    subdir: options.Subdir = "",
    platform: options.Platforms = None,
    flavor: options.FlavorOption = None,
    registry: RegistryOption = None,
    output: Output = None,
    load: Load = False,
    python: options.Python = None,
    policy: options.PolicyOption = Policy.FIX,
    accelerator: options.AcceleratorOption = Accelerator.CPU,
    compression: options.CompressionOption = Compression.GZIP,
    base_image: options.BaseImage = None,
    group: options.Groups = None,
    upgrade: options.Upgrade = False,
    force: Force = False,
    verify: Verify = True,
    sign: Sign = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Build the learner and the aggregator image of one commit."""
    settings = Settings.read()
    target = choose_target(settings, registry=registry, output=output, load=load)
    request = options.request(
        source,
        ref=ref,
        subdir=subdir,
        platforms=platform,
        flavor=flavor,
        python=python,
        policy=policy,
        accelerator=accelerator,
        compression=compression,
        base_image=base_image,
        groups=group,
        upgrade=upgrade,
        force=force,
        verify=verify,
        sign=sign,
    )
    with reporter(quiet=quiet) as progress:
        result = build(request, target, settings=settings, reporter=progress)
    if as_json:
        print_json(result.to_json())
    else:
        show(result, progress)
        for line in target.next_steps(result.references):
            Console(soft_wrap=True, highlight=False).print(Text(line))


def choose_target(settings: Settings, *, registry: str | None, output: Path | None, load: bool) -> Target:
    """Where images go: what the options name, else FLOPS_REGISTRY, else the layout in the data directory."""
    if sum((registry is not None, output is not None, load)) > 1:
        raise UsageError("--registry, --output and --load exclude each other", hint="call once for each place")
    if output is not None:
        return ArchiveTarget(output) if output.suffix == ".tar" else LayoutTarget(output)
    if load:
        return EngineTarget(find_engine())
    name = registry or settings.registry
    if name:
        pull = Registry.parse(settings.registry_pull) if settings.registry_pull else None
        client = image_sources.client(settings, Registry.parse(name), chunk=settings.upload_chunk)
        return RegistryTarget(client, pull_name=pull)
    return LayoutTarget(image_sources.default_layout(settings))


def show(result: Result, progress: Reporter) -> None:
    """Images, platforms, layers, sizes and seconds, as tables on stdout."""
    console = Console(soft_wrap=True, highlight=False)
    if adjustments := untold(progress, result.adjustments):
        console.print(adjustment_table(adjustments, width=console.width))
        console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("image", "platform", "layers", "compressed", "unpacked", "digest"):
        table.add_column(
            name, justify="right" if name in ("layers", "compressed", "unpacked") else "left", overflow="fold"
        )
    for actor, image in result.images.items():
        for platform, one in image.platforms.items():
            table.add_row(
                actor.value,
                str(platform),
                str(one.layers),
                megabytes(one.bytes),
                megabytes(one.uncompressed_bytes),
                one.digest[:19],
            )
    console.print(table)
    python = result.python
    used = f"Python {python.used} ({python.provider})" if python else "nothing to build: matching images exist"
    console.print(Text(plain(f"\ncommit {result.commit}, {used}, recipe {result.recipe[:19]}")))
    seconds = "  ".join(f"{stage} {count:.1f}" for stage, count in result.seconds.items())
    console.print(Text(f"seconds: {seconds}"))
    moved = result.bytes
    console.print(
        Text(
            f"downloaded {megabytes(moved['downloaded'])}, uploaded {megabytes(moved['uploaded'])}, reused {megabytes(moved['reused'])}"
        )
    )
    for reference in result.references:
        console.print(Text(reference))

"""`flops check`: everything up to the locks; no layers, seconds."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from flops.builder.preflight import Registered, check
from flops.cli import options
from flops.cli.preflight import show
from flops.cli.render import print_json, reporter
from flops.progress import Reporter
from flops.recipe import Accelerator, Policy
from flops.settings import Settings

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
        registered = _registered(settings, registry, progress)
        checked = partial(check, request, settings=settings, reporter=progress, registry=registered)
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


def _registered(settings: Settings, name: str | None, progress: Reporter) -> Registered | None:
    """The registry that the option or FLOPS_REGISTRY names."""
    name = name or settings.registry
    if not name:
        return None
    # slow to import, and not needed without a registry
    from flops.builder.images.actors import Actor  # noqa: PLC0415
    from flops.builder.layer_records import LayerRecords  # noqa: PLC0415
    from flops.builder.publishing.publish import RegistryTarget  # noqa: PLC0415
    from flops.cli import places  # noqa: PLC0415
    from flops.http import Retry  # noqa: PLC0415
    from flops.oci.blobs import BlobStore  # noqa: PLC0415
    from flops.oci.reference import Registry  # noqa: PLC0415

    registry = Registry.parse(name)
    client = places.client(settings, registry, retry=Retry(tries=2))
    records = LayerRecords(RegistryTarget(client).shared(progress), BlobStore(settings.cache_dir))

    def recorded(key: str) -> int | None:
        found = records.find(key) if settings.reuse == "registry" else None
        return found.size if found else None

    return Registered(
        name=str(registry),
        recorded=recorded,
        holds=lambda repository, digest: client.has_blob(registry.repository(repository, Actor.LEARNER.value), digest),
    )

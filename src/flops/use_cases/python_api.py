"""The Python API: `flops.check`, `flops.build` and `flops.Registry`; the command line is a thin layer over it.

Both functions raise errors of `flops.errors`: each has `code`, `message`, `hint` and `findings`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from flops.actors import Actor
from flops.errors import UsageError
from flops.http import Retry
from flops.oci.client import RegistryClient
from flops.oci.credentials import UserCredentials
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Accelerator, Compression, Flavor, Policy, Recipe
from flops.repository.source import parse_source
from flops.request import Request
from flops.settings import Settings
from flops.store.shared import REPOSITORY, SharedCache
from flops.use_cases.check import AskedRegistry
from flops.use_cases.check import check as check_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flops.progress import Reporter
    from flops.publishing.delivery import Target
    from flops.use_cases.result import Report, Result


def check(
    source: str | Path,
    *,
    platforms: Sequence[str] | None = None,
    registry: str | Registry | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    **options: object,
) -> Report:
    """Structure, dependencies and locks of a Git URL or directory; fetches metadata only.

    `platforms` as in `linux/amd64`, this machine's by default; `registry` is asked which layers it holds. `options` are the other
    keywords of `make_request`. SourceError, StructureError, DependencyError and their subclasses.
    """
    settings = settings or Settings.read()
    request = make_request(source, platforms=platforms, **options)  # type: ignore[arg-type]
    return check_request(
        request, settings=settings, reporter=reporter, registry=asked_registry(settings, registry, reporter or Silent())
    )


def build(
    source: str | Path,
    *,
    platforms: Sequence[str] | None = None,
    registry: str | Registry | None = None,
    output: str | Path | None = None,
    load: bool = False,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    **options: object,
) -> Result:
    """Learner and aggregator images of a Git URL or directory, in a registry, an OCI layout or archive, or podman or docker.

    Where none is named: FLOPS_REGISTRY, else the OCI layout in the data directory. `options` are the other keywords of
    `make_request`. Any FlopsError; then the tags are as they were.
    """
    from flops.use_cases.build import build as build_request  # noqa: PLC0415 - slow to import, and a check needs none

    settings = settings or Settings.read()
    request = make_request(source, platforms=platforms, **options)  # type: ignore[arg-type]
    target = choose_target(settings, registry=registry, output=Path(output) if output else None, load=load)
    return build_request(request, target, settings=settings, reporter=reporter)


def make_request(
    source: str | Path,
    *,
    ref: str | None = None,
    subdir: str = "",
    platforms: Sequence[str] | None = None,
    flavor: Flavor | str | None = None,
    python: str | None = None,
    policy: Policy | str = Policy.FIX,
    accelerator: Accelerator | str = Accelerator.CPU,
    compression: Compression | str = Compression.GZIP,
    base_image: str | None = None,
    groups: Sequence[str] | None = None,
    upgrade: bool = False,
    force: bool = False,
    verify: bool = True,
    sign: Path | None = None,
) -> Request:
    """The request that these options describe; UsageError (or one of its subclasses) where a value makes no sense."""
    if python is not None and not re.fullmatch(r"3\.\d{1,2}(\.\d{1,2})?", python):
        raise UsageError(f"--python {python!r} is no Python version", hint="for example --python 3.11")
    recipe = Recipe(
        flavor=Flavor(flavor) if flavor is not None else None,
        python=python,
        policy=Policy(policy),
        accelerator=Accelerator(accelerator),
        compression=Compression(compression),
        base=base_image,
        subdir=subdir.strip("/"),
        groups=tuple(sorted({canonicalize_name(name) for name in groups or ()})),
    )
    host = Platform.host()
    own = (host,) if host is not None else ()
    if not platforms and not own:
        raise UsageError("no images are built for this machine's platform", hint="name one: --platform linux/amd64")
    return Request(
        source=parse_source(str(source)),
        ref=ref,
        platforms=Platform.parse_list(list(platforms)) if platforms else own,
        recipe=recipe,
        upgrade=upgrade,
        force=force,
        verify=verify,
        sign=sign,
    )


def choose_target(settings: Settings, *, registry: str | Registry | None, output: Path | None, load: bool) -> Target:
    """Where images go: the named place, else FLOPS_REGISTRY, else the OCI layout in the data directory."""
    from flops.publishing.registry_target import RegistryTarget  # noqa: PLC0415 - as above

    if sum((registry is not None, output is not None, load)) > 1:
        raise UsageError("--registry, --output and --load exclude each other", hint="call once for each place")
    name = registry or settings.registry
    if output is None and not load and name:
        client = RegistryClient(
            Registry.parse(str(name)),
            credentials=UserCredentials.of_user(),
            verify=settings.ca_bundle,
            chunk=settings.upload_chunk,
        )
        pull_name = Registry.parse(settings.registry_pull) if settings.registry_pull else None
        return RegistryTarget(client, pull_name=pull_name)
    from flops.oci.engine import find_engine  # noqa: PLC0415
    from flops.publishing.local_targets import ArchiveTarget, EngineTarget, LayoutTarget  # noqa: PLC0415

    if load:
        return EngineTarget(find_engine())
    output = output or settings.default_layout
    return ArchiveTarget(output) if output.suffix == ".tar" else LayoutTarget(output)


def asked_registry(settings: Settings, name: str | Registry | None, reporter: Reporter) -> AskedRegistry | None:
    """The registry that is named, else FLOPS_REGISTRY, for a check; None where neither names one."""
    name = name or settings.registry
    if not name:
        return None
    registry = Registry.parse(str(name))
    client = RegistryClient(
        registry, credentials=UserCredentials.of_user(), verify=settings.ca_bundle, retry=Retry(tries=2)
    )
    shared = SharedCache(client, registry.repository(*REPOSITORY), reporter, read_only=True)
    return AskedRegistry(
        name=str(registry),
        holds=lambda repository, digest: client.has_blob(registry.repository(repository, Actor.LEARNER.value), digest),
        shared=shared if settings.reuse == "registry" else None,
    )

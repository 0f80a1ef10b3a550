"""Our Debian base as an image of its own, for builders on hosts without apt: they name it with `--base-image`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops.base.debian.debian_base import SUITES, DebianBase, Suite
from flops.errors import UsageError
from flops.images.compose import annotated_image, locked
from flops.oci.blobs import BlobStore
from flops.oci.image import ImageConfig, index
from flops.progress import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.base import Base
    from flops.oci.client import RegistryClient
    from flops.oci.image import ImageIndex
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.settings import Settings

REPOSITORY = ("flops", "base")
#: Label and annotation: digest of the packages.
BASE = "io.flops.base"
#: The same packages give the same image, whenever it is made.
CREATED = "1970-01-01T00:00:00Z"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
}


@dataclass(frozen=True, kw_only=True)
class PublishedBase:
    """A base in a registry."""

    reference: str
    """Tagged with the minor version of Python: moves with Debian's updates."""
    exact: str
    """Tagged with the digest of its packages: never moves."""
    digest: str
    python: str
    platforms: tuple[Platform, ...]
    bytes: int
    uploaded: int


def suite_with(python: str | None) -> Suite:
    """The suite that has this Python (`3.11`), or the first suite if None is given. UsageError."""
    suites = [Suite.read(name) for name in SUITES]
    found = [suite for suite in suites if python in {None, suite.minor, suite.python}]
    if not found:
        offered = ", ".join(suite.minor for suite in suites)
        raise UsageError(f"no base has Python {python}", hint=f"there are bases with {offered}")
    return found[0]


def publish_base(
    client: RegistryClient, suite: Suite, platforms: Sequence[Platform], *, settings: Settings, reporter: Reporter
) -> PublishedBase:
    """Make the base, unless the cache has it, and push it under both tags; BaseUnavailable, RegistryError."""
    settings.check_cache()
    blobs = BlobStore(settings.cache_dir)
    provider = DebianBase(suite, cache_dir=settings.cache_dir, blobs=blobs, settings=settings, reporter=reporter)
    with reporter.stage(Stage.ASSEMBLE, f"Debian {suite.name} for {', '.join(map(str, platforms))}"):
        bases = provider.prepare(platforms)
    whole = base_index(suite, bases)
    lock = _lock(bases)
    repository = client.registry.repository(*REPOSITORY)
    tags = (suite.minor, f"{suite.minor}-{lock.removeprefix('sha256:')[:12]}")
    with reporter.stage(Stage.PUSH, f"{client.registry.host}/{repository}"):
        report = client.push_index(
            repository,
            whole,
            blobs,
            tags,
            progress=lambda done, total: reporter.progress(Stage.PUSH, done=done, total=total),
        )
    moving, exact = (str(client.registry.reference(*REPOSITORY, tag=tag)) for tag in tags)
    return PublishedBase(
        reference=moving,
        exact=exact,
        digest=whole.digest,
        python=next(iter(bases.values())).python,
        platforms=tuple(sorted(bases)),
        bytes=sum(layer.size for layer in whole.layers),
        uploaded=report.uploaded,
    )


def base_index(suite: Suite, bases: Mapping[Platform, Base]) -> ImageIndex:
    """The base as an index over platforms; the same packages give the same bytes."""
    images = []
    for platform, base in bases.items():
        labels = {
            BASE: base.lock,
            "org.opencontainers.image.title": f"FLOps base: Debian {suite.name}, Python {base.python}",
        }
        config = ImageConfig(
            platform=platform, created=CREATED, environment=ENVIRONMENT, command=(base.interpreter,), labels=labels
        )
        images.append(annotated_image(config, base.layers))
    return index(images, {BASE: _lock(bases)})


def _lock(bases: Mapping[Platform, Base]) -> str:
    return locked([f"{platform} {base.lock}" for platform, base in sorted(bases.items())])

"""What the manager goes by, read from the product's settings once and passed down as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flops.errors import BadSetting, BadTarget
from flops.oci.reference import Reference, Registry
from flops.service.named_credentials import CredentialNames

if TYPE_CHECKING:
    from flops.settings import Settings


@dataclass(frozen=True, kw_only=True)
class BaseImages:
    """The base images that an SLA may name (FLOPS_BASE_IMAGES): references, and beginnings of some, with their scheme."""

    exact: frozenset[str] = frozenset()
    beginnings: tuple[str, ...] = ()
    text: str = ""
    """As the operator wrote it."""

    @classmethod
    def parse(cls, text: str) -> BaseImages:
        """BadSetting for an entry that is neither; a beginning holds its registry's whole name, but `*` is all there is."""
        exact, beginnings = set(), []
        for entry in filter(None, map(str.strip, text.split(","))):
            try:
                if entry.endswith(("/", "*")):
                    beginnings.append(_beginning(entry))
                else:
                    exact.add(_exactly(Reference.parse(entry)))
            except BadTarget as error:
                raise BadSetting(
                    f"FLOPS_BASE_IMAGES: {error.message}",
                    hint="write HOST/NAME:TAG, or a beginning that ends with / or *: HOST/NAMES/, HOST/NAME:1.*",
                ) from error
        return cls(exact=frozenset(exact), beginnings=tuple(beginnings), text=text)

    def allow(self, reference: Reference) -> bool:
        asked = _exactly(reference)
        return asked in self.exact or asked.startswith(self.beginnings)


def _beginning(entry: str) -> str:
    scheme, separator, rest = entry.removesuffix("*").rpartition("://")
    host, slash, start = rest.partition("/")
    if not slash and entry != "*":
        raise BadTarget(f"{entry!r} does not hold its registry's whole name")
    return f"{Registry.parse(scheme + separator + host).url}/{start}" if slash else ""


def _exactly(reference: Reference) -> str:
    """With the scheme, and with the digest alone where there is one: then a tag says nothing."""
    selector = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    return f"{reference.registry.url}/{reference.repository}{selector}"


@dataclass(frozen=True, kw_only=True)
class ManagerSettings:
    registry: str
    """Where builders push, `[http://]HOST[:PORT][/PREFIX]`."""
    registry_pull: str | None = None
    """The registry's name in results."""
    registry_login: dict[str, str] | None = field(default=None, repr=False)
    """`{host, username, password}` that every builder gets: what the embedded registry wants."""
    advertise: str
    """The manager's own address for builders, without a slash at its end."""
    builders: int = 2
    builder_memory: int | None = None
    """Megabytes."""
    project_seconds: float = 3600
    keep_days: float = 90
    keep_projects: int = 10_000
    projects: int = 1000
    """That have not ended; a further one is refused."""
    events: int = 20_000
    """Of one attempt that are stored; one more ends it. A thousand or two are many."""
    event_bytes: int = 32 * 1024**2
    """Of all these, likewise."""
    notes: int = 2000
    """Of one project, messages of FLOps' components; what comes beyond is left out."""
    allow_local: bool = False
    allow_hosts: tuple[str, ...] = ()
    base_images: BaseImages = field(default_factory=BaseImages)
    credentials: CredentialNames = field(default_factory=CredentialNames)
    mirror: bool = False
    """Somebody takes what is put out for FLOps' broker."""
    poll_seconds: float = 2
    """Between two looks at a builder."""
    retry_seconds: float = 0.5
    """The first pause after a failure; each further one is twice as long, up to a minute."""

    @classmethod
    def of(
        cls, settings: Settings, *, registry: str, advertise: str, registry_login: dict[str, str] | None = None
    ) -> ManagerSettings:
        """`registry` and `advertise` as they are by now: embedded ones get their ports when they listen. BadSetting."""
        return cls(
            registry=registry,
            registry_pull=settings.registry_pull,
            registry_login=registry_login,
            advertise=advertise.rstrip("/"),
            builders=settings.builders,
            builder_memory=settings.builder_memory,
            project_seconds=settings.project_seconds,
            keep_days=settings.keep_days,
            keep_projects=settings.keep_projects,
            allow_local=settings.allow_local,
            allow_hosts=tuple(name.strip() for name in settings.allow_hosts.split(",") if name.strip()),
            base_images=BaseImages.parse(settings.base_images),
            credentials=CredentialNames.of(settings),
            mirror=settings.broker is not None,
        )

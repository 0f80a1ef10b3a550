"""What the manager goes by, read from the product's settings once and passed down as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flops.manager.credentials import Names

if TYPE_CHECKING:
    from flops.settings import Settings


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
    """Of one project; what comes beyond is left out, save its outcome and the leave to tag."""
    allow_local: bool = False
    allow_hosts: tuple[str, ...] = ()
    credentials: Names = field(default_factory=Names)
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
            credentials=Names.of(settings),
            mirror=settings.broker is not None,
        )

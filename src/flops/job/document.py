"""The job document: what the manager asks of one attempt's builder, read and checked (ARCHITECTURE.md, "HTTP")."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from flops.builder.repository.git import GitCredential
from flops.builder.repository.source import parse_source
from flops.builder.request import Request
from flops.errors import ManagerRefused
from flops.oci.credentials import Credential, FixedCredentials
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.recipe import Accelerator, Compression, Flavor, Policy, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A week: more than any timer was made for is not meant.
SECONDS_LIMIT = 7 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt's work; sources are not judged yet."""

    project: str
    attempt: int
    source: str
    ref: str | None
    platforms: tuple[Platform, ...]
    recipe: Recipe
    registry: Registry
    pull_name: Registry | None
    force: bool
    verbose: bool
    seconds: float
    """From its fetching to its end."""
    allow_local: bool
    allow_hosts: tuple[str, ...]
    git_credential: GitCredential | None = field(repr=False)
    registry_credentials: FixedCredentials = field(repr=False)
    """To push with."""
    base_credentials: FixedCredentials = field(repr=False)
    """The project's own, to read base images with."""

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """ManagerRefused where it is not what this version of a builder understands."""
        try:
            recipe = _recipe(document["recipe"])
            if recipe.digest != document["recipe_digest"]:
                raise ManagerRefused(
                    "manager and builder make different recipes of the same request",
                    hint="use the same version for manager and builders",
                )
            secrets = document["credentials"]
            git = secrets["git"]
            return cls(
                project=str(document["project"]),
                attempt=int(document["attempt"]),
                source=str(document["source"]),
                ref=document["ref"],
                platforms=Platform.parse_list(list(document["platforms"])),
                recipe=recipe,
                registry=Registry.parse(document["registry"]),
                pull_name=Registry.parse(document["registry_pull"]) if document["registry_pull"] else None,
                force=bool(document["force"]),
                verbose=bool(document["verbose"]),
                seconds=_seconds(document["seconds"]),
                allow_local=document["allow_local"] is True,
                allow_hosts=tuple(map(str, document["allow_hosts"])),
                git_credential=GitCredential(**{name: git[name] for name in ("host", "username", "password")})
                if git
                else None,
                registry_credentials=_credentials(secrets["registry"]),
                base_credentials=_credentials(secrets["base"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ManagerRefused(
                f"the manager's job document can't be understood: {type(error).__name__}",
                hint="use the same version for manager and builders",
            ) from error

    def request(self) -> Request:
        """The build that it asks for. BadUrl, CredentialInUrl, BlockedAddress: its source is nobody's whom we trust."""
        return Request(
            source=parse_source(self.source, trusted=False, allow_hosts=self.allow_hosts, allow_local=self.allow_local),
            platforms=self.platforms,
            recipe=self.recipe,
            ref=self.ref,
            force=self.force,
            allow_hosts=self.allow_hosts,
            git_credential=self.git_credential,
            registry=self.registry,
            registry_credentials=self.base_credentials,
        )


def _recipe(document: Mapping[str, Any]) -> Recipe:
    return Recipe(
        flavor=Flavor(document["flavor"]) if document["flavor"] else None,
        python=document["python"],
        policy=Policy(document["policy"]),
        accelerator=Accelerator(document["accelerator"]),
        compression=Compression(document["compression"]),
        base=document["base"],
        subdir=document["subdir"],
        groups=tuple(document["groups"]),
    )


def _credentials(entries: Any) -> FixedCredentials:
    return FixedCredentials(
        by_host={one["host"]: Credential(username=one["username"], password=one["password"]) for one in entries}
    )


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 < seconds <= SECONDS_LIMIT:
        raise ValueError(seconds)
    return seconds

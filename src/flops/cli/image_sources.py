"""Where the commands about images look: a registry by name, an embedded registry's directory, a layout."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flops.errors import UsageError
from flops.oci.client import RegistryClient
from flops.oci.credentials import UserCredentials
from flops.oci.layout import Layout, LayoutSource
from flops.oci.reference import Reference, Registry, repository_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flops.records.attach import ImageSource
    from flops.settings import Settings

RegistryOption = Annotated[
    str | None,
    typer.Option("--registry", metavar="[http://]HOST[:PORT][/PREFIX]", help="A registry [default: FLOPS_REGISTRY]."),
]
DirectoryOption = Annotated[
    Path | None,
    typer.Option("--directory", metavar="DIR", help="An OCI layout, or the directory of an embedded registry."),
]


@contextmanager
def look(settings: Settings, *, registry: str | None, directory: Path | None) -> Iterator[ImageSource]:
    """The place that is named, else FLOPS_REGISTRY, else the layout in the data directory."""
    place = on_disk(settings, registry=registry, directory=directory)
    if place is None:
        with open_registry(settings, registry) as it:
            yield it
    elif is_registry(place):
        with embedded(place) as it:
            yield it
    elif (place / "index.json").is_file() or directory is None:
        yield LayoutSource(Layout(place))
    else:
        raise UsageError(f"{place} is neither an OCI layout nor an embedded registry's directory", hint="see --output")


def on_disk(settings: Settings, *, registry: str | None, directory: Path | None) -> Path | None:
    """The directory that is looked at; None where it is a registry by its name."""
    if registry is not None and directory is not None:
        raise UsageError("--registry and --directory exclude each other", hint="name one place")
    if registry or (settings.registry and directory is None):
        return None
    return directory or default_layout(settings)


def open_registry(settings: Settings, registry: str | None) -> RegistryClient:
    """A registry to push to; UsageError where none is named."""
    name = registry or settings.registry
    if name is None:
        raise UsageError("no registry is named", hint="--registry HOST[:PORT][/PREFIX]")
    return client(settings, Registry.parse(name))


def client(settings: Settings, registry: Registry, **more: Any) -> RegistryClient:
    """With the logins that docker and podman keep for this user."""
    return RegistryClient(registry, credentials=UserCredentials.of_user(), verify=settings.ca_bundle, **more)


@contextmanager
def embedded(directory: Path) -> Iterator[RegistryClient]:
    """A registry over its directory, for as long as the command lasts; a service may be using it too."""
    from flops.registry.app import EmbeddedRegistry  # noqa: PLC0415 - slow to import, and seldom wanted

    with EmbeddedRegistry(directory) as server, RegistryClient(server.registry) as it:
        yield it


@contextmanager
def find(settings: Settings, text: str, directory: Path | None) -> Iterator[tuple[ImageSource, str, str]]:
    """Where REF lies, its repository and its tag or digest: HOST/NAME:TAG in a registry, else NAME:TAG in a layout."""
    host = text.removeprefix("http://").removeprefix("https://").partition("/")[0]
    if directory is None and ("." in host or ":" in host or host == "localhost"):
        reference = Reference.parse(text)
        with client(settings, reference.registry) as it:
            yield it, reference.repository, reference.selector
        return
    repository, at, digest = text.partition("@")
    if not at:
        repository, colon, digest = text.rpartition(":")
        if not colon:
            raise UsageError(f"{text!r} names no tag", hint="flops images list shows what there is")
    repository_name(repository)
    with look(settings, registry=None, directory=directory or default_layout(settings)) as stock:
        yield stock, repository, digest


def default_layout(settings: Settings) -> Path:
    """Where images go that are to go nowhere else."""
    return settings.data_dir / "images"


def is_registry(directory: Path) -> bool:
    return (directory / "repositories").is_dir()

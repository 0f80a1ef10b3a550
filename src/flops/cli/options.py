"""Options that several commands share, and the request they make."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from packaging.utils import canonicalize_name

from flops.errors import UsageError
from flops.platforms import Platform
from flops.recipe import Accelerator, Compression, Flavor, Policy, Recipe
from flops.repository.source import parse_source
from flops.request import Request

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A Git URL (https, ssh, scp form) or a directory.")
]
Ref = Annotated[
    str | None, typer.Option("--ref", metavar="R", help="Branch, tag or commit; the default branch otherwise.")
]
Subdir = Annotated[
    str, typer.Option("--subdir", metavar="D", help="Directory of the ML repository inside the Git repository.")
]
Platforms = Annotated[
    list[str] | None,
    typer.Option("--platform", metavar="P[,P]", help="linux/amd64, linux/arm64 [default: this machine's]."),
]
FlavorOption = Annotated[
    Flavor | None, typer.Option("--flavor", help="ML framework [default: told by the repository].")
]
Python = Annotated[str | None, typer.Option("--python", metavar="V", help="Python version, for example 3.11.")]
PolicyOption = Annotated[Policy, typer.Option("--policy", help="fix: repair and report; strict: repair nothing.")]
AcceleratorOption = Annotated[
    Accelerator, typer.Option("--accelerator", help="Which builds of a framework are wanted.")
]
CompressionOption = Annotated[
    Compression, typer.Option("--compression", help="gzip: quick to build; zstd: smaller, for newer runtimes.")
]
BaseImage = Annotated[
    str | None, typer.Option("--base-image", metavar="REF", help="Base image instead of Debian packages.")
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group", metavar="G", help="A group of pyproject.toml (or its lock) that is needed too; repeatable."
    ),
]
Upgrade = Annotated[bool, typer.Option("--upgrade", help="Lock and resolve the base anew.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, in failure too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def request(
    source: str,
    *,
    ref: str | None = None,
    subdir: str = "",
    platforms: list[str] | None = None,
    flavor: Flavor | None = None,
    python: str | None = None,
    policy: Policy = Policy.FIX,
    accelerator: Accelerator = Accelerator.CPU,
    compression: Compression = Compression.GZIP,
    base_image: str | None = None,
    groups: list[str] | None = None,
    upgrade: bool = False,
    force: bool = False,
    verify: bool = True,
    sign: Path | None = None,
) -> Request:
    """The values behind the words of a command line; UsageError (and its kin) where one can't be meant."""
    if python is not None and not re.fullmatch(r"3\.\d{1,2}(\.\d{1,2})?", python):
        raise UsageError(f"--python {python!r} is no Python version", hint="for example --python 3.11")
    recipe = Recipe(
        flavor=flavor,
        python=python,
        policy=policy,
        accelerator=accelerator,
        compression=compression,
        base=base_image,
        subdir=subdir.strip("/"),
        groups=tuple(sorted({canonicalize_name(name) for name in groups or ()})),
    )
    return Request(
        source=parse_source(source),
        ref=ref,
        platforms=Platform.parse_list(platforms) if platforms else _own_platform(),
        recipe=recipe,
        upgrade=upgrade,
        force=force,
        verify=verify,
        sign=sign,
    )


def _own_platform() -> tuple[Platform, ...]:
    host = Platform.host()
    if host is None:
        raise UsageError(
            "this machine's platform is none that images are built for", hint="name one: --platform linux/amd64"
        )
    return (host,)

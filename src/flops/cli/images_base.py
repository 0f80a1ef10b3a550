"""`flops images base`: our Debian base as an image, for `--base-image` elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from flops.builder.base_images import publish_base, suite_with
from flops.cli import options, places
from flops.cli.render import megabytes, one_line, print_json, reporter
from flops.platforms import Platform
from flops.settings import Settings

PythonOption = Annotated[
    str | None, typer.Option("--python", metavar="V", help="3.11 or 3.13 [default: 3.11, as Debian 12 has it].")
]


def command(
    registry: places.RegistryOption = None,
    python: PythonOption = None,
    platform: options.Platforms = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Publish the base that images stand on, so that hosts without apt can build upon it."""
    settings = Settings.read()
    suite = suite_with(python)
    platforms = Platform.parse_list(platform) if platform else tuple(Platform)
    with places.open_registry(settings, registry) as client, reporter(quiet=quiet) as progress:
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

"""`flops project logs`: what the builder printed."""

from __future__ import annotations

import sys

from flops.cli.render import plain
from flops.cli.watching import Identity, Manager, connected, say


def command(project: Identity, manager: Manager = None) -> None:
    """Print what a project's builder printed, as far as it is kept."""
    with connected(manager) as client:
        text = client.logs(client.find(project))
    if text:
        lines = text.replace("\r\n", "\n").expandtabs().removesuffix("\n")
        sys.stdout.write(plain(lines) + "\n")
    else:
        say("nothing was printed so far")

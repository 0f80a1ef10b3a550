"""`flops project watch`: follow a project to its outcome."""

from __future__ import annotations

from flops.cli.watching import Identity, JsonLines, Manager, connected, watch


def command(project: Identity, manager: Manager = None, as_json: JsonLines = False) -> None:
    """Follow a project, from its first event to its outcome, which is the exit code."""
    with connected(manager) as client:
        raise SystemExit(watch(client, client.find(project), as_json=as_json))

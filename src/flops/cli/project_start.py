"""`flops project start`: ask a manager for the images of an SLA."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flops.cli.render import one_line, print_json
from flops.cli.sla_file import read_sla
from flops.cli.watching import Manager, connected, say, watch


def command(
    sla: Annotated[str, typer.Argument(metavar="SLA.json", help="The SLA; - for standard input.")],
    force: Annotated[bool, typer.Option("--force", help="Build although matching images exist.")] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the project to its end.")] = False,
    manager: Manager = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the project, or with --watch its events.")
    ] = False,
) -> None:
    """Start a project; with --watch, end as it ends."""
    document = read_sla(sla)
    with connected(manager) as client:
        project = client.start(document, force=force)
        if follow:  # its warnings are among the events
            say(f"project {project['id']} was started")
            raise SystemExit(watch(client, project["id"], as_json=as_json))
        for warning in project.get("warnings") or ():
            say(f"warning: {warning}")
    if as_json:
        print_json(project)
        return
    say(f"started; follow it with `flops project watch {project['id'][:8]}`")
    sys.stdout.write(one_line(project["id"]) + "\n")

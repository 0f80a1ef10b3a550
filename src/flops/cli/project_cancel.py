"""`flops project cancel`: end a project before it moves tags."""

from __future__ import annotations

from flops.cli.render import print_json
from flops.cli.watching import Identity, Json, Manager, connected, say


def command(project: Identity, manager: Manager = None, as_json: Json = False) -> None:
    """Cancel a project; too late once its images' tags move."""
    with connected(manager) as client:
        done = client.cancel(client.find(project))
    if as_json:
        print_json(done)
    else:
        say(f"project {done['id']} is {done.get('state')}")

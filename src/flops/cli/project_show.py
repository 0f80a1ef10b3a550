"""`flops project show`: one project, as it is now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from flops.cli.render import data_console, one_line, print_json
from flops.cli.watching import Identity, Json, Manager, connected
from flops.observer.feed import Feed
from flops.observer.terminal import summary
from flops_wire.events import event

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = (
    "id", "state", "builder", "repository", "subdir", "ref", "commit", "recipe", "flavor", "platforms", "attempt", "waits_for",
    "created", "started", "ended",
)  # fmt: skip


def command(project: Identity, manager: Manager = None, as_json: Json = False) -> None:
    """Show a project: its state, its images, or what went wrong."""
    with connected(manager) as client:
        found = client.project(client.find(project))
    if as_json:
        print_json(found)
        return
    console = data_console()
    for name in _SHOWN:
        value = found.get(name)
        told = ", ".join(map(str, value)) if isinstance(value, list) else value
        if told not in (None, ""):
            console.print(Text.assemble((f"{name.replace('_', ' '):<11}", "bold"), one_line(str(told))))
    for warning in found.get("warnings") or ():
        console.print(Text.assemble(("warning", "bold yellow"), ": ", one_line(str(warning))))
    _outcome(console, found)


def _outcome(console: Console, found: dict[str, Any]) -> None:
    """What the project's last events said, from the document alone."""
    result, error = found.get("result"), found.get("error")
    told: list[dict[str, Any]] = []
    if isinstance(error, dict):
        told = [event("", "failed", "", data={"error": error})]
    elif isinstance(result, dict):
        changes = result.get("adjustments")
        told = [event("", "adjusted", "", data=one) for one in (changes if isinstance(changes, list) else ())]
        told.append(event("", "succeeded", "", data={"result": result}))
    if told:
        console.print(summary(Feed({**one, "sequence": number} for number, one in enumerate(told, 1))))

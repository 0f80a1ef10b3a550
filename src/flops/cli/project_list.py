"""`flops project list`: a manager's projects, newest first."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flops.cli.render import one_line, print_json
from flops.cli.watching import Json, Manager, connected, say
from flops.errors import UsageError
from flops_wire.manager import STATES

_STYLES = {"images_ready": "green", "failed": "bold red", "cancelled": "red", "building": "cyan"}
_PAGE, _WIDE = 200, 4096


def command(
    state: Annotated[str | None, typer.Option("--state", metavar="STATE", help=f"One of {', '.join(STATES)}.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many.")] = 20,
    manager: Manager = None,
    as_json: Json = False,
) -> None:
    """List projects, newest first."""
    if state is not None and state not in STATES:
        raise UsageError(f"--state {state!r} is no state of a project", hint=f"one of {', '.join(STATES)}")
    found: list[dict[str, Any]] = []
    with connected(manager) as client:
        total = 1
        while len(found) < min(limit, total):
            page = client.page(limit=min(limit - len(found), _PAGE), offset=len(found), state=state)
            total = int(page.get("total") or 0)
            found += page["projects"]
            if not page["projects"]:
                break
    if as_json:
        print_json({"projects": found, "total": total})
        return
    if found:
        console = Console(highlight=False)
        if not console.is_terminal:  # whoever reads a file wants whole lines
            console = Console(highlight=False, width=_WIDE)
        console.print(_table(found))
    if len(found) < total:
        say(f"{len(found)} of {total}; --limit shows more")
    elif not found:
        say("no projects")


def _table(projects: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "state", "created", "repository", "commit", "platforms"):
        table.add_column(name, no_wrap=name in ("id", "state"), overflow="fold")
    for one in projects:
        state, error = str(one.get("state")), one.get("error")
        told = f"{state} ({error.get('code')})" if isinstance(error, dict) else state
        where = "/".join(filter(None, (str(one.get("repository")), str(one.get("subdir") or ""))))
        table.add_row(
            _cell(one.get("id")),
            Text(one_line(told), _STYLES.get(state, "")),
            _cell(str(one.get("created"))[:19].replace("T", " ")),
            _cell(where),
            _cell(str(one.get("commit") or "")[:12]),
            _cell(",".join(map(str, one.get("platforms") or ()))),
        )
    return table


def _cell(value: Any) -> Text:
    return Text(one_line("" if value is None else str(value)))

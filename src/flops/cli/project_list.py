"""`flops project list`: a manager's projects, newest first."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from flops.cli.render import data_console, fits, one_line, print_json
from flops.cli.watching import Json, Manager, connected, say
from flops.errors import UsageError
from flops.observer.words import ago, revision
from flops_wire.manager import STATES

_STYLES = {"images_ready": "green", "failed": "bold red", "cancelled": "red", "building": "cyan"}
_PAGE = 200
#: Characters of an id: where a terminal is narrow, and in all.
_ID, _ID_WHOLE = 8, 24


def command(
    state: Annotated[str | None, typer.Option("--state", metavar="STATE", help=f"One of {', '.join(STATES)}.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many.")] = 20,
    manager: Manager = None,
    as_json: Json = False,
) -> None:
    """List projects, newest first."""
    if state is not None and state not in STATES:
        raise UsageError(f"--state {state!r} is no state of a project", hint=f"one of {', '.join(STATES)}")
    known: dict[str, dict[str, Any]] = {}
    with connected(manager) as client:
        offset, total = 0, 1
        while len(known) < limit and offset < total:
            page = client.page(limit=min(limit - len(known), _PAGE), offset=offset, state=state)
            total = int(page.get("total") or 0)
            offset += len(page["projects"]) or total
            for one in page["projects"]:  # what was started meanwhile moves others to the next page: these come twice
                known.setdefault(str(one.get("id")), one)
    found = list(known.values())
    if as_json:
        print_json({"projects": found, "total": total})
        return
    if found:
        console = data_console()
        table = _table(found)
        console.print(table if fits(console, table) else _short(found, now=time.time()))
    if len(found) < total:
        say(f"{len(found)} of {total}; --limit shows more")
    elif not found:
        say("no projects")


def _table(projects: list[dict[str, Any]]) -> Table:
    table = _empty("id", "state", "created", "repository", "commit", "platforms")
    for one in projects:
        table.add_row(
            _cell(one.get("id")),
            _state(one),
            _cell(str(one.get("created"))[:19].replace("T", " ")),
            _cell(_where(one)),
            _cell(revision(str(one.get("commit") or ""))),
            _cell(",".join(map(str, one.get("platforms") or ()))),
        )
    return table


def _short(projects: list[dict[str, Any]], *, now: float) -> Table:
    """For a terminal that is too narrow: as much of the ids as tells them apart, and the age."""
    ids = [str(one.get("id")) for one in projects]
    length = next((n for n in range(_ID, _ID_WHOLE) if len({one[:n] for one in ids}) == len(ids)), _ID_WHOLE)
    table = _empty("id", "state", "created", "repository")
    for one, identity in zip(projects, ids, strict=True):
        created = ago(str(one.get("created")), now)
        table.add_row(
            _cell(identity[:length]), _state(one), _cell(created), _cell(_where(one).removeprefix("https://"))
        )
    return table


def _empty(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=name in ("id", "state", "created"), overflow="fold")
    return table


def _state(project: dict[str, Any]) -> Text:
    state = str(project.get("state"))
    why = _why(project)
    return Text(one_line(f"{state} ({why})" if why else state), _STYLES.get(state, ""))


def _why(project: dict[str, Any]) -> str:
    """What failed, or what is waited for."""
    error, leader = project.get("error"), project.get("waits_for")
    if isinstance(error, dict):
        return str(error.get("code"))
    if leader:
        return f"waits for {str(leader)[:_ID]}"
    return "queued" if project.get("builder") == "queued" else ""


def _where(project: dict[str, Any]) -> str:
    return "/".join(filter(None, (str(project.get("repository")), str(project.get("subdir") or ""))))


def _cell(value: Any) -> Text:
    return Text(one_line("" if value is None else str(value)))

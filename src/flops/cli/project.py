"""`flops project list`: a manager's projects, newest first."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from flops.cli.render import data_console, fits, one_line, plain, print_json
from flops.cli.watching import Identity, Json, JsonLines, Manager, connected, say, watch
from flops.errors import Finding, SlaInvalid, UsageError
from flops.observer.feed import Feed
from flops.observer.terminal import summary
from flops.observer.words import ago, revision
from flops_wire.events import event
from flops_wire.manager import SLA_LIMIT, STATES

if TYPE_CHECKING:
    from rich.console import Console


_STYLES = {"images_ready": "green", "failed": "bold red", "cancelled": "red", "building": "cyan"}
_PAGE = 200
#: Characters of an id: where a terminal is narrow, and in all.
_ID, _ID_WHOLE = 8, 24


def list_command(
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


_SHOWN = (
    "id", "state", "builder", "repository", "subdir", "ref", "commit", "recipe", "flavor", "platforms", "attempt", "waits_for",
    "created", "started", "ended",
)  # fmt: skip


def show_command(project: Identity, manager: Manager = None, as_json: Json = False) -> None:
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


SOURCE = "ml_repo_url"


def read_sla(name: str) -> dict[str, Any]:
    """The SLA in a file (`-`: standard input); a directory in `ml_repo_url` is meant from the file's place. SlaInvalid."""
    shown = "standard input" if name == "-" else name
    try:
        data = sys.stdin.buffer.read(SLA_LIMIT + 1) if name == "-" else _bytes(Path(name))
    except OSError as error:
        raise SlaInvalid(
            f"{shown} can't be read: {error.strerror}", hint="name the SLA's file, or - for stdin"
        ) from error
    if len(data) > SLA_LIMIT:
        raise SlaInvalid(f"{shown} has more than {SLA_LIMIT} bytes", hint="an SLA is a small JSON object")
    document = _document(data, shown)
    if isinstance(source := document.get(SOURCE), str):
        document[SOURCE] = resolved(source, Path.cwd() if name == "-" else Path(name).resolve().parent)
    return document


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SLA_LIMIT + 1)


def _document(data: bytes, shown: str) -> dict[str, Any]:
    try:
        document = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SlaInvalid(f"{shown} is not UTF-8", hint="save it as UTF-8") from error
    except RecursionError as error:
        raise SlaInvalid(f"{shown} is nested too deeply") from error
    except ValueError as error:
        line, told = (
            (error.lineno, error.msg) if isinstance(error, json.JSONDecodeError) else (0, "a number is too long")
        )
        finding = Finding(path=shown, line=line, code=SlaInvalid.code, message=told[0].lower() + told[1:])
        raise SlaInvalid(f"{shown} is not JSON", hint="write one JSON object", findings=[finding]) from error
    if not isinstance(document, dict):
        raise SlaInvalid(f"{shown} holds no JSON object", hint="write one object, as in examples/sla.json")
    try:
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # Python reads NaN, 1e999 and half a surrogate pair; nobody else does
        raise SlaInvalid(f"{shown} holds a number or a text that can't be sent as JSON") from error
    return document


def resolved(source: str, place: Path) -> str:
    """A source as the manager understands it: URLs as they are, directories absolute."""
    if "://" in source or re.match(r"[A-Za-z0-9+.-]+::|[^/]*@", source) or not source.strip() or "\0" in source:
        return source
    path = place / os.path.expanduser(source)  # noqa: PTH111 - leaves the name of a user that is none; pathlib fails
    looks_like_one = source in (".", "..") or source.startswith(("/", "./", "../", "~"))
    return str(path.resolve()) if looks_like_one or path.is_dir() else source


def start_command(
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


def cancel_command(project: Identity, manager: Manager = None, as_json: Json = False) -> None:
    """Cancel a project; too late once its images' tags move."""
    with connected(manager) as client:
        done = client.cancel(client.find(project))
    if as_json:
        print_json(done)
    else:
        say(f"project {done['id']} is {done.get('state')}")


def logs_command(project: Identity, manager: Manager = None) -> None:
    """Print what a project's builder printed, as far as it is kept."""
    with connected(manager) as client:
        text = client.logs(client.find(project))
    if text:
        lines = text.replace("\r\n", "\n").expandtabs().removesuffix("\n")
        sys.stdout.write(plain(lines) + "\n")
    else:
        say("nothing was printed so far")


def watch_command(project: Identity, manager: Manager = None, as_json: JsonLines = False) -> None:
    """Follow a project, from its first event to its outcome, which is the exit code."""
    with connected(manager) as client:
        raise SystemExit(watch(client, client.find(project), as_json=as_json))

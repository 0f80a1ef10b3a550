"""A project followed to its outcome, which is what the command ends with."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flops.cli.manager_client import ManagerClient
from flops.cli.refusal import failure_from
from flops.cli.render import data_console, one_line
from flops.observer import terminal
from flops.observer.feed import Feed
from flops.observer.words import revision
from flops.settings import Settings
from flops_wire.manager import EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Manager = Annotated[
    str | None,
    typer.Option("--manager", metavar="URL", help="The manager [default: FLOPS_MANAGER, else this machine's]."),
]
Identity = Annotated[str, typer.Argument(metavar="ID", help="The project, or the first characters of its id.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, in failure too.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print events as JSON, one per line.")]


def connected(manager: str | None) -> ManagerClient:
    """The manager that the option, the settings or the default name."""
    return ManagerClient.of(manager, Settings.read())


def say(message: str) -> None:
    """Something about the way of the data, not of them."""
    sys.stderr.write(one_line(message) + "\n")
    sys.stderr.flush()


def watch(client: ManagerClient, project: str, *, as_json: bool) -> int:
    """Show a project until it has its outcome; the exit code that stands for that."""
    try:
        found = client.project(project)
        connection = _Connection(client.url)
        events = connection.heard(client.follow(project, lost=connection.lost))
        if as_json:
            _stream(events)
        else:
            _show(events, title_of(found))
        return outcome_code(client.project(project))
    except KeyboardInterrupt:
        say(f"the project goes on; `flops project cancel {project[:12]}` would end it")
        raise


def _stream(events: Iterator[dict[str, Any]]) -> None:
    feed = Feed()
    for event in events:
        sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
        sys.stdout.flush()
        feed.add([event])
        if feed.outcome is not None:
            break


def _show(events: Iterator[dict[str, Any]], title: str) -> None:
    feed = Feed()
    console = data_console()
    with terminal.view(console, title) as shown:
        for event in events:
            shown.show(feed, feed.add([event]))
            if feed.outcome is not None:
                break
    console.print(terminal.summary(feed))


class _Connection:
    """Says when it is lost, and when something was heard again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._away = False

    def lost(self, why: str) -> None:
        self._away = True
        say(f"reconnecting to {self._url}: {why}")

    def heard(self, events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for event in events:
            if self._away:
                self._away = False
                say("connected again")
            yield event


def title_of(project: Mapping[str, Any]) -> str:
    commit = revision(str(project.get("commit") or ""))
    return f"project {str(project.get('id'))[:12]}: {project.get('repository')}{f' at {commit}' if commit else ''}"


def outcome_code(project: Mapping[str, Any]) -> int:
    """A failure's own exit code where its class is known."""
    state = str(project.get("state"))
    error = project.get("error")
    if state == "failed" and isinstance(error, dict):
        return failure_from(error).exit_code
    return EXIT_CODES.get(state, EXIT_CODES["failed"])

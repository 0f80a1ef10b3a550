"""`flops observe`: follow a project through a manager of ours, or beside an existing FLOps through its broker."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from flops.cli.watching import JsonLines, Manager, connected, say, watch
from flops.compat.broker import BrokerAddress, Listener
from flops.errors import UsageError
from flops.observer.feed import ID, BrokerFeed
from flops.observer.terminal import told_lines
from flops.settings import Settings
from flops_wire.flops import BROKER_PORT
from flops_wire.manager import EXIT_CODES

if TYPE_CHECKING:
    from flops.compat.broker import Message

#: Seconds of silence after the outcome in which the last texts may still come.
_AFTERWARDS = 1.0
_PATIENCE = 0.5


def command(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Its id; with a manager, or its first characters.")],
    manager: Manager = None,
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker", metavar="HOST[:PORT]", help="Listen to FLOps' MQTT broker instead of asking a manager."
        ),
    ] = None,
    as_json: JsonLines = False,
) -> None:
    """Follow a project until its images are ready or its builder has failed, which is the exit code."""
    if broker is None:
        with connected(manager) as client:
            raise SystemExit(watch(client, client.find(project), as_json=as_json))
    if manager is not None:
        raise UsageError("--manager and --broker are two ways of following a project", hint="name one of them")
    if not ID.fullmatch(project):
        raise UsageError(f"{project[:100]!r} is no project's id", hint="letters and digits, as FLOps shows it")
    raise SystemExit(_listen(project, broker, as_json=as_json))


def _listen(project: str, broker: str, *, as_json: bool) -> int:
    address = BrokerAddress.parse(broker, port=BROKER_PORT)
    feed = BrokerFeed(project)
    console = Console(soft_wrap=True, highlight=False)

    def lost(why: str) -> None:
        say(f"reconnecting to {address}: {why}")

    def back() -> None:
        say("listening again")

    with Listener(address, feed.topics, lost=lost, back=back, ca_bundle=Settings.read().ca_bundle) as listener:
        say(f"listening at {address}")
        quiet_since = time.monotonic()
        while feed.succeeded is None or time.monotonic() - quiet_since < _AFTERWARDS:
            message = listener.next(_PATIENCE)
            if message is not None and (told := feed.take(message.topic, message.payload, repeated=message.repeated)):
                quiet_since = time.monotonic()
                if as_json:
                    _print(message)
                else:
                    for line in told_lines(told):
                        console.print(line)
    if not as_json:
        console.print(Text("images are ready" if feed.succeeded else "failed", "bold"))
    return EXIT_CODES["images_ready" if feed.succeeded else "failed"]


def _print(message: Message) -> None:
    text = message.payload.decode("utf-8", "replace")
    payload: Any = text
    if message.topic.startswith("flops_manager/"):
        payload = json.loads(text)
    sys.stdout.write(json.dumps({"topic": message.topic, "payload": payload}, separators=(",", ":")) + "\n")
    sys.stdout.flush()

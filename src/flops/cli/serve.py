"""`flops serve`: manager, page and registry in one process."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from flops import programs
from flops.cli.options import Json
from flops.cli.render import one_line, print_json
from flops.cli.service import Listening, Service
from flops.errors import BadSetting
from flops.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping


_ABOUT = ("project", "attempt", "stage", "kind", "code")


class LogForm(Enum):
    TEXT = "text"
    JSON = "json"


def start(form: LogForm, *, verbose: bool = False) -> None:
    """Send what the product logs to stderr, and of the server underneath what is a warning."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form is LogForm.JSON else _Text())
    ours = logging.getLogger("flops")
    ours.handlers[:] = [handler]
    ours.setLevel(logging.DEBUG if verbose else logging.INFO)
    ours.propagate = False
    # a reader that was let go is no news
    server = logging.getLogger("uvicorn")
    server.handlers[:] = [handler]
    server.setLevel(logging.CRITICAL if not verbose else logging.WARNING)
    server.propagate = False


def heard(project: Any, event: dict[str, Any]) -> None:
    """A stored event of a project, for `--verbose` (`Bus.listen`)."""
    about = {key: event.get(key) for key in _ABOUT}
    logging.getLogger("flops.events").debug("%s", event.get("message"), extra={**about, "project": project.id})


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record.created, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: getattr(record, key) for key in _ABOUT if getattr(record, key, None) is not None}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Text(logging.Formatter):
    """Text from repositories and builders stands in messages, so a line stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        about = ", ".join(f"{key} {getattr(record, key)}" for key in _ABOUT if getattr(record, key, None) is not None)
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = f"{_time(record.created, '%H:%M:%S')} {level}{one_line(record.getMessage())}"
        line += f" ({one_line(about)})" if about else ""
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(seconds: float, form: str) -> str:
    return time.strftime(form, time.gmtime(seconds))


_log = logging.getLogger("flops.serve")
#: Characters of a token that are too few.
_SHORT = 16

Host = Annotated[
    str, typer.Option("--host", metavar="H", help="Where to listen; beyond loopback FLOPS_AUTH is needed.")
]
Port = Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="Of manager and page; 0: a free one.")]
RegistryPort = Annotated[
    int, typer.Option("--registry-port", metavar="N", min=0, max=65535, help="Of the embedded registry.")
]
RegistryOption = Annotated[
    str | None, typer.Option("--registry", metavar="URL", help="Another registry, [http://]HOST[:PORT][/PREFIX].")
]
Where = Annotated[
    str | None, typer.Option("--orchestrator", help="What runs builders: local, oakestra [default: local].")
]
Builders = Annotated[int | None, typer.Option("--builders", metavar="N", help="Builders at once [default: 2].")]
Broker = Annotated[
    str | None,
    typer.Option("--broker", metavar="URL", help="FLOps' MQTT broker, [mqtt[s]://][USER:PASSWORD@]HOST[:PORT]."),
]
Advertise = Annotated[
    str | None, typer.Option("--advertise", metavar="URL", help="The manager's address for builders and browsers.")
]
ObserverPort = Annotated[
    int | None, typer.Option("--observer-port", metavar="N", help="Take FLOps' TCP messages there (2727 in FLOps).")
]
Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Database, registry, logs.")]
AllowLocal = Annotated[
    bool | None, typer.Option("--allow-local/--no-allow-local", help="Projects may name directories of this machine.")
]
LogFormat = Annotated[LogForm, typer.Option("--log-format", help="How the log on stderr is written.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log every request and event.")]


def command(
    host: Host = "127.0.0.1",
    port: Port = 5072,
    registry_port: RegistryPort = 5073,
    registry: RegistryOption = None,
    orchestrator: Where = None,
    builders: Builders = None,
    broker: Broker = None,
    advertise: Advertise = None,
    observer_port: ObserverPort = None,
    data: Data = None,
    allow_local: AllowLocal = None,
    log_format: LogFormat = LogForm.TEXT,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Run the manager, its page and a registry until Ctrl-C or SIGTERM; builders go on and are found again."""
    given = {
        "registry": registry,
        "orchestrator": orchestrator,
        "builders": builders,
        "broker": broker,
        "advertise": advertise,
        "observer_port": observer_port,
        "data_dir": Path(os.path.expanduser(data)).absolute() if data else None,  # noqa: PTH111 - as in sla_file
        "allow_local": allow_local,
    }
    settings = _settings({name: value for name, value in given.items() if value is not None})
    start(log_format, verbose=verbose)
    _warn(settings)
    with (
        suppress(KeyboardInterrupt),  # while it is starting; later, signals are the server's
        Service(settings, Listening(host=host, port=port, registry_port=registry_port)) as service,
    ):
        if verbose:
            service.bus.listen(heard)
        service.run(lambda: _tell(service, settings, as_json=as_json))
    programs.cancel()  # what the reconciler still asks of git hosts: it is asked again at the next start


def _warn(settings: Settings) -> None:
    """Of a token that does not do what it looks like."""
    if settings.api_token is not None and settings.auth is None:
        _log.warning("FLOPS_API_TOKEN is set and FLOPS_AUTH is not: nobody is asked for the token")
    elif settings.auth == "token" and settings.api_token is not None and len(settings.api_token) < _SHORT:
        _log.warning("FLOPS_API_TOKEN has less than %d characters and can be guessed", _SHORT)


def _settings(given: Mapping[str, Any]) -> Settings:
    """What the command line says counts before the environment."""
    settings = Settings.read()
    try:
        return Settings.model_validate({**settings.model_dump(), **given})
    except ValidationError as error:
        wrong = "; ".join(f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}" for e in error.errors())
        raise BadSetting(f"options can't be used: {wrong}", hint="flops serve --help lists what there is") from error


def _tell(service: Service, settings: Settings, *, as_json: bool) -> None:
    """Where everything is."""
    url, registry = service.url, service.registry
    places = {
        "manager": url,
        "page": f"{url}/projects",
        "docs": f"{url}/docs",
        "health": f"{url}/healthz",
        "metrics": f"{url}/metrics",
        "registry": registry,
        "database": str(service.database),
        "orchestrator": settings.orchestrator,
        "builders": settings.builders,
        "auth": settings.auth or "none",
        "observer_port": service.observer_port,
    }
    if as_json:
        print_json(places)
        return
    login = {"token": "by FLOPS_API_TOKEN", "oakestra": "by Oakestra's tokens"}.get(
        settings.auth or "", "none, for programs and pages of this machine only"
    )
    lines = {
        "manager": f"{url}   (API: /docs, health: /healthz, metrics: /metrics)",
        "page": f"{url}/projects",
        "login": login,
        "registry": registry + ("" if settings.registry else "   (embedded, for this machine)"),
        "database": str(service.database),
        "builders": f"{settings.builders} at once, {settings.orchestrator}",
        "stop": "Ctrl-C or SIGTERM; builders go on, and the next start finds them",
    }
    if service.observer_port is not None:
        lines["observer"] = f"port {service.observer_port}, FLOps' messages (TCP)"
    if settings.broker is not None:
        lines["mirror"] = "FLOps' broker is told what happens"
    out = Console(soft_wrap=True, highlight=False)
    for name, told in lines.items():
        out.print(Text(f"{name:<9} {told}"))

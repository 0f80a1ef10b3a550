"""The parts of `flops serve`, put together in the order in which they need each other, and ended in the opposite one."""

from __future__ import annotations

import resource
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from flops.compat.broker import BrokerAddress, Publisher
from flops.errors import BadSetting, BaseUnavailable, ProjectNotFound, RegistryError
from flops.observer.web import ObserverPages
from flops.oci.reference import Registry
from flops.orchestrators import ManagerContext, start_orchestrator
from flops.registry.app import EmbeddedRegistry
from flops.service.access import Access
from flops.service.api import create_app
from flops.service.bus import Bus
from flops.service.health import check_reconciler, check_registry, check_store
from flops.service.inbox import inbox
from flops.service.manager_settings import ManagerSettings
from flops.service.mirror import Mirror
from flops.service.operations import Manager
from flops.service.project import State
from flops.service.server import Instance, listen, serve
from flops.service.store import Store
from flops.throttle import Throttle
from flops.use_cases.lookup import ImageLookup, SourceLookup
from flops_wire.flops import BROKER_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from socket import socket

    from fastapi import FastAPI

    from flops.settings import Settings


class ManagerProjects:
    """See `flops.observer.feed_cache.Projects`."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def page(self, *, limit: int, offset: int, state: str | None, text: str) -> tuple[list[Mapping[str, Any]], int]:
        page = self._manager.projects(limit=limit, offset=offset, state=State(state) if state else None, text=text)
        return [project.to_json() for project in page.projects], page.total

    def show(self, project: str) -> Mapping[str, Any]:
        return self._manager.project(project).to_json()

    def events(self, project: str, *, after: int, limit: int) -> list[dict[str, Any]]:
        return self._manager.events(project, after=after, limit=limit)

    def cancel(self, project: str) -> Mapping[str, Any]:
        return self._manager.cancel(project).to_json()

    def again(self, project: str) -> Mapping[str, Any]:
        found = self._manager.project(project)
        if not found.sla:
            raise ProjectNotFound(f"what project {project} asked for is not known any more")
        return self._manager.submit(dict(found.sla), force=True).project.to_json()


#: Event streams and builders' connections are open files.
_FILES = 65_536
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a client of this machine finds them


@dataclass(frozen=True, kw_only=True)
class Listening:
    host: str
    port: int
    registry_port: int


class Service:
    """`with Service(...) as it: it.run(started)`. BadSetting (and others) where a part can't be had."""

    def __init__(self, settings: Settings, listening: Listening) -> None:
        self._settings = settings
        self._listening = listening
        self._parts = ExitStack()
        self._stop = threading.Event()
        self.directory = settings.data_dir / "manager"
        self.database = self.directory / "projects.sqlite3"
        self.access = Access.of(settings, listening.host)
        self.bus = Bus()
        self._throttle = Throttle("the registry")

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._parts.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def _start(self) -> None:
        """Everything but the HTTP server."""
        settings, parts = self._settings, self._parts
        _allow_files()
        self._instance = parts.enter_context(Instance(self.directory))
        self._listener = self._listen()
        self.url = _url(self._listening.host, self._listener.getsockname()[1])
        self.registry = self._registry()
        store = parts.enter_context(Store(self.database))
        known = ManagerSettings.of(
            settings,
            registry=self.registry,
            advertise=settings.advertise or self.url,
            registry_login=self._registry_login(),
        )
        context = ManagerContext(
            settings=settings,
            directory=self.directory,
            url=known.advertise,
            registry=known.registry,
            mirrors=partial(_debian, settings),
        )
        registry = Registry.parse(self.registry)
        self.manager = Manager(
            store,
            orchestrator=parts.enter_context(start_orchestrator(settings.orchestrator, context)),
            sources=SourceLookup(
                allow_local=known.allow_local, allow_hosts=known.allow_hosts, ca_bundle=settings.ca_bundle
            ),
            images=ImageLookup(
                registry=registry,
                pull_name=Registry.parse(settings.registry_pull) if settings.registry_pull else None,
                ca_bundle=settings.ca_bundle,
                login=known.registry_login,
            ),
            settings=known,
            bus=self.bus,
        )
        self._throttle.on_failure = partial(self.manager.tallies.add, "logins_failed")
        self.app = self._application(store, registry)
        self.observer_port = self._components(store)
        parts.callback(self._end)
        self.manager.run(self._stop)

    def run(self, started: Callable[[], None]) -> None:
        """Answer until SIGTERM or SIGINT; `started` is called once requests are taken."""

        def told() -> None:
            self._instance.tell(self.url)
            started()

        serve(self.app, self._listener, started=told)

    def _end(self) -> None:
        self._stop.set()
        self.manager.close()

    def _listen(self) -> socket:
        listener = listen(self._listening.host, self._listening.port)
        self._parts.callback(listener.close)
        return listener

    def _registry(self) -> str:
        """Another one where the settings name it; else the embedded one, which serves this machine."""
        if self._settings.registry is not None:
            return self._settings.registry
        embedded = EmbeddedRegistry(
            self._settings.data_dir / "registry",
            port=self._listening.registry_port,
            token=self._registry_token(),
            throttle=self._throttle,
        )
        try:
            return self._parts.enter_context(embedded).registry.url
        except RegistryError as error:
            if error.__cause__ is None:
                raise
            raise BadSetting(error.message, hint="choose another --registry-port") from error  # as for --port

    def _registry_token(self) -> str:
        """What the embedded registry wants from those who push; another registry has its own logins."""
        token = self._settings.registry_token
        return token.get_secret_value() if token is not None and self._settings.registry is None else ""

    def _registry_login(self) -> dict[str, str] | None:
        """Builders' own, at the embedded registry."""
        token = self._registry_token()
        host = Registry.parse(self.registry).host
        return {"host": host, "username": "flops", "password": token} if token else None

    def _components(self, store: Store) -> int | None:
        """FLOps' own components: their broker hears of projects, and what they send comes in, at this port. BadSetting.

        They know no login, so the port is opened only where it is asked for.
        """
        settings = self._settings
        if settings.broker is not None:
            address = BrokerAddress.parse(settings.broker, port=BROKER_PORT)
            mirror = Mirror(
                store,
                Publisher(address, ca_bundle=settings.ca_bundle),
                backlog=settings.broker_backlog,
                dropped=partial(self.manager.tallies.add, "mirror_dropped"),
            )
            self._parts.callback(mirror.close)
            mirror.start()
        if settings.observer_port is None:
            return None
        host = settings.observer_host or self._listening.host
        return self._parts.enter_context(inbox(self.manager, host, settings.observer_port))[1]

    def _application(self, store: Store, registry: Registry) -> FastAPI:
        checks: dict[str, Callable[[], object]] = {
            "database": partial(check_store, store),
            "reconciler": partial(check_reconciler, self.manager),
            "registry": partial(check_registry, registry.url, self._settings.ca_bundle),
        }
        pages = ObserverPages(ManagerProjects(self.manager), login=self.access.gate.wants_token)
        return create_app(self.manager, self.access, checks=checks, pages=pages.routes())


def _debian(settings: Settings) -> dict[str, str]:
    """A builder in a container has no mirror of its own: it gets this machine's, where there is one."""
    from flops.base.debian.apt import mirror  # noqa: PLC0415 - as above

    try:
        found = mirror(main=settings.debian_mirror, security=settings.debian_security_mirror)
    except BaseUnavailable:
        return {}
    archives = {"FLOPS_DEBIAN_MIRROR": found.main, "FLOPS_DEBIAN_SECURITY_MIRROR": found.security}
    return {name: value for name, value in archives.items() if value}


def _url(host: str, port: int) -> str:
    name = _EVERYWHERE.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

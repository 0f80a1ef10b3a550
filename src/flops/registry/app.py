"""A small OCI registry over a directory (distribution specification 1.1: pull, push, discovery, management).

For one machine or a small site. Limits: sha256 digests alone; uploads live in the memory of one process, so a client begins
its upload anew after a restart; manifests up to 4 MiB; one token for all who push, no accounts; plain HTTP, TLS is a proxy's;
bytes of deleted blobs stay on the disk until `garbage.collect`, since other repositories may share them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flops.connections import Room, Server, listen
from flops.errors import DiskFull, FlopsError, RegistryError
from flops.oci.reference import Registry
from flops.registry.blob_api import BlobApi
from flops.registry.manifest_api import ManifestApi
from flops.registry.protocol import Refusal
from flops.registry.storage import RegistryStore
from flops.registry.tokens import Rules, TokenAccess
from flops.throttle import Throttle

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path
    from types import TracebackType

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("flops.registry")
#: Seconds until the server must listen, and until it must have ended.
_PATIENCE = 20.0
#: Of the files that the process may open, for connections; each may have a blob's file open too.
_SHARE = 0.125


def create_app(
    root: Path,
    *,
    read_only: bool = False,
    token: str = "",
    private: bool = False,
    hosts: Collection[str] = (),
    throttle: Throttle | None = None,
) -> Starlette:
    """The registry as an ASGI application; `read_only` refuses all that would change it (405).

    With a `token`, who pushes or deletes must send it, and who pulls where it is `private`. `hosts` are names under which it
    is reached, beside addresses and loopback names.
    """
    store = RegistryStore(root)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if not read_only:
            store.prepare()
        yield
        store.close()

    app = Starlette(
        routes=_routes(BlobApi(store), ManifestApi(store), read_only=read_only),
        lifespan=lifespan,
        exception_handlers={
            Refusal: _refused,
            FlopsError: _failed,
            HTTPException: _unsupported,
            ClientDisconnect: _gone,
        },
    )
    app.router.redirect_slashes = False
    rules = Rules(token=token, private=private, hosts=tuple(name.lower() for name in hosts))
    app.add_middleware(TokenAccess, rules=rules, throttle=throttle or Throttle("the registry"))
    app.add_middleware(_ApiVersion)
    return app


def _routes(blobs: BlobApi, manifests: ManifestApi, *, read_only: bool) -> list[Route]:
    """A name holds slashes, so the more special path stands first."""
    upload = "/v2/{name:path}/blobs/uploads"
    session, blob = f"{upload}/{{upload}}", "/v2/{name:path}/blobs/{digest}"
    manifest = "/v2/{name:path}/manifests/{reference}"
    reading = [
        Route("/v2/", _base, methods=["GET"]),
        Route("/v2", _base, methods=["GET"]),
        Route("/v2/_catalog", manifests.catalog, methods=["GET"]),
        Route("/v2/{name:path}/tags/list", manifests.tags, methods=["GET"]),
        Route("/v2/{name:path}/referrers/{digest}", manifests.referrers, methods=["GET"]),
        Route(blob, blobs.get, methods=["GET"]),
        Route(manifest, manifests.get, methods=["GET"]),
    ]
    writing = [
        Route(f"{upload}/", blobs.begin, methods=["POST"]),
        Route(upload, blobs.begin, methods=["POST"]),
        Route(session, blobs.status, methods=["GET"]),
        Route(session, blobs.append, methods=["PATCH"]),
        Route(session, blobs.complete, methods=["PUT"]),
        Route(session, blobs.cancel, methods=["DELETE"]),
        Route(blob, blobs.delete, methods=["DELETE"]),
        Route(manifest, manifests.put, methods=["PUT"]),
        Route(manifest, manifests.delete, methods=["DELETE"]),
    ]
    if read_only:
        writing = [Route(route.path, _read_only, methods=sorted(route.methods or ())) for route in writing]
    return [*writing, *reading]


async def _base(_request: Request) -> Response:
    return JSONResponse({})


async def _read_only(request: Request) -> Response:
    headers = {"Allow": _allowed(request)}
    raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only", headers=headers)


def _allowed(request: Request) -> str:
    """What may be done with a path (RFC 9110, 10.2.1)."""
    routes = [route for route in request.app.routes if isinstance(route, Route) and route.endpoint is not _read_only]
    methods = [route.methods or () for route in routes if route.path_regex.match(request.scope["path"])]
    return ", ".join(sorted({method for some in methods for method in some}))


async def _refused(_request: Request, error: Exception) -> Response:
    return error.response() if isinstance(error, Refusal) else _internal()


async def _failed(_request: Request, error: Exception) -> Response:
    if isinstance(error, DiskFull):
        _log.warning("%s", error.message)  # its path is nobody's business but the operator's
        return Refusal(
            HTTPStatus.INSUFFICIENT_STORAGE, "DENIED", "no space is left for what this registry keeps"
        ).response()
    return _internal()


async def _unsupported(request: Request, error: Exception) -> Response:
    status = HTTPStatus(error.status_code) if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    code = "NAME_UNKNOWN" if status == HTTPStatus.NOT_FOUND else "UNSUPPORTED"
    headers = {"Allow": _allowed(request)} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
    return Refusal(status, code, status.phrase, headers=headers).response()


async def _gone(_request: Request, _error: Exception) -> Response:
    """The client went away in the middle of a body: nobody reads this answer."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)


def _internal() -> Response:
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry failed").response()


class _ApiVersion:
    """Tells on every answer what this is, as older clients look for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Docker-Distribution-API-Version"] = "registry/2.0"
            await send(message)

        await self._app(scope, receive, marked)


class EmbeddedRegistry:
    """Runs the registry in a thread for as long as the context lasts: `with EmbeddedRegistry(root) as it: it.registry`.

    Port 0 takes a free one. RegistryError where it can't listen.
    """

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        read_only: bool = False,
        token: str = "",
        private: bool = False,
        hosts: Collection[str] = (),
        throttle: Throttle | None = None,
    ) -> None:
        self.root = root
        self.host = host
        self.port = port
        self._app = create_app(root, read_only=read_only, token=token, private=private, hosts=hosts, throttle=throttle)
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None

    @property
    def registry(self) -> Registry:
        """How clients on this machine name it."""
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return Registry(host=f"[{name}]:{self.port}" if ":" in name else f"{name}:{self.port}", plain_http=True)

    def __enter__(self) -> Self:
        self._socket = _listen(self.host, self.port)
        self.port = self._socket.getsockname()[1]
        self._server = Server(
            self._app, Room.of(_SHARE), lifespan="on", log_level="critical", timeout_graceful_shutdown=5
        )
        self._thread = threading.Thread(
            target=_serve, args=(self._server, self._socket), name="flops-registry", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _PATIENCE
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self._stop()
                raise RegistryError(
                    f"the embedded registry did not start in {self.root}", hint="see that the directory can be written"
                )
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                self._server.force_exit = True
                self._thread.join(_PATIENCE)
        if self._socket is not None:
            self._socket.close()


def _serve(server: Server, listener: socket.socket) -> None:
    with contextlib.suppress(SystemExit):  # how uvicorn ends where the application did not start
        server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        raise RegistryError(
            f"the embedded registry can't listen on {host}:{port}: {error}", hint="choose another host or port"
        ) from error

"""Connections of the product's HTTP servers: who may hold how many of them, and for how long without asking for anything.

Nobody has to log in to open a connection, and each costs a file. So a connection is a stranger until a request on it was let
in, and strangers leave room for all others: one more than there may be ends the one that has been idle for longest.
"""

from __future__ import annotations

import ipaddress
import logging
import resource
import socket
import time
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flops.throttle import Seldom

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, MutableMapping

    from starlette.datastructures import Headers

_log = logging.getLogger("flops.http")
#: Seconds for a request's head, and for the body of one that was not let in.
HEAD_SECONDS = 10.0
#: Longer than clients keep an unused connection, so that they close it first and never send into a closing one.
_KEEP_ALIVE = 120
#: Connections that wait to be accepted, and that are accepted at once: each is a file before anybody can judge it.
_BACKLOG, _ACCEPTED = 4096, 16
#: Files that are not for connections: the database, what builders print, blobs that are being read, connections that are ending.
_RESERVED = 160
#: The most connections of one server; more of them would only cost memory.
_MOST = 8192
_KNOWN = "flops.known"


class Guest(Protocol):
    """A connection, as a `Room` sees it."""

    address: str
    busy: bool
    known: bool

    def end(self) -> None: ...


class Room:
    """At most `most` connections, three quarters of them strangers', a quarter one address'. In one thread."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._most_strangers, self._most_of_one = most, most * 3 // 4, most // 4
        self._strangers: dict[Guest, None] = {}
        self._by_address: dict[str, dict[Guest, None]] = {}
        self._known: dict[Guest, None] = {}
        self._seldom = Seldom(clock)

    @classmethod
    def of(cls, share: float) -> Room:
        """For a server that may use this share of the files that the process may open."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        free = _MOST / share if files == resource.RLIM_INFINITY else max(64, files - _RESERVED)
        return cls(min(_MOST, max(16, int(free * share))))

    @property
    def taken(self) -> int:
        return len(self._strangers) + len(self._known)

    def enter(self, guest: Guest) -> None:
        """A new one, a stranger; one or the other is ended where it is one too many."""
        others = self._by_address.get(guest.address, {})
        full = self.taken >= self._most
        if len(others) >= self._most_of_one:
            self._end(_longest(others))
        elif len(self._strangers) >= (1 if full else self._most_strangers):
            self._end(_longest(self._strangers))
        elif full and (idle := next((one for one in self._known if not one.busy), None)) is not None:
            self._end(idle)
        elif full:
            self._end(guest)
            return
        self._strangers[guest] = None
        self._by_address.setdefault(guest.address, {})[guest] = None

    def turn(self, guest: Guest, *, busy: bool) -> None:
        """It has a request that is being answered, or none any more."""
        if guest.busy != busy:
            guest.busy = busy
            for among in self._among(guest):
                if guest in among:
                    del among[guest]
                    among[guest] = None

    def know(self, guest: Guest) -> None:
        """A request of it was let in."""
        if guest in self._strangers:
            self.leave(guest)
            guest.known = True
            self._known[guest] = None

    def leave(self, guest: Guest) -> None:
        for among in self._among(guest):
            among.pop(guest, None)
        if not self._by_address.get(guest.address, True):
            del self._by_address[guest.address]

    def _among(self, guest: Guest) -> Iterable[dict[Guest, None]]:
        return (self._known,) if guest.known else (self._strangers, self._by_address.get(guest.address, {}))

    def _end(self, guest: Guest) -> None:
        self.leave(guest)
        guest.end()
        if count := self._seldom.count():
            _log.warning("connections ended for lack of room: %d, the last from %s", count, guest.address)


def _longest(among: dict[Guest, None]) -> Guest:
    """Who has been idle for longest, else who has been busy for longest."""
    return next((one for one in among if not one.busy), next(iter(among)))


class _Connection(H11Protocol):
    """uvicorn's, with a deadline for heads, in a room."""

    room: ClassVar[Room]
    address = ""
    busy = known = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = address_of(self.client)
        self._arm()
        self.room.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.room.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            self._arm()  # once: further bytes of a head give it no more time
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._settle():
            self._arm()  # the next request came with this one, and a part of its body may be missing
        else:
            self._disarm()  # idle: uvicorn has a deadline for that

    def end(self) -> None:
        self.transport.abort()

    def let_in(self) -> None:
        """A request was let in: its body has all the time that it needs."""
        self.room.know(self)
        self._settle()

    def _settle(self) -> bool:
        """Whether there is a request whose body is still to come."""
        running = self.cycle is not None and not self.cycle.response_complete
        if running:
            scope: MutableMapping[str, Any] = self.scope  # type: ignore[assignment]
            scope["extensions"] = {_KNOWN: self.let_in}
        self.room.turn(self, busy=running and (self.known or not self.cycle.more_body))
        if self.busy:
            self._disarm()
        return running and not self.busy

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.end)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """Serves an ASGI application in a room; `more` as for uvicorn.Config."""

    def __init__(self, app: Any, room: Room, **more: Any) -> None:
        config = uvicorn.Config(
            app,
            http=type("_Connection", (_Connection,), {"room": room}),
            loop="asyncio",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            backlog=_ACCEPTED,
            **more,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_BACKLOG)  # uvicorn has one number for both


def let_in(scope: MutableMapping[str, Any]) -> None:
    """The request of this scope is from somebody who may; in the loop's thread."""
    known = scope.get("extensions", {}).get(_KNOWN)
    if known is not None:
        known()


def address_of(client: tuple[str, int] | None) -> str:
    """Whose connection it is: an IPv4 address, or the network of an IPv6 one, since that is what one host has."""
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return client[0] if client else "?"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def listen(host: str, port: int) -> socket.socket:
    """A socket on host and port (0 takes a free one). OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY; without it each answer waits for a delayed ACK (40 ms).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OverflowError as error:
        listener.close()
        raise OSError(str(error)) from error
    except OSError:
        listener.close()
        raise
    return listener


#: From a browser's page of our own, or typed by its user.
_OWN_SITE = frozenset({"same-origin", "none"})


def is_own_page(headers: Headers, *origins: str) -> bool:
    """Whether a request comes from no page of another origin: programs send neither Origin nor Sec-Fetch-Site.

    A proxy may have ended TLS, so the scheme is not compared; a port that the scheme implies is left out in both. `origins`:
    further ones that are ours.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site is not None and site not in _OWN_SITE:
        return False
    scheme, separator, place = (origin or "").lower().partition("://")
    same = bool(separator) and scheme in ("http", "https") and place == headers.get("host", "").lower()
    return origin is None or same or origin.lower() in origins

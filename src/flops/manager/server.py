"""The HTTP server that a manager's application runs on: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from flops.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

#: Longer than clients keep an unused connection, so that they close it first and never send into a closing one.
_KEEP_ALIVE = 120
#: Seconds that requests have to end in, once the manager stops.
_GRACE = 10
_BACKLOG = 1024
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def listen(host: str, port: int) -> socket.socket:
    """A socket on host and port (0 takes a free one); BadSetting where that can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY; without it each answer waits for a delayed ACK (40 ms).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        words = getattr(error, "strerror", None) or str(error)
        raise BadSetting(f"the manager can't listen on {host}:{port}: {words}", hint="choose another --port") from error
    return listener


def serve(app: FastAPI, listener: socket.socket, *, started: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; event streams end first, then requests have some seconds; a second signal waits for none.

    In the main thread; the signals' own handlers are back when it returns.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        asyncio.run(_serve(app, listener, started))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _serve(app: FastAPI, listener: socket.socket, started: Callable[[], None] | None) -> None:
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_GRACE,
            backlog=_BACKLOG,
            ws="none",
            loop="asyncio",
        ),
        started,
    )

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        app.state.streams.close()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """Without signal handlers of its own: those raise the signal again at the end."""

    def __init__(self, config: uvicorn.Config, told: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._told = told

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there by now stays: without this, each full collection goes through all of it, and every request waits for it (0.1 s).
        gc.collect()
        gc.freeze()
        if self.started and self._told is not None:
            self._told()

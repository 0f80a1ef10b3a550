"""The HTTP server that a manager's application runs on: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from typing import TYPE_CHECKING

from flops import connections
from flops.connections import Room
from flops.errors import BadSetting

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

#: Seconds that requests have to end in, once the manager stops.
_GRACE = 10
#: Of the files that the process may open.
_SHARE = 0.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def listen(host: str, port: int) -> socket.socket:
    """A socket on host and port (0 takes a free one); BadSetting where that can't be had."""
    try:
        return connections.listen(host, port)
    except OSError as error:
        words = error.strerror or str(error)
        raise BadSetting(f"the manager can't listen on {host}:{port}: {words}", hint="choose another --port") from error


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
    server = _Server(app, started)

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        app.state.streams.close()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    await server.serve(sockets=[listener])


class _Server(connections.Server):
    """Without signal handlers of its own: those raise the signal again at the end."""

    def __init__(self, app: FastAPI, told: Callable[[], None] | None) -> None:
        super().__init__(app, Room.of(_SHARE), timeout_graceful_shutdown=_GRACE)
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

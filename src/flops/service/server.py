"""The HTTP server that a manager's application runs on: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import signal
from typing import IO, TYPE_CHECKING, Self

from flops import connections
from flops.connections import Room
from flops.errors import BadSetting

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

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


class Instance:
    """Holds the lock for as long as the context lasts; BadSetting where another process has it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        path = self._directory / "lock"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise BadSetting(
                f"the data directory {self._directory} can't be written: {error.strerror}", hint="choose another --data"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            told = " ".join(self._file.read(200).split())
            self._file.close()
            raise BadSetting(
                f"another manager uses {self._directory} ({told or 'it has not said which'})",
                hint="stop that one first, or choose another --data",
            ) from error
        self.tell("starting")
        return self

    def tell(self, address: str) -> None:
        """Where this manager is, for whoever finds the lock taken."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()}, {address}\n")
            self._file.flush()

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()

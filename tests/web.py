"""A client for an ASGI application: in process, or over a real socket where streams are followed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from contextlib import contextmanager

import httpx

from flops.connections import Room, Server
from flops.service.access import Access, OpenGate, Sessions
from flops.service.server import listen

URL = "http://127.0.0.1:5072"


def open_access():
    """As a manager on loopback has it."""
    return Access(gate=OpenGate(), sessions=Sessions(secret=b""), names=frozenset({"127.0.0.1"}))


class Web:
    """Asks an application in this process; every request has an event loop of its own."""

    def __init__(self, app, *, url: str = URL, failures: bool = True, client=("127.0.0.1", 123)) -> None:
        self.app = app
        self.client = client
        self.url = url
        self.failures = failures
        self.cookies = httpx.Cookies()

    def request(self, method, path, **more):
        return asyncio.run(self._request(method, path, **more))

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, **more):
        return self.request("POST", path, **more)

    async def _request(self, method, path, **more):
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=self.failures, client=self.client)
        async with httpx.AsyncClient(transport=transport, base_url=self.url, cookies=self.cookies) as client:
            answer = await client.request(method, path, **more)
            self.cookies = client.cookies
            return answer


@contextmanager
def serving(app, room=None):
    """The application on a real socket, for as long as the context lasts: its URL. Streams end first, as in `flops serve`."""
    listener = listen("127.0.0.1", 0)
    server = Server(app, Room.of(0.5) if room is None else room, timeout_graceful_shutdown=5)
    loops = []

    async def serve():
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    until = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loops[0].call_soon_threadsafe(app.state.streams.close)
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


class Reader:
    """Reads an event stream line by line, in its own thread."""

    def __init__(self, client, path, **more) -> None:
        self.events, self.comments, self.status, self.headers = [], [], None, None
        self._client, self._path, self._more = client, path, more
        self._news = threading.Condition()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with contextlib.suppress(httpx.RemoteProtocolError):  # broken off: what came before is there
            self._follow()

    def _follow(self) -> None:
        with self._client.stream("GET", self._path, **self._more) as answer:
            self.status, self.headers = answer.status_code, answer.headers
            fields = {}
            for line in answer.iter_lines():
                if line.startswith(":"):
                    self.comments.append(line)
                elif line:
                    key, _, value = line.partition(": ")
                    fields[key] = value
                else:
                    if "data" in fields:
                        with self._news:
                            self.events.append(fields)
                            self._news.notify_all()
                    fields = {}

    def wait_for(self, count):
        with self._news:
            assert self._news.wait_for(lambda: len(self.events) >= count, timeout=20), self.events
        return self.events

    def end(self):
        """Everything, once the stream has ended by itself."""
        self.thread.join(20)
        assert not self.thread.is_alive(), self.events
        return self.events

    @property
    def documents(self):
        return [json.loads(one["data"]) for one in self.events]

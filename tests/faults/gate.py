"""Requests that are held, refused or cut on their way, as a slow or broken network would: before git hosts and registries."""

from __future__ import annotations

import base64
import contextlib
import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class Cut(Exception):
    """The connection ends without an answer."""


class Gate:
    """Requests that `rule(method, path)` is true for wait until the gate is opened; while it is `down`, all are cut."""

    def __init__(self):
        self.down = False
        self.requests = []
        self.login = None
        """`(username, password)` that every request must bring (RFC 7617)."""
        self._changed = threading.Condition()  # its lock is one that a thread may take twice
        self._rule = self._dropped = None
        self._held = 0
        self._skip = 0

    def close(self, rule=lambda _method, _path: True, *, after=0):
        """Hold what fits, from the request after so many fitting ones on."""
        with self._changed:
            self._rule, self._held, self._skip = rule, 0, after

    def open(self):
        with self._changed:
            self._rule = None
            self._changed.notify_all()

    def drop(self):
        """Cut what is held, and hold no more."""
        with self._changed:
            self._dropped = self._rule
            self.open()

    def wait(self, count=1, seconds=120):
        """Until so many requests are held."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held >= count, seconds), f"{self._held} requests are held"

    def knows(self, authorization):
        """Whether the request may come in at all."""
        if self.login is None:
            return True
        return authorization == "Basic " + base64.b64encode(":".join(self.login).encode()).decode()

    def admit(self, method, path):
        """Called by servers; returns when the request may go on."""
        with self._changed:
            self.requests.append((method, path))
            if self.down:
                raise Cut
            rule = self._rule
            if rule is None or not rule(method, path):
                return
            if self._skip:
                self._skip -= 1
                return
            self._held += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._rule is not rule, 300)
            if self.down or self._dropped is rule:
                raise Cut


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    gate: Gate
    upstream: tuple[str, int]

    def handle_error(self, request, client_address):
        pass  # a client that was killed in mid-request is what this is for


def ask_for_login(handler):
    handler.send_response(401)
    handler.send_header("WWW-Authenticate", 'Basic realm="here"')
    handler.send_header("Content-Length", "0")
    handler.end_headers()


class Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Quiet

    def forward(self):
        body = self._body()
        server = self.server
        if not server.gate.knows(self.headers.get("Authorization")):
            ask_for_login(self)
            return
        try:
            server.gate.admit(self.command, self.path)
        except Cut:
            self.close_connection = True
            return
        connection = http.client.HTTPConnection(*server.upstream, timeout=60)
        with contextlib.closing(connection):
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP | {"date", "server"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gate.open()
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextlib.contextmanager
def before(host, port):
    """A gate before an HTTP server: the gate, and where it listens."""
    server = Quiet(("127.0.0.1", 0), Forwarder)
    server.upstream, server.gate = (host, int(port)), Gate()
    with running(server):
        yield server.gate, f"http://127.0.0.1:{server.server_port}"

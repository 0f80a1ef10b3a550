"""HTTPS on loopback, with certificates for a test."""

import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.agents.append(self.headers.get("User-Agent", ""))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def serving(authority, *names, status=200, agents=None, **times):
    """A server whose certificate this authority issued for these names; `agents` takes who asked it, and all get `status`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **times).configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.status, server.agents = status, [] if agents is None else agents
    server.handle_error = lambda *_: None  # a client that does not trust it
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

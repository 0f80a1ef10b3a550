"""The registry client through relays that say the same as the embedded registry in another lawful way of HTTP."""

import http.client
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from flops.http import Retry
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.image import INDEX, ImageConfig, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.reference import Reference, Registry
from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry

pytestmark = pytest.mark.integration

#: Relays share this process: the end of a connection that was not told comes late now and then, and costs a try.
BRISK = Retry(tries=30, first=0.01, longest=0.1)


class Relay(BaseHTTPRequestHandler):
    """Hands each request on, and its answer back; what kinds change is in `headers_back` and `send_body`."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    asked: list[str]

    def relay(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(f"{self.command} {self.path}")
        onward = http.client.HTTPConnection(self.upstream, timeout=20)
        kept = {name: value for name, value in self.headers.items() if name not in {"Host", "Connection"}}
        onward.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
        answer = onward.getresponse()
        data = answer.read()
        self.answer(answer.status, dict(answer.getheaders()), data)
        onward.close()

    def do_GET(self):
        self.relay()

    def do_HEAD(self):
        self.relay()

    def do_POST(self):
        self.relay()

    def do_PUT(self):
        self.relay()

    def do_PATCH(self):
        self.relay()

    def do_DELETE(self):
        self.relay()

    def answer(self, status, headers, data):
        self.send_response(status)
        for name, value in headers.items():
            if name not in {"date", "server", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


class OldProtocol(Relay):
    """HTTP/1.0: a body ends with its connection, and nothing tells its length."""

    protocol_version = "HTTP/1.0"

    def answer(self, status, headers, data):
        super().answer(status, {name: value for name, value in headers.items() if name != "content-length"}, data)


class Chunked(Relay):
    """No answer with a body tells its length."""

    def answer(self, status, headers, data):
        if self.command == "HEAD" or not data:
            super().answer(status, headers, data)
            return
        self.send_response(status)
        for name, value in headers.items():
            if name != "content-length":
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(data), 7000):
            piece = data[start : start + 7000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


class Closing(Relay):
    """Every connection ends after one answer, and the answer does not tell so."""

    def answer(self, status, headers, data):
        super().answer(status, headers, data)
        self.close_connection = True


class Terse(Relay):
    """It tells no digests."""

    def answer(self, status, headers, data):
        super().answer(
            status, {name: value for name, value in headers.items() if name != "docker-content-digest"}, data
        )


class Stateful(Relay):
    """An upload's address carries its state in the query, and is told relative to the request's."""

    def relay(self):
        self.path = self.path.replace("_state=a%2Fb%3D%3D&", "").replace("?_state=a%2Fb%3D%3D", "")
        super().relay()

    def answer(self, status, headers, data):
        if status == 202 and "location" in headers:
            told = headers["location"]
            headers["location"] = self.told(f"{told}?_state=a%2Fb%3D%3D")
        super().answer(status, headers, data)

    def told(self, location):
        return (
            os.path.relpath(urlsplit(location).path, os.path.dirname(urlsplit(self.path).path)) + "?_state=a%2Fb%3D%3D"
        )


class StatefulAbsolute(Stateful):
    """The same, with the whole address."""

    def told(self, location):
        return f"http://{self.headers['Host']}{location}"


class Elsewhere(Relay):
    """Blobs are read from another host."""

    def relay(self):
        if self.command in {"GET", "HEAD"} and "/blobs/sha256:" in self.path:
            self.asked.append(f"{self.command} {self.path}")
            self.answer(
                307,
                {"location": f"http://localhost:{self.upstream.rpartition(':')[2]}{self.path}", "content-length": "0"},
                b"",
            )
        else:
            super().relay()


class Impatient(Relay):
    """It answers 100 before every body, and 103 before every answer."""

    def relay(self):
        if self.command in {"PUT", "PATCH"}:
            self.send_response_only(100)
            self.end_headers()
        super().relay()

    def answer(self, status, headers, data):
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n")
        super().answer(status, headers, data)


KINDS = [OldProtocol, Chunked, Closing, Terse, Stateful, StatefulAbsolute, Elsewhere, Impatient]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        with EmbeddedRegistry(tmp_path_factory.mktemp("registry")) as running:
            yield running


class Running(ThreadingHTTPServer):
    asked: list[str]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def relay(request, server):
    asked = []
    handler = type("Handler", (request.param,), {"upstream": server.registry.host, "asked": asked})
    running = Running(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    running.asked = asked
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store")


@pytest.fixture
def image(store):
    def layer(size):
        with store.writer() as blob:
            writer = LayerWriter(blob)
            writer.file("data", os.urandom(size))
            made = writer.close()
            blob.commit(made.digest)
        return made

    layers = [layer(3_000_000), layer(10)]
    config = {"created": "2024-01-01T00:00:00Z", "labels": {"a": "b"}}
    return index([compose(ImageConfig(platform=one, **config), layers) for one in Platform], {"a": "b"})


@pytest.mark.parametrize("chunk", [None, 1_000_000])
def test_a_push_a_pull_and_a_delete(relay, store, image, tmp_path, chunk):
    registry = Registry.parse(f"127.0.0.1:{relay.server_port}")
    name = f"t/{os.urandom(6).hex()}"
    with RegistryClient(registry, retry=BRISK, chunk=chunk) as client:
        client.check_push([name])
        report = client.push_index(name, image, store, ["v1"])
        assert (report.uploaded_blobs, report.digest) == (4, image.digest)
        assert client.push_index(f"{name}/copy", image, store, ["v1"], mount_from=[name]).mounted_blobs == 4
        assert client.tags(name) == ("v1",)
        assert client.get_manifest(name, "v1").media_type == INDEX
        for one in image.images:
            place = Reference(registry=registry, repository=name, tag="v1")
            pulled = client.pull(place, BlobStore(tmp_path / "pulled"), one.platform)
            assert (pulled.manifest, pulled.config) == (one.manifest, one.config)
        assert client.delete_manifest(name, image.digest)
        assert client.tags(name) == ()
    if not issubclass(relay.RequestHandlerClass, Closing):
        begun = sum(line.startswith("POST") for line in relay.asked)
        assert begun == 1 + 4 + 4, "something was tried again"  # asked by check_push, uploaded, mounted

"""Random faults between the registry client and the embedded registry, in one process; shared by the unit and the soak suite.

What goes wrong with a request depends on the schedule's seed, the request and how often it was made, so a schedule that
failed can be run again by its number.
"""

import asyncio
import hashlib
import os
import random
import re
import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from flops.errors import RegistryError
from flops.http import Retry
from flops.oci.artifacts import Content
from flops.oci.blobs import BlobStore, sha256
from flops.oci.client import RegistryClient
from flops.oci.credentials import Credential, FixedCredentials
from flops.oci.descriptor import INDEX, Descriptor
from flops.oci.image import ImageConfig, compose, index, parse_index, parse_manifest
from flops.oci.layer import LayerWriter
from flops.oci.reference import Reference, Registry
from flops.platforms import Platform
from flops.registry.app import create_app
from flops.registry.storage import RegistryStore

TOKEN = "a token of the schedules"
REGISTRY = Registry.parse("http://registry.test")
#: No schedule makes more requests: none of them goes on without end.
REQUESTS = 4000


class Clock:
    """Pauses that take no time."""

    def __init__(self):
        self.seconds = 0.0

    def sleep(self, seconds):
        self.seconds += seconds


class InProcess(httpx.BaseTransport):
    """An ASGI application without sockets: its loop runs in a thread."""

    def __init__(self, app):
        self.app = app
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.lifespan = app.router.lifespan_context(app)
        self.call(self.lifespan.__aenter__())

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def stop(self):
        self.call(self.lifespan.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def handle_request(self, request):
        return self.exchange(request, b"".join(request.stream))

    def exchange(self, request, body, *, cut=False):
        """Send a request; with `cut` its client goes away after this part of the body."""
        return self.call(self._exchange(request, body, cut=cut))

    async def _exchange(self, request, body, *, cut):
        messages = [{"type": "http.request", "body": body, "more_body": cut}]
        answer: dict[str, Any] = {"status": 500, "headers": [], "body": bytearray()}

        async def receive():
            if not messages and not cut:
                await asyncio.Event().wait()  # its client stays until it has the answer
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                answer.update(status=message["status"], headers=message["headers"])
            else:
                answer["body"] += message.get("body", b"")

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("127.0.0.1", 1),
            "server": ("registry.test", 80),
        }
        await self.app(scope, receive, send)
        return answered(answer["status"], answer["headers"], bytes(answer["body"]))


def answered(status, headers, content):
    """An answer whose body is still to be read, as from a connection."""
    response = httpx.Response(status, headers=headers, stream=httpx.ByteStream(content))
    response.extensions["body"] = content
    return response


@dataclass
class Schedule:
    """What goes wrong; decided by the seed alone."""

    seed: int
    rate: float = 0.0
    limit: int | None = None
    """Bytes of a body that a proxy before the registry lets through."""
    mounts: bool = False
    chunk: int | None = None

    @classmethod
    def of(cls, seed):
        rng = random.Random(seed)
        return cls(
            seed=seed,
            rate=rng.choice([0.03, 0.08, 0.15, 0.3, 0.6]),
            limit=rng.choice([None, None, None, 700_000, 3_000_000, 100_000]),
            mounts=rng.random() < 0.4,
            chunk=rng.choice([None, None, 600_000, 1_000_000]),
        )


@dataclass
class Faulty(httpx.BaseTransport):
    """Passes requests on, or does not, or something else with them."""

    inner: InProcess
    schedule: Schedule
    repository: str
    store: RegistryStore
    happened: Counter = field(default_factory=Counter)
    asked: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle_request(self, request):
        body = b"".join(request.stream)
        line = re.sub(r"uploads/[0-9a-f]{32}", "uploads/*", f"{request.method} {request.url}")
        with self.lock:
            self.asked[line] += 1
            number = self.asked[line]
            assert self.asked.total() < REQUESTS, "this goes on without end"
        if self.schedule.limit is not None and len(body) > self.schedule.limit:
            return self.note("413", httpx.Response(413))
        rng = random.Random(f"{self.schedule.seed}|{line.replace(self.repository, '')}|{number}")
        if rng.random() >= self.schedule.rate:
            return self.inner.exchange(request, body)
        return self.fault(rng, request, body)

    def note(self, name, answer=None):
        with self.lock:
            self.happened[name] += 1
        return answer

    def fault(self, rng, request, body):
        kinds = ["drop", "lost answer", "5xx", "429", "slow"]
        path = request.url.path
        kinds += ["expired token"] if path != "/token" else []
        if "/uploads" in path:
            kinds += ["wrong Location", "wrong Location"]
            kinds += ["cut", "cut", "cut", "changed bytes"] if len(body) > 2 else []
            kinds += ["refused mount"] * 4 if "mount" in request.url.params else []
        if "/manifests/" in path and request.method == "PUT":
            kinds += ["MANIFEST_BLOB_UNKNOWN", "lost blob", "digest lie"]
        if request.method == "GET" and "/blobs/sha256" in path:
            kinds += ["changed answer", "cut answer"]
        kind = rng.choice(kinds)
        self.note(kind)
        return getattr(self, kind.replace(" ", "_").replace("5xx", "failing").replace("429", "busy"))(
            rng, request, body
        )

    def drop(self, rng, request, body):
        raise rng.choice([httpx.ConnectError("refused"), httpx.ConnectTimeout("no answer"), httpx.WriteError("reset")])

    def lost_answer(self, rng, request, body):
        self.inner.exchange(request, body)
        raise httpx.ReadError("connection reset by peer")

    def failing(self, rng, request, body):
        return httpx.Response(rng.choice([500, 502, 503, 504]), content=b"<html>")

    def busy(self, rng, request, body):
        return httpx.Response(
            429, headers={"Retry-After": rng.choice(["1", "20", "9999", "Wed, 21 Oct 2015 07:28:00 GMT", "x"])}
        )

    def slow(self, rng, request, body):
        if rng.random() < 0.5:
            self.inner.exchange(request, body)
        raise httpx.ReadTimeout("nothing came for a long time")

    def expired_token(self, rng, request, body):
        request.headers.pop("authorization", None)
        return self.inner.exchange(request, body)

    def wrong_Location(self, rng, request, body):
        answer = self.inner.exchange(request, body)
        if "location" in answer.headers:
            lost = [f"/v2/{name}/blobs/uploads/{'0' * 32}" for name in ("no/such", self.repository, "shared")]
            wrong = [*lost, *lost, "http://127.0.0.1:9/x", "::"]
            answer.headers["location"] = rng.choice(wrong)
        return answer

    def cut(self, rng, request, body):
        self.inner.exchange(request, body[: rng.randrange(1, len(body))], cut=True)
        raise httpx.WriteError("broken pipe")

    def changed_bytes(self, rng, request, body):
        at = rng.randrange(len(body))
        return self.inner.exchange(request, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])

    def refused_mount(self, rng, request, body):
        status = rng.choice([202, 400, 403, 404, 405])
        if status != 202:
            return httpx.Response(status)
        plain = request.url.copy_with(query=None)
        return self.inner.exchange(httpx.Request("POST", plain, headers=request.headers), b"")

    def MANIFEST_BLOB_UNKNOWN(self, rng, request, body):
        return httpx.Response(400, json={"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown"}]})

    def lost_blob(self, rng, request, body):
        """The registry has lost one of the blobs that the manifest names."""
        for descriptor in sorted(re.findall(rb"sha256:[0-9a-f]{64}", body)):
            if self.store.unlink(self.repository, descriptor.decode()):
                break
        return self.inner.exchange(request, body)

    def digest_lie(self, rng, request, body):
        answer = self.inner.exchange(request, body)
        if answer.is_success:
            answer.headers["docker-content-digest"] = "sha256:" + "0" * 64
        return answer

    def changed_answer(self, rng, request, body):
        answer = self.inner.exchange(request, body)
        return answered(answer.status_code, answer.headers, answer.extensions["body"][::-1])

    def cut_answer(self, rng, request, body):
        answer = self.inner.exchange(request, body)
        content = answer.extensions["body"]

        class Half(httpx.SyncByteStream):
            def __iter__(self):
                yield content[: len(content) // 2]
                raise httpx.RemoteProtocolError("peer closed connection")

        return httpx.Response(answer.status_code, headers=answer.headers, stream=Half())


class Playground:
    """One registry, an old and a new image, and a repository for each schedule, in which the old one is tagged `v1`."""

    def __init__(self, root):
        self.root = root
        self.inner = InProcess(create_app(root / "registry", token=TOKEN, hosts=["registry.test"]))
        self.server = RegistryStore(root / "registry")
        self.store = BlobStore(root / "store")
        self.old, self.new = self.image(b"old", 1000), self.image(b"new", 2_500_000)
        with self.client(self.inner) as client:
            client.push_index("base", self.old, self.store, ["v1"])
            client.push_index("shared", self.new, self.store, [])

    def stop(self):
        self.inner.stop()

    def client(self, transport, schedule=None, clock=None):
        credentials = FixedCredentials(by_host={REGISTRY.host: Credential(username="x", password=TOKEN)})
        retry = Retry(sleep=(clock or Clock()).sleep)
        chunk = schedule.chunk if schedule else None
        return RegistryClient(
            REGISTRY, transport=transport, credentials=credentials, retry=retry, workers=3, chunk=chunk
        )

    def image(self, text, size):
        noise = random.Random(text).randbytes
        layers = [self.layer(text + b"shared", noise(size)), self.layer(text + b"other", noise(2000))]
        images = []
        for platform in Platform:
            config = ImageConfig(platform=platform, created="2024-01-01T00:00:00Z", labels={"of": text.decode()})
            images.append(compose(config, [*layers, self.layer(str(platform).encode(), noise(900))]))
        return index(images, {"io.flops.recipe": text.decode()})

    def layer(self, name, content):
        with self.store.writer() as blob:
            writer = LayerWriter(blob)
            writer.file(name.hex(), content)
            made = writer.close()
            blob.commit(made.digest)
        return made

    def whole(self, repository, digest):
        """Read from the registry's disk: all of an image, every digest computed."""
        names = [digest]
        for entry in parse_index(self.server.read_manifest(digest)).manifests:
            assert self.server.media_type(repository, entry.digest), entry
            manifest = parse_manifest(self.server.read_manifest(entry.digest))
            blobs = [manifest.config, *manifest.layers]
            assert all(self.server.has_blob(repository, blob.digest) for blob in blobs)
            names += [entry.digest, *(blob.digest for blob in blobs)]
        for name in set(names):
            with self.server.blob_path(name).open("rb") as file:
                assert f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == name

    def run(self, seed):
        """One schedule to its end, and a rerun without faults; what happened, and how it ended."""
        schedule, repository, clock = Schedule.of(seed), f"s{seed}", Clock()
        shutil.copytree(self.root / "registry/repositories/base", self.root / "registry/repositories" / repository)
        faulty = Faulty(inner=self.inner, schedule=schedule, repository=repository, store=self.server)
        mount_from = ["shared"] if schedule.mounts else []
        try:
            with self.client(faulty, schedule, clock) as client:
                report = client.push_index(repository, self.new, self.store, ["v1"], mount_from=mount_from)
                assert report.digest == self.new.digest
                self.refer(client, repository)
                self.pull(client, repository, seed)
        except RegistryError as error:
            end = type(error).__name__
        else:
            end = "whole"
        named = self.server.resolve(repository, "v1")
        # The tag may have moved before the failure: then all of the new image was in place.
        assert named in ({self.new.digest} if end == "whole" else {self.old.digest, self.new.digest})
        if named == self.new.digest or "lost blob" not in faulty.happened:
            self.whole(repository, named)
        with self.client(self.inner) as sound:
            sound.push_index(repository, self.new, self.store, ["v1"])
            made = self.refer(sound, repository)
            assert made.digest in {entry.digest for entry in sound.referrers(repository, self.new.digest, "text/x")}
        self.whole(repository, self.server.resolve(repository, "v1"))
        assert self.server.resolve(repository, "v1") == self.new.digest
        shutil.rmtree(self.root / "registry/repositories" / repository)
        return faulty.happened, end

    def refer(self, client: RegistryClient, repository):
        subject = Descriptor(media_type=INDEX, digest=self.new.digest, size=len(self.new.document))
        return client.put_referrer(repository, subject, "text/x", Content(data=b'{"about": "new"}'))

    def pull(self, client: RegistryClient, repository, seed):
        if seed % 4:
            return
        place = self.root / f"pulled-{seed}"
        try:
            reference = Reference(registry=REGISTRY, repository=repository, tag="v1")
            pulled = client.pull(reference, BlobStore(place), Platform.LINUX_ARM64)
            for layer in pulled.layers:
                assert sha256(BlobStore(place).read(layer.digest)) == layer.digest
        finally:
            shutil.rmtree(place, ignore_errors=True)


def run_all(root, seeds, monkeypatch):
    """All schedules; Counters of what happened and of how they ended."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
    happened, ends = Counter(), Counter()
    playground = Playground(root)
    try:
        for seed in seeds:
            faults, end = playground.run(seed)
            happened += faults
            ends[end] += 1
    finally:
        playground.stop()
    return happened, ends

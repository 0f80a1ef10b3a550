"""Uploads by the rows of the faults' table: cuts, wrong offsets, refused sizes, lost sessions; against the embedded registry."""

import http.client
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from flops.errors import RegistryDigest, RegistryRefused, RegistryTooLarge, RegistryUnreachable
from flops.http import Retry, Transient
from flops.oci.blobs import BlobStore, sha256
from flops.oci.client import RegistryClient
from flops.oci.credentials import Credential, FixedCredentials
from flops.oci.image import ImageConfig, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.reference import Registry
from flops.oci.responses import Pressure
from flops.oci.upload import PushedBlob
from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry

SIZE = 3_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        with EmbeddedRegistry(tmp_path_factory.mktemp("registry")) as running:
            yield running


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return BlobStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def blob(store):
    return store.put(os.urandom(SIZE))


class Line(httpx.BaseTransport):
    """A connection that `rules` may take away: each is called with the request and its number among its kind."""

    def __init__(self, *rules):
        self.rules, self.asked, self.bytes, self.paused = rules, [], [], []
        self.inner = httpx.HTTPTransport()

    def handle_request(self, request):
        kind = f"{request.method} {re.sub('uploads/.+', 'uploads/*', request.url.path)}"
        self.asked.append(kind)
        number = self.asked.count(kind)
        body = b"".join(request.stream)
        self.bytes.append((request.method, len(body), request.headers.get("content-range")))
        for rule in self.rules:
            answer = rule(self, request, body, number)
            if isinstance(answer, httpx.Response):
                return answer
            if answer is not None:
                body = answer
        return self.send(request, body)

    def send(self, request, body):
        return self.inner.handle_request(
            httpx.Request(request.method, request.url, headers=request.headers, content=body)
        )

    def close(self):
        self.inner.close()

    def sent(self, method):
        """Bytes of the bodies of a method, and how often it was used."""
        sizes = [size for used, size, _ in self.bytes if used == method]
        return sum(sizes), len(sizes)


def cut(method, *numbers, at=2_000_000):
    """The connection breaks after so many bytes, which the registry has."""

    def rule(line, request, body, number):
        if request.method != method or number not in numbers:
            return
        raw = http.client.HTTPConnection(request.url.host, request.url.port)
        raw.putrequest(method, request.url.raw_path.decode())
        for name in ("content-length", "content-range", "content-type"):
            if name in request.headers:
                raw.putheader(name, request.headers[name])
        raw.endheaders()
        raw.send(body[:at])
        raw.close()
        before = int(request.headers.get("content-range", "0").partition("-")[0])
        for _ in range(1500):  # its bytes may reach the registry after our question
            told = httpx.get(request.url.copy_with(query=None)).headers["range"]
            if int(told.partition("-")[2]) >= before + min(at - 1, 1000):
                break
            time.sleep(0.02)
        raise httpx.WriteError("broken pipe")

    return rule


def refuse(method, status, *, above=0, first=1, last=99, **more):
    def rule(line, request, body, number):
        hit = request.method == method and len(body) > above - (not above) and first <= number <= last
        return httpx.Response(status, **more) if hit and "/uploads/" in request.url.path else None

    return rule


@pytest.fixture
def push(server, store, blob, request):
    """Push the blob over a line with these rules; the line, and what was paused."""
    repository = f"t/{abs(hash(request.node.name))}"

    def run(*rules, digest=blob, **options):
        line = Line(*rules)
        retry = Retry(sleep=line.paused.append, spread=lambda: 1.0)
        steps = []
        with RegistryClient(server.registry, transport=line, retry=retry, **options) as client:
            size = store.size(digest)
            outcome = client.push_blob(repository, digest, size, lambda: store.open(digest), on_bytes=steps.append)
        assert outcome is PushedBlob.UPLOADED
        assert sum(steps) == size
        answer = httpx.get(f"{server.registry.url}/v2/{repository}/blobs/{digest}")
        assert sha256(answer.content) == digest
        return line

    return run


# --- cut upload, wrong offset -----------------------------------------------------------------------------------------
def test_a_cut_upload_goes_on_where_the_registry_has_it(push):
    line = push(cut("PUT", 1))
    got = [range_ for method, _, range_ in line.bytes if method == "PATCH"]
    assert len(got) == 1
    start = int(got[0].partition("-")[0])
    assert 0 < start <= 2_000_000
    assert line.sent("PATCH") == (SIZE - start, 1)
    assert line.asked.count(line.asked[1]) == 1  # one POST


def test_a_cut_in_a_small_blob_begins_again(push, store):
    line = push(cut("PUT", 1, at=50), digest=store.put(os.urandom(1000)))
    assert line.sent("PATCH") == (0, 0)
    assert line.sent("POST")[1] == 2


def test_tries_that_bring_something_do_not_count(push):
    """Nine cuts, and six tries."""
    line = push(cut("PUT", 1, at=300_000), cut("PATCH", *range(1, 9), at=250_000))
    assert line.sent("PATCH")[1] == 9
    assert set(line.paused) == {0.25}
    assert line.sent("POST")[1] == 1


def test_an_upload_that_the_registry_forgot_begins_again(push):
    line = push(cut("PUT", 1), refuse("GET", 404, json={"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}))
    assert line.sent("POST")[1] == 2
    assert line.sent("PUT") == (2 * SIZE, 2)


@pytest.mark.parametrize("told", ["0-99999999", "5-7", "x", "", "0-0"])
def test_a_status_that_can_not_be_right_begins_again(push, told):
    line = push(cut("PUT", 1), refuse("GET", 204, headers={"Range": told}))
    assert line.sent("POST")[1] == 2


def test_a_wrong_offset_is_seen_and_the_upload_begins_again(push):
    def early(line, request, body, number):
        """Says that it has less than it has."""
        return httpx.Response(204, headers={"Range": "0-999"}) if request.method == "GET" else None

    def anyhow(line, request, body, number):
        """And takes what comes wherever, as docker-registry does."""
        if request.method == "PATCH":
            del request.headers["content-range"]

    line = push(cut("PUT", 1), early, anyhow)
    assert line.sent("PUT") == (2 * SIZE, 2)
    assert line.sent("POST")[1] == 2


def test_only_the_newest_location_is_used(push):
    seen = []

    def move(line, request, body, number):
        if "/uploads/" not in request.url.path or request.method == "POST":
            return None
        if seen:
            assert request.url.params.get("_state") == str(len(seen))
        answer = line.send(request, body)
        if answer.status_code == 202:
            seen.append(answer.headers["location"])
            answer.headers["location"] += f"?_state={len(seen)}"
        return answer

    push(move, chunk=1_000_000)
    assert len(seen) == 3


# --- chunks -----------------------------------------------------------------------------------------------------------
def test_chunks_of_a_given_size(push):
    line = push(chunk=1_000_000)
    assert [range_ for method, _, range_ in line.bytes if method == "PATCH"] == [
        "0-999999", "1000000-1999999", "2000000-2999999",
    ]  # fmt: skip
    assert line.sent("PUT") == (0, 1)


def test_a_registry_may_ask_for_larger_chunks(push):
    def least(line, request, body, number):
        if request.method != "POST":
            return None
        answer = line.send(request, body)
        answer.headers["oci-chunk-min-length"] = "2000000"
        return answer

    line = push(least, chunk=600_000)
    assert line.sent("PATCH") == (SIZE, 2)


def test_a_chunk_that_was_cut_goes_on_within_itself(push):
    line = push(cut("PATCH", 2, at=400_000), chunk=1_000_000)
    starts = [int(range_.partition("-")[0]) for method, _, range_ in line.bytes if method == "PATCH"]
    assert starts[:2] == [0, 1_000_000]
    assert 1_000_000 < starts[2] <= 1_400_000
    assert line.sent("POST")[1] == 1


def test_a_registry_that_takes_a_part_of_a_chunk_gets_the_rest(push):
    def partly(line, request, body, number):
        if request.method != "PATCH" or number > 1:
            return None
        request.headers["content-range"], request.headers["content-length"] = "0-499999", "500000"
        return body[:500_000]

    line = push(partly, chunk=1_000_000)
    assert [range_ for method, _, range_ in line.bytes if method == "PATCH"][1] == "500000-1499999"


@pytest.mark.parametrize("status", [405, 400, 501])
def test_a_registry_without_chunks_gets_the_whole(push, status):
    line = push(refuse("PATCH", status), chunk=1_000_000)
    assert line.sent("PUT") == (SIZE, 1)


# --- proxy answers 413 ------------------------------------------------------------------------------------------------
def test_a_body_that_is_too_large_goes_in_chunks(push):
    line = push(refuse("PUT", 413, above=800_000), refuse("PATCH", 413, above=800_000))
    assert line.sent("PUT") == (SIZE, 2)
    sizes = [size for method, size, _ in line.bytes if method == "PATCH"]
    assert sizes[0] == 1_500_000
    assert set(sizes[1:-1]) == {750_000}
    assert line.paused == []


def test_what_one_upload_learnt_the_next_one_knows(server, store, blob):
    line = Line(refuse("PUT", 413, above=800_000), refuse("PATCH", 413, above=800_000))
    with RegistryClient(server.registry, transport=line) as client:
        for digest in (blob, store.put(os.urandom(SIZE))):
            client.push_blob(f"t/{os.urandom(4).hex()}", digest, SIZE, partial(store.open, digest))
    assert line.sent("PUT") == (SIZE, 3)


def test_a_registry_that_takes_next_to_nothing_is_told_without_pauses(push):
    with pytest.raises(RegistryTooLarge) as caught:
        push(refuse("PUT", 413, above=1000), refuse("PATCH", 413, above=1000))
    assert "client_max_body_size" in caught.value.hint


def test_a_registry_that_takes_neither_the_whole_nor_chunks_is_told(push):
    with pytest.raises(RegistryTooLarge):
        push(refuse("PUT", 413, above=800_000), refuse("PATCH", 405))


# --- digest mismatch --------------------------------------------------------------------------------------------------
def test_bytes_that_change_in_chunks_get_one_restart(push, store):
    def change(line, request, body, number):
        return body[:-1] + bytes([body[-1] ^ 1]) if request.method == "PATCH" and number == 2 else None

    line = push(change, chunk=1_000_000)
    assert line.sent("POST")[1] == 2

    def always(line, request, body, number):
        return body[:-1] + bytes([body[-1] ^ 1]) if request.method == "PATCH" else None

    with pytest.raises(RegistryDigest, match="other bytes"):
        push(always, chunk=1_000_000, digest=store.put(os.urandom(SIZE)))


def test_a_file_that_shrinks_between_chunks_is_told(server, store):
    digest = store.put(os.urandom(SIZE))

    def shrink(line, request, body, number):
        if request.method == "PATCH" and number == 1:
            os.truncate(store.path(digest), 1_200_000)

    with (
        RegistryClient(server.registry, transport=Line(shrink), chunk=1_000_000) as client,
        pytest.raises(RegistryDigest, match="changed its size"),
    ):
        client.push_blob("t/shrink", digest, SIZE, lambda: store.open(digest))


# --- token expires in an upload ---------------------------------------------------------------------------------------
def test_a_token_that_ends_in_an_upload_is_renewed_once_and_the_request_sent_again(tmp_path, store, blob):
    with EmbeddedRegistry(tmp_path, token="secret") as server:

        def ended(line, request, body, number):
            if request.method in {"PUT", "PATCH"} and number == 1:
                request.headers["authorization"] = "Bearer push.1.ended"

        known = FixedCredentials(by_host={server.registry.host: Credential(username="x", password="secret")})
        for chunk in (None, 1_000_000):
            line = Line(ended)
            with RegistryClient(server.registry, transport=line, credentials=known, chunk=chunk) as client:
                client.push_blob(f"t/{chunk or 0}", blob, SIZE, lambda: store.open(blob))
            assert line.sent("PUT" if chunk is None else "PATCH")[0] == SIZE + (chunk or SIZE)
            assert line.sent("POST")[1] == 2  # the first one before there was a token
            # A PUT, or the first chunk and the PUT at their end, met a token that had ended.
            assert sum("/token" in kind for kind in line.asked) == (2 if chunk is None else 3)


# --- two builders, one tag --------------------------------------------------------------------------------------------
def test_of_two_builders_the_last_one_has_the_tag_and_both_images_are_whole(server, store):
    made = []
    for number in range(2):
        with store.writer() as file:
            writer = LayerWriter(file)
            writer.file("data", os.urandom(50_000))
            layer = writer.close()
            file.commit(layer.digest)
        config = ImageConfig(platform=Platform.LINUX_AMD64, created="2024-01-01T00:00:00Z", labels={"n": str(number)})
        made.append(index([compose(config, [layer])]))
    meet, reports = threading.Barrier(2), []

    def build(whole):
        with RegistryClient(server.registry) as client:
            reports.append(client.push_index("t/two", whole, store, ["v1"], before_tags=lambda: meet.wait(20)))

    threads = [threading.Thread(target=build, args=(whole,)) for whole in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {report.digest for report in reports} == {whole.digest for whole in made}
    with RegistryClient(server.registry) as client:
        assert client.get_manifest("t/two", "v1").digest in {whole.digest for whole in made}
        for whole in made:
            assert client.images("t/two", whole.digest)[Platform.LINUX_AMD64].manifest == whole.images[0].manifest
            assert client.has_blob("t/two", whole.layers[0].digest)


# --- proxies ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def proxy(monkeypatch):
    """What it was asked for; it is the registry `registry.example` itself, and connects to none by HTTPS."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def do_CONNECT(self):
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{running.server_port}")
    yield asked
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_proxy_is_used_for_http_and_https(proxy):
    with RegistryClient(Registry.parse("http://registry.example")) as client:
        client.ping()
    quick = Retry(sleep=lambda _seconds: None)
    with (
        RegistryClient(Registry.parse("registry.example"), retry=quick) as client,
        pytest.raises(RegistryUnreachable) as caught,
    ):
        client.ping()
    assert "HTTPS_PROXY" in caught.value.hint
    assert set(proxy) == {"http://registry.example/v2/", "registry.example:443"}


def test_no_proxy_is_honoured(proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", "registry.invalid")
    quick = Retry(sleep=lambda _seconds: None)
    with (
        RegistryClient(Registry.parse("http://registry.invalid"), retry=quick) as client,
        pytest.raises(RegistryUnreachable),
    ):
        client.ping()
    assert proxy == []


# --- 408, 429, timeouts: fewer at once --------------------------------------------------------------------------------
def overload(status=429):
    return Transient(RegistryRefused("busy"), status=status)


def test_parallelism_halves_once_for_an_overload_and_grows_by_one_a_round():
    pressure = Pressure(start=8, most=10)
    with pytest.raises(Transient), pressure.turn():
        raise overload()
    assert pressure.limit == 4
    for _ in range(4):
        with pressure.turn():
            pass
    assert 4.8 < pressure.limit <= 5
    for _ in range(200):
        with pressure.turn():
            pass
    assert pressure.limit == 10


def test_requests_that_were_under_way_together_tell_of_one_overload():
    pressure, together = Pressure(start=8, most=8), threading.Barrier(4)

    def busy():
        with pressure.turn():
            together.wait(10)
            raise overload(503)

    def one():
        with pytest.raises(Transient):
            busy()

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pressure.limit == 4


def test_no_more_than_the_limit_run_at_once_and_at_least_one_does():
    pressure, running, most = Pressure(start=2, most=2), [], []
    both = threading.Barrier(2)

    def one():
        with pressure.turn():
            running.append(1)
            most.append(len(running))
            both.wait(30)  # none passes alone
            running.pop()

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 2
    for _ in range(5):
        with pytest.raises(Transient), pressure.turn():
            raise overload()
    assert pressure.limit == 1
    with pressure.turn(), pressure.turn():  # a thread that has a turn takes no second one
        pass


def test_a_registry_that_takes_two_requests_at_once_gets_all_blobs(server, store):
    """It answers 429 to a third; its clients find out how many it takes."""
    guard, running, refused = threading.Lock(), [0], []

    class Narrow(Line):
        def handle_request(self, request):
            with guard:
                running[0] += 1
                full = running[0] > 2
            try:
                if full:
                    refused.append(request)
                    return httpx.Response(429)
                time.sleep(0.002)  # so that requests meet
                return self.inner.handle_request(request)
            finally:
                with guard:
                    running[0] -= 1

    digests = [store.put(os.urandom(1000)) for _ in range(40)]
    retry = Retry(tries=50, first=0.001, longest=0.01)
    with RegistryClient(server.registry, transport=Narrow(), retry=retry, workers=8) as client:

        def one(digest):
            client.push_blob("t/narrow", digest, 1000, lambda: store.open(digest))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, digests))
        assert all(client.has_blob("t/narrow", digest) for digest in digests)
    assert refused
    assert len(refused) < 3 * len(digests), len(refused)


def test_a_failure_that_is_no_overload_changes_nothing():
    pressure = Pressure(start=4, most=8)
    with pytest.raises(Transient), pressure.turn():
        raise overload(500)
    assert pressure.limit == 4

"""The registry client against the embedded registry, with a transport between them that faults by script."""

import io
import os
import random
import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest

from flops.errors import (
    BadImage,
    BadSetting,
    FlopsError,
    ImageNotFound,
    ManifestIncomplete,
    RegistryAuth,
    RegistryDigest,
    RegistryError,
    RegistryRefused,
    RegistryTooLarge,
    RegistryUnreachable,
)
from flops.http import Retry, retry_after
from flops.oci.blobs import BlobStore, sha256
from flops.oci.client import RegistryClient
from flops.oci.image import INDEX, ImageConfig, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.reference import Reference, Registry
from flops.oci.upload import PushedBlob
from flops.platforms import Platform
from flops.recipe import Compression
from flops.registry.app import EmbeddedRegistry

QUICK = Retry(sleep=lambda _seconds: None)


@dataclass
class Fault:
    """What happens to the `first` to `last` request (counted from 1) whose method and path match."""

    method: str
    path: str
    act: object
    """A status, a response, an exception to raise instead of sending, or LOST to send and lose the answer."""
    first: int = 1
    last: int = 1
    seen: int = field(default=0)


LOST = "lost"


class Faulty(httpx.BaseTransport):
    """A real connection to the registry, that faults by script and writes down what was asked."""

    def __init__(self, *faults):
        self.faults = list(faults)
        self.asked = []
        self.lock = threading.Lock()
        self.inner = httpx.HTTPTransport(verify=False)

    def handle_request(self, request):
        act = None
        with self.lock:
            line = f"{request.method} {request.url.raw_path.decode()}"
            self.asked.append(line)
            for fault in self.faults:
                if fault.method == request.method and re.search(fault.path, line.partition(" ")[2]):
                    fault.seen += 1
                    if fault.first <= fault.seen <= fault.last:
                        act = fault.act
        if act is None:
            return self.inner.handle_request(request)
        if act == LOST:
            self.inner.handle_request(request).close()
            raise httpx.ReadError("connection reset by peer")
        if isinstance(act, Exception):
            raise act
        for _ in request.stream:
            pass
        return httpx.Response(act) if isinstance(act, int) else act

    def close(self):
        self.inner.close()

    def count(self, method, path=""):
        return sum(bool(re.match(f"{method} .*{path}", line)) for line in self.asked)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        with EmbeddedRegistry(tmp_path_factory.mktemp("registry")) as running:
            yield running


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return BlobStore(tmp_path_factory.mktemp("store"))


@pytest.fixture
def name():
    return f"t/{os.urandom(6).hex()}"


@pytest.fixture
def connect(server):
    """A client with faults between it and the registry."""
    opened = []

    def make(*faults, **options):
        transport = Faulty(*faults)
        client = RegistryClient(server.registry, transport=transport, retry=options.pop("retry", QUICK), **options)
        opened.append(client)
        return client, transport

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def plain(connect):
    return connect()[0]


def make_layer(store, content, compression=Compression.GZIP):
    with store.writer() as blob:
        writer = LayerWriter(blob, compression=compression)
        writer.file("data", content)
        layer = writer.close()
        blob.commit(layer.digest)
    return layer


def make_index(store, count=3, size=20_000):
    shared = [make_layer(store, os.urandom(size)) for _ in range(count)]
    images = [
        compose(
            ImageConfig(platform=platform, created="2024-01-01T00:00:00Z", labels={"of": platform.value}),
            [*shared, make_layer(store, os.urandom(size), Compression.ZSTD)],
        )
        for platform in Platform
    ]
    return index(images, {"io.flops.recipe": "r"})


@pytest.fixture(scope="module")
def image(store):
    return make_index(store)


def assert_whole(client, name, reference, index, tmp_path):
    """All of it is there, to the byte."""
    found = client.get_manifest(name, reference)
    assert (found.digest, found.media_type, found.document) == (index.digest, INDEX, index.document)
    for expected in index.images:
        place = Reference(registry=client.registry, repository=name, tag=reference)
        pulled = client.pull(place, BlobStore(tmp_path / "pulled"), expected.platform)
        assert (pulled.manifest, pulled.config) == (expected.manifest, expected.config)
        assert [layer.digest for layer in pulled.layers] == [layer.digest for layer in expected.layers]


# --- whole images ---
def test_push_then_pull(plain, name, store, image, tmp_path):
    steps: list[tuple] = []
    report = plain.push_index(
        name,
        image,
        store,
        ["v1", "v2"],
        progress=lambda done, total: steps.append((done, total)),
        before_tags=lambda: steps.append(plain.tags(name)),
    )
    total = sum(layer.size for layer in image.layers) + sum(len(one.config) for one in image.images)
    assert (report.uploaded, report.reused, report.uploaded_blobs) == (total, 0, 7)
    assert report.digest == image.digest
    assert steps[-1] == ()  # no tag is there before
    assert steps[-2] == (total, total)
    assert [done for done, _ in steps[:-1]] == sorted(done for done, _ in steps[:-1])
    assert plain.tags(name) == ("v1", "v2")
    assert_whole(plain, name, "v1", image, tmp_path)
    assert_whole(plain, name, image.digest, image, tmp_path)


def test_the_order_is_blobs_manifests_index_tags(connect, name, store, image):
    client, transport = connect()
    client.push_index(name, image, store, ["v1"])
    puts = [line for line in transport.asked if line.startswith("PUT")]
    kinds = ["blob" if "/blobs/" in line else line.rpartition("/")[2] for line in puts]
    assert kinds == ["blob"] * 7 + [one.digest for one in image.images] + [image.digest, "v1"]
    assert Counter(line.split("digest=")[-1] for line in puts[:7]).most_common(1)[0][1] == 1
    configs = {one.config_digest.replace(":", "%3A") for one in image.images}
    assert {line.split("digest=")[-1] for line in puts[5:7]} == configs


def test_a_second_push_uploads_nothing(connect, name, store, image):
    client, _ = connect()
    client.push_index(name, image, store, ["v1"])
    again, transport = connect()
    report = again.push_index(name, image, store, ["v1"])
    assert (report.uploaded, report.reused_blobs, report.mounted) == (0, 7, 0)
    assert transport.count("POST") == 0


def test_blobs_are_mounted_from_where_they_are(connect, name, store, image, tmp_path):
    client, _ = connect()
    client.push_index(name, image, store, ["v1"])
    report = client.push_index(f"{name}/other", image, store, ["v1"])
    assert (report.uploaded, report.mounted_blobs, report.mounted) == (0, 7, report.reused)
    fresh, transport = connect()
    report = fresh.push_index(f"{name}/third", image, store, ["v1"], mount_from=["no/such", name])
    assert report.mounted_blobs == 5
    assert report.uploaded == sum(len(one.config) for one in image.images)
    assert transport.count("POST", "from=no") == 0
    assert_whole(fresh, f"{name}/third", "v1", image, tmp_path)


def test_layers_may_travel_before_their_image(connect, name, store, image):
    client, transport = connect()
    early = client.push_blobs(name, image.layers[:3], store)
    report = client.push_index(name, image, store, ["v1"])
    assert early.uploaded_blobs == 3
    assert report.uploaded_blobs == 7
    assert transport.count("PUT", "/blobs/") == 7


def test_one_blob_travels_once_for_all_threads_and_repositories(connect, name, store):
    client, transport = connect(workers=8)
    layer = make_layer(store, os.urandom(400_000))
    outcomes = []

    def push(repository):
        outcomes.append(client.push_blob(repository, layer.digest, layer.size, lambda: store.open(layer.digest)))

    threads = [threading.Thread(target=push, args=(f"{name}/{n % 2}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {PushedBlob.UPLOADED: 4, PushedBlob.MOUNTED: 4}
    assert transport.count("PUT") == 1


def test_images_lists_the_documents_by_platform(plain, name, store, image):
    assert plain.images(name, "v1") is None
    plain.push_index(name, image, store, ["v1"])
    found = plain.images(name, "v1")
    assert set(found) == set(Platform)
    for one in image.images:
        assert found[one.platform].manifest == one.manifest
        assert found[one.platform].descriptor == one.descriptor
        assert found[one.platform].parsed_config.labels == {"of": one.platform.value}
    single = plain.images(name, image.images[1].digest)
    assert list(single) == [image.images[1].platform]


def test_pull_refuses_what_is_not_there(plain, name, store, tmp_path):
    place = Reference(registry=plain.registry, repository=name, tag="v1")
    with pytest.raises(ImageNotFound, match="there is no image"):
        plain.pull(place, BlobStore(tmp_path), Platform.LINUX_AMD64)
    whole = make_index(store, 1)
    plain.push_index(name, index(whole.images[:1]), store, ["v1"])
    with pytest.raises(ImageNotFound, match="no image for linux/arm64") as caught:
        plain.pull(place, BlobStore(tmp_path), Platform.LINUX_ARM64)
    assert "linux/amd64" in caught.value.hint


def test_pull_refuses_a_layer_that_is_not_what_its_config_says(plain, name, store, tmp_path):
    layer = make_layer(store, b"x")
    other = make_layer(store, b"y")
    lying = type(layer)(**{**layer.to_json(), "diff_id": other.diff_id})
    config = ImageConfig(platform=Platform.LINUX_AMD64, created="2024-01-01T00:00:00Z")
    plain.push_index(name, index([compose(config, [lying])]), store, ["v1"])
    with pytest.raises(RegistryDigest, match="unpacks to"):
        plain.pull(
            Reference(registry=plain.registry, repository=name, tag="v1"), BlobStore(tmp_path), Platform.LINUX_AMD64
        )
    broken = store.put(b"no gzip at all")
    lying = type(layer)(**{**layer.to_json(), "digest": broken, "size": 14})
    plain.push_index(name, index([compose(config, [lying])]), store, ["v2"])
    with pytest.raises(BadImage, match="can't be unpacked"):
        plain.pull(
            Reference(registry=plain.registry, repository=name, tag="v2"), BlobStore(tmp_path), Platform.LINUX_AMD64
        )


def test_tags_by_pages(connect, name, store):
    client, _ = connect()
    whole = make_index(store, 0, 10)
    client.push_index(name, whole, store, [f"v{n:02}" for n in range(7)])
    pages = [
        httpx.Response(200, json={"tags": ["a", "b"]}, headers={"Link": f'</v2/{name}/tags/list?last=b>; rel="next"'})
    ]
    paged, transport = connect(
        Fault("GET", "tags/list", pages[0]), Fault("GET", "last=b", httpx.Response(200, json={"tags": ["c"]}))
    )
    assert client.tags(name) == tuple(f"v{n:02}" for n in range(7))
    assert paged.tags(name) == ("a", "b", "c")
    assert transport.count("GET", "tags/list") == 2
    assert client.tags("no/such") == ()


# --- faults that pass ---
PASSING = [
    503,
    500,
    502,
    504,
    429,
    408,
    LOST,
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("EOF"),
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("slow"),
]
VERBS = [
    ("HEAD", "/blobs/sha256"),
    ("POST", "/blobs/uploads/"),
    ("PUT", "/blobs/uploads/"),
    ("PUT", "/manifests/sha256"),
    ("PUT", "/manifests/v1"),
    ("HEAD", "/manifests/"),
]


@pytest.mark.parametrize("act", PASSING, ids=str)
def test_a_passing_fault_at_every_verb_is_survived(connect, store, name, act, tmp_path):
    whole = make_index(store, 1, 2000)
    client, transport = connect(*(Fault(method, path, act, first=1, last=2) for method, path in VERBS))
    client.push_index(name, whole, store, ["v1"])
    assert all(fault.seen > 2 for fault in transport.faults)
    assert_whole(client, name, "v1", whole, tmp_path)


@pytest.mark.parametrize("act", PASSING, ids=str)
def test_a_passing_fault_in_a_pull_is_survived(connect, store, name, act, tmp_path):
    whole = make_index(store, 1, 2000)
    connect()[0].push_index(name, whole, store, ["v1"])
    client, transport = connect(*(Fault("GET", p, act, last=2) for p in ("/manifests/v1", "/manifests/sha", "/blobs/")))
    assert_whole(client, name, "v1", whole, tmp_path)
    assert all(fault.seen > 2 for fault in transport.faults)


class Body(httpx.SyncByteStream):
    """Bytes that arrive, and perhaps end too early; may be read again."""

    def __init__(self, content, cut=False):
        self.content, self.cut = content, cut

    def __iter__(self):
        yield self.content
        if self.cut:
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


def bytes_answer(content, cut=False):
    return httpx.Response(200, stream=Body(content, cut))


def test_a_blob_that_is_cut_or_changed_on_the_way_is_fetched_again(connect, store, name, image, tmp_path):
    connect()[0].push_index(name, image, store, ["v1"])
    layer = image.layers[0]
    for number, answer in enumerate((bytes_answer(b"half", cut=True), bytes_answer(b"other"))):
        client, transport = connect(Fault("GET", layer.digest, answer))
        assert_whole(client, name, "v1", image, tmp_path / str(number))
        assert transport.count("GET", layer.digest) == 2
    client, transport = connect(*(Fault("GET", layer.digest, bytes_answer(b"o"), first=n, last=n) for n in range(1, 9)))
    with pytest.raises(RegistryDigest, match="other bytes"):
        assert_whole(client, name, "v1", image, tmp_path / "wrong")
    assert transport.count("GET", layer.digest) == 2
    assert not (tmp_path / "wrong/pulled/blobs/sha256" / layer.digest[7:]).exists()


def test_a_retry_after_is_obeyed(connect, name, store):
    waited = []
    retry = Retry(sleep=waited.append, spread=lambda: 1.0)
    answers = [
        httpx.Response(429, headers={"Retry-After": value})
        for value in ("7", "45", "x", "Wed, 21 Oct 2015 07:28:00 GMT", "120")
    ]
    client, _ = connect(
        *(Fault("GET", "/v2/", answer, first=n, last=n) for n, answer in enumerate(answers, 1)), retry=retry
    )
    client.ping()
    assert waited == [7, 45, 1, 2, 120]


@pytest.mark.parametrize("value", ["3600", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_retry_after_that_nobody_waits_for_ends_at_once_with_the_number(connect, value):
    waited = []
    answer = httpx.Response(429, headers={"Retry-After": value})
    client, transport = connect(Fault("GET", "/v2/", answer), retry=Retry(sleep=waited.append))
    with pytest.raises(RegistryRefused, match=r"429 .* wait for \d{4,} s \(Retry-After\)") as caught:
        client.ping()
    assert (waited, transport.count("GET")) == ([], 1)
    assert re.fullmatch(r"try again in \d{4,} s", caught.value.hint)


@pytest.mark.parametrize(
    "text",
    [
        "Wed, 21 Oct 2099 07:28:00 " + "9" * 40,
        f"Wed, 21 Oct 2099 {'9' * 20}:28:00 GMT",
        f"Wed, 21 Oct {'9' * 5000} 07:28:00 GMT",
        "-1",
        "1.5",
        "",
    ],
)
def test_a_retry_after_that_is_none_is_passed_over(text):
    assert retry_after(httpx.Response(429, headers={"Retry-After": text})) is None


def test_pauses_grow_are_spread_and_end(connect, name):
    waited = []
    retry = Retry(sleep=waited.append, spread=lambda: 1.5)
    client, transport = connect(Fault("GET", "/v2/", 503, last=99), retry=retry)
    with pytest.raises(RegistryRefused, match="503"):
        client.ping()
    assert waited == [0.375, 0.75, 1.5, 3.0, 6.0]
    assert transport.count("GET") == 6


def test_progress_takes_back_what_a_failed_try_sent(connect, name, store):
    client, _ = connect(Fault("PUT", "/blobs/", 503, last=2))
    layer = make_layer(store, os.urandom(600_000))
    steps = []
    client.push_blobs(name, [layer], store, progress=lambda done, total: steps.append(done))
    assert steps[-1] == layer.size
    assert steps.count(0) == 2
    assert max(steps) == layer.size


def test_an_upload_begins_again_at_the_post_with_its_whole_body(connect, name, store):
    client, transport = connect(Fault("PUT", "/blobs/", 404), Fault("PUT", "/blobs/", 500, first=2, last=2))
    layer = make_layer(store, os.urandom(600_000))
    client.push_blobs(name, [layer], store)
    uploads = [line.split("/")[-1].split("?")[0] for line in transport.asked if line.startswith("PUT")]
    assert len(uploads) == len(set(uploads)) == 3
    assert transport.count("POST") == 3


def test_an_answer_that_was_lost_costs_no_second_upload(connect, name, store):
    client, transport = connect(Fault("PUT", "/blobs/", LOST))
    layer = make_layer(store, os.urandom(1000))
    client.push_blobs(name, [layer], store)
    assert transport.count("PUT") == 1


def test_random_faults_end_in_a_whole_image_or_a_clean_error(connect, store, tmp_path):
    """And what the tag names is whole meanwhile, and a rerun succeeds."""
    old, new = make_index(store, 1, 500), make_index(store, 1, 500)
    ends = Counter()
    for seed in range(14):
        rng, name = random.Random(seed), f"random/{seed}"
        sound, _ = connect()
        sound.push_index(name, old, store, ["v1"])
        faults = []
        for _ in range(3):
            first, act = rng.randint(1, 4), rng.choice([*PASSING, *PASSING, 400, 401, 403, 413])
            faults.append(Fault(*rng.choice(VERBS), act, first=first, last=first + rng.choice([0, 0, 1, 9])))
        try:
            connect(*faults)[0].push_index(name, new, store, ["v1"])
        except RegistryError:
            ends["error"] += 1
            named = sound.get_manifest(name, "v1").digest
            assert_whole(sound, name, "v1", {old.digest: old, new.digest: new}[named], tmp_path)
        else:
            ends["whole"] += 1
        connect()[0].push_index(name, new, store, ["v1"])
        assert_whole(sound, name, "v1", new, tmp_path)
    assert min(ends["error"], ends["whole"]) > 1, ends


# --- faults that stay ---
@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("POST", "/blobs/uploads/", 400, RegistryRefused),
        ("POST", "/blobs/uploads/", 404, RegistryRefused),
        ("POST", "/blobs/uploads/", 405, RegistryRefused),
        ("POST", "/blobs/uploads/", 403, RegistryAuth),
        ("POST", "/blobs/uploads/", 401, RegistryAuth),
        ("PUT", "/blobs/uploads/", 413, RegistryTooLarge),
        ("PUT", "/blobs/uploads/", 400, RegistryRefused),
        ("PUT", "/blobs/uploads/", 403, RegistryAuth),
        ("PUT", "/manifests/sha256", 400, RegistryRefused),
        ("PUT", "/manifests/sha256", 413, RegistryTooLarge),
        ("HEAD", "/blobs/", 403, RegistryAuth),
        ("PUT", "/blobs/uploads/", 501, RegistryRefused),
        ("PUT", "/blobs/uploads/", 308, RegistryRefused),
    ],
)
def test_a_refusal_is_not_tried_again_and_leaves_the_tag(connect, name, store, method, path, status, error):
    old, new = make_index(store, 1, 500), make_index(store, 0, 500)
    connect()[0].push_index(name, old, store, ["v1"])
    client, transport = connect(Fault(method, path, status, last=99), workers=1)
    with pytest.raises(error) as caught:
        client.push_index(name, new, store, ["v1"])
    assert type(caught.value) is error
    assert transport.count(method, path) == 1
    assert connect()[0].get_manifest(name, "v1").digest == old.digest


def test_a_refusal_tells_what_the_registry_said(connect, name, store):
    said = httpx.Response(400, json={"errors": [{"code": "NAME_INVALID", "message": "no such\nproject"}]})
    client, _ = connect(Fault("POST", "/blobs/", said))
    with pytest.raises(RegistryRefused, match="NAME_INVALID: no suchproject"):
        client.push_blobs(name, [make_layer(store, b"x")], store)


@pytest.mark.parametrize(
    ("status", "code", "message", "detail"),
    [
        (507, "DENIED", "no space is left for what this registry keeps", None),
        (500, "UNKNOWN", "unknown error", "write /var/lib/registry/data: no space left on device"),
        (500, "UNKNOWN", "unknown error", {"DriverName": "filesystem", "Enclosed": {"Op": "write", "Err": 28}}),
        (403, "DENIED", "adding 9 MiB would exceed the configured upper limit of 10 MiB", None),
    ],
)
def test_a_registry_without_room_is_told_and_not_tried_again(connect, name, store, status, code, message, detail):
    said = {"errors": [{"code": code, "message": message, "detail": detail}]}
    client, transport = connect(Fault("PUT", "/blobs/", httpx.Response(status, json=said), last=99))
    with pytest.raises(RegistryRefused, match="no room left") as caught:
        client.push_blobs(name, [make_layer(store, b"x")], store)
    assert "prune" in caught.value.hint
    assert "/var/lib" not in caught.value.message
    assert transport.count("PUT") == 1


def test_a_name_that_speaks_of_quotas_is_no_full_registry(connect):
    said = {"errors": [{"code": "DENIED", "message": "no", "detail": {"name": "acme/quota"}}]}
    client, _ = connect(Fault("GET", "/v2/", httpx.Response(403, json=said)))
    with pytest.raises(RegistryAuth):
        client.ping()


def test_the_first_failure_stops_the_other_uploads(connect, name, store):
    client, transport = connect(Fault("PUT", "/blobs/uploads/", 413, last=99), workers=2)
    with pytest.raises(RegistryTooLarge):
        client.push_index(name, make_index(store, 12, 50_000), store, ["v1"])
    assert transport.count("PUT") < 12


def test_a_damaged_file_here_is_told_and_never_pushed(connect, name, store):
    client, _ = connect()
    layer = make_layer(store, os.urandom(1000))
    store.path(layer.digest).write_bytes(os.urandom(layer.size))
    with pytest.raises(RegistryDigest, match="on this machine"):
        client.push_blobs(name, [layer], store)
    store.path(layer.digest).write_bytes(b"short")
    with pytest.raises(RegistryDigest, match="changed its size"):
        client.push_blobs(name, [layer], store)
    store.path(layer.digest).write_bytes(b"x" * (layer.size + 1))
    with pytest.raises(RegistryDigest, match="changed its size"):
        client.push_blobs(name, [layer], store)
    assert not client.has_blob(name, layer.digest)


def test_bytes_that_change_on_the_way_get_one_more_try(connect, name, store):
    layer = make_layer(store, os.urandom(1000))

    def invalid():
        return httpx.Response(400, json={"errors": [{"code": "DIGEST_INVALID"}]})

    client, transport = connect(Fault("PUT", "/blobs/", invalid()))
    client.push_blobs(name, [layer], store)
    assert transport.count("PUT") == 2
    client, transport = connect(Fault("PUT", "/blobs/", invalid()), Fault("PUT", "/blobs/", invalid(), first=2, last=2))
    with pytest.raises(RegistryDigest, match="other bytes than were sent"):
        client.push_blobs(f"{name}/2", [layer], store)
    assert transport.count("PUT") == 2


def unknown(status=400):
    return httpx.Response(status, json={"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown"}]})


@pytest.mark.parametrize("status", [400, 404])
def test_a_blob_that_the_registry_lost_is_uploaded_again(connect, server, name, store, status, tmp_path):
    whole = make_index(store, 1, 500)
    client, transport = connect(Fault("PUT", f"/manifests/{whole.images[0].digest}", unknown(status)))
    client.push_blobs(name, whole.layers, store)
    lost = whole.layers[0].digest
    assert httpx.delete(f"{server.registry.url}/v2/{name}/blobs/{lost}").status_code == 202
    client.push_index(name, whole, store, ["v1"])
    assert transport.count("PUT", f"/blobs/.*{lost[7:]}") == 2
    assert_whole(client, name, "v1", whole, tmp_path)


def test_a_manifest_that_stays_incomplete_gets_three_tries(connect, name, store):
    whole = make_index(store, 1, 500)
    path = f"/manifests/{whole.images[0].digest}"
    client, transport = connect(*(Fault("PUT", path, unknown(), first=n, last=n) for n in range(1, 9)))
    with pytest.raises(ManifestIncomplete, match="MANIFEST_BLOB_UNKNOWN"):
        client.push_index(name, whole, store, ["v1"])
    assert transport.count("PUT", path) == 3
    assert client.tags(name) == ()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(
            "PUT",
            "/manifests/v1",
            httpx.Response(201, headers={"Docker-Content-Digest": "sha256:" + "0" * 64}),
            1,
            99,
        ),
        Fault(
            "HEAD", "/manifests/", httpx.Response(200, headers={"Docker-Content-Digest": "sha256:" + "0" * 64}), 1, 99
        ),
        Fault("HEAD", "/manifests/v1", 404, 1, 99),
        Fault("PUT", "/manifests/v1", 201, 1, 99),
    ],
    ids=["told by PUT", "told by HEAD", "not there", "never arrived"],
)
def test_a_registry_that_holds_something_else_is_told(connect, name, store, fault):
    fault.seen = 0
    client, _ = connect(fault)
    with pytest.raises(RegistryDigest, match="another manifest"):
        client.push_index(name, make_index(store, 0, 500), store, ["v1"])


def test_another_push_that_moves_the_tag_after_ours_is_no_failure(connect, name, store):
    ours, theirs = make_index(store, 0, 500), make_index(store, 0, 500)
    moved = httpx.Response(200, headers={"Docker-Content-Digest": theirs.digest})
    client, _ = connect(Fault("HEAD", "/manifests/v1", moved, last=99))
    assert client.push_index(name, ours, store, ["v1"]).digest == ours.digest


def test_a_manifest_that_is_not_what_its_digest_says_is_refused(connect, name, store, image):
    connect()[0].push_index(name, image, store, ["v1"])
    other = httpx.Response(200, content=b"{}", headers={"Content-Type": INDEX})
    client, _ = connect(Fault("GET", image.digest, other))
    with pytest.raises(RegistryDigest):
        client.get_manifest(name, image.digest)
    big = httpx.Response(200, content=b" " * (4 * 1024 * 1024 + 1))
    client, _ = connect(Fault("GET", "v1", big))
    with pytest.raises(RegistryRefused, match="larger than"):
        client.get_manifest(name, "v1")


# --- mounts and locations ---
@pytest.mark.parametrize("status", [403, 404, 405, 401])
def test_a_refused_mount_goes_on_as_an_upload(connect, name, store, status, tmp_path):
    whole = make_index(store, 0, 500)
    connect()[0].push_index(name, whole, store, ["v1"])
    client, transport = connect(Fault("POST", "mount=", status, last=99))
    report = client.push_index(f"{name}/b", whole, store, ["v1"], mount_from=[name])
    assert (report.mounted, report.uploaded_blobs) == (0, 4)
    assert transport.count("POST", "mount=") == 2
    assert_whole(client, f"{name}/b", "v1", whole, tmp_path)


def test_a_mount_that_became_an_upload_uses_its_location(connect, server, name, store):
    layer = make_layer(store, b"mounted")
    connect()[0].push_blobs(name, [layer], store)
    client, transport = connect()
    begun = httpx.post(f"{server.registry.url}/v2/{name}/b/blobs/uploads/").headers["location"]
    transport.faults.append(Fault("POST", "mount=", httpx.Response(202, headers={"Location": begun})))
    assert client.push_blobs(f"{name}/b", [layer], store, mount_from=[name]).uploaded_blobs == 1
    assert transport.count("POST") == 1
    assert transport.count("PUT", begun) == 1


def test_a_location_keeps_its_own_query(connect, server, name, store):
    client, transport = connect()
    begun = httpx.post(f"{server.registry.url}/v2/{name}/blobs/uploads/").headers["location"]
    transport.faults.append(Fault("POST", "", httpx.Response(202, headers={"Location": f"{begun}?_state=a%2Fb%3D"})))
    layer = make_layer(store, b"x")
    client.push_blobs(name, [layer], store)
    assert transport.asked[-1] == f"PUT {begun}?_state=a%2Fb%3D&digest=sha256%3A{layer.digest[7:]}"


# --- a registry that is not there ---
def test_an_unreachable_registry_is_told_soon():
    waited = []
    client = RegistryClient(Registry.parse("127.0.0.1:9"), retry=Retry(sleep=waited.append))
    with pytest.raises(RegistryUnreachable, match=r"http://127\.0\.0\.1:9.*refused") as caught:
        client.ping()
    assert "http://" in caught.value.hint
    assert sum(waited) < 2
    client.close()


def test_another_server_is_no_registry(connect):
    client, _ = connect(Fault("GET", "/v2/", 404))
    with pytest.raises(RegistryRefused, match="404"):
        client.ping()


def test_tls_to_a_plain_registry_hints_at_http(server):
    with RegistryClient(Registry.parse(f"https://{server.registry.host}"), retry=QUICK) as client:
        with pytest.raises(RegistryUnreachable) as caught:
            client.ping()
        assert f"http://{server.registry.host}" in caught.value.hint


def test_plain_http_to_a_tls_registry_hints_at_https(connect):
    said = httpx.Response(400, content=b"Client sent an HTTP request to an HTTPS server.\n")
    client, _ = connect(Fault("GET", "/v2/", said))
    with pytest.raises(RegistryUnreachable) as caught:
        client.ping()
    assert "https://" in caught.value.hint


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_file_that_cannot_be_read_is_told(tmp_path, content):
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(BadSetting, match="can be read"):
        RegistryClient(Registry.parse("registry.example"), verify=bundle)


def test_a_loopback_registry_is_never_reached_by_a_proxy(server, monkeypatch):
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with RegistryClient(server.registry, retry=QUICK) as client:
        client.ping()
    elsewhere = RegistryClient(Registry.parse("http://registry.example"), retry=QUICK)
    with elsewhere, pytest.raises(RegistryUnreachable):
        elsewhere.ping()


def test_a_registry_at_an_ipv6_address(store, image, tmp_path, monkeypatch):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with EmbeddedRegistry(tmp_path / "registry", host="::1") as server:
        assert server.registry == Registry.parse(f"[::1]:{server.port}")
        for text in (f"[::1]:{server.port}", f"http://[0:0:0:0:0:0:0:1]:{server.port}"):
            with RegistryClient(Registry.parse(text), retry=QUICK) as client:
                client.push_index("acme/a", image, store, ["v1"])
                assert_whole(client, "acme/a", "v1", image, tmp_path)
                assert Reference.parse(f"{text}/acme/a:v1").registry == client.registry


def test_a_failure_in_before_tags_leaves_them(plain, name, store, image):
    class Stop(FlopsError):
        pass

    def stop():
        raise Stop("410")

    with pytest.raises(Stop):
        plain.push_index(name, image, store, ["v1"], before_tags=stop)
    assert plain.tags(name) == ()
    assert plain.get_manifest(name, image.digest) is not None


def test_memory_does_not_grow_with_a_blob(connect, name):
    class Zeros(io.RawIOBase):
        left = 200 * 1024 * 1024

        def readable(self):
            return True

        def read(self, size=-1):
            count = min(size, self.left)
            self.left -= count
            return bytes(count)

    import tracemalloc

    client, _ = connect(Fault("PUT", "/blobs/", 201, last=9))
    tracemalloc.start()
    try:
        client.push_blob(name, sha256(b"whatever"), Zeros.left, Zeros)
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()

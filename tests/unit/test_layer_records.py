"""What builders leave for each other in a registry: taken where it is sound, left alone where it is not, never in the way."""

import json
import os
import time

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flops.actors import REPOSITORY, Actor, main_file, shims
from flops.base import BasePackage
from flops.base.packages import PackageStore
from flops.errors import Cancelled, RecordUnusable
from flops.http import Retry
from flops.images.plan import FilesLayer, cache_key
from flops.oci.artifacts import Content
from flops.oci.blobs import BlobStore, sha256
from flops.oci.client import RegistryClient
from flops.oci.descriptor import Descriptor, canonical
from flops.oci.entries import Directory, File, Link
from flops.oci.layer import Layer, LayerWriter
from flops.oci.reference import Registry
from flops.progress import Silent
from flops.publishing.delivery import Target
from flops.publishing.registry_target import RegistryTarget
from flops.recipe import Compression
from flops.registry.app import EmbeddedRegistry
from flops.store import shared as shared_cache
from flops.store.document_store import LIFETIME, DocumentStore
from flops.store.shared import BASE, LAYER, LOCK, SharedCache, media_type
from flops.wheels.layer_cache import LayerCache
from flops.wheels.wheel_layer import FileEntry, PathConflict, WheelLayer, WheelLicence

KEY, OTHER = "1" * 64, "2" * 64
QUICK = Retry(sleep=lambda _seconds: None)


class Told(Silent):
    def __init__(self):
        self.warnings = []

    def warning(self, stage, message, *, hint=""):
        self.warnings.append(message)


class Watched(httpx.BaseTransport):
    """Writes down what is asked; `status` answers everything in the registry's place."""

    def __init__(self):
        self.asked = []
        self.status = None
        self.inner = httpx.HTTPTransport()

    def handle_request(self, request):
        self.asked.append(f"{request.method} {request.url.path}")
        if self.status is not None:
            for _ in request.stream:
                pass
            return httpx.Response(self.status)
        return self.inner.handle_request(request)

    def close(self):
        self.inner.close()

    def count(self, method, part=""):
        return sum(line.startswith(method) and part in line for line in self.asked)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        with EmbeddedRegistry(tmp_path_factory.mktemp("registry")) as running:
            yield running


class Builder:
    """One machine: a cache directory, and the registry as it sees it."""

    def __init__(self, registry, directory):
        self.told, self.transport = Told(), Watched()
        self.client = RegistryClient(registry, transport=self.transport, retry=QUICK)
        self.target = RegistryTarget(self.client)
        self.shared = self.target.shared(self.told)
        self.blobs = BlobStore(directory)
        self.layers = LayerCache(directory / "layers", self.blobs, self.shared)
        self.directory = directory

    def make(self, text="one", **more):
        with self.blobs.writer() as blob:
            writer = LayerWriter(blob, **more)
            writer.file("a", f"{text}\n".encode() * 100)
            layer = writer.close(comment=f"{text} 1.0")
            blob.commit(layer.digest)
        return WheelLayer(
            **layer.to_json(),
            files=(FileEntry(path="a", digest="sha256=x", size=400),),
            conflicts=(PathConflict(path="a", kept="one", left_out="two"),),
            licences=(WheelLicence(sha256="0" * 64, licence="MIT"),),
        )

    def keep(self, key, layer):
        self.layers.keep(key, layer)
        self.shared.wait()

    def close(self):
        self.shared.close()
        self.client.close()


@pytest.fixture
def machine(server, tmp_path):
    """Makes machines that push to one corner of the registry."""
    registry = Registry.parse(f"http://{server.registry.host}/t{os.urandom(6).hex()}")
    made = []

    def make():
        made.append(Builder(registry, tmp_path / str(len(made))))
        return made[-1]

    yield make
    for one in made:
        one.close()


def poison(builder, document, *, kind=LAYER, key=KEY, blobs=(), type_=None):
    """Write any bytes, or a document, where a record would be."""
    data = document if isinstance(document, bytes) else canonical(document)
    for blob in blobs:
        builder.client.push_blob(
            builder.shared.repository, blob.digest, blob.size, lambda blob=blob: builder.blobs.open(blob.digest)
        )
    named = [Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size) for blob in blobs]
    builder.client.put_artifact(
        builder.shared.repository,
        f"{kind}-{key}",
        type_ or media_type(kind),
        Content(data=data, media_type=media_type(kind)),
        blobs=named,
    )


def envelope(content, **changes):
    value = {"format": 1, "kind": LAYER, "key": KEY, "created": time.time(), "content": content}
    return {**value, **changes}


# --- layers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("compression", Compression)
def test_a_layer_is_taken_with_all_that_proofs_need_and_without_its_bytes(machine, compression):
    one, other = machine(), machine()
    layer = one.make(compression=compression)
    one.keep(KEY, layer)
    assert other.layers.local(KEY) is None
    assert other.layers.shared(KEY) == layer
    assert not other.blobs.has(layer.digest)
    assert other.transport.count("GET", "/blobs/") == 0
    # it is mounted where images are, and read here only when somebody opens it
    other.target.offer("acme/digits", layer, other.blobs)
    assert not other.blobs.has(layer.digest)
    assert other.client.has_blob(f"{one.client.registry.repository('acme', 'digits', 'learner')}", layer.digest)
    with other.blobs.open(layer.digest) as blob:
        assert sha256(blob.read()) == layer.digest
    assert other.told.warnings == one.told.warnings == []


def test_each_key_is_asked_for_once_whether_it_is_there_or_not(machine):
    one, other = machine(), machine()
    one.keep(KEY, one.make())
    for _ in range(3):
        assert other.layers.shared(KEY) is not None
        assert other.layers.shared(OTHER) is None
    assert other.transport.count("GET", "/manifests/layer-") == 2


def test_what_is_kept_is_an_artifact_that_names_its_layer(machine):
    one = machine()
    layer = one.make()
    one.keep(KEY, layer)
    found = one.client.get_manifest(one.shared.repository, f"layer-{KEY}")
    document = json.loads(found.document)
    assert document["artifactType"] == "application/vnd.flops.layer.v1+json"
    assert document["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert [entry["mediaType"] for entry in document["layers"]] == [media_type(LAYER), layer.media_type]
    assert document["layers"][1]["digest"] == layer.digest
    assert one.shared.repository.endswith("/flops/cache")
    assert one.shared.uploaded_layers == layer.size
    assert one.shared.uploaded > layer.size


def test_a_record_of_what_this_machine_made_otherwise_is_ignored(machine):
    one, other = machine(), machine()
    one.keep(KEY, one.make("one"))
    known = other.make("two")
    other.layers.put(KEY, known)
    other.blobs.path(known.digest).unlink()
    assert other.layers.shared(KEY) is None
    assert "this machine made another layer" in other.told.warnings[0]
    # what is made anew stands in its place then
    third = machine()
    other.keep(KEY, other.make("two"))
    assert third.layers.shared(KEY) == known


def change(layer, **changes):
    return {**layer.to_json(), "files": [["a", "sha256=x", 400]], "conflicts": [], **changes}


BROKEN = {
    "no JSON": lambda layer: b"\xff\x00",
    "deep": lambda layer: b"[" * 100_000,
    "no object": lambda layer: [],
    "empty": lambda layer: {},
    "another key": lambda layer: envelope(change(layer), key=OTHER),
    "another kind": lambda layer: envelope(change(layer), kind=LOCK),
    "another format": lambda layer: envelope(change(layer), format=2),
    "from the future": lambda layer: envelope(change(layer), created=time.time() + 7200),
    "no time": lambda layer: envelope(change(layer), created="now"),
    "not a number": lambda layer: json.dumps(envelope(change(layer), created=float("nan"))).encode(),
    "no layer": lambda layer: envelope(["layer"]),
    "another layer": lambda layer: envelope(change(layer, digest="sha256:" + "0" * 64)),
    "another size": lambda layer: envelope(change(layer, size=layer.size + 1)),
    "a size of text": lambda layer: envelope(change(layer, size=str(layer.size))),
    "no digest": lambda layer: envelope(change(layer, diff_id="../../etc/passwd")),
    "no room": lambda layer: envelope(change(layer, uncompressed_size=-1)),
    "too much room": lambda layer: envelope(change(layer, uncompressed_size=1 << 60)),
    "another type": lambda layer: envelope(change(layer, media_type="text/html")),
    "more fields": lambda layer: envelope(change(layer, more=1)),
    "control characters": lambda layer: envelope(change(layer, comment="\x1b[2J")),
    "files of numbers": lambda layer: envelope(change(layer, files=[1, 2])),
    "a file too long": lambda layer: envelope(change(layer, files=[["a", "b", 1, 2]])),
    "conflicts of text": lambda layer: envelope(change(layer, conflicts="abc")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_record_that_is_none_of_ours_is_ignored_with_a_warning(machine, what):
    one, other = machine(), machine()
    layer = one.make()
    poison(one, BROKEN[what](layer), blobs=[layer])
    assert other.layers.shared(KEY) is None
    (warning,) = other.told.warnings
    assert f"layer-{KEY[:12]}" in warning
    assert "ignored" in warning
    # and it does not end the sharing
    one.keep(OTHER, layer)
    assert other.layers.shared(OTHER) == layer


@pytest.mark.parametrize("held", [0, 2])
def test_a_record_that_does_not_hold_its_layer_alone_is_ignored(machine, held):
    """Nothing would keep the layer from the registry's collector, though it is there today."""
    one, other = machine(), machine()
    layer, another = one.make(), one.make("two")
    one.keep(OTHER, layer)
    poison(one, envelope(change(layer)), blobs=[layer, another][:held])
    assert other.layers.shared(KEY) is None
    assert "can't be read" in other.told.warnings[0]


def test_a_sound_record_passes_what_the_broken_ones_do_not(machine):
    one, other = machine(), machine()
    layer = one.make()
    poison(one, envelope(change(layer)), blobs=[layer])
    assert other.layers.shared(KEY).digest == layer.digest
    assert other.told.warnings == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["digest", "diff_id", "size", "uncompressed_size", "media_type", "comment", "files", "licences"]
)


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=FIELDS, value=JSON)
def test_whatever_a_record_says_gives_a_layer_of_ours_or_none(tmp_path, field, value):
    """The registry is replaced by what it would have answered: no value of any field ends a build."""

    class Answers:
        available = True

        def find(self, kind, key):
            return shared_cache.SharedDocument(
                content=content, age=0.0, blobs=(Descriptor(media_type=TYPE, digest=DIGEST, size=5),)
            )

        def size(self, digest):
            return 5

        def ignore(self, kind, key, reason):
            told.append(reason)

    content = {**SOUND, field: value}
    told = []
    found = LayerCache(tmp_path / "layers", BlobStore(tmp_path), Answers()).shared(KEY)
    assert (found is None) == bool(told)
    if found is not None:
        assert (found.digest, found.size, found.media_type) == (DIGEST, 5, TYPE)
        assert isinstance(found, WheelLayer)
        assert all(isinstance(file.path, str) for file in found.files)


TYPE, DIGEST = "application/vnd.oci.image.layer.v1.tar+gzip", "sha256:" + "a" * 64
SOUND = {
    "digest": DIGEST,
    "diff_id": "sha256:" + "b" * 64,
    "size": 5,
    "uncompressed_size": 10,
    "media_type": TYPE,
    "comment": "",
    "files": [["a", "b", 1]],
}


def test_a_record_whose_layer_was_deleted_is_ignored(machine):
    one, other = machine(), machine()
    layer = one.make()
    one.keep(KEY, layer)
    path = f"/v2/{one.shared.repository}/blobs/{layer.digest}"
    assert httpx.delete(f"http://{one.client.registry.host}{path}").status_code == 202
    assert other.layers.shared(KEY) is None
    assert "is absent" in other.told.warnings[0]


def test_a_layer_that_is_not_what_its_record_tells_ends_the_use_of_records_when_it_is_read(machine):
    one, other = machine(), machine()
    layer = one.make()
    poison(one, envelope(change(layer, diff_id="sha256:" + "0" * 64)), blobs=[layer])
    assert other.layers.shared(KEY) is not None
    with pytest.raises(RecordUnusable, match="does not hold the files"):
        other.blobs.open(layer.digest)
    assert not other.blobs.has(layer.digest)


@pytest.mark.parametrize("what", ["larger than told", "no archive"])
def test_a_layer_that_can_not_be_what_was_told_is_not_kept(machine, what):
    one, other = machine(), machine()
    if what == "no archive":
        digest = one.blobs.put(b"no archive at all")
        layer = WheelLayer(digest=digest, diff_id=digest, size=17, uncompressed_size=17, media_type=TYPE)
        poison(one, envelope(change(layer)), blobs=[layer])
    else:
        layer = one.make()
        poison(one, envelope(change(layer, uncompressed_size=10)), blobs=[layer])
    assert other.layers.shared(KEY) is not None
    with pytest.raises(RecordUnusable):
        other.blobs.open(layer.digest)
    with pytest.raises(RecordUnusable):  # nor is it believed the next time
        other.blobs.open(layer.digest)


def test_cancelled_is_no_reason_to_begin_again(machine, monkeypatch):
    one, other = machine(), machine()
    layer = one.make()
    one.keep(KEY, layer)
    assert other.layers.shared(KEY) is not None
    monkeypatch.setattr("flops.oci.blobs.check_cancelled", lambda: (_ for _ in ()).throw(Cancelled("stop")))
    with pytest.raises(Cancelled):
        other.blobs.open(layer.digest)


# --- a registry that does not take part -------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [400, 401, 403, 405, 500])
def test_a_registry_that_refuses_costs_one_warning(machine, status):
    one = machine()
    layer = one.make()
    one.transport.status = status
    assert one.layers.shared(KEY) is None
    assert one.layers.shared(OTHER) is None
    asked = len(one.transport.asked)
    one.keep(KEY, layer)
    assert DocumentStore(one.directory / "locks", shared=one.shared, kind=LOCK).get(["x"]) is None
    assert len(one.transport.asked) == asked, "nothing is asked of it any more"
    (warning,) = one.told.warnings
    assert "can't be read" in warning


def test_a_registry_that_only_lets_us_read_costs_one_warning(machine):
    one, other = machine(), machine()
    layer = one.make()
    one.keep(KEY, layer)
    real = other.transport.inner

    def refuse(request):
        return httpx.Response(403) if request.method in ("POST", "PUT") else real.handle_request(request)

    other.transport.inner = httpx.MockTransport(refuse)
    assert other.layers.shared(KEY) == layer
    for key in (OTHER, "3" * 64):
        other.keep(key, other.make(key[0]))
    (warning,) = other.told.warnings
    assert "can't be written" in warning
    real.close()


# --- locks and base sets ----------------------------------------------------------------------------------------------
def test_a_lock_is_found_by_another_builder_and_not_taken_over(machine):
    one, other = machine(), machine()
    request = {"requirements": ["numpy"]}
    DocumentStore(one.directory / "locks", shared=one.shared, kind=LOCK).put(request, {"wheels": [1]})
    one.shared.wait()
    store = DocumentStore(other.directory / "locks", shared=other.shared, kind=LOCK)
    assert store.get(request) == {"wheels": [1]}
    assert store.get({"requirements": ["scipy"]}) is None
    assert DocumentStore(other.directory / "locks", kind=LOCK).get(request) is None, (
        "what others made is not this machine's"
    )


def test_what_is_about_one_machine_is_not_told(machine):
    one, other = machine(), machine()
    DocumentStore(one.directory / "locks", shared=one.shared, kind=LOCK).put(["x"], "it does not answer", shared=False)
    one.shared.wait()
    assert DocumentStore(other.directory / "locks", shared=other.shared, kind=LOCK).get(["x"]) is None
    assert DocumentStore(one.directory / "locks", kind=LOCK).get(["x"]) == "it does not answer"


@pytest.mark.parametrize(("age", "found"), [(LIFETIME - 60, True), (LIFETIME + 60, False), (-60, True)])
def test_a_lock_is_as_old_as_its_making(machine, age, found):
    """A clock that is a minute ahead of ours is nothing unusual."""
    one, other = machine(), machine()
    key = shared_cache_key(["x"])
    document = envelope({"a": 1}, kind=LOCK, key=key, created=time.time() - age)
    poison(one, document, kind=LOCK, key=key)
    assert (DocumentStore(other.directory, shared=other.shared, kind=LOCK).get(["x"]) == {"a": 1}) is found


def shared_cache_key(request):
    from flops.store.document_store import _key

    return _key(request)


PACKAGE = BasePackage(name="libc6", version="2.36-9+deb12u9", architecture="amd64", size=1, sha256="a" * 64)


@pytest.mark.parametrize(
    ("age", "changes", "found"),
    [
        (60, {}, True),
        (LIFETIME + 60, {}, False),
        (60, {"name": "-o=APT::x"}, False),
        (60, {"version": "1 2"}, False),
        (60, {"sha256": "../../../etc/passwd"}, False),
        (60, {"name": 5}, False),
    ],
)
def test_a_base_set_of_others_counts_as_long_and_only_where_it_is_one(machine, age, changes, found):
    one, other = machine(), machine()
    content = {"packages": [{**PACKAGE.to_json(), **changes}]}
    poison(
        one,
        envelope(content, kind=BASE, key=shared_cache_key(KEY), created=time.time() - age),
        kind=BASE,
        key=shared_cache_key(KEY),
    )
    store = PackageStore(other.directory, shared=other.shared)
    assert (store.packages(KEY) == (PACKAGE,)) is found
    if not changes:
        assert store.packages(KEY, any_age=True) == (PACKAGE,)


def test_package_sets_and_layers_of_bases_are_shared_likewise(machine):
    one, other = machine(), machine()
    store = PackageStore(one.directory, shared=one.shared)
    store.keep_packages(KEY, [PACKAGE])
    layer = Layer(**{name: getattr(one.make(), name) for name in Layer.__dataclass_fields__})
    one.keep(OTHER, layer)
    there = PackageStore(other.directory, shared=other.shared)
    assert there.packages(KEY) == (PACKAGE,)
    assert other.layers.find(OTHER).digest == layer.digest
    assert not other.blobs.has(layer.digest)


# --- keys of files ----------------------------------------------------------------------------------------------------
def test_layers_of_our_own_files_have_a_key_by_content_and_a_repository_has_none(tmp_path):
    def key(*entries, compression=Compression.GZIP):
        return cache_key(FilesLayer(title="x", entries=entries), compression)

    one = (File(path="a", data=b"1"), Link(path="b", target="a"), Directory(path="c"))
    others = [
        (File(path="a", data=b"2"), *one[1:]),
        (File(path="a", data=b"1", executable=True), *one[1:]),
        (File(path="a", data=b"1", owner=5), *one[1:]),
        (one[0], Link(path="b", target="c"), one[2]),
        (*one[:2], Directory(path="c", owner=5)),
        one[:2],
    ]
    keys = [key(*one), key(*one, compression=Compression.ZSTD), *(key(*other) for other in others)]
    assert len(set(keys)) == len(keys)
    assert key(*reversed(one)) == key(*one)
    assert key(*shims("/usr/bin/python3.11", "3.11")) != key(*main_file(Actor.LEARNER))
    (tmp_path / "x").write_text("x")
    assert key(*one, File(path=f"{REPOSITORY}/x", data=tmp_path / "x")) is None


def test_nobody_shares_with_a_directory(tmp_path):
    from flops.publishing.local_targets import ArchiveTarget, LayoutTarget

    targets: list[Target] = [LayoutTarget(tmp_path), ArchiveTarget(tmp_path / "x.tar")]
    assert [target.shared(Silent()) for target in targets] == [None, None]


def test_the_repository_lies_under_the_registrys_prefix(server):
    with RegistryClient(Registry.parse(f"http://{server.registry.host}/team/a")) as client:
        shared = RegistryTarget(client).shared(Silent())
        assert isinstance(shared, SharedCache)
        assert shared.repository == "team/a/flops/cache"
        shared.close()

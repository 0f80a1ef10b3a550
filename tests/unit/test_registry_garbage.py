"""The embedded registry's collector: what nobody names goes, whatever is named or in use stays."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import threading

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flops.errors import ManifestIncomplete, RegistryError
from flops.oci.artifacts import Content
from flops.oci.blobs import sha256
from flops.oci.client import RegistryClient
from flops.oci.descriptor import MANIFEST, Descriptor
from flops.registry import garbage
from flops.registry.app import EmbeddedRegistry
from flops.registry.garbage import Collected, collect
from flops.registry.storage import RegistryStore

OLD = 1_000_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power


@pytest.fixture
def store(tmp_path):
    store = RegistryStore(tmp_path / "registry")
    store.prepare()
    yield store
    store.close()


def blob(store, repository, data):
    upload = store.begin(repository)
    upload.append(data)
    return store.finish(upload)


def image(store, repository, *blobs, tag=None):
    entries = [{"mediaType": "x", "digest": blob(store, repository, data), "size": len(data)} for data in blobs]
    value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entries[0], "layers": entries[1:]}
    with store.locked():
        digest = store.put_manifest(repository, json.dumps(value).encode(), MANIFEST)
        if tag:
            store.tag(repository, tag, digest)
    return digest


def age(store, seconds=OLD):
    """All that is there was there for long."""
    for path in store.root.rglob("*"):
        if path.is_file():
            changed = path.stat().st_mtime - seconds
            os.utime(path, (changed, changed))


def files(store):
    return {f"sha256:{path.name}" for path in store.blob_directory.iterdir()}


def test_what_no_manifest_names_goes_and_its_bytes_are_counted(store):
    kept = image(store, "a", b"{}", b"kept", tag="v1")
    loose = blob(store, "a", b"loose bytes")
    age(store)
    done = collect(store, 3600)
    assert (done.links, done.blobs, done.bytes) == (1, 1, len(b"loose bytes"))
    assert not store.has_blob("a", loose)
    assert files(store) == {kept, sha256(b"{}"), sha256(b"kept")}
    assert collect(store, 3600).blobs == 0


def test_a_deleted_image_goes_and_what_others_share_stays(store):
    gone = image(store, "a", b"{a}", b"shared", b"alone", tag="v1")
    kept = image(store, "a", b"{b}", b"shared", tag="v2")
    other = image(store, "b", b"{a}", tag="v1")
    store.remove_manifest("a", gone)
    age(store)
    collect(store, 3600)
    assert files(store) == {kept, other, sha256(b"{a}"), sha256(b"{b}"), sha256(b"shared")}
    assert not store.has_blob("a", sha256(b"{a}"))
    assert store.has_blob("b", sha256(b"{a}"))


@pytest.mark.parametrize("odd", [5, "sha256:", None, {"a": 1}, [3, None, {"digest": 7}]])
def test_a_manifest_of_an_unknown_type_may_say_anything(store, odd):
    kept = blob(store, "a", b"kept")
    entry = {"mediaType": "x", "digest": kept, "size": 4}
    for document in (
        {"layers": odd, "blobs": [entry]},
        {"layers": [entry], "blobs": odd},
        {"config": odd, "layers": odd},
    ):
        with store.locked():
            store.put_manifest("a", json.dumps({"schemaVersion": 2, **document}).encode(), "application/x")
    loose = blob(store, "a", b"loose")
    age(store)
    assert collect(store).blobs == 1
    assert kept in files(store)
    assert loose not in files(store)


def test_untagged_manifests_stay(store):
    digest = image(store, "a", b"{}")
    age(store)
    collect(store, 0)
    assert store.media_type("a", digest) == MANIFEST
    assert store.has_blob("a", sha256(b"{}"))


def test_what_was_pushed_lately_stays(store):
    blob(store, "a", b"pushed for an image that is still to come")
    assert collect(store, 3600).links == 0
    assert collect(store, -1).links == 1


@pytest.mark.parametrize("collects", [True, False])
def test_who_collects_is_alone_and_who_pushes_is_not(store, collects):
    with store.locked(exclusive=collects), (store.root / "lock").open("ab") as another:
        with pytest.raises(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError) if collects else contextlib.nullcontext():
            fcntl.flock(another, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_what_is_used_after_it_was_noted_stays(store, monkeypatch):
    """Between the reading without a lock and the removal under it, somebody asks for it."""
    held, loose, locked = blob(store, "a", b"held"), blob(store, "a", b"loose"), store.locked
    age(store)
    store.unlink("a", loose)

    def later(*, exclusive=False):
        if exclusive:
            assert store.use("a", [held]) == []
            os.utime(store.blob_path(loose))  # as the end of an upload of the same bytes does
        return locked(exclusive=exclusive)

    monkeypatch.setattr(store, "locked", later)
    assert collect(store) == Collected()
    assert files(store) == {held, loose}


@pytest.mark.parametrize("use", ["asked for", "mounted", "pushed again", "named"])
def test_what_is_used_becomes_young(store, use):
    digest = blob(store, "a", b"x")
    blob(store, "a", b"{}")
    age(store)
    match use:
        case "asked for":
            assert store.use("a", [digest]) == []
        case "mounted":
            assert store.link("b", digest, "a")
        case "pushed again":
            blob(store, "a", b"x")
        case "named":
            image(store, "a", b"{}", b"x")
    collect(store, 3600)
    assert store.has_blob("b" if use == "mounted" else "a", digest)


def test_a_head_request_is_a_use(tmp_path):
    with EmbeddedRegistry(tmp_path) as server, RegistryClient(server.registry) as client:
        client.push_blob("a", sha256(b"x"), 1, lambda: io.BytesIO(b"x"))
        store = RegistryStore(tmp_path)
        age(store)
        assert client.has_blob("a", sha256(b"x"))
        assert collect(store, 3600).blobs == 0


def test_repositories_that_hold_nothing_are_gone(store):
    store.remove_manifest("a/b", image(store, "a/b", b"{}", tag="v1"))
    kept = image(store, "a/b/c", b"[]")
    assert store.repositories() == ["a/b", "a/b/c"]
    age(store)
    collect(store, 3600)
    assert store.repositories() == ["a/b/c"]
    assert store.media_type("a/b/c", kept)
    store.remove_manifest("a/b/c", kept)
    age(store)
    collect(store, 3600)
    assert store.repositories() == []


def test_a_push_whose_blob_was_collected_is_told_and_pushes_it_again(tmp_path):
    with EmbeddedRegistry(tmp_path) as server, RegistryClient(server.registry) as client:
        client.push_blob("a", sha256(b"{}"), 2, lambda: io.BytesIO(b"{}"))
        age(RegistryStore(tmp_path))
        assert collect(RegistryStore(tmp_path), 3600).blobs == 1
        client.put_artifact("a", "t", "text/x", Content(data=b"content"))
        assert client.get_artifact("a", "t").content == b"content"


def test_an_upload_that_was_long_under_way_is_used_when_it_ends(store, monkeypatch):
    """It ends after the collector read what is held, and its last byte came hours ago."""
    upload, held = store.begin("a"), garbage._held
    upload.append(b"slow")
    age(store)

    def read_and_then_finished(one):
        found = held(one)
        store.finish(upload)
        return found

    monkeypatch.setattr(garbage, "_held", read_and_then_finished)
    assert collect(store, 3600).blobs == 0
    assert store.has_blob("a", sha256(b"slow"))


def test_beside_pushes_that_go_on(tmp_path):
    """Collectors without any grace, beside four clients: each push ends whole."""
    stop, failures = threading.Event(), []

    def collecting():
        while not stop.is_set():
            collect(RegistryStore(tmp_path), 0)

    def pushing(registry, number):
        try:
            with RegistryClient(registry) as client:
                for turn in range(12):
                    content = Content(data=f"{number}-{turn}".encode() * 1000, embedded=False)
                    subject = Descriptor(media_type=MANIFEST, digest=sha256(b"s"), size=1)
                    client.put_artifact(f"r/{number % 2}", f"t{number}-{turn}", "text/x", content, subject=subject)
        except RegistryError as error:
            failures.append(error)

    with EmbeddedRegistry(tmp_path) as server:
        threads = [threading.Thread(target=pushing, args=(server.registry, number)) for number in range(4)]
        collector = threading.Thread(target=collecting)
        for thread in (*threads, collector):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        collector.join()
        # Without any grace a blob may go three times before its manifest comes: that is told, and nothing is half.
        assert all(type(error) is ManifestIncomplete for error in failures), failures
        with httpx.Client(base_url=server.registry.url) as web, RegistryClient(server.registry) as client:
            for name in client.catalog():
                for tag in client.tags(name):
                    document = web.get(f"/v2/{name}/manifests/{tag}").json()
                    for entry in (document["config"], *document["layers"]):
                        content = web.get(f"/v2/{name}/blobs/{entry['digest']}").content
                        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == entry["digest"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=st.lists(
        st.tuples(
            st.sampled_from(["a", "a/b", "c"]), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.booleans()
        ),
        max_size=8,
    ),
    loose=st.lists(st.tuples(st.sampled_from(["a", "c", "d"]), st.integers(0, 9)), max_size=5),
)
def test_after_any_history_exactly_what_is_named_is_left(tmp_path_factory, images, loose):
    store = RegistryStore(tmp_path_factory.mktemp("registry"))
    store.prepare()
    expected = {}
    for repository, numbers, deleted in images:
        blobs = [b"%d" % number for number in numbers]
        digest = image(store, repository, *blobs)
        expected[repository, digest] = {sha256(data) for data in blobs}
        if deleted:
            store.remove_manifest(repository, digest)
            del expected[repository, digest]
    for repository, number in loose:
        blob(store, repository, b"%d" % number)
    age(store)
    collect(store, 3600)
    assert files(store) == {digest for _, digest in expected} | set().union(*expected.values())
    for (repository, digest), blobs in expected.items():
        assert store.media_type(repository, digest)
        assert all(store.has_blob(repository, one) for one in blobs)
    store.close()

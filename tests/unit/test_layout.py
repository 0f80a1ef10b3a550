"""Blobs and layouts on disk: whole or not there, the same to the byte, and as other programs expect them."""

import errno
import io
import json
import os
import tarfile
import threading
import time

import pytest

from flops.errors import BadImage, DiskFull, OutputError
from flops.oci.artifacts import EMPTY, Content, artifact_document
from flops.oci.blobs import BlobStore, sha256
from flops.oci.descriptor import MANIFEST, Descriptor
from flops.oci.image import ImageConfig, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.layout import Layout, Referrer, write_archive
from flops.platforms import Platform


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store")


def image(store, text=b"content"):
    with store.writer() as blob:
        writer = LayerWriter(blob)
        writer.file("a/b", text)
        layer = writer.close()
        blob.commit(layer.digest)
    configs = [ImageConfig(platform=platform, created="2024-05-01T10:00:00Z") for platform in Platform]
    return index([compose(config, [layer]) for config in configs])


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_blob_appears_when_it_is_whole(store):
    digest = sha256(b"12")
    with store.writer() as blob:
        blob.write(b"1")
        assert not store.has(digest)
        blob.write(b"2")
        assert blob.commit() == digest
    assert (store.read(digest), store.size(digest), store.has(digest)) == (b"12", 2, True)
    with store.open(digest) as file:
        assert file.read() == b"12"
    assert files(store.root) == ["blobs/sha256/" + digest[7:]]


def test_what_is_not_committed_leaves_nothing(store):
    with store.writer() as blob:
        blob.write(b"x")
    with store.writer() as blob:
        blob.write(b"x")
        with pytest.raises(BadImage):
            blob.commit(sha256(b"y"))
    assert files(store.root) == []


def test_a_writer_that_fails_leaves_nothing(store):
    def fail():
        with store.writer() as blob:
            blob.write(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert files(store.root) == []


def test_what_killed_writers_left_is_removed_after_a_day(store):
    partial = store.root / ".partial"
    partial.mkdir(parents=True)
    for name, age in (("old", 25 * 3600), ("young", 3600)):
        (partial / name).write_bytes(b"x")
        os.utime(partial / name, (time.time() - age, time.time() - age))
    store.put(b"y")
    assert [path.name for path in partial.iterdir()] == ["young"]


def test_a_full_disk_has_its_own_error(store, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "full")

    with store.writer() as blob:
        monkeypatch.setattr(blob, "_output", Full())
        with pytest.raises(DiskFull):
            blob.write(b"x")
    assert files(store.root) == []


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../x", "sha512:" + "a" * 128, "sha256:" + "A" * 64, "a" * 64 + "\n"]
)
def test_only_digests_name_blobs(store, digest):
    with pytest.raises(BadImage):
        store.path(digest)


def test_threads_may_put_the_same_blob(store):
    digests = []
    threads = [threading.Thread(target=lambda: digests.append(store.put(b"same" * 1000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert digests == [sha256(b"same" * 1000)] * 8
    assert len(files(store.root)) == 1


def test_a_layout_as_the_specification_has_it(tmp_path, store):
    whole = image(store)
    layout = Layout(tmp_path / "out")
    layout.write("acme/learner:1", whole, store)
    root = tmp_path / "out"
    assert json.loads((root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((root / "index.json").read_bytes()) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "digest": whole.digest,
                "size": len(whole.document),
                "annotations": {"org.opencontainers.image.ref.name": "acme/learner:1"},
            }
        ],
    }
    expected = {sha256(document) for document in whole.documents()} | {layer.digest for layer in whole.layers}
    assert {name for name in files(root) if name.startswith("blobs")} == {
        "blobs/" + digest.replace(":", "/") for digest in expected
    }
    for digest in expected:
        assert sha256(layout.blobs.read(digest)) == digest
    assert layout.read("acme/learner:1").digest == whole.digest
    assert layout.read("other") is None


def test_names_are_replaced_and_others_kept(tmp_path, store):
    layout = Layout(tmp_path / "out")
    assert layout.references() == {}
    one, two = image(store, b"1"), image(store, b"2")
    layout.write("b", one, store)
    layout.write("a", one, store)
    layout.write("b", two, store)
    assert {name: entry.digest for name, entry in layout.references().items()} == {"a": one.digest, "b": two.digest}
    assert list(layout.references()) == ["a", "b"]


def note(whole, text):
    """A record of an image."""
    document = artifact_document("text/note", Content(data=text), subject=whole.descriptor)
    entry = Descriptor(media_type=MANIFEST, digest=sha256(document), size=len(document), artifact_type="text/note")
    return Referrer(descriptor=entry, documents=(document, EMPTY, text))


def entries(root):
    return json.loads((root / "index.json").read_bytes())["manifests"]


def test_what_others_put_there_without_a_name_stays(tmp_path, store):
    layout = Layout(tmp_path / "out")
    one, two, three = (image(store, text) for text in (b"1", b"2", b"3"))
    for number, whole in enumerate((one, two)):
        layout.write(f"name{number}", whole, store)
    index_json = json.loads((layout.root / "index.json").read_bytes())
    for entry in index_json["manifests"]:
        del entry["annotations"]
    (layout.root / "index.json").write_text(json.dumps(index_json))
    layout.write("a", three, store)
    assert {entry["digest"] for entry in entries(layout.root)} == {one.digest, two.digest, three.digest}
    assert list(layout.references()) == ["a"]


def test_an_image_leaves_with_its_records_and_its_bytes(tmp_path, store):
    layout = Layout(tmp_path / "out")
    one, two = image(store, b"1"), image(store, b"2")
    first, second = note(one, b"of one"), note(two, b"of two")
    for name in ("acme/a:1", "acme/a:one", "acme/b:1"):
        layout.write(name, one, store, [first])
    layout.write("acme/a:2", two, store, [second])
    whole = files(layout.root)
    assert layout.unname("acme/a", one.digest)
    assert sorted(layout.references()) == ["acme/a:2", "acme/b:1"]
    assert [entry.digest for entry in layout.referrers(one.digest)] == [first.descriptor.digest]
    assert not layout.unname("acme/a", one.digest)
    assert layout.collect(-1) == 0
    assert files(layout.root) == whole
    assert layout.unname("acme/b", one.digest)
    assert layout.collect(60) == 0, "all of it came just now"
    assert files(layout.root) == whole
    for layer in one.layers:
        store.path(layer.digest).unlink()  # else its bytes are there still
    freed = layout.collect(-1)
    gone = {*map(sha256, one.documents()), *(layer.digest for layer in one.layers), *map(sha256, first.documents)}
    gone -= {sha256(EMPTY), *map(sha256, two.documents())}
    assert freed == sum(layer.size for layer in one.layers) + sum(
        len(document) for document in (*one.documents(), *first.documents) if sha256(document) in gone
    )
    assert set(whole) - set(files(layout.root)) == {"blobs/" + digest.replace(":", "/") for digest in gone}
    assert [entry["digest"] for entry in entries(layout.root)] == [two.digest, second.descriptor.digest]


def test_a_cache_keeps_the_bytes_that_a_layout_loses(tmp_path, store):
    layout = Layout(tmp_path / "out")
    whole = image(store)
    layout.write("acme/a:1", whole, store)
    layout.unname("acme/a", whole.digest)
    assert layout.collect(-1) == sum(map(len, {*whole.documents()}))
    assert all(store.has(layer.digest) for layer in whole.layers)


def test_many_writers_lose_no_name(tmp_path, store):
    whole = image(store)
    threads = [
        threading.Thread(target=Layout(tmp_path / "out").write, args=(f"name{n}", whole, store)) for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(Layout(tmp_path / "out").references()) == 12
    assert (tmp_path / "out/oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'


def test_layers_are_copied_and_checked_where_they_cant_be_linked(tmp_path, store, monkeypatch):
    def no_link(*_):
        raise OSError(errno.EXDEV, "other file system")

    monkeypatch.setattr(os, "link", no_link)
    whole = image(store)
    Layout(tmp_path / "out").write("a", whole, store)
    assert (tmp_path / "out/blobs/sha256" / whole.layers[0].digest[7:]).stat().st_nlink == 1
    store.path(whole.layers[0].digest).write_bytes(b"damaged")
    with pytest.raises(BadImage):
        Layout(tmp_path / "other").write("a", whole, store)
    assert not (tmp_path / "other/index.json").exists()


def test_places_that_cant_be_written(tmp_path, store):
    whole = image(store)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file"):
        Layout(tmp_path / "file").write("a", whole, store)
    with pytest.raises(OutputError):
        write_archive(tmp_path / "missing" / "x.tar", {"a": whole}, store)


def test_an_archive_is_a_layout_and_always_the_same(tmp_path, store):
    one, two = image(store, b"1"), image(store, b"2")
    write_archive(tmp_path / "x.tar", {"b": one, "a": two}, store)
    write_archive(tmp_path / "y.tar", {"a": two, "b": one}, store)
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "y.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    assert {n: e.digest for n, e in Layout(tmp_path / "out").references().items()} == {"a": two.digest, "b": one.digest}
    for name in files(tmp_path / "out/blobs/sha256"):
        assert sha256((tmp_path / "out/blobs/sha256" / name).read_bytes()) == "sha256:" + name
    assert files(tmp_path / "out/blobs") == sorted(
        {"sha256/" + sha256(document)[7:] for whole in (one, two) for document in whole.documents()}
        | {"sha256/" + layer.digest[7:] for whole in (one, two) for layer in whole.layers}
    )


def test_a_broken_archive_is_not_left_behind(tmp_path, store):
    whole = image(store)
    store.path(whole.layers[0].digest).write_bytes(b"short")
    with pytest.raises(BadImage):
        write_archive(tmp_path / "out.tar", {"a": whole}, store)
    assert files(tmp_path) == files(tmp_path / "store") or not list(tmp_path.glob("*.tar*"))
    assert not [path for path in tmp_path.iterdir() if path.name != "store"]

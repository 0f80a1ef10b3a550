"""The tar writer: what it writes is what every reader reads, always the same bytes, and never what a layer must not hold."""

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from flops.errors import LayerUnsafe
from flops.oci import deflate, tar
from flops.oci.blobs import BlobStore
from flops.oci.layer import GZIP, ZSTD, Layer, LayerWriter, compressor_tag
from flops.recipe import Compression

PARTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda part: part not in {".", ".."} and not part.startswith(".wh.")
)
PATHS = st.lists(PARTS, min_size=1, max_size=6).map("/".join)
CONTENTS = st.one_of(st.binary(max_size=600), st.integers(0, 9000).map(lambda n: b"abc\0" * n))


def raw_deflate(data, level=6):
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def written(fill, compression=Compression.GZIP, **options):
    """The layer, its bytes, and the tar in it."""
    output = io.BytesIO()
    writer = LayerWriter(output, compression=compression, **options)
    fill(writer)
    layer = writer.close()
    data = output.getvalue()
    if compression is Compression.GZIP:
        unpacked = gzip.decompress(data)
    else:
        unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return layer, data, unpacked


def listing(unpacked):
    """The tree as text: kind, mode, owner, size, name and target, in the order of the tar."""
    rows = []
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        for entry in archive:
            kind = {tarfile.DIRTYPE: "d", tarfile.REGTYPE: "-", tarfile.SYMTYPE: "l"}[entry.type]
            target = f" -> {entry.linkname}" if entry.linkname else ""
            rows.append(f"{kind} {entry.mode:04o} {entry.uid}:{entry.gid} {entry.size} {entry.name}{target}")
    return rows


def example(writer):
    writer.directory("tmp", mode=0o1777)
    # "hello hello hello\n", as a compressor of 2024 wrote it: the stream goes into the layer as it is
    writer.deflated(
        "opt/a/greeting", [bytes.fromhex("cb48cdc9c9"), bytes.fromhex("57c840905c00")], size=18, crc=0xDF8A7C3B
    )
    writer.file("opt/a/run", b"#!/bin/sh\n", mode=0o755, stored=True)
    writer.file("opt/a/zeros", bytes(70_000), stored=True)
    writer.link("opt/a/sh", "/usr/bin/sh")
    writer.file("opt/repo/" + "d" * 120 + "/" + "f" * 90, b"long", uid=65532, gid=65532, stored=True)
    writer.file("opt/repo/Größe", b"utf-8", stored=True)


GOLDEN = [
    "d 1777 0:0 0 tmp",
    "d 0755 0:0 0 opt",
    "d 0755 0:0 0 opt/a",
    "- 0644 0:0 18 opt/a/greeting",
    "- 0755 0:0 10 opt/a/run",
    "- 0644 0:0 70000 opt/a/zeros",
    "l 0777 0:0 0 opt/a/sh -> /usr/bin/sh",
    "d 0755 0:0 0 opt/repo",
    "d 0755 0:0 0 opt/repo/" + "d" * 120,
    "- 0644 65532:65532 4 opt/repo/" + "d" * 120 + "/" + "f" * 90,
    "- 0644 0:0 5 opt/repo/Größe",
]


def test_golden_layer_listing_then_digests():
    layer, data, unpacked = written(example)
    assert listing(unpacked) == GOLDEN
    assert layer.diff_id == "sha256:010ce854c4496f7df246cbc05ab1d4900d99bfe9f5588bba9d9d030a2f200b40"
    assert layer.digest == "sha256:915ddb899f4c8983184e94c8d442b0bbf99d25da5f9c2b6e09a87e252e146a9f", (
        "the gzip layer's bytes changed: raise FORMAT_VERSION"
    )
    assert layer == Layer(
        digest="sha256:" + hashlib.sha256(data).hexdigest(),
        diff_id="sha256:" + hashlib.sha256(unpacked).hexdigest(),
        size=len(data),
        uncompressed_size=len(unpacked),
        media_type=GZIP,
    )


def test_zstd_holds_the_same_tar():
    spliced, _, _ = written(example)
    layer, data, unpacked = written(example, Compression.ZSTD)
    assert layer.media_type == ZSTD
    assert layer.diff_id == spliced.diff_id
    assert (layer.size, layer.uncompressed_size) == (len(data), len(unpacked))
    assert data[:4] == zstandard.FRAME_HEADER
    assert zstandard.get_frame_parameters(data).has_checksum


def test_spliced_bytes_lie_in_the_layer_as_they_were():
    content = b"some text " * 500
    stream = raw_deflate(content, 9)
    _, data, unpacked = written(lambda w: w.deflated("x", [stream], size=len(content), crc=zlib.crc32(content)))
    assert stream in data
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        assert archive.extractfile("x").read() == content


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(PATHS, st.tuples(CONTENTS, st.sampled_from(["file", "stored", "deflated"])), max_size=8))
def test_every_reader_gets_every_file_back(files):
    kept = {p: v for p, v in files.items() if not any(o != p and o.startswith(p + "/") for o in files)}

    def fill(writer):
        for path, (content, how) in sorted(kept.items()):
            if how == "deflated":
                stream = raw_deflate(content)
                chunks = [stream[:7], stream[7:]] if len(stream) > 7 else [stream]
                writer.deflated(path, chunks, size=len(content), crc=zlib.crc32(content))
            else:
                writer.file(path, content, stored=how == "stored")

    for compression in Compression:
        _, _, unpacked = written(fill, compression)
        with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
            assert {e.name: archive.extractfile(e).read() for e in archive if e.isfile()} == {
                path: content for path, (content, _) in kept.items()
            }


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=2000),
        st.lists(st.sampled_from([b"\0" * 5, b"0" * 9, b"x", b"\xff", b"\0" * 300])).map(b"".join),
    )
)
def test_the_fixed_encoding_is_deflate(data):
    assert zlib.decompress(deflate.encode(data), -15) == data
    assert zlib.decompress(b"".join(deflate.stored([data])), -15) == data


def test_every_length_of_a_run():
    for length in range(1, 800):
        data = b"a" + bytes(length) + b"b" + b"0" * length
        assert zlib.decompress(deflate.encode(data), -15) == data


def test_the_fixed_encoding_is_small_enough_for_headers():
    header = tar.header(
        "opt/flops/ml/lib/python3.11/site-packages/a.py", kind=tar.EntryType.FILE, mode=0o644, mtime=0, size=9
    )
    assert len(deflate.encode(header)) < 110


@pytest.mark.parametrize("how", ["file", "stored"])
@pytest.mark.parametrize("compression", Compression)
def test_bytes_do_not_depend_on_how_content_is_cut(compression, how):
    content = bytes(range(256)) * 2000 + b"0" * 300_000

    def cut(step):
        pieces = [content[at : at + step] for at in range(0, len(content), step)]
        return written(lambda w: w.file("x", iter(pieces), size=len(content), stored=how == "stored"), compression)[0]

    assert cut(777) == cut(65_536) == cut(len(content))


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../b", "a//b", "", "a/", "./a", "a/./b", "a\0b", "a/.wh.b", ".wh..wh..opq", "\udcff", "a" * 256, "é/" * 3000 + "x"],
)  # fmt: skip
@pytest.mark.parametrize("add", ["file", "directory", "link", "deflated"])
def test_unsafe_paths_are_refused(path, add):
    writer = LayerWriter(io.BytesIO())
    calls = {
        "file": lambda: writer.file(path, b""),
        "directory": lambda: writer.directory(path),
        "link": lambda: writer.link(path, "x"),
        "deflated": lambda: writer.deflated(path, [raw_deflate(b"")], size=0, crc=0),
    }
    with pytest.raises(LayerUnsafe):
        calls[add]()


@pytest.mark.parametrize("target", ["", "../../etc", "a\0", "../x/../../y", ".."])
def test_links_that_leave_the_image_are_refused(target):
    with pytest.raises(LayerUnsafe):
        LayerWriter(io.BytesIO()).link("a", target)


def test_links_inside_the_image_are_written():
    _, _, unpacked = written(lambda w: (w.link("usr/lib/x", "../../opt/y"), w.link("b", "/usr/bin/" + "n" * 120)))
    assert listing(unpacked)[2:] == ["l 0777 0:0 0 usr/lib/x -> ../../opt/y", "l 0777 0:0 0 b -> /usr/bin/" + "n" * 120]


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1644, 0o100644, -1])
def test_special_modes_of_files_are_refused(mode):
    with pytest.raises(LayerUnsafe):
        LayerWriter(io.BytesIO()).file("a", b"", mode=mode)


def test_duplicates_and_files_as_directories_are_refused():
    writer = LayerWriter(io.BytesIO())
    writer.file("a/b", b"1")
    writer.link("l", "a")
    for wrong in (
        lambda: writer.file("a/b", b"1"),
        lambda: writer.file("a/b/c", b"1"),
        lambda: writer.file("l/c", b"1"),
        lambda: writer.file("a", b"1"),
        lambda: writer.directory("a", mode=0o700),
    ):
        with pytest.raises(LayerUnsafe):
            wrong()
    writer.directory("a")  # as it is: fine
    assert writer.close().size > 0


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("change", ["size+", "size-", "crc", "truncated", "trailing", "garbage", "empty"])
def test_damaged_streams_are_refused_and_the_layer_is_lost(compression, change):
    content = b"content" * 1000
    stream, size, crc = raw_deflate(content), len(content), zlib.crc32(content)
    chunks = {"truncated": [stream[:-5]], "trailing": [stream, b"x"], "garbage": [b"\xff" * 50], "empty": []}.get(
        change, [stream]
    )
    size += {"size+": 1, "size-": -1}.get(change, 0)
    writer = LayerWriter(io.BytesIO(), compression=compression)
    with pytest.raises(LayerUnsafe):
        writer.deflated("x", chunks, size=size, crc=crc ^ (change == "crc"))
    with pytest.raises(LayerUnsafe):
        writer.close()


def test_a_file_of_another_size_than_announced_is_refused():
    for pieces in ([b"12", b"3"], [b"12345"], []):
        writer = LayerWriter(io.BytesIO())
        with pytest.raises(LayerUnsafe, match="4 bytes"):
            writer.file("x", pieces, size=4)
    with pytest.raises(LayerUnsafe, match="size"):
        LayerWriter(io.BytesIO()).file("x", [b"1"])


def test_a_bomb_stops_at_its_announced_size_in_bounded_memory():
    seen = []
    stream = raw_deflate(bytes(200 * 1024 * 1024))
    tracemalloc.start()
    with pytest.raises(LayerUnsafe, match="longer"):
        LayerWriter(io.BytesIO()).deflated("x", [stream], size=5_000_000, crc=0, check=lambda p: seen.append(len(p)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(seen) <= 5_000_000
    assert max(seen) <= deflate.PIECE
    assert peak < 20_000_000


def test_large_sizes_need_an_extended_header():
    block = tar.header("x", kind=tar.EntryType.FILE, mode=0o644, mtime=0, size=9 * 1024**3)
    entry = tarfile.TarInfo.frombuf(block[-512:], "utf-8", "strict")
    assert (len(block), entry.size) == (3 * 512, 0)
    assert b" size=9663676416\n" in block


def test_the_key_of_a_cache_names_the_compressor():
    assert compressor_tag(Compression.GZIP, spliced=True) == "spliced"
    assert zlib.ZLIB_RUNTIME_VERSION in compressor_tag(Compression.GZIP)
    assert compressor_tag(Compression.ZSTD, spliced=True) == compressor_tag(Compression.ZSTD)
    assert compressor_tag(Compression.ZSTD).startswith("zstd-1.")


def test_layers_survive_json():
    layer, _, _ = written(example)
    assert Layer.from_json(layer.to_json()) == layer


def test_a_blob_is_named_as_the_layer_says(tmp_path):
    store = BlobStore(tmp_path)
    with store.writer() as blob:
        writer = LayerWriter(blob)
        example(writer)
        layer = writer.close()
        assert blob.commit(layer.digest) == layer.digest
    assert store.size(layer.digest) == layer.size


@pytest.mark.skipif(not (shutil.which("tar") and shutil.which("gzip")), reason="tar and gzip are not installed")
def test_gnu_tar_reads_it(tmp_path):
    _, data, _ = written(example)
    (tmp_path / "layer").write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    with subprocess.Popen(["gzip", "-dc", tmp_path / "layer"], stdout=subprocess.PIPE) as unzip:
        subprocess.run(["tar", "-x", "-C", out, "--no-same-owner"], stdin=unzip.stdout, check=True, timeout=30)
    assert unzip.returncode == 0
    assert (out / "opt/a/greeting").read_bytes() == b"hello hello hello\n"
    assert (out / "opt/repo/Größe").read_bytes() == b"utf-8"
    assert (out / "opt/a/sh").readlink().as_posix() == "/usr/bin/sh"

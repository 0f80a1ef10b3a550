"""Layers of a base image that lie about their sizes, explode, or hold what no file system takes."""

import gzip
import io
import tarfile

import pytest

from flops.base import image_tree
from flops.base.image_tree import ImageTree
from flops.errors import BaseUnsuitable
from flops.oci.blobs import BlobStore
from flops.oci.layer import GZIP, Layer


@pytest.fixture
def read(tmp_path):
    """Reads raw tars, bottom to top, as a tree."""
    store = BlobStore(tmp_path / "store")

    def tree(*tars):
        layers = []
        for raw in tars:
            packed = gzip.compress(raw, 1)
            layers.append(
                Layer(
                    digest=store.put(packed),
                    diff_id="sha256:" + "0" * 64,
                    size=len(packed),
                    uncompressed_size=len(raw),
                    media_type=GZIP,
                )
            )
        return ImageTree.read(layers, store)

    return tree


def tar(**files):
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path.replace("__", "/"))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return output.getvalue()


def header(name, kind=tarfile.REGTYPE, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def extended(*records, content=b"x"):
    """A file after an extended header (pax) with these records."""
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = next(n for n in range(len(rest), len(rest) + 10) if n == len(rest) + len(str(n)))
        body += str(length).encode() + rest
    padded = body + bytes(-len(body) % 512)
    return (
        header("pax", tarfile.XHDTYPE, len(body))
        + padded
        + header("f", size=512)
        + content.ljust(512, b"\0")
        + bytes(1024)
    )


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"no tar at all" * 100, id="no tar"),
        pytest.param(b"", id="empty"),
        pytest.param(extended((b"size", b"1" + b"0" * 30)), id="a file longer than the layer"),
        pytest.param(header("f", size=1 << 80), id="a file longer than all disks"),
        pytest.param(extended((b"size", b"-1000000")), id="a negative size"),
        pytest.param(extended((b"GNU.sparse.map", b"a,b")), id="a sparse map of letters"),
        pytest.param(extended((b"GNU.sparse.size", b"a")), id="a sparse size of letters"),
        pytest.param(header("f", tarfile.GNUTYPE_SPARSE) + bytes(1024), id="a file of holes"),
        pytest.param(
            extended((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), content=b"0\n"),
            id="a sparse map, which may be as long as the layer",
        ),
        pytest.param(header("l", tarfile.GNUTYPE_LONGNAME, 1 << 30) + bytes(4096), id="a name of a gigabyte"),
        pytest.param(header("p", tarfile.XHDTYPE, 1 << 30) + bytes(4096), id="an extended header of a gigabyte"),
        pytest.param(
            b"".join(header("p", tarfile.XHDTYPE, 8) + b"8 a=bcd\n" + bytes(504) for _ in range(5000)),
            id="headers of headers",
        ),
    ],
)
def test_what_is_no_layer_is_told(read, raw):
    with pytest.raises(BaseUnsuitable, match="can't be read"):
        read(raw)


def test_members_that_climb_stay_below_the_destination(read, tmp_path):
    tree = read(tar(**{"../../../outside": b"1", "/etc/absolute": b"2"}))
    tree.extract(["outside", "etc/absolute"], tmp_path / "made" / "here")
    found = {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.name in {"outside", "absolute"}
    }
    assert found == {"made/here/outside", "made/here/etc/absolute"}


@pytest.mark.parametrize(
    ("files", "paths"),
    [
        pytest.param({"a": b"1", "a__b": b"2"}, ["a", "a/b"], id="a file in a file"),
        pytest.param({"n" * 300: b"1"}, ["n" * 300], id="a name of 300 bytes"),
    ],
)
def test_files_that_can_not_lie_on_a_disk_are_told(read, tmp_path, files, paths):
    with pytest.raises(BaseUnsuitable, match="can't be written"):
        read(tar(**files)).extract(paths, tmp_path / "made")


def test_the_entries_of_all_layers_together_have_a_limit(read, monkeypatch):
    monkeypatch.setattr(image_tree, "_MOST_ENTRIES", 4)
    below, above = tar(a=b"1", b=b"2"), tar(c=b"3", d=b"4")
    assert len(read(below, above).nodes) == 4
    for layers in ((below, above, tar(a=b"")), (tar(**{f"f{n}": b"" for n in range(5)}),)):
        with pytest.raises(BaseUnsuitable, match="more than 4 entries"):
            read(*layers)


def test_the_names_of_all_entries_together_have_a_limit(read, monkeypatch):
    monkeypatch.setattr(image_tree, "_MOST_NAMES", 4000)
    long = tar(**{"n" * 3990: b""})
    assert len(read(long, tar(a=b"")).nodes) == 2
    with pytest.raises(BaseUnsuitable, match="4000 bytes of names"):
        read(long, tar(**{"m" * 20: b""}))


def test_the_extended_headers_of_a_layer_have_a_limit(read, monkeypatch):
    monkeypatch.setattr(image_tree, "_MOST_HEADERS", 4000)
    fits, more = (extended((b"comment", b"x" * size)) for size in (3900, 4000))
    assert set(read(fits, fits).nodes) == {"f"}
    with pytest.raises(BaseUnsuitable, match="can't be read: too many bytes of extended headers"):
        read(more)


def test_headers_that_hold_for_all_members_are_few(read):
    def shared(size):
        return header("g", tarfile.XGLTYPE, 512 * size) + bytes(512 * size) + header("f") + bytes(1024)

    assert set(read(shared(32)).nodes) == {"f"}
    with pytest.raises(BaseUnsuitable, match="can't be read: too many bytes of extended headers"):
        read(shared(33))


def test_any_number_of_directories_is_emptied_and_removed_in_one_pass(read, monkeypatch):
    """Each of them used to look through all that lies below."""
    count = 300
    below = tar(**{f"d{n}__{name}": b"" for n in range(count) for name in "ab"}, kept=b"")
    above = tar(**{f"d{n}__.wh..wh..opq" if n % 2 else f".wh.d{n}": b"" for n in range(count)}, d1__c=b"")
    looked = []
    real = image_tree._Changes._hides

    def hides(self, path):
        looked.append(path)
        return real(self, path)

    monkeypatch.setattr(image_tree._Changes, "_hides", hides)
    assert set(read(below, above).nodes) == {"kept", "d1/c"}
    assert len(looked) == 2 * count + 1


def test_all_files_together_have_a_limit(read, tmp_path, monkeypatch):
    monkeypatch.setattr(image_tree, "_LARGEST_EXTRACT", 3)
    tree = read(tar(a=b"12", b=b"3", c=b"4"))
    tree.extract(["a", "b"], tmp_path / "made")
    with pytest.raises(BaseUnsuitable, match="too many"):
        tree.extract(["a", "b", "c"], tmp_path / "more")


def test_a_whiteout_of_a_file_leaves_its_neighbours(read):
    tree = read(tar(a=b"1", ab=b"2", a__c=b"3"), tar(**{".wh.ab": b""}))
    assert set(tree.nodes) == {"a", "a/c"}

"""Wheels to layers: what pip would install, to the byte and always the same; what nobody should install is refused."""

import base64
import concurrent.futures
import gzip
import hashlib
import io
import os
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flops.errors import FlopsError, LayerConflict, WheelBomb, WheelRecord, WheelUnsafe
from flops.oci.blobs import BlobStore
from flops.oci.layer import LayerWriter
from flops.recipe import Compression
from flops.wheels.archive import WheelLimits
from flops.wheels.layer_cache import LayerCache, layer_key
from flops.wheels.wheel_layer import PathConflict, WheelFile, environment_conflicts, group, open_wheels, write_layer

SITE = "opt/flops/ml/lib/python3.11/site-packages"
WHEEL = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
MTIME = (2024, 1, 1, 0, 0, 0)


def record_row(name, data):
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"{name},sha256={digest},{len(data)}"


def entry(name, mode=0o644, method=zipfile.ZIP_DEFLATED):
    info = zipfile.ZipInfo(name, MTIME)
    info.external_attr = (mode if stat.S_IFMT(mode) else mode | stat.S_IFREG) << 16
    info.create_system = 3
    info.compress_type = method
    return info


def wheel(directory, files, *, name="demo", version="1.0", record=None, modes=None, methods=None, metadata=WHEEL):
    """A wheel of these files; `record` changes the rows of its RECORD (None leaves it out)."""
    info = f"{name}-{version}.dist-info"
    content = {key: value.encode() if isinstance(value, str) else value for key, value in files.items()}
    content |= {f"{info}/WHEEL": metadata, f"{info}/METADATA": f"Name: {name}\nVersion: {version}\n".encode()}
    rows = [record_row(key, value) for key, value in content.items()] + [f"{info}/RECORD,,"]
    rows = rows if record is None else record(rows)
    path = Path(directory) / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in content.items():
            method = (methods or {}).get(key, zipfile.ZIP_DEFLATED)
            archive.writestr(entry(key, (modes or {}).get(key, 0o644), method), value)
        if rows is not None:
            archive.writestr(entry(f"{info}/RECORD"), "\n".join(rows) + "\n")
    return as_file(path)


def as_file(path):
    return WheelFile(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), filename=path.name)


@dataclass
class Built:
    layer: object
    data: bytes
    files: dict
    entries: dict
    order: list


def build(*wheels, compression=Compression.GZIP, limits=None, **options):
    output = io.BytesIO()
    writer = LayerWriter(output, compression=compression)
    more = {"limits": limits} if limits else {}
    options = {"prefix": "opt/flops/ml", "python": "3.11"} | options
    layer = write_layer(wheels, writer=writer, **options, **more)
    data = output.getvalue()
    if compression is Compression.ZSTD:
        return Built(layer, data, {}, {}, [])
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as archive:
        entries = {item.name: item for item in archive}
        files = {name: archive.extractfile(item).read() for name, item in entries.items() if item.isfile()}
    return Built(layer, data, files, entries, [name for name in entries if entries[name].isfile()])


FILES = {
    "demo/__init__.py": "print('hello')\n" * 50,
    "demo/empty.py": "",
    "demo/data.bin": bytes(range(256)) * 40,
    "demo.libs/lib.so": b"\x7fELF" + bytes(5000),
    "demo-1.0.data/scripts/tool": "#!python -u\nprint(1)\n",
    "demo-1.0.data/scripts/shell": "#!/bin/sh\necho\n",
    "demo-1.0.data/data/share/demo/a.txt": "share",
    "demo-1.0.data/headers/demo.h": "int x;",
    "demo-1.0.data/platlib/demo_platform.py": "p = 1\n",
    "demo-1.0.dist-info/entry_points.txt": "[console_scripts]\ndemo = demo:main\n[gui_scripts]\ndemo-gui = demo.gui:App.run\n[other]\nx = y\n",
    "zz.py": "last = 1\n",
}  # fmt: skip

GOLDEN = f"""\
0755 opt/flops/ml/bin/demo
0755 opt/flops/ml/bin/demo-gui
0755 opt/flops/ml/bin/shell
0755 opt/flops/ml/bin/tool
0644 opt/flops/ml/include/site/python3.11/demo/demo.h
0755 {SITE}/demo.libs/lib.so
0644 {SITE}/demo/__init__.py
0644 {SITE}/demo/data.bin
0644 {SITE}/demo/empty.py
0644 {SITE}/demo_platform.py
0644 {SITE}/zz.py
0644 opt/flops/ml/share/demo/a.txt
0644 {SITE}/demo-1.0.dist-info/INSTALLER
0644 {SITE}/demo-1.0.dist-info/METADATA
0644 {SITE}/demo-1.0.dist-info/WHEEL
0644 {SITE}/demo-1.0.dist-info/entry_points.txt
0644 {SITE}/demo-1.0.dist-info/RECORD
"""

GOLDEN_RECORD = """\
../../../bin/demo
../../../bin/demo-gui
../../../share/demo/a.txt
../../../include/site/python3.11/demo/demo.h
demo_platform.py
../../../bin/shell
../../../bin/tool
demo-1.0.dist-info/METADATA
demo-1.0.dist-info/WHEEL
demo-1.0.dist-info/entry_points.txt
demo.libs/lib.so
demo/__init__.py
demo/data.bin
demo/empty.py
zz.py
demo-1.0.dist-info/INSTALLER
demo-1.0.dist-info/RECORD
"""


def full(tmp_path):
    # setuid and group-write are not kept, the executable bit is
    return wheel(tmp_path, FILES, modes={"demo.libs/lib.so": 0o104775, "demo/data.bin": 0o666})


def test_golden_tree(tmp_path):
    built = build(full(tmp_path))
    assert "".join(f"{built.entries[name].mode:04o} {name}\n" for name in built.order) == GOLDEN
    assert [file.path for file in built.layer.files] == built.order
    assert {(item.uid, item.gid, item.mtime, item.uname, item.gname) for item in built.entries.values()} == {
        (0, 0, 0, "", "")
    }
    assert built.layer.comment == "demo 1.0"


def test_contents_are_the_wheels_own(tmp_path):
    source = full(tmp_path)
    built = build(source)
    with zipfile.ZipFile(source.path) as archive:
        for name in archive.namelist():
            if ".data/" not in name and not name.endswith("RECORD"):
                assert built.files[f"{SITE}/{name}"] == archive.read(name), name
    assert built.files["opt/flops/ml/bin/tool"] == b"#!/opt/flops/ml/bin/python\nprint(1)\n"
    assert built.files["opt/flops/ml/bin/shell"] == b"#!/bin/sh\necho\n"
    script = built.files["opt/flops/ml/bin/demo-gui"].decode()
    assert script.startswith("#!/opt/flops/ml/bin/python\n")
    assert "from demo.gui import App" in script
    assert "App.run()" in script
    assert built.files[f"{SITE}/demo-1.0.dist-info/INSTALLER"] == b"flops\n"


def test_record_lists_every_file_with_its_hash(tmp_path):
    built = build(full(tmp_path))
    rows = built.files[f"{SITE}/demo-1.0.dist-info/RECORD"].decode().splitlines()
    assert "".join(row.split(",")[0] + "\n" for row in rows) == GOLDEN_RECORD
    for row in rows[:-1]:
        path = os.path.normpath(f"{SITE}/{row.split(',')[0]}")
        assert row == record_row(row.split(",")[0], built.files[path])
    assert {file.path: file.digest for file in built.layer.files} == {
        name: record_row(name, data).rsplit(",", 2)[1] for name, data in built.files.items()
    }


def test_deflate_streams_are_taken_as_they_lie(tmp_path):
    source = full(tmp_path)
    built = build(source)
    with zipfile.ZipFile(source.path) as archive:
        info = archive.getinfo("demo/data.bin")
    data = source.path.read_bytes()
    start = info.header_offset + 30 + len(info.filename)
    assert data[start : start + info.compress_size] in built.data


def test_golden_digest_of_a_wheel_without_a_compressor(tmp_path):
    files = {"a/__init__.py": "x = 1\n", "a/large.bin": bytes(100_000)}
    members = [*files, "demo-1.0.dist-info/WHEEL", "demo-1.0.dist-info/METADATA"]
    built = build(wheel(tmp_path, files, methods=dict.fromkeys(members, zipfile.ZIP_STORED)))
    assert built.files[f"{SITE}/a/large.bin"] == bytes(100_000)
    assert built.layer.digest == "sha256:b27242b3c2fae0cc799db79f581200166a9921665e4380b929836ff57cd53322", (
        "the layer's bytes changed: raise a version"
    )
    assert built.layer.diff_id == "sha256:4bc06a06fb27a74b515745622d507fff466197d328200afe4f104a2c3faca4d6"


@pytest.mark.parametrize("compression", Compression)
def test_the_same_bytes_whatever_the_order_umask_and_zone(tmp_path, compression, monkeypatch):
    sources = [wheel(tmp_path, {f"{n}/__init__.py": f"n = {n!r}\n" * 99}, name=n) for n in ("alpha", "beta", "gamma")]
    first = build(*sources, compression=compression)
    umask = os.umask(0o077)
    try:
        monkeypatch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        second = build(*reversed(sources), compression=compression)
    finally:
        os.umask(umask)
        monkeypatch.undo()
        time.tzset()
    assert first.data == second.data
    assert first.layer == second.layer
    assert first.layer.comment == "alpha 1.0, beta 1.0, gamma 1.0"


def test_both_compressions_hold_the_same_tar(tmp_path):
    source = full(tmp_path)
    assert build(source).layer.diff_id == build(source, compression=Compression.ZSTD).layer.diff_id


NAMES = st.text(st.sampled_from("abcXYZ09_-. é"), min_size=1, max_size=12).filter(lambda n: n.strip(". ") == n)
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=4).map("/".join), st.binary(max_size=300), max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES, stored=st.booleans())
def test_splicing_gives_what_zipfile_extracts(tmp_path, tree, stored):
    tree = {p: d for p, d in tree.items() if not any(o != p and o.startswith(p + "/") for o in tree)}
    tree = {p: d for p, d in tree.items() if not p.split("/")[0].endswith((".dist-info", ".data"))}
    methods = dict.fromkeys(tree, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
    source = wheel(tmp_path, tree, methods=methods)
    built = build(source)
    with zipfile.ZipFile(source.path) as archive:
        assert {n: archive.read(n) for n in tree} == {n: built.files[f"{SITE}/{n}"] for n in tree}
    order = [name for name in built.order if ".dist-info/" not in name]
    assert order == sorted(order)
    assert built.order[-1].endswith("RECORD")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(["..", ".", "", "a", "/", "\\", "C:", ".wh.a", "\n", "\x7f", "demo-1.0.data", "scripts", "data", "bin", "python"]), min_size=1, max_size=5))  # fmt: skip
def test_whatever_the_name_a_layer_stays_inside_its_prefix(tmp_path, parts):
    name = "/".join(parts)
    if name.endswith("/"):
        return
    try:
        built = build(wheel(tmp_path, {name: b"x"}))
    except (WheelUnsafe, WheelRecord):
        return
    for path in built.files:
        assert path.startswith("opt/flops/ml/")
        assert not {"..", ".", ""} & set(path.split("/"))
        assert ".wh." not in path
    assert "opt/flops/ml/bin/python" not in built.files


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/abs", "a\\..\\b", "C:/w", "c:x", "a//b", "./a", ".wh.x", "a/.wh.x/b", "a\nb", "a\x9bb", "a/" + "x" * 1100, "é" * 200 + "/x", "demo-1.0.data/x", "demo-1.0.data", "demo-1.0.database/x", "demo-1.0.data/nowhere/x", "demo-1.0.data/scripts", "demo-1.0.data/data/pyvenv.cfg", "demo-1.0.data/scripts/python3.11", "demo-1.0.data/data/bin/python", "demo-1.0.data/data/bin"],
)  # fmt: skip
def test_names_that_no_wheel_may_have(tmp_path, name):
    with pytest.raises(WheelUnsafe, match=r"demo-1\.0-py3"):
        build(wheel(tmp_path, {name: b"x", "ok.py": b""}))


@pytest.mark.parametrize(
    "mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644, stat.S_IFDIR | 0o755]
)
def test_links_and_special_members(tmp_path, mode):
    with pytest.raises(WheelUnsafe):
        build(wheel(tmp_path, {"link": "/etc/passwd"}, modes={"link": mode}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members(tmp_path):
    source = wheel(tmp_path, {"a.py": b"1"})
    with zipfile.ZipFile(source.path, "a") as archive:
        archive.writestr(entry("a.py"), b"2")
    with pytest.raises(WheelUnsafe, match="twice"):
        build(source)


def test_a_file_where_another_has_a_directory(tmp_path):
    with pytest.raises(WheelUnsafe, match="both a file and a directory"):
        build(wheel(tmp_path, {"a": b"1", "a/b/c": b"2"}))


def test_directories_in_a_wheel_are_fine(tmp_path):
    source = wheel(tmp_path, {"a/b.py": b"1"})
    with zipfile.ZipFile(source.path, "a") as archive:
        archive.writestr(entry("a/", stat.S_IFDIR | 0o755, zipfile.ZIP_STORED), b"")
    assert f"{SITE}/a/b.py" in build(source).files


RECORDS = {
    "absent": lambda rows: None,
    "unlisted": lambda rows: [row for row in rows if not row.startswith("a.py")],
    "phantom": lambda rows: [*rows, record_row("ghost.py", b"")],
    "wrong hash": lambda rows: [record_row("a.py", b"1") if row.startswith("a.py") else row for row in rows],
    "wrong size": lambda rows: [row + "0" if row.startswith("a.py") else row for row in rows],
    "no hash": lambda rows: ["a.py,,1" if row.startswith("a.py") else row for row in rows],
    "weak hash": lambda rows: ["a.py,md5=xMpCOKC5I4INzFCab3WEmw,1" if row.startswith("a.py") else row for row in rows],
    "two columns": lambda rows: [*rows, "a,b"],
    "two rows": lambda rows: [*rows, record_row("a.py", b"other")],
    "size in words": lambda rows: [*rows, "b.py,sha256=x,many"],
    "hash without name": lambda rows: [*rows, "b.py,x,1"],
    "quote": lambda rows: [*rows, '"' + "x" * 200_000],
}


@pytest.mark.parametrize("change", RECORDS.values(), ids=RECORDS)
def test_records_that_are_wrong(tmp_path, change):
    with pytest.raises(WheelRecord, match=r"demo-1\.0-py3"):
        build(wheel(tmp_path, {"a.py": b"2"}, record=change))


def test_all_problems_of_a_record_are_told(tmp_path):
    with pytest.raises(WheelRecord) as caught:
        build(wheel(tmp_path, {f"{n}.py": b"" for n in range(9)}, record=lambda rows: rows[5:]))
    assert "'0.py' is not listed" in caught.value.message
    assert "'1.py' is not listed" in caught.value.message


def test_a_size_may_be_left_out_of_record_and_signatures_too(tmp_path):
    source = wheel(tmp_path, {"a.py": b"2"}, record=lambda rows: [row.rsplit(",", 1)[0] + "," for row in rows])
    with zipfile.ZipFile(source.path, "a") as archive:
        archive.writestr(entry("demo-1.0.dist-info/RECORD.jws"), b"{}")
    files = build(source).files
    assert files[f"{SITE}/a.py"] == b"2"
    assert not [name for name in files if name.endswith(".jws")]


@pytest.mark.parametrize(
    "text",
    ["[console_scripts]\n../../bin/sh = a:b", "[console_scripts]\n/bin/sh = a:b", "[console_scripts]\n.. = a:b", "[gui_scripts]\n.wh.x = a:b", "[console_scripts]\na\\b = a:b", "[console_scripts]\nx = a", "[console_scripts]\nx = a:b()", "[console_scripts]\nx = 1a:b", "[console_scripts]\nx = a..b:c", "[console_scripts]\nx", "[console_scripts]\nx = %(y)s:b", "x = 1", "[console_scripts]\npython = a:b", "[console_scripts]\nx = a:b\nx = a:c", b"\xff\xfe"],
)  # fmt: skip
def test_entry_points_that_escape_or_make_no_sense(tmp_path, text):
    with pytest.raises(WheelUnsafe):
        build(wheel(tmp_path, {"demo-1.0.dist-info/entry_points.txt": text}))


@pytest.mark.parametrize("metadata", [b"", b"Wheel-Version: 2.0\n", b"\xff"])
def test_wheels_of_another_version(tmp_path, metadata):
    with pytest.raises(WheelUnsafe) as caught:
        build(wheel(tmp_path, {}, metadata=metadata))
    assert " object at 0x" not in caught.value.message


def test_a_wheel_that_is_another_one(tmp_path):
    source = wheel(tmp_path, {})
    for filename in ("other-1.0-py3-none-any.whl", "demo-2.0-py3-none-any.whl", "demo.whl"):
        with pytest.raises(WheelUnsafe, match="name"):
            build(WheelFile(path=source.path, sha256=source.sha256, filename=filename))
    same = WheelFile(path=source.path, sha256=source.sha256, filename="Demo-1.0.0-py3-none-any.whl")
    assert build(same).data == build(source).data


def test_a_wheel_in_a_wheel(tmp_path):
    with pytest.raises(WheelUnsafe, match="2 dist-info"):
        build(wheel(tmp_path, {"other-1.0.dist-info/METADATA": b""}))


# --- the zip itself ---------------------------------------------------------------------------------------------------
def patched(source, name, *, local=None, central=None):
    """Overwrite a field (offset in the header, bytes) of a member's local or central header."""
    data = bytearray(source.path.read_bytes())
    with zipfile.ZipFile(source.path) as archive:
        at = archive.getinfo(name).header_offset
        directory = archive.start_dir
    if local:
        data[at + local[0] : at + local[0] + len(local[1])] = local[1]
    if central:
        place = data.index(name.encode(), directory) - 46
        data[place + central[0] : place + central[0] + len(central[1])] = central[1]
    source.path.write_bytes(data)
    return source


BODY = b"some content, repeated " * 40
LOCAL = {
    "name": (30, b"b"),
    "method": (8, struct.pack("<H", 0)),
    "crc": (14, b"\0\0\0\1"),
    "compressed size": (18, b"\1"),
    "size": (22, b"\1"),
    "flags": (6, struct.pack("<H", 8)),
    "encrypted": (6, struct.pack("<H", 1)),
    "signature": (0, b"XX"),
}


@pytest.mark.parametrize("field", LOCAL.values(), ids=LOCAL)
def test_a_local_header_that_differs(tmp_path, field):
    with pytest.raises(WheelUnsafe):
        build(patched(wheel(tmp_path, {"a.py": BODY}), "a.py", local=field))


@pytest.mark.parametrize(
    ("offset", "value"),
    [(10, 12), (10, 99), (8, 1), (8, 0x2000), (34, 1)],
    ids=["bzip2", "unknown", "encrypted", "masked", "disk"],
)
def test_members_of_kinds_that_wheels_dont_use(tmp_path, offset, value):
    field = (offset, struct.pack("<H", value))
    with pytest.raises(WheelUnsafe):
        build(patched(wheel(tmp_path, {"a.py": BODY}), "a.py", central=field))


def test_descriptors_after_the_data(tmp_path):
    source = wheel(tmp_path, {"a.py": BODY})

    class Pipe(io.RawIOBase):  # zipfile writes descriptors where it can't seek
        def __init__(self):
            self.data = bytearray()

        def writable(self):
            return True

        def write(self, data):
            self.data += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(source.path) as old, zipfile.ZipFile(pipe, "w") as new:
        for info in old.infolist():
            new.writestr(entry(info.filename), old.read(info))
    expected = build(source).layer
    source.path.write_bytes(pipe.data)
    assert build(source).layer == expected
    broken = bytes(pipe.data).replace(b"PK\x07\x08" + struct.pack("<L", zlib.crc32(BODY)), b"PK\x07\x08" + b"\1\2\3\4")
    assert broken != pipe.data
    source.path.write_bytes(broken)
    with pytest.raises(WheelUnsafe, match="after its data"):
        build(source)


def test_both_headers_lie_about_size_or_crc(tmp_path):
    for offsets, value, error in (
        ((22, 24), struct.pack("<L", len(BODY) - 5), WheelBomb),
        ((22, 24), struct.pack("<L", len(BODY) + 5), WheelUnsafe),
        ((14, 16), b"\1\2\3\4", WheelUnsafe),
    ):
        size = struct.unpack("<L", value)[0] if error is WheelBomb or offsets[0] == 22 else len(BODY)
        source = wheel(
            tmp_path, {"a.py": BODY}, record=lambda rows, n=size: [r.rsplit(",", 1)[0] + f",{n}" if r.startswith("a.py") else r for r in rows]
        )  # fmt: skip
        patched(source, "a.py", local=(offsets[0], value), central=(offsets[1], value))
        with pytest.raises(error):
            build(source)


def test_bytes_before_after_and_between(tmp_path):
    source = wheel(tmp_path, {"a.py": BODY})
    whole = source.path.read_bytes()
    for data in (
        whole + b"x",
        b"x" + whole,
        whole[:-1],
        whole[:-30],
        b"",
        b"PK",
        whole[100:],
        whole.replace(b"PK\x01\x02", b"PK\x01\x03"),
    ):
        source.path.write_bytes(data)
        with pytest.raises(WheelUnsafe):
            build(source)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=3))
def test_flipped_bytes_never_change_what_is_installed(tmp_path, flips):
    source = wheel(tmp_path, {"a.py": BODY})
    expected = build(source).files
    data = bytearray(source.path.read_bytes())
    for at, change in flips:
        data[at % len(data)] ^= change
    source.path.write_bytes(data)
    try:
        files = build(source).files
    except FlopsError:
        return
    metadata = f"{SITE}/demo-1.0.dist-info/"
    assert {n: d for n, d in files.items() if not n.startswith(metadata)} == {
        n: d for n, d in expected.items() if not n.startswith(metadata)
    }


def overlapping(tmp_path):
    """Two members that share one stream, as in a quoted-overlap bomb."""
    source = wheel(tmp_path, {"a.py": BODY, "b.py": BODY})
    with zipfile.ZipFile(source.path) as archive:
        at = archive.getinfo("a.py").header_offset
    return patched(source, "b.py", central=(42, struct.pack("<L", at)))


def test_overlapping_members(tmp_path):
    with pytest.raises((WheelBomb, WheelUnsafe)):
        build(overlapping(tmp_path))
    # the same name too, so that the headers agree: only the overlap betrays it
    source = wheel(tmp_path, {"a.py": BODY, "b.py": BODY})
    with zipfile.ZipFile(source.path) as archive:
        size = archive.getinfo("a.py").compress_size
    patched(source, "a.py", local=(18, struct.pack("<L", size + 20)), central=(20, struct.pack("<L", size + 20)))
    with pytest.raises(WheelBomb, match="overlaps"):
        build(source)


def test_limits_at_the_limit_and_one_beyond(tmp_path):
    source = wheel(tmp_path, {"a.bin": bytes(500_000)})
    with zipfile.ZipFile(source.path) as archive:
        size = sum(info.file_size for info in archive.infolist())
        count = len(archive.infolist())
    ratio = size // source.path.stat().st_size + 1
    assert build(source, limits=WheelLimits(size=size, members=count, ratio=ratio, ratio_from=0)).files
    for limits in (
        WheelLimits(size=size - 1),
        WheelLimits(members=count - 1),
        WheelLimits(ratio=ratio - 1, ratio_from=0),
    ):
        with pytest.raises(WheelBomb):
            build(source, limits=limits)


def test_a_bomb_is_refused_while_it_streams_in_bounded_memory(tmp_path):
    bomb = bytes(60 * 1024 * 1024)
    small = 1_000_000

    row = record_row("a.bin", bomb).rsplit(",", 1)[0] + f",{small}"

    def record(rows):
        return [row if old.startswith("a.bin") else old for old in rows]

    source = wheel(tmp_path, {"a.bin": bomb}, record=record)
    field = struct.pack("<L", small)
    patched(source, "a.bin", local=(22, field), central=(24, field))
    del bomb
    tracemalloc.start()
    with pytest.raises(WheelBomb):
        build(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


class Sink:
    def __init__(self):
        self.longest = 0

    def write(self, data):
        self.longest = max(self.longest, len(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_memory_does_not_grow_with_a_wheel(tmp_path, method):
    source = wheel(tmp_path, {"a.bin": bytes(60 * 1024 * 1024)}, methods={"a.bin": method})
    sink = Sink()
    tracemalloc.start()
    layer = write_layer([source], prefix="opt/flops/ml", python="3.11", writer=LayerWriter(sink))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert layer.uncompressed_size > 60 * 1024 * 1024
    assert peak < 8 * 1024 * 1024
    assert sink.longest <= 1024 * 1024


# --- several wheels ---------------------------------------------------------------------------------------------------
def test_two_wheels_with_one_path(tmp_path):
    first = wheel(tmp_path, {"tests/__init__.py": b"a", "same.py": b"x"}, name="aaa")
    second = wheel(tmp_path, {"tests/__init__.py": b"z", "same.py": b"x"}, name="zzz")
    for pair in ((first, second), (second, first)):
        built = build(*pair)
        assert built.files[f"{SITE}/tests/__init__.py"] == b"z"
        assert built.layer.conflicts == (PathConflict(path=f"{SITE}/tests/__init__.py", kept="zzz", left_out="aaa"),)
    rows = built.files[f"{SITE}/aaa-1.0.dist-info/RECORD"].decode()
    assert "same.py" in rows


def test_the_file_that_loses_is_checked_too(tmp_path):
    source = wheel(tmp_path, {"x.py": BODY}, name="aaa")
    wrong = bytearray(source.path.read_bytes())
    wrong[wrong.index(b"x.py") + 6] ^= 1
    source.path.write_bytes(wrong)
    with pytest.raises(FlopsError):
        build(source, wheel(tmp_path, {"x.py": b"other"}, name="zzz"))


def test_a_file_of_one_wheel_where_another_has_a_directory(tmp_path):
    with pytest.raises(LayerConflict, match=r"/site-packages/x' where"):
        build(wheel(tmp_path, {"x": b""}, name="aaa"), wheel(tmp_path, {"x/y": b""}, name="zzz"))


def test_an_entry_point_wins_over_a_script_of_its_name(tmp_path):
    files = {
        "demo-1.0.data/scripts/run": b"old",
        "demo-1.0.dist-info/entry_points.txt": "[console_scripts]\nrun = a:b\n",
    }
    built = build(wheel(tmp_path, files))
    assert b"from a import b" in built.files["opt/flops/ml/bin/run"]
    assert built.layer.conflicts == (PathConflict(path="opt/flops/ml/bin/run", kept="demo", left_out="demo"),)
    rows = built.files[f"{SITE}/demo-1.0.dist-info/RECORD"].decode().splitlines()
    assert [row for row in rows if "bin/run" in row] == [
        record_row("../../../bin/run", built.files["opt/flops/ml/bin/run"])
    ]


def test_conflicts_between_layers(tmp_path):
    below = build(wheel(tmp_path, {"t.py": b"a", "s.py": b"x"}, name="aaa")).layer
    above = build(wheel(tmp_path, {"t.py": b"z", "s.py": b"x"}, name="zzz")).layer
    assert environment_conflicts([below, above]) == (
        PathConflict(path=f"{SITE}/t.py", kept="zzz 1.0", left_out="aaa 1.0"),
    )
    assert environment_conflicts([below, below]) == ()


def test_sources_for_bytecode(tmp_path):
    with open_wheels([full(tmp_path)], prefix="opt/flops/ml", python="3.11") as installation:
        sources = installation.sources()
        assert {path.removeprefix(SITE + "/") for path in sources} == {
            "demo/__init__.py",
            "demo/empty.py",
            "demo_platform.py",
            "zz.py",
        }
        assert sources[f"{SITE}/zz.py"]() == b"last = 1\n"


@dataclass(frozen=True)
class Named:
    name: str
    size: int | None
    sha256: str


def named(count, size):
    return [Named(f"p{n}", size + n if size is not None else None, f"{n:064x}") for n in range(count)]


def test_groups_by_size_and_stable_buckets():
    small, large = named(40, 1000), [Named("big", 1024 * 1024, "b" * 64), Named("Numpy", 20 * 1024 * 1024, "c" * 64)]
    groups = group([*small, *large])
    assert groups == group([*large, *small[::-1]])
    assert [[wheel.name for wheel in wheels] for wheels in groups[-2:]] == [["big"], ["Numpy"]]
    assert len(groups) <= 2 + 8
    assert sorted(wheel.name for wheels in groups[:-2] for wheel in wheels) == sorted(wheel.name for wheel in small)
    without = group([wheel for wheel in small if wheel.name != "p7"])
    assert sum(one in groups for one in without) >= len(without) - 1  # one package changes one bucket


def test_groups_never_exceed_their_number():
    wheels = named(200, 2 * 1024 * 1024)
    groups = group(wheels, most=20)
    assert len(groups) <= 20
    assert {wheel.name for one in groups if len(one) == 1 for wheel in one} >= {f"p{n}" for n in range(188, 200)}
    assert len(group(named(30, None))) <= 8


# --- the cache --------------------------------------------------------------------------------------------------------
def cache(tmp_path):
    return LayerCache(tmp_path / "cache/layers", BlobStore(tmp_path / "cache"))


OPTIONS = {"prefix": "opt/flops/ml", "python": "3.11", "compression": Compression.GZIP}


def test_a_layer_is_made_once(tmp_path):
    source = full(tmp_path)
    made = cache(tmp_path).layer_for([source], **OPTIONS)
    source.path.unlink()
    again = cache(tmp_path).layer_for([source], **OPTIONS)
    assert again == made
    assert cache(tmp_path).local(layer_key([source.sha256], **OPTIONS)) == made
    assert BlobStore(tmp_path / "cache").size(made.digest) == made.size


def test_keys_differ_by_all_that_matters(tmp_path):
    keys = {
        layer_key(["a", "b"], **OPTIONS),
        layer_key(["a"], **OPTIONS),
        layer_key(["a", "b"], **OPTIONS | {"prefix": "opt/flops/runtime"}),
        layer_key(["a", "b"], **OPTIONS | {"python": "3.13"}),
        layer_key(["a", "b"], **OPTIONS | {"compression": Compression.ZSTD}),
    }
    assert len(keys) == 5
    assert layer_key(["b", "a"], **OPTIONS) == layer_key(["a", "b"], **OPTIONS)


def test_a_cached_layer_without_its_bytes_is_made_again(tmp_path):
    source = full(tmp_path)
    made = cache(tmp_path).layer_for([source], **OPTIONS)
    blob = BlobStore(tmp_path / "cache").path(made.digest)
    whole = blob.read_bytes()
    for damage in (blob.unlink, lambda: blob.write_bytes(whole[:-1])):
        damage()
        assert cache(tmp_path).local(layer_key([source.sha256], **OPTIONS)) is None
        assert cache(tmp_path).layer_for([source], **OPTIONS) == made
        assert blob.read_bytes() == whole
    description = next((tmp_path / "cache/layers").iterdir())
    for text in ("", "{", "[]", '{"digest": 1}'):
        description.write_text(text)
        assert cache(tmp_path).layer_for([source], **OPTIONS) == made


def test_a_refused_wheel_leaves_nothing(tmp_path):
    with pytest.raises(WheelRecord):
        cache(tmp_path).layer_for([wheel(tmp_path, {"a.py": BODY}, record=RECORDS["wrong hash"])], **OPTIONS)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_threads_share_a_cache(tmp_path):
    sources = [wheel(tmp_path, {f"{n}.py": BODY}, name=n) for n in ("aa", "bb", "cc")]
    shared = cache(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        layers = list(pool.map(lambda n: shared.layer_for([sources[n % 3]], **OPTIONS), range(24)))
    assert len({layer.digest for layer in layers}) == 3
    assert len(list((tmp_path / "cache/layers").iterdir())) == 3

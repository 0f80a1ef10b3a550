"""Hostile wheels beyond those of test_wheel_layer: names and RECORDs at random, bombs by what is read of them, metadata."""

import csv
import io
import os
import random
import struct
import warnings
import zipfile

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tests.unit import test_wheel_layer as samples

from flops.errors import FlopsError, WheelBomb, WheelRecord, WheelUnsafe
from flops.wheels.wheel_layer import WheelLicence

build, wheel, record_row, patched = samples.build, samples.wheel, samples.record_row, samples.patched
SITE = samples.SITE
INFO = "demo-1.0.dist-info"
#: Names that look alike, hide, lead elsewhere, or are no text that all file systems take.
ODD = ["..", ".", "", "/", "\\", "~", "$HOME", "con", "a:b", "\u202e", "\u0000", "e\u0301", "\u00e9", "İ", "\U0001f40d", "-rf", " ", "a.", ".wh..wh..opq", INFO, "demo-1.0.data", "__pycache__", "x" * 255, "x" * 256]  # fmt: skip
NAMES = st.lists(st.one_of(st.sampled_from(ODD), st.text(min_size=1, max_size=12)), min_size=1, max_size=4).map(
    "/".join
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=3, unique=True))
@example(names=["\0a", "\0b"])
def test_any_names_are_refused_or_installed_where_they_say(tmp_path, names):
    """Rows 33 and 36."""
    assume(not any(name.endswith("/") for name in names))
    try:
        with warnings.catch_warnings():
            # zipfile cuts names at a NUL, and says where two are then the same; such an archive is to be refused too
            warnings.filterwarnings("ignore", message="Duplicate name")
            source = wheel(tmp_path, {name: name.encode("utf-8", "replace") for name in names})
    except (UnicodeEncodeError, ValueError):
        return  # no zip has such a name
    refused = None
    try:
        built = build(source)
    except FlopsError as error:
        refused = error
    if refused is not None:
        assert isinstance(refused, WheelUnsafe | WheelRecord)
        assert refused.message.startswith("demo-1.0-py3-none-any.whl")
        return
    assert len(built.entries) == len(set(built.entries))
    for path, item in built.entries.items():
        assert path.startswith("opt/flops/ml/") or "opt/flops/ml/".startswith(f"{path.rstrip('/')}/")
        assert not {"..", ".", ""} & set(path.rstrip("/").split("/"))
        assert not any(part.startswith(".wh.") for part in path.split("/"))
        assert item.isdir() or item.isfile()
        assert (item.uid, item.gid) == (0, 0)
        assert item.mode in {0o644, 0o755}
    for name in names:
        if not name.startswith("demo-1.0.data/"):
            assert built.files[f"{SITE}/{name}"] == name.encode("utf-8", "replace")


#: Changes of a RECORD's rows, each (which row, what).
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.sampled_from(["drop", "twice", "path", "hash", "size", "algorithm", "no hash", "no size", "swap", "extra", "noise"]),
        st.text(max_size=6),
    ),
    max_size=3,
)  # fmt: skip


def changed(rows, changes):
    rows = [next(csv.reader([row])) for row in rows]
    for number, what, text in changes:
        at = number % len(rows)
        path, digest, size = (rows[at] + ["", "", ""])[:3]
        rows[at : at + 1] = {
            "drop": [],
            "twice": [rows[at], rows[at]],
            "path": [[path + text, digest, size]],
            "hash": [[path, digest[:-2] + text, size]],
            "size": [[path, digest, size + text]],
            "algorithm": [[path, digest.replace("sha256", text or "md5"), size]],
            "no hash": [[path, "", size]],
            "no size": [[path, digest, ""]],
            "swap": [[path, rows[at - 1][1], size]],
            "extra": [[path, digest, size, text]],
            "noise": [rows[at], [text, text, text]],
        }[what] or []
        if not rows:
            rows = [["", "", ""]]
    output = io.StringIO(newline="")
    csv.writer(output, lineterminator="\n").writerows(rows)
    return output.getvalue().splitlines()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_any_record_is_refused_or_true(tmp_path, changes):
    """Row 34: what passes lists every file with the hash of what was installed."""
    files = {"a.py": b"one\n", "b/c.py": b"two\n", "d,e.txt": b"three"}
    try:
        source = wheel(
            tmp_path,
            files,
            record=lambda rows: changed(
                [f'"{row[:7]}"{row[7:]}' if row.startswith("d,e") else row for row in rows], changes
            ),
        )
    except (UnicodeEncodeError, csv.Error):
        return
    try:
        built = build(source)
    except (WheelRecord, WheelUnsafe):
        return
    assert {name: built.files[f"{SITE}/{name}"] for name in files} == files
    written = list(csv.reader(io.StringIO(built.files[f"{SITE}/{INFO}/RECORD"].decode())))
    listed = {row[0]: row[1:] for row in written}
    for name, data in files.items():
        assert listed[name] == next(csv.reader([record_row("x", data)]))[1:]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_more_of_a_bomb_is_read_than_it_admits(tmp_path, monkeypatch, method):
    """Row 38: a member that unpacks to more than its headers say ends at what they say."""
    data = random.Random(1).randbytes(24 * 1024 * 1024)
    small = 100_000
    row = record_row("a.bin", data).rsplit(",", 1)[0] + f",{small}"
    source = wheel(
        tmp_path,
        {"a.bin": data},
        methods={"a.bin": method},
        record=lambda rows: [row if old.startswith("a.bin") else old for old in rows],
    )
    field = struct.pack("<L", small)
    patched(source, "a.bin", local=(22, field), central=(24, field))
    read, pread = [], os.pread

    def counted(descriptor, size, offset):
        found = pread(descriptor, size, offset)
        read.append(len(found))
        return found

    monkeypatch.setattr(os, "pread", counted)
    with pytest.raises((WheelBomb, WheelUnsafe)):
        build(source)
    assert sum(read) < 2 * 1024 * 1024
    assert max(read) <= 1024 * 1024


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 29), value=st.integers(0, 255), member=st.sampled_from(["a.py", f"{INFO}/METADATA"]))
def test_a_local_header_says_what_the_directory_says(tmp_path, position, value, member):
    """Row 39: any byte of it, but those that no reader of ours uses (version, time)."""
    source = wheel(tmp_path, {"a.py": b"content\n" * 20})
    with zipfile.ZipFile(source.path) as archive:
        offset = archive.getinfo(member).header_offset + position
    content = bytearray(source.path.read_bytes())
    assume(content[offset] != value)
    content[offset] = value
    source.path.write_bytes(content)
    try:
        built = build(source)
    except (WheelUnsafe, WheelBomb):
        return
    assert position in {4, 5, 10, 11, 12, 13, 6, 7}
    assert built.files[f"{SITE}/a.py"] == b"content\n" * 20


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"\xff\xfe\x00",
        b"License: Licen\xe7a livre\n",
        b"License-Expression: " + b"x" * 100_000,
        b"Classifier: License :: \n" * 1000,
        b": \n: \n",
        b"License-Expression: MIT\nLicense-Expression: GPL-3.0-only\n",
    ],
)
def test_metadata_that_tell_nothing_useful_are_no_reason_to_refuse(tmp_path, metadata):
    source = wheel(tmp_path, {"a.py": b""})
    rewritten = tmp_path / "again"
    rewritten.mkdir()
    target = rewritten / source.path.name
    with zipfile.ZipFile(source.path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = metadata if info.filename.endswith("METADATA") else old.read(info)
            if info.filename.endswith("RECORD"):
                rows = data.decode().splitlines()
                data = "\n".join(
                    record_row(f"{INFO}/METADATA", metadata) if "METADATA" in row else row for row in rows
                ).encode()
            new.writestr(info, data)
    layer = build(samples.as_file(target)).layer
    assert all(len(one.licence) <= 100 for one in layer.licences)


def test_a_layer_knows_the_licences_of_its_wheels(tmp_path):
    source = wheel(tmp_path, {"a.py": b""}, name="plain")
    assert build(source).layer.licences == ()
    layer = build(source).layer
    told = WheelLicence(sha256=source.sha256, licence="MIT")
    value = {**layer.to_json(), "licences": [{"sha256": told.sha256, "licence": told.licence}]}
    assert type(layer).from_json(value).licences == (told,)
    with pytest.raises(KeyError):
        type(layer).from_json({key: one for key, one in value.items() if key != "licences"})

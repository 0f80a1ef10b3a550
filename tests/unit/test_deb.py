"""The .deb format: every compression, links, and what is refused."""

import gzip
import io
import lzma
import tarfile

import pytest
import zstandard

from flops.base.debian.deb import DebEntryKind, read_control, unpack_data
from flops.errors import BaseUnavailable, LayerUnsafe

CONTROL = b"Package: tiny\nVersion: 1.0-1\nArchitecture: all\n"
COMPRESSORS = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def tar(*members):
    """Each member: (name, bytes) or a TarInfo."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return output.getvalue()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def ar(*members):
    data = b"!<arch>\n"
    for name, content in members:
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        data += b"\n" * (len(content) % 2)
    return data


def deb(directory, data_tar, suffix=".xz", control_suffix=".xz"):
    path = directory / "tiny_1.0-1_all.deb"
    control = COMPRESSORS[control_suffix](tar(("./control", CONTROL + b"\n\n"), ("./postinst", b"#!/bin/sh\nexit 1\n")))
    members = [("debian-binary", b"2.0\n"), (f"control.tar{control_suffix}", control)]
    path.write_bytes(ar(*members, (f"data.tar{suffix}", COMPRESSORS[suffix](data_tar))))
    return path


def unpack(path):
    spool = io.BytesIO()
    entries = unpack_data(path, spool)
    return entries, {
        e.path: spool.getvalue()[e.offset : e.offset + e.size] for e in entries if e.kind is DebEntryKind.FILE
    }


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_package_is_read_in_every_compression(tmp_path, suffix):
    odd = b"x" * 70_001  # an odd size: the next member would be padded
    path = deb(tmp_path, tar(special("./", tarfile.DIRTYPE), ("./usr/share/odd", odd)), suffix, suffix)
    entries, contents = unpack(path)
    assert [entry.path for entry in entries] == ["usr/share/odd"]
    assert contents == {"usr/share/odd": odd}
    assert read_control(path) == CONTROL


def test_links_and_directories_are_told_apart_and_a_hard_link_has_its_files_bytes(tmp_path):
    path = deb(
        tmp_path,
        tar(
            special("./usr/", tarfile.DIRTYPE),
            ("./usr/one", b"content"),
            special("./usr/two", tarfile.LNKTYPE, "./usr/one"),
            special("./usr/three", tarfile.SYMTYPE, "one"),
        ),
    )
    entries, contents = unpack(path)
    assert [(e.path, e.kind, e.target) for e in entries] == [
        ("usr", DebEntryKind.DIRECTORY, ""),
        ("usr/one", DebEntryKind.FILE, ""),
        ("usr/two", DebEntryKind.FILE, ""),
        ("usr/three", DebEntryKind.LINK, "one"),
    ]
    assert contents == {"usr/one": b"content", "usr/two": b"content"}


@pytest.mark.parametrize(
    "member",
    [
        ("/etc/passwd", b""),
        ("./../etc/passwd", b""),
        ("./usr/../../etc/passwd", b""),
        special("./dev/sda", tarfile.BLKTYPE),
        special("./fifo", tarfile.FIFOTYPE),
        special("./usr/x", tarfile.LNKTYPE, "./not/there"),
    ],
    ids=lambda member: member[0] if isinstance(member, tuple) else member.name,
)
def test_what_leaves_the_tree_or_is_no_file_is_refused(tmp_path, member):
    with pytest.raises(LayerUnsafe, match=r"tiny_1\.0-1_all\.deb"):
        unpack(deb(tmp_path, tar(member)))


def test_damaged_packages_are_named(tmp_path):
    whole = deb(tmp_path, tar(("./x", bytes(range(256)) * 1000)))
    data = whole.read_bytes()
    for damaged in (b"", b"not an archive", data[:100], data[:-200], data.replace(b"data.tar.xz", b"data.tar.br")):
        whole.write_bytes(damaged)
        with pytest.raises(BaseUnavailable, match=r"tiny_1\.0-1_all\.deb is not a Debian package"):
            unpack(whole)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_packages_that_are_damaged_within_are_named(tmp_path, suffix):
    """Each byte of either archive, in whatever way its decompressor or tar sees it."""
    whole = deb(tmp_path, tar(("./x", bytes(range(256)) * 8)), suffix, suffix)
    data = whole.read_bytes()
    refused = 0
    for place in range(150, len(data)):
        whole.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        for read in (unpack, read_control):
            try:
                read(whole)
            except (BaseUnavailable, LayerUnsafe):
                refused += 1
    assert refused > 50


def test_a_package_without_a_control_file_is_refused(tmp_path):
    path = tmp_path / "bare.deb"
    path.write_bytes(ar(("debian-binary", b"2.0\n"), ("control.tar.gz", gzip.compress(tar(("./md5sums", b""))))))
    with pytest.raises(BaseUnavailable, match="no control file"):
        read_control(path)

"""A base that is an image: the merged tree of its layers, what it must offer, and what is added."""

import io
import os
import shutil
import subprocess
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from flops import sandbox
from flops.actors import Actor
from flops.base import bytecode
from flops.base.bytecode import BytecodeTarget, unpack_interpreter, write_bytecode
from flops.base.debian.deb import DebEntryKind
from flops.base.image_base import ImageBase
from flops.base.image_tree import ImageTree
from flops.errors import BaseUnavailable, BaseUnsuitable, ImageNotFound, RegistryUnreachable
from flops.oci.blobs import BlobStore
from flops.oci.image import ImageConfig, compose
from flops.oci.layer import Layer, LayerWriter
from flops.oci.pull import PulledImage
from flops.oci.reference import Reference
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Compression

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
TAR = "application/vnd.oci.image.layer.v1.tar"


def layer(store, members, *, compression=Compression.GZIP):
    """Each member: path and bytes, a link's target, or None for a directory."""
    with store.writer() as blob:
        writer = LayerWriter(blob, compression=compression)
        for path, content in sorted(members.items()):
            if content is None:
                writer.directory(path)
            elif isinstance(content, str):
                writer.link(path, content)
            else:
                writer.file(path, content, mode=0o755)
        made = writer.close()
        blob.commit(made.digest)
    return made


def raw_layer(store, *members):
    """A plain tar that LayerWriter would not write: whiteouts, hard links. Each member: (path, bytes or TarInfo type, link)."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for path, content, *target in members:
            info = tarfile.TarInfo(path)
            if isinstance(content, bytes) and not target:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content, target[0]
                archive.addfile(info)
    digest = store.put(output.getvalue())
    size = len(output.getvalue())
    return Layer(digest=digest, diff_id=digest, size=size, uncompressed_size=size, media_type=TAR)


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store")


# --- the merged tree ---
def test_upper_layers_replace_hide_and_empty_what_lies_below(store):
    below = layer(store, {"a/one": b"1", "a/two": b"2", "b/x": b"x", "b/y": b"y", "c/deep/file": b"", "d": None})
    above = raw_layer(
        store,
        ("a/.wh.one", b""),
        ("a/three", b"3"),
        ("b/new", b"n"),
        ("b/.wh..wh..opq", b""),
        ("c", b"now a file"),
        ("./a/two", b"22"),
    )
    tree = ImageTree.read([below, above], store)
    assert sorted(tree.nodes) == ["a", "a/three", "a/two", "b", "b/new", "c", "d"]
    assert tree.nodes["a/two"].size == 2
    assert tree.nodes["c"].kind is DebEntryKind.FILE


@pytest.mark.parametrize("compression", list(Compression))
def test_files_come_out_of_the_layer_that_holds_them(store, tmp_path, compression):
    below = layer(store, {"a/one": b"1", "a/two": b"2"}, compression=compression)
    above = raw_layer(store, ("a/two", b"22"), ("a/hard", tarfile.LNKTYPE, "a/two"))
    ImageTree.read([below, above], store).extract(["a/one", "a/two", "a/hard"], tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/a").iterdir()} == {
        "one": b"1",
        "two": b"22",
        "hard": b"22",
    }


def test_links_are_followed_as_inside_the_image(store):
    tree = ImageTree.read(
        [
            layer(
                store,
                {
                    "usr/lib/x/libc.so.6": "libc-2.36.so",
                    "usr/lib/x/libc-2.36.so": b"",
                    "lib": "usr/lib",
                    "up": "/usr/lib/../lib/x",
                    "loop": "loop",
                    "gone": "nowhere",
                },
            )
        ],
        store,
    )
    assert tree.resolve("/lib/x/libc.so.6") == "usr/lib/x/libc-2.36.so"
    assert tree.resolve("up/libc.so.6") == "usr/lib/x/libc-2.36.so"
    assert tree.resolve("../../lib/x") == "usr/lib/x"
    assert tree.resolve("loop") is tree.resolve("gone") is tree.resolve("usr/no") is None


def test_a_layer_that_can_not_be_read_is_named(store):
    broken = Layer(digest=store.put(b"no tar"), diff_id="", size=6, uncompressed_size=6, media_type=TAR + "+gzip")
    with pytest.raises(BaseUnsuitable, match=broken.digest):
        ImageTree.read([broken], store)


# --- what an image must offer ---
def elf(platform, *strings):
    machine = {AMD64: 62, ARM64: 183}[platform]
    return b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + b"\0" + b"\0".join(strings) + b"\0"


def glibc(version):
    return b"\0GNU C Library (Some OS) stable release version " + version + b".\nCopyright\0"


def root(platform, *, minor="3.11", patch="3.11.9", libc=b"2.36", **changes):
    """Files of a small image in the form of python:slim; a change to None takes a file away."""
    where = f"usr/lib/{platform.multiarch}"
    home = f"usr/local/lib/python{minor}"
    loader = platform.loader.rpartition("/")[2]
    files = {
        "lib": "usr/lib",
        "lib64": "usr/lib64",
        "bin": "usr/bin",
        f"{where}/libc.so.6": glibc(libc),
        f"{where}/{loader}": elf(platform),
        f"{where}/libstdc++.so.6": b"",
        f"{where}/libz.so.1": "libz.so.1.2.13",
        f"{where}/libz.so.1.2.13": b"zlib",
        "usr/lib64/ld-linux-x86-64.so.2" if platform is AMD64 else f"usr/lib/{loader}": f"/{where}/{loader}",
        "usr/local/bin/python3": f"python{minor}",
        f"usr/local/bin/python{minor}": elf(platform, b"3.11", patch.encode(), b"Python 3.11.0"),
        f"{home}/os.py": b"",
        f"{home}/test/test_os.py": b"",
        f"{home}/site-packages/pip/__init__.py": b"",
        "etc/passwd": b"root:x:0:0::/root:/bin/sh\n",
        "etc/group": b"root:x:0:",
    }
    files |= {name.format(where=where, home=home): content for name, content in changes.get("files", {}).items()}
    return {name: content for name, content in files.items() if content is not False}


class FakeClient:
    """A registry of images by platform."""

    def __init__(self, store, roots, environment=None, failure=None, labels=None):
        self.images_ = {}
        self.failure = failure
        for platform, files in roots.items():
            layers = (layer(store, files),)
            config = ImageConfig(
                platform=platform, created="2026-01-01T00:00:00Z", environment=environment or {}, labels=labels or {}
            )
            image = compose(config, layers, {})
            self.images_[platform] = PulledImage(
                digest=image.digest, manifest=image.manifest, config=image.config, layers=layers
            )

    def images(self, repository, selector):
        if self.failure:
            raise self.failure
        return self.images_ or None

    def pull(self, reference, store, platform):
        return self.images_[platform]


def base(store, client, tmp_path, **options):
    reference = Reference.parse("localhost:5073/base:1")
    return ImageBase(reference, client, cache_dir=tmp_path / "cache", blobs=store, **options)


class Warnings(Silent):
    def __init__(self):
        self.messages = []

    def warning(self, stage, message, *, hint=""):
        self.messages.append(f"{message} {hint}")


def test_an_image_is_taken_as_it_is_and_completed(store, tmp_path):
    client = FakeClient(
        store, {AMD64: root(AMD64), ARM64: root(ARM64)}, {"PATH": "/usr/local/bin:/usr/bin", "GPG": "x"}
    )
    reporter = Warnings()
    made = base(store, client, tmp_path, reporter=reporter).prepare([AMD64, ARM64])
    for platform, one in made.items():
        assert (one.python, one.glibc, one.interpreter) == ("3.11.9", (2, 36), "/usr/local/bin/python3.11")
        assert one.environment == {"PATH": "/usr/local/bin:/usr/bin", "GPG": "x"}
        assert one.lock == client.images_[platform].digest
        assert one.layers[:-1] == client.images_[platform].layers
        with tarfile.open(fileobj=io.BytesIO(store.read(one.layers[-1].digest)), mode="r:gz") as archive:
            assert archive.extractfile("etc/passwd").read() == (
                b"root:x:0:0::/root:/bin/sh\nflops:x:65532:65532:flops:/home/flops:/usr/sbin/nologin\n"
            )
            assert archive.extractfile("etc/group").read() == b"root:x:0:\nflops:x:65532:\n"
            assert archive.getmember("home/flops").uid == 65532
            assert archive.getmember("tmp").mode == 0o1777
    assert len([message for message in reporter.messages if "compileall" in message]) == 2
    assert made[AMD64].layers[-1] == made[ARM64].layers[-1]


def test_an_image_with_bytecode_and_a_user_of_our_number_keeps_both(store, tmp_path):
    files = {
        "{home}/__pycache__/os.cpython-311.pyc": b"",
        "etc/passwd": b"app:x:65532:7::/:/bin/sh\n",
        "usr/local/include/python3.11/patchlevel.h": b'#define PY_VERSION      "3.11.12+"\n',
    }
    reporter = Warnings()
    client = FakeClient(store, {AMD64: root(AMD64, files=files)})
    made = base(store, client, tmp_path, reporter=reporter).prepare([AMD64])
    assert made[AMD64].python == "3.11.12"
    assert reporter.messages == []
    with tarfile.open(fileobj=io.BytesIO(store.read(made[AMD64].layers[-1].digest)), mode="r:gz") as archive:
        assert archive.extractfile("etc/passwd").read() == files["etc/passwd"]


def test_a_supported_python_beside_another_default_is_found(store, tmp_path):
    files = root(AMD64) | {"usr/local/bin/python3": "python3.12", "usr/local/bin/python3.12": elf(AMD64, b"3.12.1")}
    made = base(store, FakeClient(store, {AMD64: files}), tmp_path).prepare([AMD64])
    assert made[AMD64].interpreter == "/usr/local/bin/python3.11"


WHERE = f"usr/lib/{AMD64.multiarch}"
UNSUITABLE = {
    "musl": ({"lib64": False, "usr/lib64/ld-linux-x86-64.so.2": False, "usr/lib/ld-musl-x86_64.so.1": b""}, "musl"),
    "no loader": ({"usr/lib64/ld-linux-x86-64.so.2": False}, "no /lib64/ld-linux-x86-64.so.2, so no glibc"),
    "old glibc": ({f"{WHERE}/libc.so.6": glibc(b"2.27")}, "glibc 2.27, which is too old"),
    "mute glibc": ({f"{WHERE}/libc.so.6": b""}, "does not tell its version"),
    "no C++": ({f"{WHERE}/libstdc++.so.6": False}, "no libstdc"),
    "no Python": ({"usr/local/bin/python3": False, "usr/local/bin/python3.11": False}, "no Python on its PATH"),
    "no library": ({"usr/local/lib/python3.11/os.py": False}, "without its standard library"),
    "foreign": ({"usr/local/bin/python3.11": elf(ARM64, b"3.11.9")}, "is no program for linux/amd64"),
    "no version": ({"usr/local/bin/python3.11": elf(AMD64, b"3.12.1")}, "exact version .* can't be told"),
}


@pytest.mark.parametrize(("files", "message"), UNSUITABLE.values(), ids=UNSUITABLE)
def test_an_image_that_lacks_something_is_refused_with_its_name(store, tmp_path, files, message):
    client = FakeClient(store, {AMD64: root(AMD64, files=files)})
    with pytest.raises(BaseUnsuitable, match=message) as caught:
        base(store, client, tmp_path).prepare([AMD64])
    assert "localhost:5073/base:1, linux/amd64" in caught.value.message
    assert "Python 3.13 or 3.11" in caught.value.hint


@pytest.mark.parametrize("actor", Actor)
def test_an_image_of_an_actor_is_no_base(store, tmp_path, actor):
    """It holds somebody's code and packages, which would end in another project's image."""
    client = FakeClient(store, {AMD64: root(AMD64)}, labels={"io.flops.actor": actor.value})
    with pytest.raises(BaseUnsuitable, match="is an image of a learner or an aggregator") as caught:
        base(store, client, tmp_path).prepare([AMD64])
    assert "flops images base" in caught.value.hint


def test_a_python_without_a_runtime_of_ours_is_refused(store, tmp_path):
    client = FakeClient(store, {AMD64: root(AMD64, minor="3.12", patch="3.12.3")})
    with pytest.raises(BaseUnsuitable, match=r"has Python 3\.12, and the FL runtime is made for 3\.13 and 3\.11"):
        base(store, client, tmp_path).prepare([AMD64])


def test_platforms_that_are_not_offered_or_differ_are_refused(store, tmp_path):
    with pytest.raises(BaseUnsuitable, match="not offered for linux/arm64") as caught:
        base(store, FakeClient(store, {AMD64: root(AMD64)}), tmp_path).prepare([AMD64, ARM64])
    assert "linux/amd64" in caught.value.hint
    two = FakeClient(store, {AMD64: root(AMD64), ARM64: root(ARM64, patch="3.11.8")})
    with pytest.raises(BaseUnsuitable, match=r"different Pythons: 3\.11\.8 on linux/arm64, 3\.11\.9 on linux/amd64"):
        base(store, two, tmp_path).prepare([AMD64, ARM64])


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (None, "there is no base image localhost:5073/base:1"),
        (ImageNotFound("there is no image x"), "there is no image x"),
        (RegistryUnreachable("localhost:5073 does not answer"), "can't be pulled: localhost:5073 does not answer"),
    ],
)
def test_an_image_that_can_not_be_had_is_no_base(store, tmp_path, failure, message):
    with pytest.raises(BaseUnavailable, match=message):
        base(store, FakeClient(store, {}, failure=failure), tmp_path).prepare([AMD64])


# --- the interpreter out of it ---
def test_the_interpreter_is_unpacked_once_without_what_it_does_not_need(store, tmp_path):
    tree = ImageTree.read([layer(store, root(AMD64))], store)
    program = "usr/local/bin/python3.11"
    made = unpack_interpreter(tree, program=program, platform=AMD64, cache_dir=tmp_path / "cache")
    assert made.minor == "3.11"
    assert made.loader == f"{WHERE}/ld-linux-x86-64.so.2"
    assert made.libraries == (WHERE, "usr/lib64", "usr/lib", "usr/local/lib")
    assert made.home == made.root / "usr/local"
    found = {str(path.relative_to(made.root)): path.read_bytes() for path in made.root.rglob("*") if path.is_file()}
    assert not any(path.is_symlink() for path in made.root.rglob("*"))
    assert found.keys() == {
        program,
        f"{WHERE}/ld-linux-x86-64.so.2",
        f"{WHERE}/libc.so.6",
        f"{WHERE}/libz.so.1",
        f"{WHERE}/libz.so.1.2.13",
        "usr/lib64/ld-linux-x86-64.so.2",
        "usr/local/lib/python3.11/os.py",
    }
    assert found[f"{WHERE}/libz.so.1"] == b"zlib"
    (made.root / "mark").touch()
    again = unpack_interpreter(tree, program=program, platform=AMD64, cache_dir=tmp_path / "cache")
    assert again == made
    assert (again.root / "mark").exists()
    assert [path.name for path in Path(tmp_path / "cache").iterdir()] == [made.root.name]


def test_an_image_that_is_not_offered_for_this_machine_gives_no_interpreter(store, tmp_path, monkeypatch):
    client = FakeClient(store, {AMD64: root(AMD64)})
    monkeypatch.setattr(Platform, "host", classmethod(lambda cls: ARM64))
    assert base(store, client, tmp_path).interpreter() is None
    if not sandbox.available():
        pytest.skip("bubblewrap is not installed, or this host forbids namespaces")
    monkeypatch.setattr(Platform, "host", classmethod(lambda cls: AMD64))
    assert base(store, client, tmp_path).interpreter().program == "usr/local/bin/python3.11"


def test_links_devices_and_directories_of_an_image_lead_to_nothing_of_this_machine(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    odd = [
        (f"{WHERE}/libm.so.6", tarfile.SYMTYPE, str(secret)),
        (f"{WHERE}/libdl.so.2", tarfile.SYMTYPE, "../" * 20 + str(secret)),
        (f"{WHERE}/libutil.so.1", tarfile.SYMTYPE, "."),
        (f"{WHERE}/librt.so.1", tarfile.FIFOTYPE, ""),
        (f"{WHERE}/libcrypt.so.1", tarfile.CHRTYPE, ""),
        (f"{WHERE}/libexpat.so.1", tarfile.LNKTYPE, str(secret)),
        ("usr/local/lib/python3.11/json.py", tarfile.SYMTYPE, str(secret)),
    ]
    tree = ImageTree.read([layer(store, root(AMD64)), raw_layer(store, *odd)], store)
    made = unpack_interpreter(tree, program="usr/local/bin/python3.11", platform=AMD64, cache_dir=tmp_path / "cache")
    found = [path for path in made.root.rglob("*") if not path.is_dir() or path.is_symlink()]
    assert all(path.is_file() and not path.is_symlink() for path in found)
    assert not {path.name for path in found} & {Path(path).name for path, *_ in odd}
    whole = ImageTree.read([layer(store, root(AMD64)), raw_layer(store, ("usr/lib64", tarfile.SYMTYPE, "/"))], store)
    with pytest.raises(BaseUnsuitable, match=r"has no /lib64/ld-linux-x86-64\.so\.2"):
        unpack_interpreter(whole, program="usr/local/bin/python3.11", platform=AMD64, cache_dir=tmp_path / "cache")


#: In the place of an image's loader. It puts links where it is told to write, and beside it, where its next runs find their
#: sources; and it says what it can read itself.
STATIC = r"""
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **words) {
    char *place = words[count - 1], next[4200], found[4096];
    unlink(place);
    symlink(SECRET, place);
    char *name = strrchr(place, '/');
    for (int n = 0; name && n < 9; n++) {
        snprintf(next, sizeof next, "%.*s/%d.sources", (int)(name - place), place, n);
        symlink(VICTIM, next);
    }
    int file = open(SECRET, O_RDONLY), size = file < 0 ? 0 : (int)read(file, found, sizeof found);
    write(1, &size, 4);
    write(1, found, size);
    return 0;
}
"""


def test_a_static_program_in_the_place_of_a_loader_reads_and_writes_nothing_of_this_machine(
    store, tmp_path, monkeypatch
):
    host = Platform.host()
    if host is None or shutil.which("gcc") is None or not sandbox.available():
        pytest.skip("gcc or bubblewrap is not installed, or this host forbids namespaces")
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    environment = {"PATH": os.environ["PATH"], "TOKEN": "canary-of-another-process"}
    with subprocess.Popen(["sleep", "300"], env=environment) as process, ExitStack() as stack:
        stack.callback(process.kill)
        secret = Path(f"/proc/{process.pid}/environ")
        words = ["gcc", "-static", "-w", "-x", "c", "-", f'-DSECRET="{secret}"', f'-DVICTIM="{victim}"', "-o"]
        subprocess.run([*words, tmp_path / "static"], input=STATIC, text=True, check=True, timeout=60)
        loader = f"usr/lib/{host.multiarch}/{host.loader.rpartition('/')[2]}"
        files = root(host, files={loader: (tmp_path / "static").read_bytes()})
        interpreter = base(store, FakeClient(store, {host: files}), tmp_path).interpreter()
        monkeypatch.setattr(bytecode, "_CHUNK_FILES", 1)
        output = io.BytesIO()
        writer = LayerWriter(output, compression=Compression.GZIP)
        sources = {f"{name}.py": (lambda: b"") for name in "abcdef"}
        write_bytecode(interpreter, [BytecodeTarget(writer=writer, sources=sources)])
        writer.close()
        assert b"canary" in secret.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(output.getvalue()), mode="r:gz") as archive:
        assert not [
            member.name for member in archive if b"canary" in (archive.extractfile(member) or io.BytesIO()).read()
        ]
    assert victim.read_text() == "as it was"

"""The base for real: this machine's apt, both suites, what runs from it, and the base as an image for `--base-image`."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from flops.base import bytecode
from flops.base.bytecode import BytecodeTarget, pyc_path, write_bytecode
from flops.base.debian import apt
from flops.base.debian.debian_base import DebianBase, Suite
from flops.base.image_base import ImageBase
from flops.errors import BaseUnavailable
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.image import ImageConfig, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.reference import Reference
from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry
from flops.settings import Settings

pytestmark = pytest.mark.integration

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
PROGRAM = """
import bz2, ctypes, hashlib, json.decoder, locale, lzma, os, platform, pwd, readline, socket, sqlite3, ssl, sys, zoneinfo
certificates = ssl.create_default_context().cert_store_stats()["x509_ca"]
assert certificates > 100, certificates
ctypes.CDLL("libstdc++.so.6"), ctypes.CDLL("libgomp.so.1")
assert sqlite3.connect(":memory:").execute("select 6 * 7").fetchone() == (42,)
assert lzma.decompress(lzma.compress(b"x")) == bz2.decompress(bz2.compress(b"x")) == b"x"
assert zoneinfo.ZoneInfo("Europe/Berlin").key == "Europe/Berlin"
assert locale.setlocale(locale.LC_ALL, "C.UTF-8") and locale.getpreferredencoding() == "UTF-8"
assert pwd.getpwuid(65532).pw_dir == "/home/flops" and os.stat("/home/flops").st_uid in (65532, 65534)
assert hashlib.new("sha512", b"").digest() and socket.getservbyname("https") == 443
assert os.path.exists(json.decoder.__cached__), json.decoder.__cached__
print(platform.machine(), platform.python_version(), platform.freedesktop_os_release()["VERSION_CODENAME"])
"""


@pytest.fixture(scope="module")
def mirror():
    """Skips where this machine's apt serves no Debian."""
    settings = Settings.read()
    try:
        return apt.mirror(main=settings.debian_mirror, security=settings.debian_security_mirror)
    except BaseUnavailable as error:
        pytest.skip(f"no Debian packages here: {error.message}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def provider(cache, suite="bookworm", **settings):
    return DebianBase(
        Suite.read(suite), cache_dir=cache, blobs=BlobStore(cache / "store"), settings=Settings(**settings)
    )


@pytest.fixture(scope="module")
def bases(mirror, cache):
    return provider(cache).prepare([AMD64, ARM64])


def unpack(base, store: BlobStore, target):
    for layer in base.layers:
        with tarfile.open(store.path(layer.digest)) as archive:
            archive.extractall(target, filter="fully_trusted")
    return target


def start(root, *, environment=()):
    """Run the program in a root of its own: read-only, without network, environment or capabilities."""
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed")
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--clearenv", "--setenv", "LANG", "C.UTF-8"]
    words += ["--setenv", "PATH", "/usr/bin", "--ro-bind", root, "/", "--tmpfs", "/tmp", "--proc", "/proc"]
    done = subprocess.run(
        [*words, "--dev", "/dev", "python3", "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def needs_emulation(platform):
    if platform is not Platform.host() and not Path(f"/proc/sys/fs/binfmt_misc/qemu-{platform.machine}").exists():
        pytest.skip(f"{platform} does not run here: qemu is not registered")


@pytest.mark.parametrize("platform", [AMD64, ARM64], ids=str)
def test_python_runs_from_the_base_with_everything_it_needs(bases, cache, tmp_path, platform):
    base = bases[platform]
    assert (base.python, base.glibc, base.interpreter) == ("3.11.2", (2, 36), "/usr/bin/python3.11")
    root = unpack(base, BlobStore(cache / "store"), tmp_path / "root")
    needs_emulation(platform)
    assert start(root) == [platform.machine, "3.11.2", "bookworm"]


def test_the_other_suite_gives_the_other_python(mirror, tmp_path):
    base = provider(tmp_path, "trixie").prepare([AMD64])[AMD64]
    assert (base.minor, base.glibc) == ("3.13", (2, 41))
    assert base.python == Suite.read("trixie").python
    needs_emulation(AMD64)
    root = unpack(base, BlobStore(tmp_path / "store"), tmp_path / "root")
    assert start(root) == ["x86_64", base.python, "trixie"]


def test_a_second_build_needs_no_apt_and_another_machine_gets_the_same_digests(bases, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provider(cache).prepare([AMD64, ARM64]) == bases
    # the same packages, nothing else kept
    for name in ("debs", "sets"):
        shutil.copytree(cache / "bases" / name, tmp_path / "bases" / name)
    for name, value in {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "LANG": "de_DE.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o077)
    try:
        assert provider(tmp_path).prepare([ARM64, AMD64]) == bases
    finally:
        os.umask(mask)


def test_bytecode_of_the_real_interpreter_does_not_depend_on_its_neighbours(bases, cache, tmp_path, monkeypatch):
    """On 3.11 "*" becomes an interned string for good once a source imports it: the case that once gave other bytes."""
    interpreter = provider(cache).interpreter()
    sources = {
        "a.py": b"from os.path import *\n",
        "b.py": b"sign = '*'\n",
        "c.py": b"def f(x):\n    return x in {'a', 'b', 'c'}\n",
    }

    def compiled(files):
        path = tmp_path / "layer"
        with path.open("wb") as output:
            writer = LayerWriter(output)
            assert write_bytecode(interpreter, [BytecodeTarget(writer=writer, sources=files)]) == ()
            writer.close()
        with tarfile.open(path) as archive:
            return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}

    together = compiled({path: (lambda data=data: data) for path, data in sources.items()})
    assert together.keys() == {pyc_path(path, "3.11") for path in sources}
    monkeypatch.setattr(bytecode, "_CHUNK_FILES", 1)
    assert compiled({path: (lambda data=data: data) for path, data in sources.items()}) == together


def test_a_mirror_that_does_not_answer_and_one_with_other_keys_give_no_base(mirror, tmp_path):
    with pytest.raises(BaseUnavailable, match="can't read Debian's archive") as caught:
        provider(tmp_path, debian_mirror="http://127.0.0.1:1/debian").prepare([AMD64])
    assert "--base-image" in caught.value.hint
    empty = tmp_path / "empty.gpg"
    empty.touch()
    with pytest.raises(BaseUnavailable, match="keyring") as caught:
        provider(tmp_path, debian_keyring=empty).prepare([AMD64])
    assert "FLOPS_DEBIAN_KEYRING" in caught.value.hint


def test_a_base_of_ours_serves_as_base_image(bases, cache, tmp_path):
    store = BlobStore(cache / "store")
    images = [
        compose(ImageConfig(platform=p, created="2026-01-01T00:00:00Z"), base.layers, {}) for p, base in bases.items()
    ]
    with EmbeddedRegistry(tmp_path / "registry") as registry, RegistryClient(registry.registry) as client:
        client.push_index("bases/debian", index(images, {}), store, ["bookworm"])
        own = BlobStore(tmp_path / "store")
        reference = Reference.parse(f"{registry.registry.host}/bases/debian:bookworm")
        found = ImageBase(reference, client, cache_dir=tmp_path, blobs=own)
        made = found.prepare([AMD64, ARM64])
        interpreter = found.interpreter()
    for platform, base in made.items():
        original = bases[platform]
        assert (base.python, base.glibc, base.interpreter) == (original.python, original.glibc, original.interpreter)
        assert [layer.digest for layer in base.layers[:-1]] == [layer.digest for layer in original.layers]
    assert interpreter is not None
    words = interpreter.command(["-c", "import json, sys; print(sys.version_info[:2])"])
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True, env={})
    assert done.stdout == "(3, 11)\n"

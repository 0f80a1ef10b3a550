"""Standalone Pythons: what uv offers and fetches from a list and archives that are made here, and what becomes of them."""

import functools
import hashlib
import http.server
import io
import json
import socket
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from flops import actors, programs
from flops.base import Base, BaseContext, standalone, standalone_layers
from flops.base.bases import Bases
from flops.base.bytecode import Interpreter, pyc_path
from flops.base.standalone import PREFIX, StandalonePythons
from flops.base.standalone_layers import StandaloneLayers
from flops.errors import BaseUnavailable, PythonUnavailable
from flops.formats.requirement import PythonRequest
from flops.oci.blobs import BlobStore
from flops.oci.entries import File, Link
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Compression, Recipe
from flops.repair.pythons import PythonChoice, PythonConstraint, adjustments, by_nearness
from flops.repository.source import parse_source
from flops.request import Request
from flops.settings import Settings

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
BOTH = (AMD64, ARM64)
SYSCONFIG = b"""# system configuration generated and used by the sysconfig module
build_time_vars = {'LIBDIR': '/install/lib',
 'prefix': '/install'}
"""


def archive(version, platform, *, links=(), linked=True):
    """A build in the form that uv expects, with a little of everything that a real one holds."""
    minor = ".".join(version.split(".")[:2])
    files = {
        f"bin/python{minor}": f"program {f'needs libpython{minor}.so.1.0' if linked else ''}".encode(),
        f"bin/pip{minor}": b"#!pip",
        f"include/python{minor}/Python.h": b"",
        f"lib/libpython{minor}.so.1.0": b"library",
        "lib/libtcl8.6.so": b"",
        f"lib/pkgconfig/python-{minor}.pc": b"prefix=/install\n",
        f"lib/python{minor}/os.py": b"name = 'posix'\n",
        f"lib/python{minor}/LICENSE.txt": b"terms",
        f"lib/python{minor}/_sysconfigdata__linux_{platform.multiarch}.py": SYSCONFIG,
        f"lib/python{minor}/__pycache__/os.pyc": b"old",
        f"lib/python{minor}/config-{minor}-{platform.multiarch}/libpython{minor}.a": b"static",
        f"lib/python{minor}/ensurepip/__init__.py": b"",
        f"lib/python{minor}/lib-dynload/_ssl.so": b"module",
        f"lib/python{minor}/lib-dynload/_tkinter.so": b"module",
        f"lib/python{minor}/site-packages/pip/__init__.py": b"",
        f"lib/python{minor}/test/test_os.py": b"",
        f"lib/python{minor}/unittest/__init__.py": b"",
        f"lib/python{minor}/unittest/test/case.py": b"",
        "share/man/man1/python.1": b"",
    }
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w:gz") as writer:
        for name, data in files.items():
            member = tarfile.TarInfo(f"python/{name}")
            member.size, member.mode = len(data), 0o755 if name.startswith("bin/") else 0o644
            writer.addfile(member, io.BytesIO(data))
        for name, target in ((f"bin/{name}", f"python{minor}") for name in ("python", "python3")):
            writer.addfile(link(f"python/{name}", target))
        for name, target in links:
            writer.addfile(link(f"python/{name}", target))
    return output.getvalue()


def link(name, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


class Downloads:
    """A list of builds and the server that has them; `asked` is what it was asked for."""

    def __init__(self, root):
        self.root = root
        self.asked = []
        self.entries = {}
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, self))
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.write()

    def add(self, version, *platforms, url=None, sha256=None, **content):
        for platform in platforms or BOTH:
            data = archive(version, platform, **content)
            name = f"cpython-{version}-{platform.machine}.tar.gz"
            (self.root / name).write_bytes(data)
            major, minor, patch = map(int, version.split("."))
            self.entries[f"cpython-{version}-linux-{platform.machine}-gnu"] = {
                "name": "cpython",
                "arch": {"family": platform.machine, "variant": None},
                "os": "linux",
                "libc": "gnu",
                "major": major,
                "minor": minor,
                "patch": patch,
                "prerelease": "",
                "url": url or f"{self.url}/{name}",
                "sha256": sha256 or hashlib.sha256(data).hexdigest(),
                "variant": None,
                "build": "20240814",
            }
        self.write()
        return self

    def write(self):
        (self.root / "list.json").write_text(json.dumps(self.entries))

    def settings(self, cache, **more):
        return Settings(cache_dir=cache, python_downloads_url=str(self.root / "list.json"), **more)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, downloads, *words):
        self.downloads = downloads
        super().__init__(*words, directory=str(downloads.root))

    def log_message(self, *words):
        self.downloads.asked.append(f"{self.command} {self.path}")


@pytest.fixture
def downloads(tmp_path):
    root = tmp_path / "downloads"
    root.mkdir()
    made = Downloads(root)
    yield made
    made.close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def offer(settings, specifier, platforms=BOTH, *, near="3.11.2", upgrade=False):
    return StandalonePythons(settings, upgrade=upgrade).offer(SpecifierSet(specifier), platforms, near=near)


# --- what is offered ---
def test_of_all_that_fits_the_minor_version_nearest_to_the_bases_and_its_newest_release(downloads, cache):
    for version in ("3.8.20", "3.9.18", "3.10.13", "3.10.14", "3.12.4"):
        downloads.add(version)
    settings = downloads.settings(cache)
    assert offer(settings, "==3.10.14").version == "3.10.14"
    assert offer(settings, "==3.10.*").version == "3.10.14"
    assert offer(settings, "<3.11").version == "3.10.14"
    assert offer(settings, "!=3.11.*", near="3.13.5").version == "3.12.4"
    assert offer(settings, "<3.10").version == "3.9.18"
    old = offer(settings, "==3.8.20")  # our worker does not run on it
    assert (old.version, old.reason) == ("", "uv has no standalone build of it for linux/amd64 and linux/arm64")


def test_a_build_that_one_platform_lacks_is_none(downloads, cache):
    downloads.add("3.10.14", AMD64)
    settings = downloads.settings(cache)
    assert offer(settings, "==3.10.14").version == ""
    assert offer(settings, "==3.10.14", [AMD64]).version == "3.10.14"
    assert "linux/arm64" in offer(settings, "==3.10.14", [ARM64]).reason


def test_an_offer_fetches_nothing_and_is_believed_for_a_day(downloads, cache, monkeypatch):
    settings = downloads.add("3.10.14").settings(cache)
    assert offer(settings, "==3.10.14").version == "3.10.14"
    heads = [f"HEAD /cpython-3.10.14-{platform.machine}.tar.gz" for platform in BOTH]
    assert sorted(downloads.asked) == sorted(heads)
    assert offer(settings, "==3.10.14").version == "3.10.14"
    assert len(downloads.asked) == 2
    assert offer(settings, "==3.10.14", upgrade=True).version == "3.10.14"
    assert len(downloads.asked) == 4
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + standalone.LIFETIME + 1)
    assert offer(settings, "==3.10.14").version == "3.10.14"
    assert len(downloads.asked) == 6


def test_another_list_is_asked_at_once(downloads, cache):
    settings = downloads.add("3.10.13").settings(cache)
    assert offer(settings, "==3.10.14").version == ""
    downloads.add("3.10.14")
    assert offer(settings, "==3.10.14").version == "3.10.14"


def test_a_server_without_the_file_is_asked_for_others(downloads, cache):
    settings = downloads.add("3.10.13").add("3.10.14").settings(cache)
    for path in downloads.root.glob("cpython-3.10.14*"):
        path.unlink()
    missing = offer(settings, "==3.10.14")
    assert (missing.version, missing.reason) == ("", "127.0.0.1 answers with status 404")
    assert offer(settings, "==3.10.13").version == "3.10.13"


@pytest.mark.timeout(60)
def test_a_host_that_stays_silent_costs_seconds_once_a_day(downloads, cache, monkeypatch):
    monkeypatch.setattr(standalone, "ASKING", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.tar.gz"
        settings = downloads.add("3.10.14", url=url).add("3.12.4", url=url).settings(cache)
        first = offer(settings, "==3.10.14")
        assert (first.version, first.reason.startswith("127.0.0.1 does not answer")) == ("", True)
        connections = accepted(silent)
        assert connections >= 1
        assert offer(settings, "==3.10.14") == first
        assert offer(settings, "==3.12.*") == first  # the host is the same, whatever is asked for
        assert accepted(silent) == 0


def accepted(server):
    count = 0
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_a_host_that_is_not_there_is_named_without_credentials(downloads, cache):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://user:secret@127.0.0.1:{port}/file.tar.gz"
    told = offer(downloads.add("3.10.14", url=url).settings(cache), "==3.10.14")
    assert told.reason.startswith("127.0.0.1 does not answer: ")
    assert "secret" not in told.reason + "".join(path.read_text() for path in cache.rglob("*.json"))


def test_a_list_that_cannot_be_read_is_no_offer(cache, tmp_path):
    settings = Settings(cache_dir=cache, python_downloads_url=str(tmp_path / "missing.json"))
    assert offer(settings, "==3.10.14").reason.startswith("uv's list of standalone builds can't be read: ")


def test_never_means_that_nobody_is_asked(downloads, cache, monkeypatch):
    monkeypatch.setattr(programs, "run", lambda *words, **more: pytest.fail("uv was asked"))
    settings = downloads.add("3.10.14").settings(cache, python_downloads="never")
    assert offer(settings, "==3.10.14").reason == "UV_PYTHON_DOWNLOADS is never"
    assert downloads.asked == []


def test_uvs_own_settings_are_read_from_its_own_variables(monkeypatch):
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "manual")
    monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", "https://mirror.example/builds")
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", "https://mirror.example/list.json")
    settings = Settings.read()
    assert settings.python_downloads == "manual"
    assert settings.python_mirror == "https://mirror.example/builds"
    assert settings.python_downloads_url == "https://mirror.example/list.json"


def test_a_mirror_of_uvs_own_builds_is_asked_and_a_file_that_is_not_the_known_one_refused(downloads, cache):
    name = "cpython-3.10.14+20240814-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz"
    folder = downloads.root / "20240814"
    folder.mkdir()
    (folder / name).write_bytes(archive("3.10.14", AMD64))
    settings = Settings(cache_dir=cache, python_mirror=downloads.url)
    assert offer(settings, "==3.10.14", [AMD64]).version == "3.10.14"
    with pytest.raises(BaseUnavailable, match=r"Python 3\.10\.14 for linux/amd64 can't be fetched: Hash mismatch"):
        StandalonePythons(settings).fetch("3.10.14", AMD64)
    assert [line.partition(" ")[0] for line in downloads.asked] == ["HEAD", "GET"]
    assert all("/20240814/cpython-3.10.14" in line for line in downloads.asked)


# --- what is fetched ---
def test_a_build_is_fetched_once_and_does_not_know_where_it_was_put(downloads, tmp_path):
    downloads.add("3.10.14")
    found = []
    for name in ("one", "another/place"):
        pythons = StandalonePythons(downloads.settings(tmp_path / name))
        root = pythons.fetch("3.10.14", ARM64)
        assert pythons.fetch("3.10.14", ARM64) == root
        found.append((root / f"lib/python3.10/_sysconfigdata__linux_{ARM64.multiarch}.py").read_bytes())
        assert [path.name for path in root.parent.iterdir() if path.name.startswith(".new")] == []
    assert found[0] == found[1]
    assert f'"prefix": "/{PREFIX}"'.encode() in found[0]
    assert f'"LIBDIR": "/{PREFIX}/lib"'.encode() in found[0]
    assert [line for line in downloads.asked if line.startswith("GET")] == [
        "GET /cpython-3.10.14-aarch64.tar.gz",
        "GET /cpython-3.10.14-aarch64.tar.gz",
    ]


def test_other_bytes_than_the_list_says_are_refused_and_leave_nothing(downloads, cache):
    pythons = StandalonePythons(downloads.add("3.10.14", sha256="0" * 64).settings(cache))
    with pytest.raises(BaseUnavailable, match="Hash mismatch") as caught:
        pythons.fetch("3.10.14", AMD64)
    assert "--python" in caught.value.hint
    assert not list((cache / "pythons").glob("*/bin"))


# --- its layers ---
def layers(settings, *, compression=Compression.GZIP, reporter=None):
    blobs = BlobStore(settings.cache_dir)
    made = StandaloneLayers(
        "3.10.14" if reporter is None else VERSION,
        StandalonePythons(settings),
        cache_dir=settings.cache_dir,
        blobs=blobs,
        compression=compression,
        reporter=reporter or Silent(),
    )
    return made, blobs


def listing(blobs, layer):
    with blobs.open(layer.digest) as file, tarfile.open(fileobj=file, mode="r:*") as tar:
        return [
            f"{member.mode:04o} {member.name}" + (f" -> {member.linkname}" if member.issym() else "") for member in tar
        ]


def test_the_layer_holds_what_runs_and_nothing_else(downloads, cache):
    made, blobs = layers(downloads.add("3.10.14").settings(cache))
    layer = made.obtain([ARM64])[ARM64]
    assert listing(blobs, layer) == [
        "0755 opt",
        "0755 opt/flops",
        "0755 opt/flops/python",
        "0755 opt/flops/python/bin",
        "0777 opt/flops/python/bin/python -> python3.10",
        "0777 opt/flops/python/bin/python3 -> python3.10",
        "0755 opt/flops/python/bin/python3.10",
        "0755 opt/flops/python/lib",
        "0644 opt/flops/python/lib/libpython3.10.so.1.0",
        "0755 opt/flops/python/lib/python3.10",
        "0644 opt/flops/python/lib/python3.10/EXTERNALLY-MANAGED",
        "0644 opt/flops/python/lib/python3.10/LICENSE.txt",
        "0644 opt/flops/python/lib/python3.10/_sysconfigdata__linux_aarch64-linux-gnu.py",
        "0755 opt/flops/python/lib/python3.10/lib-dynload",
        "0644 opt/flops/python/lib/python3.10/lib-dynload/_ssl.so",
        "0644 opt/flops/python/lib/python3.10/os.py",
        "0755 opt/flops/python/lib/python3.10/unittest",
        "0644 opt/flops/python/lib/python3.10/unittest/__init__.py",
    ]
    assert layer.comment == "Python 3.10.14, standalone"


def test_a_library_that_the_program_does_without_is_left_out(downloads, cache):
    made, blobs = layers(downloads.add("3.10.14", linked=False).settings(cache))
    assert not [line for line in listing(blobs, made.obtain([ARM64])[ARM64]) if "libpython" in line]


def test_the_layer_is_the_same_on_every_machine_and_remembered(downloads, tmp_path):
    downloads.add("3.10.14")
    digests = {layers(downloads.settings(tmp_path / name))[0].obtain(BOTH)[ARM64].digest for name in ("one", "two")}
    assert len(digests) == 1
    asked = len(downloads.asked)
    assert layers(downloads.settings(tmp_path / "one"))[0].obtain([ARM64])[ARM64].digest in digests
    assert len(downloads.asked) == asked


def test_a_link_that_leaves_the_build_is_refused(downloads, cache, tmp_path):
    made, _ = layers(downloads.add("3.10.14", links=[("lib/libpython3.so", "../../../secret.so")]).settings(cache))
    with pytest.raises(BaseUnavailable, match="escapes the destination root"):  # by uv
        made.obtain([AMD64])
    for target in ("../secret.so", "/etc/hostname"):
        path = tmp_path / "build" / "libpython3.so"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        with pytest.raises(BaseUnavailable, match=r"a link that leaves it: libpython3\.so"):
            standalone_layers._entry(tmp_path / "build", "libpython3.so")


MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
VERSION = f"{MINOR}.{sys.version_info.micro}"


class Ours(Interpreter):
    """The Python of these tests in the place of the one that was fetched."""

    def command(self, arguments):
        return [sys.executable, *map(str, arguments)]

    @property
    def home(self):
        return Path(sys.base_prefix)


class Warnings(Silent):
    def __init__(self):
        self.told = []

    def warning(self, stage, message, *, hint=""):
        self.told.append(message)


BASE = Base(
    platform=AMD64, python="3.11.2", glibc=(2, 36), interpreter="/usr/bin/python3.11", layers=(), lock="sha256:base"
)
LOADER = Interpreter(root=Path("/"), minor="3.11", program="usr/bin/python3.11", loader="ld.so", libraries=("lib",))


def test_a_base_gets_the_files_and_their_bytecode_upon_it(downloads, cache, monkeypatch):
    monkeypatch.setattr("flops.base.standalone_layers.Interpreter", Ours)
    monkeypatch.setattr(Platform, "host", lambda: AMD64)
    settings = downloads.add(VERSION).settings(cache)
    made, blobs = layers(settings, reporter=Warnings())
    bases = made.upon({ARM64: BASE, AMD64: BASE}, lambda: LOADER)
    base = bases[ARM64]
    assert base.ml_interpreter == f"/opt/flops/python/bin/python{MINOR}"
    assert base.interpreter == "/usr/bin/python3.11"
    assert base.python == "3.11.2"
    assert base.lock not in {BASE.lock, bases[AMD64].lock}
    files, bytecode = base.layers
    names = [line.split()[1] for line in listing(blobs, bytecode) if line.endswith(".pyc")]
    sources = [line.split()[1] for line in listing(blobs, files) if line.endswith(".py")]
    assert names == sorted(pyc_path(path, MINOR) for path in sources)
    assert len(names) == 3
    # remembered: no Python is started again
    monkeypatch.setattr(programs, "run", lambda *words, **more: pytest.fail("something was started"))
    again, _ = layers(settings, reporter=Warnings())
    assert again.upon({ARM64: BASE}, lambda: LOADER)[ARM64].layers == base.layers


def test_a_machine_that_cannot_start_it_says_so_and_leaves_the_bytecode_out(downloads, cache):
    reporter = Warnings()
    made, _ = layers(downloads.add(VERSION).settings(cache), reporter=reporter)
    assert len(made.upon({ARM64: BASE}, lambda: None)[ARM64].layers) == 1
    assert len(reporter.told) == 1
    assert "gets no bytecode of its standard library" in reporter.told[0]


# --- which Python a repository gets ---
class Notes(Silent):
    def __init__(self):
        self.told = []

    def finding(self, finding):
        self.told.append(finding)


def bases_of(settings, reporter, platforms=BOTH):
    asked = Request(source=parse_source("https://git.example.org/a/b"), platforms=platforms, recipe=Recipe())
    return Bases(BaseContext(settings=settings, blobs=BlobStore(settings.cache_dir), request=asked, reporter=reporter))


def request(text, specifier):
    return PythonRequest(text=text, specifier=specifier, path="conda.yaml", line=5)


def versions(choices):
    return [(choice.version, choice.provider, choice.runtime) for choice in choices]


def test_what_debian_has_is_debians_and_nobody_is_asked(downloads, cache, monkeypatch):
    monkeypatch.setattr(programs, "run", lambda *words, **more: pytest.fail("uv was asked"))
    downloads.add("3.11.9").add("3.10.14")
    reporter = Notes()
    with bases_of(downloads.settings(cache), reporter) as bases:
        debians = bases.choices()
        for asked in (None, request("3.11", "==3.11.*"), request(">=3.9", ">=3.9"), request("3.11.2", "==3.11.2")):
            wish = PythonConstraint.read(asked, None)
            assert bases.choices(wish) == debians
            assert bases.notes(wish, debians[0]) == ()
            assert bases.obtained(wish, debians[0])
    assert reporter.told == []


def test_an_exact_python_is_the_standalone_one_upon_the_nearest_base(downloads, cache):
    downloads.add("3.10.14").add("3.11.9").add("3.12.4")
    with bases_of(downloads.settings(cache), Notes()) as bases:
        debians = bases.choices()
        wish = PythonConstraint.read(request("3.10.14", "==3.10.14"), None)
        own, *others = bases.choices(wish)
        assert own == PythonChoice(
            version="3.10.14", minor="3.10", glibc=(2, 36), provider="uv", suite="bookworm", base=debians[0].version
        )
        assert own.runtime_minor == "3.11"
        assert others == debians
        assert by_nearness(wish, [own, *others])[0] == own
        assert adjustments(request("3.10.14", "==3.10.14"), wish, own, [own, *others]) == ()
        (note,) = bases.notes(wish, own)
        assert (note.code, note.where) == ("PYTHON_STANDALONE", "conda.yaml:5")
        assert "3.10.14 comes from uv's standalone builds" in note.message
        assert f"Bookworm {debians[0].version}" in note.message
        # another release of Debian's minor version stands in its place
        exact = PythonConstraint.read(request("3.11.9", "==3.11.9"), None)
        assert [choice.version for choice in bases.choices(exact)] == ["3.11.9", debians[1].version]
        # the flag wins over the repository
        flag = PythonConstraint.read(request("3.10.14", "==3.10.14"), "3.12")
        assert by_nearness(flag, bases.choices(flag))[0].version == "3.12.4"


def test_where_it_cannot_be_had_debian_serves_and_one_note_says_why(downloads, cache):
    downloads.add("3.10.14", url="http://127.0.0.1:9/file.tar.gz")
    reporter = Notes()
    with bases_of(downloads.settings(cache), reporter) as bases:
        asked = request("3.10.14", "==3.10.14")
        wish = PythonConstraint.read(asked, None)
        offered = bases.choices(wish)
        assert offered == bases.choices() == bases.choices(wish)
        choice = by_nearness(wish, offered)[0]
        assert choice == bases.likely(wish)
        (note,) = bases.notes(wish, choice)
        assert reporter.told == [note]
        assert (note.code, note.where) == ("PYTHON_NOT_STANDALONE", "conda.yaml:5")
        assert "no standalone build is available: 127.0.0.1 does not answer" in note.message
        assert [one.code for one in adjustments(asked, wish, choice, offered)] == ["PYTHON_MOVED"]
        flag = PythonConstraint.read(None, "3.10.14")
        offered = bases.choices(flag)
        with pytest.raises(PythonUnavailable, match=r"no base provides Python 3\.10\.14"):
            by_nearness(flag, offered)


def test_an_offer_that_then_cannot_be_fetched_is_taken_back_for_a_day(downloads, cache):
    settings = downloads.add("3.10.14", sha256="0" * 64).settings(cache)
    wish = PythonConstraint.read(request("3.10.14", "==3.10.14"), None)
    for refused in (False, True):
        reporter = Notes()
        with bases_of(settings, reporter) as bases:
            own = bases.choices(wish)[0]
            assert own.provider == ("debian" if refused else "uv")
            if not refused:
                assert not bases.obtained(wish, own)
            assert bases.choices(wish) == bases.choices()
        assert [note.code for note in reporter.told] == ["PYTHON_NOT_STANDALONE"]
        assert "Hash mismatch" in reporter.told[0].message


def test_both_environments_lead_to_their_own_python():
    entries = actors.shims(
        "/usr/bin/python3.11", "3.11", ml_interpreter="/opt/flops/python/bin/python3.10", ml_minor="3.10"
    )
    links = {entry.path: entry.target for entry in entries if isinstance(entry, Link)}
    assert links["opt/flops/runtime/bin/python"] == "/usr/bin/python3.11"
    assert (
        links["opt/flops/ml/bin/python"] == links["opt/flops/ml/bin/python3.10"] == "/opt/flops/python/bin/python3.10"
    )
    files = {entry.path: entry for entry in entries if isinstance(entry, File)}
    assert b"home = /opt/flops/python/bin\n" in files["opt/flops/ml/pyvenv.cfg"].data
    assert b"home = /usr/bin\n" in files["opt/flops/runtime/pyvenv.cfg"].data
    assert "opt/flops/ml/lib/python3.10/site-packages/flops_worker/__init__.py" in files
    assert "opt/flops/runtime/lib/python3.11/site-packages/flops_actor/__init__.py" in files
    assert not any(path.startswith("opt/flops/ml/lib/python3.11/") for path in files)


def test_a_reason_of_uv_is_one_line_without_credentials():
    said = "error: Failed to install x\n  cause: Failed to download\n  cause: no route to http://u:secret@m.example/x\n"
    assert standalone._cause(said) == "no route to http://m.example/x"
    assert standalone._cause("") == "uv gives no reason"

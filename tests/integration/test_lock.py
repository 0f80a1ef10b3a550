"""uv runs for real, against an index on loopback."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import tarfile
import tempfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flops import programs
from flops.errors import (
    BadSetting,
    FlopsError,
    IndexUnreachable,
    LockTimeout,
    NoWheel,
    RequirementForbidden,
    RequirementSyntax,
    ToolFailed,
    Unresolvable,
)
from flops.locking import pylock
from flops.locking.lock import Lock, LockedWheel, Locker
from flops.locking.pylock import LockTarget
from flops.platforms import Platform

pytestmark = pytest.mark.integration

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
BOOKWORM = {"python": "3.11.2", "glibc": (2, 36)}
DEAD = "http://127.0.0.1:9/simple"


def wheel(name: str, version: str, *requires: str) -> bytes:
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {line}\n" for line in requires
    )
    info = f"{name}-{version}.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


class FakeIndex:
    """A simple index (PEP 503 or 691) of files in memory; counts what it is asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.yanked: dict[str, str] = {}
        self.html = False
        self.status = 200
        self.delay = 0.0
        self.user: str | None = None
        self.requests = 0
        index = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                index.answer(self)

            def do_HEAD(self) -> None:
                index.answer(self)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/simple"

    def add(self, name: str, version: str, *requires: str, tag: str = "py3-none-any") -> str:
        filename = f"{name}-{version}-{tag}.whl"
        self.files[filename] = wheel(name, version, *requires)
        return filename

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests += 1
        time.sleep(self.delay)
        kind, body, status = "text/plain", b"", self.status
        expected = "Basic " + base64.b64encode((self.user or "").encode()).decode()
        section, _, rest = request.path.strip("/").partition("/")
        if self.user and request.headers.get("Authorization") != expected:
            status = 401
        elif status == 200 and section == "files":
            kind, body = "application/octet-stream", self.files[rest]
        elif status == 200:
            status, kind, body = self.page(rest, "json" in request.headers.get("Accept", ""))
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def page(self, name: str, json_wanted: bool) -> tuple[int, str, bytes]:
        names = [file for file in self.files if file.split("-")[0].lower().replace("_", "-") == name]
        hashes = {file: hashlib.sha256(self.files[file]).hexdigest() for file in names}
        if json_wanted and not self.html:
            entries = [
                {"filename": f, "url": f"/files/{f}", "hashes": {"sha256": hashes[f]}, "size": len(self.files[f])}
                | ({"yanked": self.yanked[f] or True} if f in self.yanked else {})
                for f in names
            ]
            page = {"meta": {"api-version": "1.1"}, "name": name, "files": entries, "versions": []}
            return (200 if names else 404), "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()
        marks = {file: f' data-yanked="{html.escape(reason)}"' for file, reason in self.yanked.items()}
        links = "".join(
            f'<a href="/files/{file}#sha256={hashes[file]}"{marks.get(file, "")}>{file}</a><br>' for file in names
        )
        return (200 if names else 404), "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()


@pytest.fixture
def index():
    index = FakeIndex()
    yield index
    index.stop()


@pytest.fixture
def locker(index, tmp_path):
    return Locker(tmp_path, index_url=index.url, retries=0)


def test_each_platform_gets_its_best_wheel(index, locker):
    index.add("fast", "1.0")
    old = index.add("fast", "1.0", tag="cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64")
    new = index.add("fast", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    index.add("fast", "1.0", tag="cp311-cp311-manylinux_2_39_x86_64")
    stable = index.add("fast", "1.0", tag="cp39-abi3-manylinux_2_17_aarch64")
    index.add("fast", "1.0", tag="cp312-cp312-manylinux_2_17_aarch64")
    amd64 = locker.lock(["fast"], platform=AMD64, **BOOKWORM)
    assert [w.filename for w in amd64.wheels] == [new]
    assert [w.filename for w in locker.lock(["fast"], platform=ARM64, **BOOKWORM).wheels] == [stable]
    older = locker.lock(["fast"], platform=AMD64, python="3.11.2", glibc=(2, 17))
    assert [w.filename for w in older.wheels] == [old]
    data = index.files[new]
    assert amd64.wheels[0].sha256 == hashlib.sha256(data).hexdigest()
    assert amd64.wheels[0].size == len(data) == amd64.bytes
    assert amd64.wheels[0].url == f"http://{index.host}/files/{new}"


def test_glibc_newer_than_uv_knows(index, locker):
    index.add("fast", "1.0", tag="cp313-cp313-manylinux_2_39_aarch64")
    lock = locker.lock(["fast"], platform=ARM64, python="3.13.5", glibc=(2, 41))
    assert [w.version for w in lock.wheels] == ["1.0"]


def test_markers_are_those_of_the_target(index, locker):
    index.add("app", "1.0", "arm; platform_machine == 'aarch64'", "backport; python_full_version < '3.11.4'")
    index.add("arm", "1.0")
    index.add("backport", "1.0")
    assert sorted(locker.lock(["app"], platform=AMD64, **BOOKWORM).versions) == ["app", "backport"]
    assert sorted(locker.lock(["app"], platform=ARM64, **BOOKWORM).versions) == ["app", "arm", "backport"]
    assert sorted(locker.lock(["app"], platform=AMD64, python="3.11.9", glibc=(2, 36)).versions) == ["app"]


def test_without_dependencies_the_requirements_are_the_whole(index, locker):
    index.add("app", "1.0", "base")
    index.add("base", "1.0")
    assert sorted(locker.lock(["app"], platform=AMD64, **BOOKWORM).versions) == ["app", "base"]
    assert sorted(locker.lock(["app"], platform=AMD64, dependencies=False, **BOOKWORM).versions) == ["app"]


def test_an_html_index_gives_no_sizes(index, locker):
    index.html = True
    index.add("plain", "2.0")
    lock = locker.lock(["plain"], platform=AMD64, **BOOKWORM)
    assert lock.wheels[0].size is None
    assert lock.bytes == 0


@pytest.mark.parametrize("html_page", [False, True])
@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("", ""),
        ("broken", "broken"),
        (
            'wrong "metadata" (see #3)\nwarning: `plain==2.0` is yanked',
            'wrong "metadata" (see #3) warning: `plain==2.0` is yanked',
        ),
        ("x" * 999, "x" * 300),
    ],
)
def test_a_withdrawn_version_is_locked_with_the_reason(index, locker, reason, told, html_page):
    index.html = html_page
    index.yanked[index.add("two_words", "1.0")] = reason
    index.add("plain", "2.0")
    lock = locker.lock(["two-words==1.0", "plain"], platform=AMD64, **BOOKWORM)
    assert {wheel.name: wheel.yanked for wheel in lock.wheels} == {"two-words": told, "plain": None}
    asked = index.requests
    assert locker.lock(["two-words==1.0", "plain"], platform=AMD64, **BOOKWORM) == lock
    assert index.requests == asked


def test_nothing_to_lock_is_a_lock(locker):
    assert locker.lock([], platform=AMD64, **BOOKWORM).wheels == ()


def test_the_hosts_settings_do_not_reach_uv(index, locker, monkeypatch, tmp_path):
    configuration = tmp_path / "uv.toml"
    configuration.write_text("this is no configuration\n")
    for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, DEAD)
    monkeypatch.setenv("UV_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("UV_CONSTRAINT", str(tmp_path / "none.txt"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # uv would look for a configuration in every parent
    index.add("plain", "2.0")
    assert locker.lock(["plain"], platform=AMD64, **BOOKWORM).versions == {"plain": "2.0"}


def test_credentials_of_the_index_reach_only_the_index(index, tmp_path, monkeypatch):
    index.user = "me:s3cret"
    index.add("plain", "2.0")
    commands = []
    run = programs.run

    def record(words, **options):
        commands.append(words)
        return run(words, **options)

    monkeypatch.setattr(programs, "run", record)
    locker = Locker(tmp_path, index_url=f"http://me:s3cret@{index.host}/simple", retries=0)
    lock = locker.lock(["plain"], platform=AMD64, **BOOKWORM)
    assert lock.wheels[0].url == f"http://{index.host}/files/plain-2.0-py3-none-any.whl"
    assert commands
    assert "s3cret" not in repr(commands)
    index.user = "me:changed"
    with pytest.raises(FlopsError) as caught, locker.index() as client:
        client.knows("plain")
    assert isinstance(caught.value, IndexUnreachable)
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"
    kept = [path for path in (tmp_path / "locks").iterdir() if "s3cret" in path.read_text()]
    assert kept == []


def test_an_sdist_is_never_built(index, locker, tmp_path):
    canary = tmp_path / "canary"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in {
            "src-1.0/setup.py": f"open({str(canary)!r}, 'w')\nfrom setuptools import setup\nsetup(name='src', version='1.0')\n",
            "src-1.0/PKG-INFO": "Metadata-Version: 1.0\nName: src\nVersion: 1.0\n",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    index.files["src-1.0.tar.gz"] = buffer.getvalue()
    with pytest.raises(Unresolvable) as caught:
        locker.lock(["src"], platform=AMD64, **BOOKWORM)
    assert "src" in caught.value.message
    assert not canary.exists()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("plain @ http://127.0.0.1:9/plain-1.0-py3-none-any.whl", RequirementForbidden),
        ("plain; sys_platform == '${UV_DEFAULT_INDEX}'", RequirementForbidden),
        ("plain; sys_platform == 'a\n--index-url=http://127.0.0.1:9'", RequirementSyntax),
        ("--index-url http://127.0.0.1:9", RequirementSyntax),
        ("plain\n-r /etc/passwd", RequirementSyntax),
        ("./plain", RequirementSyntax),
        ("plain; sys_platform == 'a\x85b'", RequirementForbidden),
    ],
)
def test_only_plain_requirements_are_written(index, locker, line, error):
    index.add("plain", "1.0")
    with pytest.raises(error):
        locker.lock([line], platform=AMD64, **BOOKWORM)
    assert index.requests == 0


def test_a_stored_lock_needs_no_index(index, locker, tmp_path):
    index.add("plain", "1.0")
    index.add("other", "1.0")
    first = locker.lock(["plain", "other"], platform=AMD64, **BOOKWORM)
    index.stop()
    again = Locker(tmp_path, index_url=index.url, retries=0).lock(["other", "plain"], platform=AMD64, **BOOKWORM)
    assert again == first
    with pytest.raises(IndexUnreachable):
        locker.lock(["plain", "other"], platform=ARM64, **BOOKWORM)


def test_upgrade_locks_anew_once(index, locker, tmp_path):
    index.add("plain", "1.0")
    locker.lock(["plain"], platform=AMD64, **BOOKWORM)
    index.add("plain", "1.1")
    assert locker.lock(["plain"], platform=AMD64, **BOOKWORM).versions == {"plain": "1.0"}
    upgrading = Locker(tmp_path, index_url=index.url, retries=0, upgrade=True)
    assert upgrading.lock(["plain"], platform=AMD64, **BOOKWORM).versions == {"plain": "1.1"}
    asked = index.requests
    assert upgrading.lock(["plain"], platform=AMD64, **BOOKWORM).versions == {"plain": "1.1"}
    assert index.requests == asked


def test_a_lock_is_stored_for_seven_days(index, locker, monkeypatch):
    index.add("plain", "1.0")
    locker.lock(["plain"], platform=AMD64, **BOOKWORM)
    asked = index.requests
    later = time.time() + 7 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later - 60)
    locker.lock(["plain"], platform=AMD64, **BOOKWORM)
    assert index.requests == asked
    monkeypatch.setattr(time, "time", lambda: later + 60)
    locker.lock(["plain"], platform=AMD64, **BOOKWORM)
    assert index.requests > asked


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:-20],
        lambda text: b"[" * 100_000,
        lambda text: b"\xff",
        lambda text: b'{"format": 1}',
        lambda text: text.replace(b"1.0", b"9.9"),
    ],
)
def test_a_damaged_store_counts_as_empty(index, locker, tmp_path, damage):
    index.add("plain", "1.0")
    lock = locker.lock(["plain"], platform=AMD64, **BOOKWORM)
    (path,) = (tmp_path / "locks").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    asked = index.requests
    assert locker.lock(["plain"], platform=AMD64, **BOOKWORM) == lock
    assert index.requests > asked


def test_a_store_that_cannot_be_written_costs_nothing_else(index, tmp_path):
    (tmp_path / "locks").write_text("in the way")
    index.add("plain", "1.0")
    locker = Locker(tmp_path, index_url=index.url)
    assert locker.lock(["plain"], platform=AMD64, **BOOKWORM).versions == {"plain": "1.0"}


def test_preferred_versions_are_kept_where_they_fit(index, locker):
    for version in ("1.0", "1.1", "2.0"):
        index.add("plain", version)
        index.add("base", version)
    first = locker.lock(["plain<1.1", "base<1.1"], platform=AMD64, **BOOKWORM)
    assert locker.lock(["plain", "base>1.0"], platform=ARM64, **BOOKWORM).versions == {"plain": "2.0", "base": "2.0"}
    second = locker.lock(["plain", "base>1.0"], platform=ARM64, prefer=first, **BOOKWORM)
    assert second.versions == {"plain": "1.0", "base": "2.0"}


def test_a_conflict_is_explained(index, locker):
    index.add("app", "1.0", "base<2")
    index.add("base", "1.0")
    index.add("base", "2.0")
    with pytest.raises(Unresolvable) as caught:
        locker.lock(["app", "base>=2"], platform=AMD64, **BOOKWORM)
    assert "app depend on base<2" in caught.value.message
    assert "error:" not in caught.value.message
    assert "hint:" not in caught.value.message


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_an_index_that_refuses_is_not_the_users_fault(index, locker, status):
    index.add("plain", "1.0")
    index.status = status
    with pytest.raises(IndexUnreachable) as caught, locker.index() as client:
        client.knows("plain")
    assert str(status) in caught.value.message
    if status >= 500:
        with pytest.raises(IndexUnreachable):
            locker.lock(["plain"], platform=AMD64, **BOOKWORM)


def test_an_index_knows_or_does_not(index, locker):
    index.add("plain", "1.0")
    with locker.index() as client:
        assert client.knows("plain")
        assert not client.knows("plane")


def test_a_dead_index_names_no_credentials(tmp_path):
    locker = Locker(tmp_path, index_url="http://me:s3cret@127.0.0.1:9/simple", retries=0)
    with pytest.raises(IndexUnreachable) as caught:
        locker.lock(["plain"], platform=AMD64, **BOOKWORM)
    assert "127.0.0.1:9" in caught.value.message
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"


def test_a_slow_index_ends_at_the_deadline(index, tmp_path):
    index.add("plain", "1.0")
    index.delay = 3.0
    with pytest.raises(LockTimeout):
        Locker(tmp_path, index_url=index.url, seconds=0.5).lock(["plain"], platform=AMD64, **BOOKWORM)


def test_probe_finds_the_version_of_one_requirement(index, locker):
    target = LockTarget(platform=ARM64, python="3.11.2", glibc=(2, 36))
    index.add("base", "1.0", "missing")
    index.add("base", "2.0", "missing")
    index.add("base", "3.0", tag="cp311-cp311-manylinux_2_17_x86_64")
    assert locker.probe("base", target=target) == "2.0"
    assert locker.probe("base", target=target, lowest=True) == "1.0"
    assert locker.probe("base==3.0", target=target) is None
    assert locker.probe("base", target=target, alone=False) is None
    assert locker.probe("base; platform_machine == 'x86_64'", target=target) == ""


def test_uv_tells_its_default_index(tmp_path):
    with Locker(tmp_path).index() as client:
        assert client.url.startswith("https://")


@pytest.mark.parametrize("url", ["file:///srv/simple", "simple", "ftp://127.0.0.1/simple", "http://[", "https:///x"])
def test_an_index_is_http(tmp_path, url):
    with pytest.raises(BadSetting):
        Locker(tmp_path, index_url=url)


# --- pylock ---------------------------------------------------------------------------------------
TARGET = LockTarget(platform=AMD64, python="3.11.2", glibc=(2, 36))
SHA = "a" * 64


def document(package: str) -> bytes:
    return f'lock-version = "1.0"\ncreated-by = "uv"\n{package}'.encode()


def entry(
    name: str = "plain", filename: str = "plain-1.0-py3-none-any.whl", base: str = "http://127.0.0.1/f", extra: str = ""
) -> str:
    return (
        f'[[packages]]\nname = "{name}"\nversion = "1.0"\n{extra}'
        f'wheels = [{{ url = "{base}/{filename}", size = 3, hashes = {{ sha256 = "{SHA}" }} }}]\n'
    )


def test_parse_drops_what_the_marker_excludes():
    text = entry() + entry("windows", "windows-1.0-py3-none-any.whl", extra="marker = \"sys_platform == 'win32'\"\n")
    assert pylock.parse(document(text), TARGET).versions == {"plain": "1.0"}


def test_parse_takes_credentials_out_of_addresses():
    lock = pylock.parse(document(entry(base="http://me:s3cret@127.0.0.1/f")), TARGET)
    assert lock.wheels[0].url == "http://127.0.0.1/f/plain-1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (entry(filename="plain-1.0-cp311-cp311-win_amd64.whl"), NoWheel),
        (entry(filename="plain-1.0-cp311-cp311-manylinux_2_39_x86_64.whl"), NoWheel),
        ('[[packages]]\nname = "p"\nversion = "1"\nsdist = { url = "http://127.0.0.1/p-1.tar.gz" }\n', NoWheel),
        ('[[packages]]\nname = "p"\nversion = "1"\nvcs = { type = "git", url = "http://127.0.0.1/p" }\n', ToolFailed),
        ('[[packages]]\nname = "p"\nversion = "1"\ndirectory = { path = "." }\n', ToolFailed),
        ('[[packages]]\nname = "p"\nversion = "1"\narchive = { path = "p.zip" }\n', ToolFailed),
        ('[[packages]]\nname = "p"\nversion = "1"\nwheels = [{ path = "p-1-py3-none-any.whl" }]\n', ToolFailed),
        (entry(base="file:///srv"), ToolFailed),
        (entry().replace(SHA, "a" * 63), ToolFailed),
        (entry().replace("sha256", "md5"), ToolFailed),
        (entry() + entry(), ToolFailed),
        (entry(filename="other-1.0-py3-none-any.whl"), ToolFailed),
        (entry(filename="plain.whl"), ToolFailed),
        (entry(extra='marker = "nonsense"\n'), ToolFailed),
        ("packages = 3", ToolFailed),
        ("packages = ", ToolFailed),
        ("", ToolFailed),
    ],
)
def test_parse_refuses(text, error):
    with pytest.raises(error):
        pylock.parse(document(text), TARGET)


def test_a_build_number_decides_between_equal_tags():
    wheels = ", ".join(
        f'{{ url = "http://127.0.0.1/plain-1.0-{build}py3-none-any.whl", hashes = {{ sha256 = "{SHA}" }} }}'
        for build in ("2-", "3-", "")
    )
    lock = pylock.parse(document(f'[[packages]]\nname = "plain"\nversion = "1.0"\nwheels = [{wheels}]\n'), TARGET)
    assert lock.wheels[0].filename == "plain-1.0-3-py3-none-any.whl"


def test_a_lock_survives_json_and_its_digest_ignores_where_files_lie():
    lock = pylock.parse(document(entry()), TARGET)
    assert Lock.from_json(json.loads(json.dumps(lock.to_json()))) == lock
    elsewhere = pylock.parse(document(entry(base="https://mirror.invalid")), TARGET)
    assert elsewhere.digest == lock.digest
    changed = LockedWheel(
        name="plain", version="1.0", filename=lock.wheels[0].filename, url=lock.wheels[0].url, sha256="b" * 64, size=3
    )
    assert Lock(platform=AMD64, python="3.11.2", wheels=(changed,)).digest != lock.digest

"""Checkout over an https server (git's own backend behind Python's, with a certificate made here) and an ssh server, both on loopback."""

from __future__ import annotations

import base64
import contextlib
import getpass
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from tests import hostile_packs

from flops import programs
from flops.errors import (
    BlockedAddress,
    CloneAuth,
    CloneFailed,
    CloneFsck,
    CloneRedirect,
    CloneTimeout,
    EmptyRepo,
    RefNotFound,
    RepositoryLimit,
    SubdirNotFound,
)
from flops.progress import Silent
from flops.repository import git as git_module
from flops.repository.checkout import checkout, resolve_commit
from flops.repository.git import GitCredential
from flops.repository.source import Source, SourceKind, parse_source
from flops.repository.tree_writer import TreeLimits
from flops.use_cases import lookup
from flops.use_cases.lookup import SourceLookup

pytestmark = pytest.mark.integration

IDENTITY = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}
BACKEND = Path(subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip())


def git(place, *arguments, time="1700000000 +0100", **extra):
    dates = {"GIT_AUTHOR_DATE": time, "GIT_COMMITTER_DATE": time}
    done = subprocess.run(
        ["git", "-C", str(place), *arguments],
        env={"PATH": os.environ["PATH"], **IDENTITY, **dates, **extra},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(place, files, message="change"):
    for path, text in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    git(place, "add", "--all", "--force")
    git(place, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(place, "rev-parse", "HEAD")


class Repository:
    """A work tree with history, and the bare repository that is served."""

    def __init__(self, root):
        self.work, self.bare = root / "work", root / "served" / "Acme" / "Digits.git"
        self.work.mkdir(parents=True)
        self.bare.mkdir(parents=True)
        git(self.work, "init", "--quiet", "--initial-branch=main")
        git(self.bare, "init", "--quiet", "--bare", "--initial-branch=main")
        self.first = commit(self.work, {"model_manager.py": "first = 1\n", "learning/part.py": "sub = 1\n"})
        git(self.work, "tag", "--annotate", "v1.0", "-m", "one")
        git(self.work, "tag", "light")
        self.second = commit(self.work, {"model_manager.py": "second = 2\n"})
        git(self.work, "checkout", "--quiet", "-b", "feature/other", self.first)
        self.other = commit(self.work, {"model_manager.py": "other = 3\n"})
        git(self.work, "checkout", "--quiet", "main")
        self.head = commit(self.work, {"model_manager.py": "head = 4\n", "run.sh": "#!/bin/sh\n"})
        self.push()

    def push(self):
        git(self.work, "push", "--quiet", "--mirror", str(self.bare))


class Backend(BaseHTTPRequestHandler):
    """`git http-backend`, the CGI program, one process a request."""

    protocol_version = "HTTP/1.1"  # a length ends each answer, so that TLS needs no end of its own
    server: QuietServer

    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
        server.authorizations.append(self.headers.get("Authorization"))
        path, _, query = self.path.partition("?")
        if server.redirect and path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", server.redirect + self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.delay:
            time.sleep(server.delay)
        wanted = "Basic " + base64.b64encode(b"user:secret").decode()
        if server.private and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        server.before(path)
        if server.protocol is None:
            self.send_file(server.root / path.strip("/"))
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", "") if server.protocol == 2 else "",
        }
        done = subprocess.run(
            [str(BACKEND / "git-http-backend")], input=body, env=env, capture_output=True, timeout=60, check=False
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        fields["Content-Length"] = str(len(content))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_file(self, file):
        """The oldest way to serve a repository: its files."""
        content = file.read_bytes() if file.is_file() else None
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments):
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    root: Path
    host: str
    url: str
    bundle: Path
    requests: list[str]
    authorizations: list[str | None]
    private: bool
    protocol: int | None
    redirect: str
    delay: float
    before: Callable[[str], object]

    def handle_error(self, request, client_address):
        pass  # a client that gives up in mid-answer is part of what is tested


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture
def https(repository, tmp_path, authority, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost", "git.example.test", "other.example.test").configure_cert(context)
    server = QuietServer(("127.0.0.1", 0), Backend)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.root, server.requests, server.private, server.protocol = repository.bare.parents[1], [], False, 2
    server.authorizations = []
    server.redirect, server.delay, server.before, server.bundle = "", 0, lambda path: None, bundle
    server.host = f"127.0.0.1:{server.server_port}"
    server.url = f"https://{server.host}/Acme/Digits.git"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def read(https, destination, *, url=None, trusted=True, **options):
    if not trusted:  # everything here is on loopback
        options.setdefault("allow_hosts", ["127.0.0.1", "localhost"])
    source = parse_source(url or https.url, trusted=trusted, allow_hosts=options.get("allow_hosts", ()))
    return checkout(source, destination, ca_bundle=https.bundle, **options)


@pytest.mark.parametrize("protocol", [0, 2])
def test_https_head_branch_tag_commit_and_subdirectory(https, repository, tmp_path, protocol):
    https.protocol = protocol
    cases = {
        None: (repository.head, "head = 4\n"),
        "feature/other": (repository.other, "other = 3\n"),
        "v1.0": (repository.first, "first = 1\n"),
        "light": (repository.first, "first = 1\n"),
        "refs/heads/main": (repository.head, "head = 4\n"),
        repository.second: (repository.second, "second = 2\n"),  # no branch's tip
        repository.second[:9]: (repository.second, "second = 2\n"),
        repository.other.upper(): (repository.other, "other = 3\n"),
        repository.head[:7]: (repository.head, "head = 4\n"),
    }
    for number, (ref, (commit_id, text)) in enumerate(cases.items()):
        done = read(https, tmp_path / f"out{number}", ref=ref)
        assert (done.commit, (done.path / "model_manager.py").read_text()) == (commit_id, text), ref
        assert done.repository == "acme/digits"
        assert done.source == https.url
        assert done.created.isoformat() == "2023-11-14T22:13:20+00:00"
        assert not (done.path / ".git").exists()
    part = read(https, tmp_path / "part", subdir="learning")
    assert [file.path for file in part.files] == ["part.py"]
    assert part.repository == "acme/digits/learning"
    assert sorted(path.name for path in tmp_path.glob(".git-*")) == []


def test_https_without_a_backend(https, repository, tmp_path):
    git(repository.bare, "update-server-info")
    https.protocol = None
    for number, (ref, known) in enumerate({None: repository.head, repository.second: repository.second}.items()):
        assert read(https, tmp_path / f"out{number}", ref=ref).commit == known


def test_only_one_commit_is_fetched(https, repository, tmp_path):
    for number in range(3):
        (repository.work / "data.bin").write_bytes(os.urandom(400_000))
        commit(repository.work, {"n.txt": str(number)})
    repository.push()
    limits = TreeLimits(pack_bytes=700_000)  # the history has three times as much
    assert read(https, tmp_path / "out", limits=limits).files


def test_head_moves_between_resolving_and_fetching(https, repository, tmp_path):
    source = parse_source(https.url)
    known = resolve_commit(source, ca_bundle=https.bundle)
    commit(repository.work, {"model_manager.py": "moved = 5\n"})
    repository.push()
    done = read(https, tmp_path / "out", ref=known)
    assert (done.commit, (done.path / "model_manager.py").read_text()) == (repository.head, "head = 4\n")


@pytest.mark.parametrize("protocol", [0, 2])
def test_head_moves_in_the_middle_of_a_checkout(https, repository, tmp_path, protocol):
    """After the first answer (the list of names) and before the next, HEAD moves on; the checkout does not."""
    https.protocol = protocol
    moved = []

    def move(path):
        asked = [request for request in https.requests if "info/refs" in request]
        if not moved and len(asked) > 1:
            moved.append(commit(repository.work, {"model_manager.py": "moved = 5\n"}))
            repository.push()

    https.before = move
    done = read(https, tmp_path / "out", ref="main")
    assert moved
    assert moved[0] == git(repository.bare, "rev-parse", "main")
    assert (done.commit, (done.path / "model_manager.py").read_text()) == (repository.head, "head = 4\n")


def test_what_is_not_there_is_named(https, repository, tmp_path):
    with pytest.raises(RefNotFound, match="no branch") as caught:
        read(https, tmp_path / "a", ref="nope")
    assert "feature/other" in caught.value.hint
    for protocol in (0, 2):
        https.protocol = protocol
        with pytest.raises(RefNotFound):
            read(https, tmp_path / "b", ref="0123456789" * 4)
    with pytest.raises(RefNotFound, match="names no commit"):
        read(https, tmp_path / "c", ref="0123456")
    with pytest.raises(SubdirNotFound):
        read(https, tmp_path / "d", subdir="run.sh")
    with pytest.raises(CloneFailed):
        read(https, tmp_path / "e", url=f"https://{https.host}/Acme/Nothing.git")


def test_an_empty_repository(https, repository, tmp_path):
    git(repository.bare.parent, "init", "--quiet", "--bare", "Empty.git")
    with pytest.raises(EmptyRepo):
        read(https, tmp_path / "out", url=f"https://{https.host}/Acme/Empty.git")


def test_a_private_repository_asks_for_credentials_and_never_prompts(https, repository, tmp_path, monkeypatch):
    https.private = True
    with pytest.raises(CloneAuth) as caught:
        read(https, tmp_path / "a")
    assert "private" in caught.value.hint
    answer = tmp_path / "askpass"
    answer.write_text('#!/bin/sh\ncase "$1" in User*) echo user;; *) echo secret;; esac\n')
    answer.chmod(0o700)
    monkeypatch.setenv("GIT_ASKPASS", str(answer))
    assert read(https, tmp_path / "b").commit == repository.head
    with pytest.raises(CloneAuth):  # an untrusted source gets none of the user's credentials
        read(https, tmp_path / "c", trusted=False)


def test_a_certificate_that_is_not_trusted(https, tmp_path):
    with pytest.raises(CloneFailed) as caught:
        checkout(parse_source(https.url), tmp_path / "out")
    assert "certificate" in caught.value.message.lower() or "ssl" in caught.value.message.lower()


def test_the_bundle_may_come_from_the_environment(https, repository, tmp_path, monkeypatch):
    monkeypatch.delenv("GIT_SSL_CAINFO", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(https.bundle))
    assert checkout(parse_source(https.url), tmp_path / "out").commit == repository.head


def test_redirects_are_followed_for_a_trusted_source_only(https, repository, tmp_path):
    https.redirect = f"https://{https.host}"
    url = f"https://{https.host}/moved/Acme/Digits.git"
    assert read(https, tmp_path / "a", url=url).commit == repository.head
    with pytest.raises(CloneRedirect):
        read(https, tmp_path / "b", url=url, trusted=False)


@pytest.fixture
def named(monkeypatch):
    """A name service of our own: `git.example.test` is whatever the test says; the real one knows no such name."""
    answers = {}
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *arguments, **options):
        return real(answers.get(host, host), port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers


def test_a_redirect_to_a_private_address_is_not_followed(https, repository, tmp_path):
    """The second server, on loopback too, would count its connections."""
    with socket.create_server(("127.0.0.1", 0)) as inner:
        https.redirect = f"https://127.0.0.2:{inner.getsockname()[1]}"
        with pytest.raises(CloneRedirect) as caught:
            read(https, tmp_path / "out", url=f"https://{https.host}/moved/Acme/Digits.git", trusted=False)
        assert "redirects" in caught.value.hint
        inner.settimeout(0.2)
        with pytest.raises(TimeoutError):
            inner.accept()


def test_a_private_server_is_reached_by_listed_names_only(https, repository, tmp_path, named):
    for number, allowed in enumerate((["127.0.0.1"], ["localhost", "127.0.0.1"])):
        assert read(https, tmp_path / f"a{number}", trusted=False, allow_hosts=allowed).commit == repository.head
    asked = len(https.requests)
    named["git.example.test"] = "127.0.0.1"
    url = https.url.replace("127.0.0.1", "git.example.test")
    with pytest.raises(BlockedAddress):
        read(https, tmp_path / "b", url=url, trusted=False, allow_hosts=["other.test"])
    with pytest.raises(BlockedAddress):
        checkout(Source(text=https.url, kind=SourceKind.URL, trusted=False), tmp_path / "c", ca_bundle=https.bundle)
    assert len(https.requests) == asked


def test_git_connects_to_what_was_resolved_and_judged(https, repository, tmp_path, named):
    """No name service but ours knows the name, so git can only have used the pinned address."""
    named["git.example.test"] = "127.0.0.1"
    url = https.url.replace("127.0.0.1", "git.example.test")
    done = read(https, tmp_path / "a", url=url, trusted=False, allow_hosts=["git.example.test"])
    assert (done.commit, done.source) == (repository.head, url)


def test_a_credential_is_shown_to_its_host_alone(https, repository, tmp_path, named, monkeypatch):
    https.private = True
    seen = []
    run = programs.run

    def watched(arguments, **options):
        seen.append(" ".join(map(str, arguments)))
        return run(arguments, **options)

    monkeypatch.setattr(programs, "run", watched)
    own = GitCredential(host=https.host, username="user", password="secret")
    words, holders = [], set()

    def look(_path):
        """While git is at it: what every process of this machine shows."""
        for one in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words.append((one / "cmdline").read_bytes())
                if token.encode() in (one / "environ").read_bytes():
                    holders.add((one / "comm").read_text().strip())

    token = base64.b64encode(b"user:secret").decode()
    https.before = look
    assert read(https, tmp_path / "a", trusted=False, credential=own).commit == repository.head
    assert any(https.authorizations)
    https.before = lambda path: None
    assert any(b"remote-https" in line for line in words)
    assert not [line for line in words if b"user:secret" in line or token.encode() in line]
    assert holders
    assert all(name.startswith("git") for name in holders)
    assert not [line for line in seen if "secret" in line or token in line]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert token.encode() not in file.read_bytes()

    https.authorizations.clear()
    named["other.example.test"] = "127.0.0.1"
    url = https.url.replace("127.0.0.1", "other.example.test")
    with pytest.raises(CloneAuth):  # another name of the same server
        read(https, tmp_path / "b", url=url, trusted=False, credential=own, allow_hosts=["other.example.test"])
    wrong = GitCredential(host=https.host, username="user", password="other-secret")
    with pytest.raises(CloneAuth) as caught:
        read(https, tmp_path / "c", trusted=False, credential=wrong)
    assert "other-secret" not in str(caught.value.to_json())
    assert len([one for one in https.authorizations if one]) == 1

    https.authorizations.clear()
    https.redirect = url.partition("/Acme")[0]
    with pytest.raises(CloneRedirect):
        read(https, tmp_path / "d", url=f"https://{https.host}/moved/Acme/Digits.git", trusted=False, credential=own)
    assert len(https.authorizations) == 1  # the redirecting host's own


def test_limits_hold_while_fetching(https, repository, tmp_path):
    (repository.work / "data.bin").write_bytes(os.urandom(600_000))
    commit(repository.work, {})
    repository.push()
    with pytest.raises(RepositoryLimit):
        read(https, tmp_path / "a", limits=TreeLimits(pack_bytes=300_000))
    with pytest.raises(RepositoryLimit):
        read(https, tmp_path / "b", limits=TreeLimits(bytes=600_000))
    with pytest.raises(RepositoryLimit):
        read(https, tmp_path / "c", limits=TreeLimits(files=3))
    assert read(https, tmp_path / "d", limits=TreeLimits(files=4, bytes=700_000)).files
    assert list(tmp_path.glob(".git-*")) == []


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda place: hostile_packs.wide(place, 9, files=True), "list of files has more than 16 MB"),
        (lambda place: hostile_packs.wide(place, 9, files=False), "list of files has more than 16 MB"),
        (lambda place: hostile_packs.deep(place, 3000), "a path has [0-9]{4} levels"),
        (lambda place: hostile_packs.deep(place, 100_000), "deeper in one another than git can follow"),
        (lambda place: hostile_packs.inflated(place, 1 << 27), "git needs more than 128 MB of memory"),
    ],
    ids=["a billion files", "a billion directories", "deep", "deeper than a stack", "an object of zeros"],
)
def test_a_small_pack_that_unfolds_is_a_large_repository(https, tmp_path, make, told):
    """Sent as it is by a server that does not look into it."""
    https.protocol = None
    make(https.root / "Acme" / "Bomb.git")
    with pytest.raises(RepositoryLimit, match=told) as caught:
        read(https, tmp_path / "out", url=f"https://{https.host}/Acme/Bomb.git", limits=TreeLimits(memory=1 << 27))
    assert "connection" not in caught.value.hint


def test_all_that_a_host_sends_is_bounded(https, repository, tmp_path):
    """Many packs, each within the limit."""
    for number in range(6):
        (repository.work / "data.bin").write_bytes(os.urandom(400_000))
        commit(repository.work, {"n.txt": str(number)})
        repository.push()
        git(repository.bare, "repack", "--quiet")
    https.protocol = None
    git(repository.bare, "update-server-info")
    assert read(https, tmp_path / "out", limits=TreeLimits(pack_bytes=2_000_000)).files
    waited = threading.Event()
    https.before = lambda path: waited.wait(0.3) if path.endswith(".pack") else None  # the watcher looks now and then
    with pytest.raises(RepositoryLimit, match="the host sends more than"):
        read(https, tmp_path / "less", limits=TreeLimits(pack_bytes=500_000))


@pytest.mark.parametrize("ref", [None, "main", "0123456"])
def test_a_host_with_names_without_end_is_refused(https, repository, monkeypatch, ref):
    """As a manager asks: a million branches and more, none of them asked for."""
    names = "".join(f"{repository.head}\trefs/heads/{number:07}\n" for number in range(1_500_000))
    (repository.bare / "info" / "refs").write_text(names)
    https.protocol = None
    monkeypatch.setattr(lookup, "GIT_BYTES", 1 << 27)
    place = SourceLookup(allow_hosts=["127.0.0.1"], ca_bundle=https.bundle).judge(https.url)
    with pytest.raises(RepositoryLimit, match="git needs more than 128 MB of memory") as caught:
        SourceLookup(allow_hosts=["127.0.0.1"], ca_bundle=https.bundle).commit(place, ref)
    assert "branches" in caught.value.hint


def test_names_beyond_what_is_kept_are_refused(https, repository, tmp_path):
    names = "".join(f"{repository.head}\trefs/heads/{number:07}\n" for number in range(300_000))
    (repository.bare / "info" / "refs").write_text(names)
    https.protocol = None
    with pytest.raises(RepositoryLimit, match="more than 16 MB") as caught:
        read(https, tmp_path / "out", ref="missing")
    assert "branches" in caught.value.hint


def test_a_server_that_does_not_answer(https, tmp_path):
    https.delay = 30
    started = time.monotonic()
    with pytest.raises(CloneTimeout):
        read(https, tmp_path / "out", limits=TreeLimits(seconds=1.5))
    assert time.monotonic() - started < 10


def test_nobody_listens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(CloneFailed) as caught:
        checkout(parse_source(f"https://127.0.0.1:{port}/a/b"), tmp_path / "out")
    assert "ls-remote" in caught.value.hint


def test_objects_that_git_itself_refuses(https, repository, tmp_path):
    commit(repository.work, {".gitmodules": '[submodule "x"]\n\tpath = x\n\turl = -u./x\n'})
    repository.push()
    with pytest.raises(CloneFsck):
        read(https, tmp_path / "out")


def test_submodules_are_named_and_not_fetched(https, repository, tmp_path):
    git(repository.work, "update-index", "--add", "--cacheinfo", f"160000,{repository.first},vendor/part")
    (repository.work / ".gitmodules").write_text(
        '[submodule "p"]\n\tpath = vendor/part\n\turl = https://example.org/p\n'
    )
    git(repository.work, "add", ".gitmodules")
    git(repository.work, "commit", "--quiet", "-m", "submodule")
    repository.push()
    done = read(https, tmp_path / "out")
    assert any("vendor/part" in warning for warning in done.warnings)
    assert {file.path for file in done.files} == {".gitmodules", "learning/part.py", "model_manager.py", "run.sh"}


def test_nothing_of_the_repository_is_executed_or_converted(https, repository, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    configuration = tmp_path / "gitconfig"
    configuration.write_text(
        f'[filter "evil"]\n\tsmudge = touch {canary}\n\tclean = touch {canary}\n\trequired = true\n'
        f"[core]\n\tfsmonitor = touch {canary}\n\thooksPath = {tmp_path / 'hooks'}\n\tautocrlf = true\n"
    )
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        (tmp_path / "hooks").mkdir(exist_ok=True)
        (tmp_path / "hooks" / hook).write_text(f"#!/bin/sh\ntouch {canary}\n")
        (tmp_path / "hooks" / hook).chmod(0o755)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
    attributes = "* filter=evil text eol=crlf ident\nhidden.py export-ignore\nrun.sh export-subst\nwide.py working-tree-encoding=UTF-16\n"
    files = {"hidden.py": "x = 1\n", "run.sh": "# $Format:%H$ $Id$\n", "wide.py": "y = 2\n"}
    commit(repository.work, files)
    (repository.work / ".git/info").mkdir(exist_ok=True)
    (repository.work / ".git/info/attributes").write_text("* -text -filter -working-tree-encoding\n")
    commit(repository.work, {".gitattributes": attributes})
    repository.push()
    done = read(https, tmp_path / "out")
    assert {path: (done.path / path).read_text() for path in files} == files
    assert not canary.exists()


class Progress(Silent):
    def __init__(self):
        self.seen = []

    def progress(self, stage, *, done, total=None, platform=None):
        self.seen.append((done, total))


def test_progress_ends_at_the_total(https, tmp_path):
    reporter = Progress()
    read(https, tmp_path / "out", reporter=reporter)
    assert reporter.seen[-1][0] == reporter.seen[-1][1] > 0


@pytest.fixture
def sshd(tmp_path, repository, monkeypatch):
    """An ssh server of our own user, with keys made here; `port` and `command` reach it."""
    program = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("openssh-server is not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, started as root, confines its children
    place = tmp_path / "ssh"
    place.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True, timeout=60)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {place / 'host'}\nPidFile {place / 'pid'}\n"
        f"AuthorizedKeysFile {place / 'user.pub'}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    known = (place / "host.pub").read_text().split()
    (place / "known").write_text(f"[127.0.0.1]:{port} {known[0]} {known[1]}\n")
    with (place / "log").open("w") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", str(place / "config")], stdout=log, stderr=log)
    try:
        _wait_for(port, server, place / "log")
        ssh = f"ssh -F /dev/null -i {place / 'user'} -o IdentitiesOnly=yes -o UserKnownHostsFile={place / 'known'} -p {port}"
        monkeypatch.setenv("GIT_SSH_COMMAND", ssh)
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        yield port
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(port, server, log):
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text()[-200:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd does not listen")


def test_ssh_and_scp_form(sshd, repository, tmp_path):
    user = getpass.getuser()
    url = f"ssh://{user}@127.0.0.1:{sshd}{repository.bare}"
    cases = {None: repository.head, "feature/other": repository.other, "v1.0": repository.first}
    cases[repository.second] = repository.second
    for number, (ref, known) in enumerate(cases.items()):
        assert checkout(parse_source(url), tmp_path / f"a{number}", ref=ref).commit == known
    scp = f"{user}@127.0.0.1:{repository.bare}"
    done = checkout(parse_source(scp), tmp_path / "scp", subdir="learning", ref="main")
    assert (done.commit, [file.path for file in done.files]) == (repository.head, ["part.py"])
    assert done.source == scp
    assert done.repository.endswith("served/acme/digits/learning")


def test_ssh_head_moves_after_it_was_resolved(sshd, repository, tmp_path):
    source = parse_source(f"ssh://{getpass.getuser()}@127.0.0.1:{sshd}{repository.bare}")
    known = resolve_commit(source, ref="main")
    commit(repository.work, {"model_manager.py": "moved = 5\n"})
    repository.push()
    done = checkout(source, tmp_path / "out", ref=known)
    assert (done.commit, (done.path / "model_manager.py").read_text()) == (repository.head, "head = 4\n")


def test_ssh_host_key_and_user_key_are_checked(sshd, repository, tmp_path, monkeypatch):
    source = parse_source(f"ssh://{getpass.getuser()}@127.0.0.1:{sshd}{repository.bare}")
    good = os.environ["GIT_SSH_COMMAND"]
    monkeypatch.setenv("GIT_SSH_COMMAND", good.replace("/known", "/unknown"))
    with pytest.raises(CloneAuth):
        checkout(source, tmp_path / "a")
    monkeypatch.setenv("GIT_SSH_COMMAND", good.replace("/ssh/user", "/ssh/host"))
    with pytest.raises(CloneAuth):
        checkout(source, tmp_path / "b")


def test_ssh_for_a_project_takes_the_operators_key_and_nothing_of_this_account(sshd, repository, tmp_path, monkeypatch):
    """GIT_SSH_COMMAND of the fixture would let anybody in; an untrusted source does not see it."""
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{sshd}{repository.bare}"
    source = parse_source(url, trusted=False, allow_hosts=["127.0.0.1"])
    with pytest.raises(CloneAuth):
        checkout(source, tmp_path / "a", allow_hosts=["127.0.0.1"])
    key = GitCredential(host=f"127.0.0.1:{sshd}", username="", password=(tmp_path / "ssh" / "user").read_text())
    odd = tmp_path / "a place with spaces and %h"
    done = checkout(source, odd / "b", allow_hosts=["127.0.0.1"], credential=key)
    assert done.commit == repository.head
    assert not list(odd.glob(".git-*"))
    # a host whose key the operator has listed is held to it
    other = (tmp_path / "ssh" / "user.pub").read_text().split()
    (tmp_path / "listed").write_text(f"[127.0.0.1]:{sshd} {other[0]} {other[1]}\n")
    monkeypatch.setattr(git_module, "SSH", (f"GlobalKnownHostsFile={tmp_path / 'listed'}", *git_module.SSH))
    with pytest.raises(CloneAuth):
        resolve_commit(source, allow_hosts=["127.0.0.1"], credential=key)

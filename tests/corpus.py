"""The sample repositories of tests/repos, for the tests that use them, and the package index that they are locked on.

`expected.toml` of a repository:

- what it is made of: `about`; `like` (another folder to start from), `remove`, `make` (path to text), `repeat` (generated files), `link` (path to
  target), `allow_secrets`, `groups`, `platforms`;
- what reading it gives: `error` (a code), `exit`, `hint`, `findings`, `notes`, `warnings`, `flavor`, `load_dataset`, `python`, `requirements`,
  `adjustments`, `complete`. Everything is compared: what is not named is empty, but `hint` is only a part of the hint;
- `[lock]`, what locking it on the made index gives, and `[real]`, what it gives on the real one: `error`, `findings`, `adjustments`, `python`,
  `versions` (some of them), `repairs` (of an error), `policy`.

`index.toml`: package to its versions, `VERSION WORD...`, then what each asks for, behind a colon and separated by `|`. Words: `native@3.9-3.12/amd64` (compiled,
for these Pythons and this platform; both may be left out), `abi3`, `abi3/amd64`, `sdist`, `yanked`, `python>=3.12` (Requires-Python); without any
a wheel for everything.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flops.contract import structure
from flops.errors import DependencyError, FlopsError
from flops.formats import requirements
from flops.locking.lock import Locker
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Policy, Recipe
from flops.repair import lock_findings
from flops.repair.pythons import PythonChoice
from flops.repair.resolve import LockRequest, lock_requirements
from flops.repository.checkout import checkout
from flops.repository.source import parse_source

REPOS = Path(__file__).parent / "repos"
OFFERED = (
    PythonChoice(version="3.11.2", minor="3.11", glibc=(2, 36), provider="debian", suite="bookworm"),
    PythonChoice(version="3.13.5", minor="3.13", glibc=(2, 41), provider="debian", suite="trixie"),
)
MADE_OF = {"about", "like", "remove", "make", "repeat", "link", "allow_secrets", "groups", "platforms"}
READ = {"error", "exit", "hint", "findings", "notes", "warnings", "flavor", "load_dataset", "python", "requirements"}
KEYS = MADE_OF | READ | {"adjustments", "complete", "lock", "real"}
LOCK_KEYS = {"error", "findings", "adjustments", "python", "versions", "repairs", "policy"}


def names() -> list[str]:
    return sorted(path.name for path in REPOS.iterdir() if (path / "expected.toml").exists())


def with_table(table: str) -> list[str]:
    return [name for name in names() if table in expectation(name)]


def expectation(name):
    return tomllib.loads((REPOS / name / "expected.toml").read_text(encoding="utf-8"))


def lay(name, place):
    """Write the repository of a folder, and of the folders that it is like, into `place`."""
    expected = expectation(name)
    if "like" in expected:
        lay(expected["like"], place)
    for path in expected.get("remove", ()):
        (place / path).unlink()
    for file in (REPOS / name).rglob("*"):
        if file.is_file() and file.name != "expected.toml" and "__pycache__" not in file.parts:
            target = place / file.relative_to(REPOS / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    made = {path: text.encode() for path, text in expected.get("make", {}).items()}
    for item in expected.get("repeat", ()):
        made[item["path"]] = (item.get("start", "") + item["text"] * item["times"] + item.get("end", "")).encode()
    for path, data in made.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(data)
    for path, target in expected.get("link", {}).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).symlink_to(target)


def platforms(expected):
    return tuple(Platform.parse(name) for name in expected.get("platforms", ("linux/amd64", "linux/arm64")))


def build_values(place, destination, expected):
    """What a build does with a repository before it locks: checkout, structure, requirements."""
    done = checkout(parse_source(str(place)), destination, allow_secrets=expected.get("allow_secrets", ()))
    found = structure.check(done.path, done.files)
    structure.require(found)
    asked = requirements.read(
        done.read(requirements.is_candidate), groups=expected.get("groups", ()), platforms=platforms(expected)
    )
    return done, found, requirements.with_data_packages(asked, found)


def resolve(name, room, locker: Locker, table):
    """Lock a sample, by its own lock where it has one; the hashes that it names hold. Errors of locking."""
    expected = expectation(name)
    place = room / "repository"
    place.mkdir()
    lay(name, place)
    done, found, asked = build_values(place, room / "out", expected)
    recipe = Recipe(policy=Policy(expected[table].get("policy", "fix")))
    request = LockRequest(platforms=platforms(expected), pythons=OFFERED, recipe=recipe, reporter=Silent())
    modules = frozenset(item.module for item in found.imports if item.reached)
    files = done.read(requirements.is_candidate)
    resolution = lock_requirements(asked, request, locker=locker, modules=modules, files=files)
    notes = lock_findings.compare_hashes(dict.fromkeys(resolution.locks, asked.entries), resolution.locks)
    return resolution, (*resolution.findings, *notes)


def check_lock(name, room, locker: Locker, table):
    """Compare what locking gives with a table of `expected.toml`; what is not named is not compared, but adjustments and findings are."""
    expected = expectation(name)[table]
    assert set(expected) <= LOCK_KEYS
    if "error" in expected:
        with pytest.raises(FlopsError) as caught:
            resolve(name, room, locker, table)
        error = caught.value
        assert error.code == expected["error"], error
        assert isinstance(error, DependencyError)
        compare(lines(error.findings), sorted(expected["findings"]))
        compare(told(error.repairs), expected.get("repairs", []))
        assert error.hint
        assert all(finding.hint for finding in error.findings)
        return
    resolution, findings = resolve(name, room, locker, table)
    compare(told(resolution.adjustments), expected.get("adjustments", []))
    assert all(one.reason for one in resolution.adjustments)
    compare(lines(findings), sorted(expected.get("findings", ())))
    compare(resolution.python.version, expected["python"])
    for lock in resolution.locks.values():
        versions = expected.get("versions", {})
        compare({name: lock.versions.get(name) for name in versions}, versions)


def compare(found, expected) -> None:
    """pytest explains only the asserts of test files."""
    assert found == expected, f"found {found}, expected {expected}"


def speaks_of_dependencies(name):
    """Whether a sample is about dependency files, not only about code."""
    expected = expectation(name)
    return (
        "lock" in expected
        or expected.get("exit") == DependencyError.exit_code
        or expected.get("error", "")[:11] == "REQUIREMENT"
    )


def lines(findings):
    return sorted(f"{finding.where} {finding.code}" for finding in findings)


def told(adjustments):
    """CODE PACKAGE BEFORE -> AFTER [PLATFORM] WHERE."""
    return [
        f"{one.code} {one.package} {one.before} -> {one.after} {f'{one.platform} ' if one.platform else ''}{one.where}"
        for one in adjustments
    ]


VERSION = re.compile(r"(?P<number>\S+)(?P<words>[^:]*)(?::(?P<requires>.*))?")
NATIVE = re.compile(r"(native|abi3)(?:@3\.(\d+)-3\.(\d+))?(?:/(amd64|arm64))?")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


class MadeIndex:
    """`index.toml` as a simple index (PEP 691, with metadata by PEP 714) on loopback; `with` serves it."""

    def __init__(self, source: Path = REPOS / "index.toml") -> None:
        self.pages: dict[str, list[dict[str, object]]] = {}
        self.metadata: dict[str, bytes] = {}
        for name, versions in tomllib.loads(source.read_text(encoding="utf-8")).items():
            self.pages[name] = []
            for text in versions:
                self._add(name, text)
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
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, request) -> None:
        kind, _, rest = request.path.strip("/").partition("/")
        body = None
        if kind == "simple" and rest in self.pages:
            page = {"meta": {"api-version": "1.1"}, "name": rest, "versions": [], "files": self.pages[rest]}
            body = json.dumps(page).encode()
        elif kind == "files":
            body = self.metadata.get(rest)
        request.send_response(404 if body is None else 200)
        request.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
        request.send_header("Content-Length", str(len(body or b"")))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body or b"")

    def _add(self, name: str, text: str) -> None:
        found = VERSION.fullmatch(text)
        assert found, text
        words = found["words"].split()
        python = next((word.removeprefix("python") for word in words if word.startswith("python")), "")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {found['number']}\n"
        metadata += f"Requires-Python: {python}\n" if python else ""
        for line in (found["requires"] or "").split("|"):
            extra = re.search(r"extra == '(\w+)'", line)
            metadata += f"Provides-Extra: {extra[1]}\n" if extra else ""
            metadata += f"Requires-Dist: {line.strip()}\n" if line.strip() else ""
        for filename in self._filenames(name.replace("-", "_"), found["number"], words):
            entry = {
                "filename": filename,
                "url": f"/files/{filename}",
                "hashes": {"sha256": digest(filename)},
                "size": 1000,
                "yanked": "broken" if "yanked" in words else False,
            }
            if python:
                entry["requires-python"] = python
            if filename.endswith(".whl"):
                self.metadata[f"{filename}.metadata"] = metadata.encode()
                entry["core-metadata"] = {"sha256": hashlib.sha256(metadata.encode()).hexdigest()}
            self.pages[name].append(entry)

    def _filenames(self, name: str, version: str, words: list[str]):
        if "sdist" in words:
            yield f"{name}-{version}.tar.gz"
        natives = [found for word in words if (found := NATIVE.fullmatch(word))]
        for found in natives:
            machines = [MACHINES[found[4]]] if found[4] else MACHINES.values()
            minors = range(int(found[2] or 9), int(found[3] or 13) + 1)
            tags = [f"cp3{minor}-cp3{minor}" for minor in minors] if found[1] == "native" else ["cp38-abi3"]
            yield from (f"{name}-{version}-{tag}-manylinux_2_17_{machine}.whl" for tag in tags for machine in machines)
        if not natives and "sdist" not in words:
            yield f"{name}-{version}-py3-none-any.whl"


def digest(filename: str) -> str:
    """The sha256 that the made index tells of a file; nobody fetches it."""
    return hashlib.sha256(filename.encode()).hexdigest()

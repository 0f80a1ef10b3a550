"""Drives uv: plain requirements in, the exact wheels for one platform out.

uv is not safe on a file that somebody else wrote (it expands variables, follows options and paths, runs setup.py), so it
only ever sees a file that was written here, line by line, and an environment that was made here.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uv
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from flops import process
from flops.builder.locking import pylock
from flops.builder.locking.index import Index, check_url, without_credentials
from flops.builder.locking.lock_store import LockStore
from flops.builder.locking.pylock import Lock, LockedWheel, Target
from flops.errors import (
    DiskFull,
    FlopsError,
    IndexUnreachable,
    LockTimeout,
    NoWheel,
    RequirementForbidden,
    RequirementSyntax,
    ToolFailed,
    ToolMissing,
    ToolTimeout,
    Unresolvable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flops.platforms import Platform

__all__ = ["Lock", "LockedWheel", "Locker"]

#: Seconds that one run of uv may take, downloads of metadata included.
DEADLINE = 120.0
#: Times that uv asks an index again that does not answer; three take it 10 s.
RETRIES = 3
#: uv's exit code for "there is no solution"; any other failure is not about the requirements.
NO_SOLUTION = 1
#: Seconds for which an experiment takes an answer of the index as it is; without this uv asks for every package again.
RECENT = 600
#: Seconds that an index of CPU builds is given to answer, and that its silence and its answer are remembered.
TORCH_PATIENCE, TORCH_SILENT, TORCH_ANSWERS = 6.0, 600, 24 * 3600
#: Characters of uv's explanation that a message keeps.
EXPLANATION = 1500
#: `find_uv_bin` reads sysconfig, whose first use by two threads at once fails in CPython 3.11.
_FINDING_UV = threading.Lock()
OPTIONS = (
    "--no-config",
    "--no-sources",
    *("--only-binary", ":all:"),
    "--no-progress",
    *("--color", "never"),
    *("--python", sys.executable),
)


class Locker:
    """Locks requirements against one index. Safe to share between threads."""

    def __init__(
        self,
        cache_dir: Path,
        *,
        index_url: str | None = None,
        torch_index: str | None = None,
        ca_bundle: Path | None = None,
        offline: bool = False,
        upgrade: bool = False,
        seconds: float = DEADLINE,
        retries: int = RETRIES,
        store: LockStore | None = None,
    ) -> None:
        self._cache = cache_dir / "uv"
        self._store = store or LockStore(cache_dir / "locks")
        self._index_url = check_url(index_url) if index_url else None
        self._torch_index = check_url(torch_index) if torch_index else None
        self._ca_bundle = ca_bundle
        self._offline = offline
        self._upgrade = upgrade
        self._seconds = seconds
        self._retries = retries
        self._made: set[str] = set()
        self._default_index: str | None = None
        self._torch: frozenset[str] | None = None
        self._patience: float | None = None

    def for_cpu(self, names: Iterable[str]) -> Locker:
        """A locker that takes CPU builds of PyTorch's packages, `names` in PEP 503's form; all else as this one does.

        They come from FLOPS_TORCH_INDEX, which is asked for nothing but these, or from where uv knows them to be.
        """
        other = copy.copy(self)
        other._torch = frozenset(names)  # noqa: SLF001 - of its own kind
        return other

    def cpu_refusal(self, target: Target) -> str:
        """Why CPU builds of PyTorch can't be had; "" where they can. Told after some seconds, and remembered."""
        request = {"torch for cpu": target.uv_platform}
        known = self.recall(request)
        until, reason = (known.get("until"), known.get("reason")) if isinstance(known, dict) else (None, None)
        if isinstance(until, int | float) and isinstance(reason, str) and time.time() < until:
            return reason
        asking = self.for_cpu(["torch"])
        asking._patience, asking._seconds, asking._retries = TORCH_PATIENCE, 2 * TORCH_PATIENCE, 0  # noqa: SLF001
        reason = ""
        try:
            asking._compile(["torch"], target, options=["--no-deps"])  # noqa: SLF001
        except (Unresolvable, NoWheel):
            reason = "it has no PyTorch for this platform"
        except LockTimeout:
            reason = "it does not answer"
        except (IndexUnreachable, ToolFailed) as error:
            reason = error.message.rpartition("cause: ")[2]
        until = time.time() + (TORCH_SILENT if reason else TORCH_ANSWERS)
        self.remember(request, {"until": until, "reason": reason}, shared=not reason)
        return reason

    def lock(
        self,
        requirements: Sequence[str],
        *,
        platform: Platform,
        python: str,
        glibc: tuple[int, int],
        prefer: Lock | None = None,
        dependencies: bool = True,
    ) -> Lock:
        """Lock PEP 508 requirements for a platform, a full Python version and a glibc (major, minor); wheels only.

        `prefer`: a lock whose versions are kept where they fit. Without `dependencies` the requirements are the whole.
        A stored lock is used while it is fresh.
        Unresolvable (with uv's explanation), IndexUnreachable, LockTimeout, RequirementForbidden.
        """
        target = Target(platform=platform, python=python, glibc=glibc)
        lines = _plain(requirements)
        request = _request(lines, target, prefer, dependencies)
        stored = self._stored(request)
        if stored is not None:
            return stored
        options = [*(["--refresh"] if self._upgrade else []), *([] if dependencies else ["--no-deps"])]
        lock = self._compile(lines, target, prefer=prefer, options=options)
        self.remember(request, lock.to_json())
        return lock

    def stored(
        self,
        requirements: Sequence[str],
        *,
        platform: Platform,
        python: str,
        glibc: tuple[int, int],
        dependencies: bool = True,
    ) -> Lock | None:
        """The lock that `lock` would give without asking uv; None where it would have to."""
        target = Target(platform=platform, python=python, glibc=glibc)
        return self._stored(_request(_plain(requirements), target, None, dependencies))

    def recall(self, request: Mapping[str, Any]) -> Any:
        """What `remember` kept for this request on this index; None when it is old, absent, or to be made anew."""
        key = self._key(request)
        return self._store.get(key) if not self._upgrade or json.dumps(key) in self._made else None

    def remember(self, request: Mapping[str, Any], content: Any, *, shared: bool = True) -> None:
        """Keep something that locks made sure of, as long as a lock is kept; for other builders too where it is `shared`."""
        key = self._key(request)
        self._store.put(key, content, shared=shared)
        self._made.add(json.dumps(key))

    def probe(self, requirement: str, *, target: Target, lowest: bool = False, alone: bool = True) -> str | None:
        """The version that this one requirement gets on the target; "" where its marker excludes the target.

        None: it has no wheel there. `lowest` picks the oldest instead of the newest; `alone` leaves out what it depends on.
        """
        lines = _plain([requirement])
        found = self.experiment(lines, target=target, lowest=lowest, alone=alone)
        return found.get(_name(lines[0]), "") if isinstance(found, dict) else None

    def experiment(
        self, requirements: Sequence[str], *, target: Target, lowest: bool = False, alone: bool = False
    ) -> dict[str, str] | Unresolvable | NoWheel:
        """Which versions these requirements get together, or why none; nothing is stored.

        What the index answered within RECENT is not asked again, so that an experiment costs uv's own time.
        IndexUnreachable, LockTimeout.
        """
        options = ["--resolution", "lowest-direct"] if lowest else []
        options += ["--no-deps"] if alone else []
        try:
            return self._compile(_plain(requirements), target, options=options, recent=True).versions
        except (Unresolvable, NoWheel) as error:
            return error

    def index(self) -> Index:
        """A client of the index that this locker uses; uv itself tells its default."""
        return Index(self._index(), ca_bundle=self._ca_bundle, retries=self._retries)

    def indexes(self) -> list[Index]:
        """All of them, in the order in which uv asks: the first that knows a package provides it."""
        first = (
            [Index(self._torch_index, ca_bundle=self._ca_bundle, retries=self._retries)]
            if self._torch and self._torch_index
            else []
        )
        return [*first, self.index()]

    def _index(self) -> str:
        if self._index_url is None and self._default_index is None:
            self._default_index = self._ask_default_index()
        return self._index_url or self._default_index or ""

    def _compile(
        self,
        lines: Sequence[str],
        target: Target,
        *,
        prefer: Lock | None = None,
        options: Sequence[str] = (),
        recent: bool = False,
    ) -> Lock:
        with tempfile.TemporaryDirectory(prefix="flops-lock-") as name:
            home = Path(name)
            output = home / "pylock.flops.toml"
            source = self._write_source(home, lines, dependencies="--no-deps" not in options)
            if prefer is not None:
                output.write_text(pylock.preferences(prefer), encoding="utf-8")
            words: list[str | Path] = [
                *options,
                "--python-platform",
                target.uv_platform,
                "--python-version",
                target.python,
            ]
            words += ["--offline"] if self._offline else []
            words += ["--config-file", self._recent(home)] if recent else []
            done = self._run([*words, "--quiet", "--format", "pylock.toml", "-o", output, source], home)
            if done.code == 0:
                return pylock.parse(output.read_bytes(), target)
        raise self._failure(done, lines)

    def _write_source(self, home: Path, lines: Sequence[str], *, dependencies: bool) -> Path:
        """What uv reads: plain requirements; where PyTorch has an index of its own, a project that says so.

        uv has no other way to ask an index for some packages only, and such an index has old copies of many others.
        """
        if self._torch is None or not self._torch_index:
            path = home / "requirements.in"
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            return path
        named = {_name(line) for line in lines}
        added = sorted(self._torch - named) if dependencies else []
        sources = "".join(f'"{name}" = {{ index = "torch" }}\n' for name in sorted(self._torch & {*named, *added}))
        path = home / "pyproject.toml"
        path.write_text(
            f'[project]\nname = "flops-lock"\nversion = "0"\n'
            f"dependencies = {json.dumps([*lines, *added], ensure_ascii=False)}\n"
            f'[[tool.uv.index]]\nname = "torch"\nurl = {json.dumps(self._torch_index)}\nexplicit = true\n'
            f"[tool.uv.sources]\n{sources}",
            encoding="utf-8",
        )
        return path

    def _run(self, words: Sequence[str | Path], home: Path) -> process.Completed:
        """Start `uv pip compile`; addresses go by the environment, where a credential in them is not for all to read."""
        env = {
            "HOME": str(home),
            "UV_CACHE_DIR": str(self._cache),
            "UV_HTTP_RETRIES": str(self._retries),
            "UV_PYTHON_DOWNLOADS": "never",
        }
        if self._ca_bundle is not None:
            env["SSL_CERT_FILE"] = str(self._ca_bundle)
        if self._index_url and "--config-file" not in words:
            env["UV_DEFAULT_INDEX"] = self._index_url
        if self._patience is not None:
            env |= dict.fromkeys(("UV_HTTP_TIMEOUT", "UV_HTTP_CONNECT_TIMEOUT"), f"{self._patience:.0f}")
        options = list(OPTIONS)
        if self._torch is not None and self._torch_index:
            options.remove("--no-sources")  # those that `_write_source` wrote
        elif self._torch is not None:
            options += ["--torch-backend", "cpu"]
        try:
            return process.run(
                [uv_program(), "pip", "compile", *options, *words],
                seconds=self._seconds,
                env=env,
                cwd=home,
                check=False,
            )
        except ToolTimeout as error:
            raise LockTimeout(
                f"no lock was found within {self._seconds:.0f} s",
                hint="pin more versions, or see whether the package index answers slowly",
            ) from error

    def _recent(self, home: Path) -> Path:
        """uv's settings for an experiment: the same index, whose answers may be some minutes old."""
        path = home / "uv.toml"
        path.write_text(
            f"[[index]]\nurl = {json.dumps(self._index())}\ndefault = true\n"
            f'cache-control = {{ api = "max-age={RECENT}" }}\n',
            encoding="utf-8",
        )
        return path

    def _failure(self, done: process.Completed, lines: Sequence[str]) -> Exception:
        """What went wrong, told by uv's exit code and by asking the index, not by uv's prose."""
        said = without_credentials(done.stderr).strip()
        if "No space left on device" in said:
            return DiskFull("the disk is full: uv could not write its cache", hint="free space or set FLOPS_CACHE_DIR")
        if done.code == NO_SOLUTION and self._offline:
            return IndexUnreachable("offline, and the cache does not hold what these requirements need")
        if done.code == NO_SOLUTION:
            return Unresolvable(_explanation(said), hint="change one of the requirements that are named")
        if lines and not self._offline:
            with self.index() as index:
                index.knows(_name(lines[0]))
        last = [line.strip() for line in said.splitlines() if line.strip()][-1:] or ["no message"]
        if "Failed to fetch" in said or "error sending request" in said:
            return IndexUnreachable(
                f"the package index did not answer uv: {last[0][:300]}", hint="nothing is wrong with the repository"
            )
        return ToolFailed(f"uv ended with {done.code}: {last[0][:300]}")

    def _stored(self, request: Mapping[str, Any]) -> Lock | None:
        try:
            content = self.recall(request)
            return Lock.from_json(content) if content is not None else None
        except (KeyError, TypeError, FlopsError):  # written by another version of this program
            return None

    def _key(self, request: Mapping[str, Any]) -> dict[str, Any]:
        key = {**request, "indexes": [without_credentials(self._index_url or "")]}
        if self._torch is not None:
            key |= {"torch": sorted(self._torch), "torch index": without_credentials(self._torch_index or "")}
        return key

    def _ask_default_index(self) -> str:
        """uv writes the index it would use as the first line of a file without requirements; nothing is fetched."""
        with tempfile.TemporaryDirectory(prefix="flops-lock-") as name:
            source = Path(name, "requirements.in")
            source.touch()
            output = Path(name, "requirements.txt")
            done = self._run(
                ["--offline", "--quiet", "--no-header", "--emit-index-url", "-o", output, source], Path(name)
            )
            text = output.read_text(encoding="utf-8") if done.code == 0 else ""
        for line in text.splitlines():
            option, _, url = line.partition(" ")
            if option == "--index-url" and url:
                return url.strip()
        raise IndexUnreachable("uv does not tell which package index it uses", hint="set FLOPS_INDEX_URL")


def uv_program() -> str:
    """Where uv lies; ToolMissing."""
    try:
        with _FINDING_UV:
            return uv.find_uv_bin()
    except FileNotFoundError as error:
        raise ToolMissing("uv is not installed", hint="install the Python package uv beside flops") from error


def _request(lines: Sequence[str], target: Target, prefer: Lock | None, dependencies: bool) -> dict[str, Any]:
    """What a lock is stored under."""
    return {
        "requirements": sorted(lines),
        "target": [target.platform.value, target.python, target.uv_platform],
        "prefer": prefer.digest if prefer else None,
        "dependencies": dependencies,
    }


def _name(line: str) -> str:
    return canonicalize_name(Requirement(line).name)


def _plain(requirements: Sequence[str]) -> list[str]:
    """Each requirement written anew; whatever a requirements file could read as more than a package is refused."""
    lines = []
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise RequirementSyntax(f"{text!r:.200} is no requirement", hint="write NAME==VERSION") from error
        line = str(requirement)
        if requirement.url or "$" in line or not line.isprintable():
            raise RequirementForbidden(f"{requirement.name}: URLs, variables and control characters can't be locked")
        lines.append(line)
    return lines


def _explanation(said: str) -> str:
    """uv's reasons as one paragraph, without its labels and hints."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(("error:", "hint:", "warning:"))]
    text = " ".join(reasons or lines).removeprefix("cause: ")
    return text[:EXPLANATION] + ("..." if len(text) > EXPLANATION else "") or "the requirements have no solution"

"""One run of `uv pip compile`: plain requirements in, the exact wheels for one target out.

uv is not safe on an untrusted file: it expands variables, follows options and paths, and runs setup.py. So it reads only a
file that is written here, line by line, with an environment that is made here.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import uv
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flops import http, programs
from flops.errors import IndexUnreachable, LockTimeout, ToolFailed, ToolMissing, ToolTimeout, Unresolvable
from flops.http import without_credentials
from flops.locking import pylock
from flops.locking.index import Index
from flops.oci.blobs import disk_full

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flops.locking.pylock import Lock, LockTarget

#: uv's exit code for "there is no solution"; any other failure is not about the requirements.
NO_SOLUTION = 1
#: Seconds for which an experiment uses a cached answer of the index, so that uv does not ask for every package again.
RECENT = 600
#: Characters of uv's explanation that a message keeps.
EXPLANATION = 1500
#: How uv reports a withdrawn version; the reason comes from the index and may have any characters.
YANKED = re.compile(
    r"^warning: `(?P<name>[^`=\n]+)==(?P<version>[^`\n]+)` is yanked(?: \(reason: \"(?P<reason>.*?)\"\))?$",
    re.MULTILINE | re.DOTALL,
)
#: Characters of a reason that are kept.
REASON = 300
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


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """uv, its cache and its indexes. Safe to share between threads."""

    cache: Path
    seconds: float
    retries: int
    """How often an index that does not answer is asked again; three times take uv 10 s."""
    index_url: str | None = None
    """None: uv's default."""
    torch_index: str | None = None
    torch: frozenset[str] | None = None
    """Packages (PEP 503's form) that are taken as CPU builds, from `torch_index` or from the index that uv knows."""
    ca_bundle: Path | None = None
    patience: float | None = None
    """Seconds within which an index has to answer; None: uv's default."""

    def compile(
        self,
        lines: Sequence[str],
        target: LockTarget,
        *,
        prefer: Lock | None = None,
        options: Sequence[str] = (),
        recent: bool = False,
    ) -> Lock:
        """The lock of these lines, which must be trusted; with `recent`, answers of the index may be some minutes old.

        Unresolvable, IndexUnreachable, LockTimeout, NoWheel, ToolFailed.
        """
        with tempfile.TemporaryDirectory(prefix="flops-lock-") as name:
            home = Path(name)
            output = home / "pylock.flops.toml"
            source = self._write_source(home, lines, dependencies="--no-deps" not in options)
            if prefer is not None:
                output.write_text(pylock.preferences(prefer), encoding="utf-8")
            words: list[str | Path] = [*options, "--python-platform", target.uv_platform]
            words += ["--python-version", target.python]
            words += ["--config-file", self._recent(home)] if recent else []
            done = self._run([*words, "--format", "pylock.toml", "-o", output, source], home)
            if done.code == 0:
                return _with_yanks(pylock.parse(output.read_bytes(), target), done.stderr)
        raise self._failure(done, lines)

    @cached_property
    def index_address(self) -> str:
        """The URL of the package index, with credentials; uv itself is asked for its default."""
        return self.index_url or self._default_index()

    def indexes(self) -> list[Index]:
        """Clients of all indexes in uv's order: the first that knows a package provides it."""
        addresses = [*([self.torch_index] if self.torch and self.torch_index else []), self.index_address]
        return [Index(address, ca_bundle=self.ca_bundle, retries=self.retries) for address in addresses]

    def _write_source(self, home: Path, lines: Sequence[str], *, dependencies: bool) -> Path:
        """The file for uv: plain requirements, or a project if PyTorch comes from an index of its own.

        Only in a project can an index be limited to some packages; PyTorch's has old copies of many others.
        """
        if self.torch is None or not self.torch_index:
            path = home / "requirements.in"
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            return path
        named = {name_of(line) for line in lines}
        added = sorted(self.torch - named) if dependencies else []
        sources = "".join(f'"{name}" = {{ index = "torch" }}\n' for name in sorted(self.torch & {*named, *added}))
        path = home / "pyproject.toml"
        path.write_text(
            f'[project]\nname = "flops-lock"\nversion = "0"\n'
            f"dependencies = {json.dumps([*lines, *added], ensure_ascii=False)}\n"
            f'[[tool.uv.index]]\nname = "torch"\nurl = {json.dumps(self.torch_index)}\nexplicit = true\n'
            f"[tool.uv.sources]\n{sources}",
            encoding="utf-8",
        )
        return path

    def _run(self, words: Sequence[str | Path], home: Path) -> programs.Completed:
        """Run `uv pip compile`; URLs go through the environment, as other users could read credentials in arguments."""
        env = {
            "HOME": str(home),
            "UV_CACHE_DIR": str(self.cache),
            "UV_HTTP_RETRIES": str(self.retries),
            "UV_PYTHON_DOWNLOADS": "never",
        }
        if self.ca_bundle is not None:
            env["SSL_CERT_FILE"] = str(http.authorities(self.ca_bundle, home))
        if self.index_url and "--config-file" not in words:
            env["UV_DEFAULT_INDEX"] = self.index_url
        if self.patience is not None:
            env |= dict.fromkeys(("UV_HTTP_TIMEOUT", "UV_HTTP_CONNECT_TIMEOUT"), f"{self.patience:.0f}")
        options = list(OPTIONS)
        if self.torch is not None and self.torch_index:
            options.remove("--no-sources")  # `_write_source` wrote them
        elif self.torch is not None:
            options += ["--torch-backend", "cpu"]
        try:
            return programs.run(
                [uv_program(), "pip", "compile", *options, *words], seconds=self.seconds, env=env, cwd=home, check=False
            )
        except ToolTimeout as error:
            raise LockTimeout(
                f"no lock was found within {self.seconds:.0f} s",
                hint="pin more versions, or see whether the package index answers slowly",
            ) from error

    def _recent(self, home: Path) -> Path:
        """uv's settings for an experiment: the same index, with answers from its cache for some minutes."""
        path = home / "uv.toml"
        path.write_text(
            f"[[index]]\nurl = {json.dumps(self.index_address)}\ndefault = true\n"
            f'cache-control = {{ api = "max-age={RECENT}" }}\n',
            encoding="utf-8",
        )
        return path

    def _default_index(self) -> str:
        """uv's own index: it writes it into the output for a file without requirements; nothing is fetched."""
        with tempfile.TemporaryDirectory(prefix="flops-lock-") as name:
            source = Path(name, "requirements.in")
            source.touch()
            output = Path(name, "requirements.txt")
            words: list[str | Path] = ["--offline", "--quiet", "--no-header", "--emit-index-url", "-o", output, source]
            done = self._run(words, Path(name))
            text = output.read_text(encoding="utf-8") if done.code == 0 else ""
        for line in text.splitlines():
            option, _, url = line.partition(" ")
            if option == "--index-url" and url:
                return url.strip()
        raise IndexUnreachable("uv does not report which package index it uses", hint="set FLOPS_INDEX_URL")

    def _failure(self, done: programs.Completed, lines: Sequence[str]) -> Exception:
        """The error for a failed run, by uv's exit code and by asking the index rather than by uv's text."""
        said = without_credentials(done.stderr).strip()
        if "No space left on device" in said:
            return disk_full(self.cache)
        if done.code == NO_SOLUTION:
            return Unresolvable(_explanation(said), hint="change one of the requirements that are named")
        if lines:
            with self.indexes()[-1] as index:
                index.knows(name_of(lines[0]))
        last = [line.strip() for line in said.splitlines() if line.strip()][-1:] or ["no message"]
        if "Failed to fetch" in said or "error sending request" in said:
            return IndexUnreachable(
                f"the package index did not answer uv: {last[0][:300]}", hint="nothing is wrong with the repository"
            )
        return ToolFailed(f"uv ended with {done.code}: {last[0][:300]}")


def uv_program() -> str:
    """The path of uv; ToolMissing."""
    try:
        with _FINDING_UV:
            return uv.find_uv_bin()
    except FileNotFoundError as error:
        raise ToolMissing("uv is not installed", hint="install the Python package uv beside flops") from error


def name_of(line: str) -> str:
    """A requirement's package, in PEP 503's form."""
    return canonicalize_name(Requirement(line).name)


def _with_yanks(lock: Lock, said: str) -> Lock:
    """The lock with uv's warnings: pinned versions are taken even if they were withdrawn."""
    reasons: dict[tuple[str, str], str] = {
        (canonicalize_name(found["name"]), found["version"]): " ".join((found["reason"] or "").split())[:REASON]
        for found in YANKED.finditer(said)
    }
    if not reasons:
        return lock
    wheels = tuple(replace(wheel, yanked=reasons.get((wheel.name, wheel.version))) for wheel in lock.wheels)
    return replace(lock, wheels=wheels)


def _explanation(said: str) -> str:
    """uv's reasons as one paragraph, without its labels and hints."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(("error:", "hint:", "warning:"))]
    text = " ".join(reasons or lines).removeprefix("cause: ")
    return text[:EXPLANATION] + ("..." if len(text) > EXPLANATION else "") or "the requirements have no solution"

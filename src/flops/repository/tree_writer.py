"""The files of an ML repository, written once into a directory of ours and judged on the way.

What is judged: limits, names, symbolic links that leave the repository, Git LFS pointers, likely secrets. Nothing is followed:
links are written last, and only where no chain of them can lead out.
"""

from __future__ import annotations

import errno
import hashlib
import posixpath
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops.errors import (
    DiskFull,
    EmptyRepo,
    FileLimit,
    Finding,
    LfsUnsupported,
    RepositoryLimit,
    RepositoryLink,
    SecretFound,
    SourceError,
)
from flops.repository import secrets as secret
from flops.repository.git import MEMORY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

#: Files that the ML repository contract and the requirements read, which must be files of their own.
CONTRACT = frozenset(
    {
        *("model_manager.py", "data_manager.py"),
        *("requirements.txt", "pyproject.toml", "pylock.toml", "uv.lock", "python_env.yaml"),
        *(f"{stem}.{ending}" for stem in ("conda", "environment") for ending in ("yaml", "yml")),
    }
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
#: What file systems and the tar format take.
PATH_LIMIT = 4000
NAME_LIMIT = 255
UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class TreeLimits:
    """How much a repository may be; each holds inclusively."""

    seconds: float = 600
    """For everything that git does."""
    pack_bytes: int = 1024**3
    """Of what git receives, compressed."""
    memory: int = MEMORY
    """Of each process of git."""
    bytes: int = 1024**3
    """Of all files together."""
    files: int = 50_000
    depth: int = 64
    """Names in one path."""
    text_bytes: int = 5 * 1024**2
    """Of one Python or dependency file."""


@dataclass(frozen=True, kw_only=True, order=True)
class RepositoryFile:
    """One file or symbolic link."""

    path: str
    """Relative to the ML repository, with forward slashes."""
    executable: bool
    size: int
    blob: str
    """Git's object id of the content (for a link, of its target), hexadecimal."""
    link: str | None = None
    """A symbolic link's target, which lies in the repository; None for a file."""


class TreeWriter:
    """Writes files below `destination`, which must be empty; `close` judges the whole and gives the list, sorted."""

    def __init__(
        self, destination: Path, *, limits: TreeLimits, allow_secrets: Collection[str], algorithm: str = "sha1"
    ) -> None:
        self._destination = destination
        self._limits = limits
        self._allow_secrets = frozenset(allow_secrets)
        self._algorithm = algorithm
        self._files: list[RepositoryFile] = []
        self._bytes = 0
        self._links: list[Finding] = []
        self._secrets: list[Finding] = []
        self._pointers: list[str] = []

    @property
    def written(self) -> int:
        """Bytes so far."""
        return self._bytes

    def file(self, path: str, chunks: Iterable[bytes], *, size: int, executable: bool) -> RepositoryFile:
        """Write one file of exactly `size` bytes; what is longer or shorter has changed meanwhile and is refused."""
        self._admit(path, size)
        target = self._destination / path
        content = hashlib.new(self._algorithm, b"blob %d\0" % size, usedforsecurity=False)
        done, head, judged = 0, b"", secret.reads(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as output:
                for chunk in chunks:
                    done += len(chunk)
                    if done > size:
                        break
                    head += chunk[: judged - len(head)]
                    content.update(chunk)
                    output.write(chunk)
        except OSError as error:
            raise _write_error(path, error) from error
        if done != size:
            raise SourceError(f"{path} changed while it was read", hint="try again when nothing writes into it")
        self._judge(path, head)
        return self._add(path, size, content.hexdigest(), executable=executable, link=None)

    def link(self, path: str, target: str) -> RepositoryFile:
        """Note one symbolic link; it is written at the end, and refused then where it may not stay."""
        data = target.encode("utf-8", "surrogateescape")
        self._admit(path, len(data))
        self._judge_link(path, target)
        content = hashlib.new(self._algorithm, b"blob %d\0" % len(data) + data, usedforsecurity=False)
        return self._add(path, len(data), content.hexdigest(), executable=False, link=target)

    def close(self) -> tuple[tuple[RepositoryFile, ...], tuple[str, ...]]:
        """The files, sorted by path, and warnings. EmptyRepo; RepositoryLink, LfsUnsupported, SecretFound with all findings."""
        if not self._files:
            raise EmptyRepo(
                "the repository holds no files", hint="commit model_manager.py, data_manager.py, conda.yaml"
            )
        pointers = [_pointer(path) for path in self._pointers if _is_text(path)]
        _require(sorted(self._links), sorted(pointers), sorted(self._secrets))
        for file in self._files:
            if file.link is not None:
                place = self._destination / file.path
                try:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.symlink_to(file.link)
                except OSError as error:
                    raise _write_error(file.path, error) from error
        warnings = [
            f"{path} is a Git LFS pointer; the images hold the pointer, not its content" for path in self._pointers
        ]
        return tuple(sorted(self._files)), tuple(sorted(warnings))

    def _admit(self, path: str, size: int) -> None:
        check_path(path, depth=self._limits.depth)
        if _is_text(path) and size > self._limits.text_bytes:
            raise FileLimit(
                f"{path} has {size} bytes, more than {self._limits.text_bytes}",
                hint="keep data out of code and dependency files",
            )
        check_size(len(self._files) + 1, self._bytes + size, self._limits)

    def _judge(self, path: str, head: bytes) -> None:
        name = posixpath.basename(path)
        if head.startswith(LFS_POINTER):
            self._pointers.append(path)
        if self._allow_secrets.isdisjoint({path, name}) and secret.is_likely(path, head):
            self._secrets.append(
                Finding(
                    path=path,
                    line=0,
                    code=SecretFound.code,
                    message="looks like a secret",
                    hint=f"remove it, or set FLOPS_ALLOW_SECRETS={shlex.quote(path)}",
                )
            )

    def _judge_link(self, path: str, target: str) -> None:
        if path in CONTRACT:
            message = "is a symbolic link"
            hint = f"commit {path} as a file of its own, with the content of its target"
        elif not _stays_inside(path, target):
            message = "is a symbolic link that leaves the repository"
            hint = f"commit the file itself as {path}, or link to a place in the repository by a path without detours"
        elif UNREADABLE.search(target):
            message = f"is a symbolic link to {target[:200]!r}, which is no name in UTF-8 without control characters"
            hint = "remove it, or rename what it leads to"
        else:
            return
        self._links.append(Finding(path=path, line=0, code=RepositoryLink.code, message=message, hint=hint))

    def _add(self, path: str, size: int, blob: str, *, executable: bool, link: str | None) -> RepositoryFile:
        file = RepositoryFile(path=path, executable=executable, size=size, blob=blob, link=link)
        self._files.append(file)
        self._bytes += size
        return file


def _pointer(path: str) -> Finding:
    return Finding(
        path=path,
        line=0,
        code=LfsUnsupported.code,
        message="is a Git LFS pointer where the content itself is needed",
        hint="take code and dependency files out of Git LFS: git lfs untrack NAME, git add --renormalize NAME",
    )


def _require(links: Sequence[Finding], pointers: Sequence[Finding], secrets: Sequence[Finding]) -> None:
    """One error for all that is wrong, of the gravest kind."""
    findings = (*links, *pointers, *secrets)
    if not findings:
        return
    if len(findings) == len(secrets):
        raise _secret_found(findings)
    first, *others = findings
    kind = RepositoryLink if links else LfsUnsupported
    more = f" (and {len(others)} more)" if others else ""
    raise kind(f"{first.path} {first.message}{more}", hint=first.hint, findings=findings)


def _secret_found(findings: Sequence[Finding]) -> SecretFound:
    """One error for all of them: the setting takes their names together, and the last one that is set counts."""
    first, *others = findings
    if not others:
        return SecretFound(
            f"a likely secret would end up in the images: {first.path}", hint=first.hint, findings=findings
        )
    names = ",".join(finding.path for finding in findings)
    return SecretFound(
        f"{len(findings)} likely secrets would end up in the images: "
        + ", ".join(finding.path for finding in findings[:5]),
        hint=f"remove them from the repository, or, where they are none, set FLOPS_ALLOW_SECRETS={shlex.quote(names)}",
        findings=findings,
    )


def check_path(path: str, *, depth: int) -> None:
    """Refuse names that no layer may hold: absolute, `..`, `.git`, control characters, too deep. SourceError, RepositoryLimit."""
    names = path.split("/")
    if len(names) > depth:
        raise RepositoryLimit(f"a path has {len(names)} levels, more than {depth}", hint="flatten the repository")
    bad = any(name in ("", ".", "..") or name.lower() == ".git" or name.startswith(".wh.") for name in names)
    if bad or len(path) > PATH_LIMIT or any(len(name.encode("utf-8", "replace")) > NAME_LIMIT for name in names):
        raise SourceError(f"{path[:200]!r} is not a name that an image can hold", hint="rename it")
    if UNREADABLE.search(path):
        raise SourceError(f"{path[:200]!r} is not a name in UTF-8 without control characters", hint="rename it")


def check_size(files: int, size: int, limits: TreeLimits) -> None:
    """RepositoryLimit where a repository of this many files and bytes is too large."""
    if files > limits.files:
        raise RepositoryLimit(f"the repository has more than {limits.files} files", hint="keep data out of it")
    if size > limits.bytes:
        raise RepositoryLimit(
            f"the repository's files have more than {limits.bytes} bytes", hint="keep data and models out of it"
        )


def _is_text(path: str) -> bool:
    return path in CONTRACT or path.endswith(".py")


def _stays_inside(path: str, target: str) -> bool:
    """Whether a link leads into the repository whatever other links are there.

    Only `../` at the front: those climb real directories, and what follows descends. A `..` after a name could climb
    from wherever a link of that name leads.
    """
    if not target or target.startswith("/") or "\0" in target:
        return False
    names = target.rstrip("/").split("/")
    climbs = next((i for i, name in enumerate(names) if name != ".."), len(names))
    rest = [name for name in names[climbs:] if name != "."]
    return ".." not in rest and "" not in rest and ".git" not in rest and climbs <= path.count("/")


def _write_error(path: str, error: OSError) -> SourceError | DiskFull:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"no space left while writing {path}", hint="free some space, or move TMPDIR to a larger disk")
    return SourceError(f"{path} can't be read or written: {error.strerror}", hint="check its permissions")

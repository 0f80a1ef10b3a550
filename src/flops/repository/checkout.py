"""One exact commit of an ML repository, or a directory as it is now, written into a directory of ours.

From a URL: the commit is resolved once, fetched alone (depth 1) into a bare repository of our own, and its files are taken
from `git archive`, with every attribute that could change or omit bytes switched off by `info/attributes`, which stands
above all others. No work tree is made, so no hook, filter or file system monitor has a moment to run, and nothing is
written that was not judged first. Each file's bytes are then compared with its object id, so they are the commit's own
whatever git, its version or its configuration did on the way.

A directory is copied once; what is written into it later doesn't matter. In a git work tree it has HEAD's commit, or
`COMMIT-dirty-HASH` where its files differ; no commit is believed before its objects were hashed (`objects`). Without git,
or before the first commit, COMMIT is 40 zeros (git's name for "no object") and the time 1970-01-01, so that the same files
give the same name.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flops.errors import CloneFsck, EmptyRepo, RefNotFound, SourceError, SubdirNotFound
from flops.progress import Reporter, Silent, Stage
from flops.repository import objects, revision, worktree
from flops.repository.git import Git
from flops.repository.route import SourceAccess
from flops.repository.source import image_path, url_image_path
from flops.repository.tree_writer import TreeLimits, TreeWriter, check_path, check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from datetime import datetime

    from flops.repository.git import GitCredential
    from flops.repository.objects import Entry
    from flops.repository.source import Source
    from flops.repository.tree_writer import RepositoryFile

#: Above the attributes that a commit carries: no conversion, no substitution, nothing left out.
ATTRIBUTES = "* -text -crlf -eol -ident -filter -working-tree-encoding -export-ignore -export-subst\n"
CHUNK = 1024**2
#: Bytes that an archive has at most beside a file's own.
HEADERS = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """An ML repository, complete and judged."""

    path: Path
    """Its root, the subdirectory applied."""
    commit: str
    """A full hash, or `COMMIT-dirty-HASH`; fit to be a tag."""
    source: str
    """The URL without credentials, or `local/DIRNAME`."""
    repository: str
    """The image path, as `acme/digits` or `acme/digits/sub`."""
    created: datetime
    """The commit's time, UTC."""
    files: tuple[RepositoryFile, ...]
    """Sorted by path; never `.git`."""
    warnings: tuple[str, ...] = ()

    def read(self, wanted: Callable[[str], bool]) -> Mapping[str, bytes]:
        """The content of the files that `wanted` takes by their paths, each read when it is asked for; links are left out."""
        return _Contents(self.path, frozenset(f.path for f in self.files if f.link is None and wanted(f.path)))


class _Contents(Mapping[str, bytes]):
    def __init__(self, root: Path, paths: frozenset[str]) -> None:
        self._root, self._paths = root, paths

    def __getitem__(self, path: str) -> bytes:
        if path not in self._paths:
            raise KeyError(path)
        return (self._root / path).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._paths))

    def __len__(self) -> int:
        return len(self._paths)


def resolve_commit(
    source: Source,
    *,
    ref: str | None = None,
    ca_bundle: Path | None = None,
    limits: TreeLimits | None = None,
    credential: GitCredential | None = None,
    allow_hosts: Collection[str] = (),
) -> str:
    """The commit that a branch, tag or shortened hash of a URL stands for now; give it to `checkout` as its ref.

    `credential` and `allow_hosts` as there. A full hash is answered without asking anybody.
    """
    if source.directory is not None:
        raise SourceError("a directory has no commit of a host", hint="give the directory to checkout itself")
    limits = limits or TreeLimits()
    with tempfile.TemporaryDirectory(prefix="flops-git-") as place:
        access = SourceAccess(ca_bundle=ca_bundle, credential=credential, allow_hosts=allow_hosts)
        git = access.git(source, Path(place), limits)
        return revision.resolve(git, source.url, ref).commit


def checkout(
    source: Source,
    destination: Path,
    *,
    ref: str | None = None,
    subdir: str = "",
    allow_secrets: Collection[str] = (),
    ca_bundle: Path | None = None,
    limits: TreeLimits | None = None,
    reporter: Reporter | None = None,
    credential: GitCredential | None = None,
    allow_hosts: Collection[str] = (),
) -> Checkout:
    """Write one commit (`ref`: branch, tag, commit; HEAD by default) of a source into `destination`, an empty directory.

    With a directory, `ref` takes a commit of its repository instead of its files. A scratch repository lies beside
    `destination` meanwhile. An untrusted URL leads to public addresses and `allow_hosts` only, and `credential` is used if it
    is for its host. Raises SourceError; ToolMissing without git. The caller encloses the stage.
    """
    destination.mkdir(parents=True, exist_ok=True)
    if any(destination.iterdir()):
        raise SourceError(f"{destination} is not empty", hint="name an empty directory for the checkout")
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".git-") as place:
        job = _Job(
            source=source,
            destination=destination,
            scratch=Path(place),
            ref=ref,
            subdir=_subdir(subdir),
            allow_secrets=frozenset(allow_secrets),
            access=SourceAccess(ca_bundle=ca_bundle, credential=credential, allow_hosts=allow_hosts),
            limits=limits or TreeLimits(),
            reporter=reporter or Silent(),
        )
        if source.directory is None:
            return _from_url(job)
        return _from_directory(job, source.directory) if ref is None else _from_history(job, source.directory, ref)


@dataclass(frozen=True, kw_only=True)
class _Job:
    source: Source
    destination: Path
    scratch: Path
    ref: str | None
    subdir: str
    allow_secrets: frozenset[str]
    access: SourceAccess
    limits: TreeLimits
    reporter: Reporter

    def writer(self, commit: str | None) -> TreeWriter:
        algorithm = "sha256" if commit is not None and len(commit) == 64 else "sha1"  # noqa: PLR2004
        return TreeWriter(self.destination, limits=self.limits, allow_secrets=self.allow_secrets, algorithm=algorithm)

    def warned(self, warnings: Iterable[str]) -> tuple[str, ...]:
        kept = tuple(warnings)
        for warning in kept:
            self.reporter.warning(Stage.CLONE, warning)
        return kept


def _from_url(job: _Job) -> Checkout:
    git = job.access.git(job.source, job.scratch, job.limits)
    url = job.source.url
    found = revision.resolve(git, url, job.ref)
    _prepare(git, found.commit)
    revision.fetch(git, url, found)
    return _archive(job, git, found.commit, subdir=job.subdir, source=url, repository=url_image_path(url, job.subdir))


def _from_history(job: _Job, directory: Path, ref: str) -> Checkout:
    """A commit of a directory's repository, read through its object directory; its files are not looked at."""
    local = Git(directory=directory, seconds=job.limits.seconds, trusted=job.source.trusted)
    tree = worktree.look(local, directory, "")
    if tree.names is None:
        raise RefNotFound(f"{directory} is not in a git repository, so it has no {ref!r}", hint="leave --ref out")
    name = revision.check_ref(ref)
    done = local.run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", check=False)
    if done.code != 0:
        raise RefNotFound(
            f"{directory} has no branch, tag or commit {ref!r}", hint="fetch it first, or use another --ref"
        )
    commit = done.stdout.strip()
    alternates = Path(local.text("rev-parse", "--path-format=absolute", "--git-path", "objects"))
    git = replace(local, directory=job.scratch, alternates=alternates)
    _prepare(git, commit)
    subdir = f"{tree.prefix}{job.subdir}".strip("/")
    repository = image_path(tree.repository, job.subdir)
    return _archive(job, git, commit, subdir=subdir, source=tree.source, repository=repository)


def _from_directory(job: _Job, directory: Path) -> Checkout:
    git = Git(directory=directory, seconds=job.limits.seconds, trusted=job.source.trusted)
    tree = worktree.look(git, directory, job.subdir)
    writer = job.writer(tree.head)
    warnings = worktree.copy(tree, writer, job.limits)
    files, more = writer.close()
    job.reporter.progress(Stage.CLONE, done=writer.written, total=writer.written)
    git = replace(git, directory=tree.root)
    head = objects.find(git, tree.head, tree.prefix) if tree.head else None
    committed = objects.entries(git, head.tree) if head and head.tree else ()
    return Checkout(
        path=job.destination,
        commit=worktree.commit_name(tree.head, committed, files),
        source=tree.source,
        repository=tree.repository,
        created=head.created if head else objects.EPOCH,
        files=files,
        warnings=job.warned([*warnings, *more]),
    )


def _archive(job: _Job, git: Git, commit: str, *, subdir: str, source: str, repository: str) -> Checkout:
    """Write the files of a commit that `git` holds."""
    found = objects.find(git, commit, subdir)
    if found.tree is None:
        raise SubdirNotFound(f"{subdir!r} is not a directory of commit {commit[:12]}", hint="check --subdir")
    entries = _entries(git, found.tree, job.limits)
    writer = job.writer(commit)
    archive = job.scratch / "tree.tar"
    total = sum(entry.size for entry in entries.values())
    whole = replace(git, pack_bytes=total + (len(entries) + 1) * HEADERS)
    whole.run("archive", "--format=tar", f"--output={archive}", found.tree)
    with tarfile.open(archive) as tar:
        for member in tar:
            entry = entries.get(member.name)
            if entry is None or member.isdir():
                continue
            written = _write(tar, member, entry, writer)
            if written.blob != entry.blob:
                raise CloneFsck(f"{entry.path} differs from its object {entry.blob}", hint="run git fsck there")
            job.reporter.progress(Stage.CLONE, done=writer.written, total=total)
    files, warnings = writer.close()
    submodules = {path for path, entry in entries.items() if entry.mode == objects.SUBMODULE}
    if missing := entries.keys() - submodules - {file.path for file in files}:
        raise CloneFsck(f"git left out {min(missing)!r}", hint="use a newer git")
    apart = [f"{path} is a submodule; its files are not packed" for path in sorted(submodules)]
    return Checkout(
        path=job.destination,
        commit=commit,
        source=source,
        repository=repository,
        created=found.created,
        files=files,
        warnings=job.warned([*apart, *warnings]),
    )


def _entries(git: Git, tree: str, limits: TreeLimits) -> dict[str, Entry]:
    """What a tree lists, judged before any of it is written."""
    entries: dict[str, Entry] = {}
    total = 0
    for entry in objects.entries(git, tree, sizes=True):
        check_path(entry.path, depth=limits.depth)
        if entry.size < 0:
            raise CloneFsck(f"the object of {entry.path} is missing", hint="run git fsck there, or clone it anew")
        entries[entry.path] = entry
        total += entry.size
        check_size(len(entries), total, limits)
    if not entries:
        raise EmptyRepo("the commit holds no files", hint="commit model_manager.py, data_manager.py and conda.yaml")
    return entries


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, entry: Entry, writer: TreeWriter) -> RepositoryFile:
    if entry.mode == "120000":
        return writer.link(entry.path, member.linkname)
    content = tar.extractfile(member)
    if content is None:
        raise CloneFsck(f"{entry.path} is not a file in git's archive", hint="use a newer git")
    chunks = iter(lambda: content.read(CHUNK), b"")
    return writer.file(entry.path, chunks, size=entry.size, executable=entry.mode == "100755")


def _prepare(git: Git, commit: str) -> None:
    """Make the bare repository that a commit is fetched into."""
    size = "sha256" if len(commit) == 64 else "sha1"  # noqa: PLR2004
    git.run("init", "--quiet", "--bare", "--template=", f"--object-format={size}")
    (git.directory / "info").mkdir(exist_ok=True)
    (git.directory / "info" / "attributes").write_text(ATTRIBUTES)


def _subdir(text: str) -> str:
    names = [name for name in text.split("/") if name not in ("", ".")]
    if text.startswith("/") or ".." in names or re.search(r"[\x00-\x1f:]", text):
        raise SubdirNotFound(
            f"{text[:200]!r} is not a directory below the repository", hint="write it relative to its root"
        )
    return "/".join(names)

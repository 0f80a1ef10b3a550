"""An ML repository in a directory: which files it has, which commit they belong to, and whether they still are that commit's.

Everything is opened name by name below a descriptor, never through a link: somebody else may put one there at any moment.

Git is asked for names and object ids only. Whether a file was changed is told by hashing its bytes as they lie there, not by
`git status`: that would run the filters and the monitor that the repository's own configuration names. So a file that git
would convert on checkout (Git LFS, line ends) counts as changed, which it is: the images get the bytes of the directory.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from flops.errors import EmptyRepo, RepositoryLimit, SourceError, SubdirNotFound
from flops.repository.git import failure
from flops.repository.objects import SUBMODULE
from flops.repository.source import image_path, url_image_path, without_credentials
from flops.repository.tree_writer import check_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from flops.repository.git import Git
    from flops.repository.objects import Entry
    from flops.repository.tree_writer import RepositoryFile, TreeLimits, TreeWriter

#: Names that a directory without git is never packed with.
LEFT_OUT = frozenset({".git", ".hg", ".svn", "__pycache__", ".venv", ".ipynb_checkpoints"})
CHUNK = 1024**2
#: A directory to enter, which needs no permission to list it.
ENTER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: A file; a pipe in its place is not waited for.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class WorkTree:
    """What git knows of a directory."""

    directory: Path
    """As it was named."""
    subdir: str
    root: Path
    """`subdir` below it, with links resolved."""
    prefix: str = ""
    """Where `root` lies in its work tree, with a slash at its end, or empty."""
    head: str | None = None
    """HEAD's commit; None before the first, and without git."""
    origin: str | None = None
    """The remote's URL without credentials; None for an untrusted directory, which could name anybody's."""
    names: tuple[str, ...] | None = None
    """Tracked, and untracked but not ignored; None without git."""

    @property
    def repository(self) -> str:
        """The image path: the remote's owner and name, or `local/DIRNAME`; then the subdirectory."""
        if self.origin is None:
            return image_path("local", self.directory.name, self.subdir)
        return url_image_path(self.origin, self.prefix)

    @property
    def source(self) -> str:
        # images carry it as text, and a directory's name may be no UTF-8
        return self.origin or f"local/{self.directory.name.encode('utf-8', 'replace').decode()}"


def look(git: Git, directory: Path, subdir: str) -> WorkTree:
    """Ask git about a directory; one that git does not know, or ignores, is a plain directory."""
    root = (directory / subdir).resolve()
    if not root.is_dir() or not root.is_relative_to(directory):
        raise SubdirNotFound(f"{subdir!r} is not a directory of the repository", hint="check --subdir")
    plain = WorkTree(directory=directory, subdir=subdir, root=root)
    git = replace(git, directory=root)
    inside = git.run("rev-parse", "--is-inside-work-tree", "--show-prefix", check=False, errors="surrogateescape")
    if "not a git repository" in inside.stderr:
        return plain
    if inside.code != 0:
        raise failure(inside.stderr)
    answer, _, prefix = inside.stdout.partition("\n")
    if answer != "true":
        raise SourceError(f"{root} is a git directory without its files", hint="name its URL, or a clone of it")
    names = tuple(sorted(set(git.records("ls-files", "-z", "--cached", "--others", "--exclude-standard"))))
    if not names:
        return plain
    head = git.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False).stdout.strip() or None
    remote = git.run("config", "--get", "remote.origin.url", check=False).stdout.strip() if git.trusted else ""
    origin = without_credentials(remote) if remote else None
    return replace(plain, prefix=prefix.removesuffix("\n"), head=head, origin=origin, names=names)


def copy(tree: WorkTree, writer: TreeWriter, limits: TreeLimits) -> list[str]:
    """Write every file of the directory; warnings name what was left out.

    Where a link has taken the place of a directory, that link is what is written, once, and judged as any other.
    """
    warnings: list[str] = []
    links: set[str] = set()
    with _Way(tree.root) as way:
        for listed in _walk(way, limits) if tree.names is None else tree.names:
            name = listed.rstrip("/")
            check_path(name, depth=limits.depth)
            try:
                at, path = way.enter(name)
                last = path.rpartition("/")[2]
                mode = os.stat(last, dir_fd=at, follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    if path not in links:
                        links.add(path)
                        writer.link(path, os.readlink(last, dir_fd=at))
                elif path != name:
                    continue  # tracked, and its directory is a file by now
                elif stat.S_ISREG(mode):
                    _read(name, at, writer)
                elif stat.S_ISDIR(mode):
                    warnings.append(f"{name} is a repository of its own; its files are not packed")
                else:
                    warnings.append(f"{name} is not a file; it is not packed")
            except FileNotFoundError:
                continue  # tracked, and deleted in the directory
            except OSError as error:
                raise _unreadable(name, error) from error
    return warnings


def commit_name(head: str | None, committed: Iterable[Entry], files: Sequence[RepositoryFile]) -> str:
    """HEAD's commit where the files are exactly those `committed`, else `COMMIT-dirty-HASH`; submodules are never packed.

    HASH: the first 12 digits of a SHA-256 over the files' paths, modes and content. COMMIT is all zeros without a commit.
    """
    now = {(file.path, _mode(file), file.blob) for file in files}
    if head is not None and now == {(one.path, one.mode, one.blob) for one in committed if one.mode != SUBMODULE}:
        return head
    digest = hashlib.sha256()
    for entry in sorted(now):
        digest.update("\0".join(entry).encode("utf-8", "surrogateescape") + b"\n")
    return f"{head or '0' * 40}-dirty-{digest.hexdigest()[:12]}"


def _mode(file: RepositoryFile) -> str:
    if file.link is not None:
        return "120000"
    return "100755" if file.executable else "100644"


class _Way:
    """The open directories from the root of the file system down to a file; each was opened below the one before."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(0)

    def enter(self, path: str) -> tuple[int, str]:
        """The descriptor of the directory that holds `path`, and `path`, which is relative to the root of the tree.

        Where a name on its way is no directory, that name takes the place of `path`. OSError, SourceError.
        """
        names = (*self._root.parts, *path.split("/"))
        held = zip(self._open, names[:-1], strict=False)
        self._leave(next((i for i, (one, name) in enumerate(held) if one[0] != name), len(names) - 1))
        for name in names[len(self._open) : -1]:
            above = self._open[-1][1] if self._open else None
            try:
                self._open.append((name, os.open(name, ENTER, dir_fd=above)))
            except (FileNotFoundError, NotADirectoryError):
                break
        own = len(self._root.parts)
        if len(self._open) < own:
            raise SourceError(f"{self._root} was moved while it was read", hint="try again when nothing changes it")
        return self._open[-1][1], "/".join(names[own : len(self._open) + 1])

    def _leave(self, depth: int) -> None:
        while len(self._open) > depth:
            os.close(self._open.pop()[1])


def _walk(way: _Way, limits: TreeLimits) -> list[str]:
    """Every file below a directory without git, sorted; links to directories are not entered."""
    found: list[str] = []
    waiting = [""]
    while waiting:
        place = waiting.pop()
        try:
            at, path = way.enter(f"{place}.")
            if path != f"{place}.":
                found.append(path)  # no directory any more
                continue
            descriptor = os.open(".", LIST, dir_fd=at)
            try:
                with os.scandir(descriptor) as entries:
                    listed = [
                        (f"{place}{one.name}", one.is_dir(follow_symlinks=False))
                        for one in entries
                        if one.name not in LEFT_OUT
                    ]
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unreadable(place.rstrip("/") or "the directory", error) from error
        for path, is_directory in listed:
            if is_directory:
                check_path(path, depth=limits.depth)
                waiting.append(f"{path}/")
            else:
                found.append(path)
        if len(found) > limits.files:
            raise RepositoryLimit(f"the directory has more than {limits.files} files", hint="keep data out of it")
    if not found:
        raise EmptyRepo("the directory holds no files", hint="name the directory that holds model_manager.py")
    return sorted(found)


def _read(name: str, at: int, writer: TreeWriter) -> None:
    """Write the regular file `name`, whose directory is open."""
    descriptor = os.open(name.rpartition("/")[2], READ, dir_fd=at)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{name} changed while it was read", hint="try again when nothing writes into it")
        chunks = iter(lambda: os.read(descriptor, CHUNK), b"")
        writer.file(name, chunks, size=status.st_size, executable=bool(status.st_mode & stat.S_IXUSR))
    finally:
        os.close(descriptor)


def _unreadable(name: str, error: OSError) -> SourceError:
    return SourceError(f"{name} can't be read: {error.strerror}", hint="check its permissions")

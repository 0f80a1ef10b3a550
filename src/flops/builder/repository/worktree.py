"""An ML repository in a directory: which files it has, which commit they belong to, and whether they still are that commit's.

Git is asked for names and object ids only. Whether a file was changed is told by hashing its bytes as they lie there, not by
`git status`: that would run the filters and the monitor that the repository's own configuration names. So a file that git
would convert on checkout (Git LFS, line ends) counts as changed, which it is: the images get the bytes of the directory.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flops.builder.repository.git import failure, records
from flops.builder.repository.source import image_path, url_path, without_credentials
from flops.builder.repository.tree import check_path
from flops.errors import EmptyRepo, RepositoryLimit, SourceError, SubdirNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flops.builder.repository.git import Git
    from flops.builder.repository.tree import Limits, RepositoryFile, TreeWriter

#: Names that a directory without git is never packed with.
LEFT_OUT = frozenset({".git", ".hg", ".svn", "__pycache__", ".venv", ".ipynb_checkpoints"})
CHUNK = 1024**2


@dataclass(frozen=True, kw_only=True)
class WorkTree:
    """What git knows of a directory."""

    directory: Path
    """As it was named."""
    subdir: str
    """Below it; `root` is both."""
    prefix: str = ""
    """Where `root` lies in its work tree, with a slash at its end, or empty."""
    head: str | None = None
    """HEAD's commit; None before the first, and without git."""
    origin: str | None = None
    """The remote's URL without credentials."""
    names: tuple[str, ...] | None = None
    """Tracked, and untracked but not ignored; None without git."""
    committed: frozenset[tuple[str, str, str]] = frozenset()
    """HEAD's files below `root`: (path, mode, object id)."""

    @property
    def committed_files(self) -> frozenset[tuple[str, str, str]]:
        """Without submodules, which are never packed."""
        return frozenset(entry for entry in self.committed if entry[1] != "160000")

    @property
    def repository(self) -> str:
        """The image path: the remote's owner and name, or `local/DIRNAME`; then the subdirectory."""
        if self.origin is None:
            return image_path("local", self.directory.name, self.subdir)
        return image_path(url_path(self.origin), self.prefix)

    @property
    def source(self) -> str:
        # images carry it as text, and a directory's name may be no UTF-8
        return self.origin or f"local/{self.directory.name.encode('utf-8', 'replace').decode()}"

    @property
    def root(self) -> Path:
        return self.directory / self.subdir


def look(git: Git, directory: Path, subdir: str) -> WorkTree:
    """Ask git about a directory; one that git does not know, or ignores, is a plain directory."""
    root = (directory / subdir).resolve()
    if not root.is_dir() or not root.is_relative_to(directory):
        raise SubdirNotFound(f"{subdir!r} is not a directory of the repository", hint="check --subdir")
    inside = git.run("-C", root, "rev-parse", "--is-inside-work-tree", "--show-prefix", check=False)
    if "not a git repository" in inside.stderr:
        return WorkTree(directory=directory, subdir=subdir)
    if inside.code != 0:
        raise failure(inside.stderr)
    answer = inside.stdout.splitlines()
    if answer[0] != "true":
        raise SourceError(f"{root} is a git directory without its files", hint="name its URL, or a clone of it")
    listed = records(git.run("-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"))
    names = tuple(sorted(set(listed)))
    if not names:
        return WorkTree(directory=directory, subdir=subdir)
    head = git.run("-C", root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False).stdout.strip() or None
    remote = git.run("-C", root, "config", "--get", "remote.origin.url", check=False).stdout.strip()
    prefix = answer[1] if len(answer) > 1 else ""
    return WorkTree(
        directory=directory,
        subdir=subdir,
        prefix=prefix,
        head=head,
        origin=without_credentials(remote) if remote else None,
        names=names,
        committed=frozenset(_committed(git, root, head)) if head else frozenset(),
    )


def _committed(git: Git, root: Path, head: str) -> Iterator[tuple[str, str, str]]:
    for record in records(git.run("-C", root, "ls-tree", "-r", "-z", head, ".")):
        mode, _, rest = record.partition(" ")
        blob, _, path = rest.partition(" ")[2].partition("\t")
        yield path, mode, blob


def copy(tree: WorkTree, writer: TreeWriter, limits: Limits) -> list[str]:
    """Write every file of the directory; warnings name what was left out."""
    warnings: list[str] = []
    for name in tree.names if tree.names is not None else _walk(tree.root, limits):
        check_path(name.rstrip("/"), depth=limits.depth)
        path = tree.root / name
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # tracked, and deleted in the directory
        except OSError as error:
            raise SourceError(f"{name} can't be read: {error.strerror}", hint="check its permissions") from error
        if stat.S_ISLNK(status.st_mode):
            writer.link(name, os.readlink(path))  # noqa: PTH115  (pathlib would normalise the target)
        elif stat.S_ISREG(status.st_mode):
            writer.file(name, _read(path, name), size=status.st_size, executable=bool(status.st_mode & stat.S_IXUSR))
        elif stat.S_ISDIR(status.st_mode):
            warnings.append(f"{name.rstrip('/')} is a repository of its own; its files are not packed")
        else:
            warnings.append(f"{name} is not a file; it is not packed")
    return warnings


def commit_name(tree: WorkTree, files: Sequence[RepositoryFile]) -> str:
    """HEAD's commit where the files are exactly its files, else `COMMIT-dirty-HASH`.

    HASH: the first 12 digits of a SHA-256 over the files' paths, modes and content. COMMIT is all zeros without a commit.
    """
    now = frozenset((file.path, _mode(file), file.blob) for file in files)
    if tree.head is not None and now == tree.committed_files:
        return tree.head
    digest = hashlib.sha256()
    for entry in sorted(now):
        digest.update("\0".join(entry).encode("utf-8", "surrogateescape") + b"\n")
    return f"{tree.head or '0' * 40}-dirty-{digest.hexdigest()[:12]}"


def _mode(file: RepositoryFile) -> str:
    if file.link is not None:
        return "120000"
    return "100755" if file.executable else "100644"


def _walk(root: Path, limits: Limits) -> Iterator[str]:
    """Every file below a directory without git, sorted; links to directories are not entered."""
    count = 0
    for place, directories, names in os.walk(root):
        directories[:] = sorted(set(directories) - LEFT_OUT)
        links = [name for name in directories if (Path(place) / name).is_symlink()]
        for name in sorted([*set(names) - LEFT_OUT, *links]):
            count += 1
            if count > limits.files:
                raise RepositoryLimit(f"the directory has more than {limits.files} files", hint="keep data out of it")
            yield (Path(place) / name).relative_to(root).as_posix()
    if count == 0:
        raise EmptyRepo(f"{root} holds no files", hint="name the directory that holds model_manager.py")


def _read(path: Path, name: str) -> Iterator[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"{name} can't be read: {error.strerror}", hint="check its permissions") from error
    with os.fdopen(descriptor, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk

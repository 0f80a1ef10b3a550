"""A commit's files, told by objects whose bytes were hashed here.

Git hashes what it receives from a host, not what it reads in its own directory: whoever wrote a directory's `.git` may have put a
tree of his own under the id of somebody else's. So commit and trees are taken raw and compared with their ids, from the commit
down; a file's bytes are compared where they are written.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flops.errors import CloneFsck
from flops.repository.git import RECURSIVELY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flops.repository.git import Git

DIRECTORY = "040000"
SUBMODULE = "160000"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: One entry of a tree, by the size of its object ids.
ENTRIES = {size: re.compile(rb"([0-7]{1,6}) ([^\0]+)\0(.{%d})" % (size // 2), re.DOTALL) for size in (40, 64)}


@dataclass(frozen=True, kw_only=True)
class Commit:
    name: str
    tree: str | None
    """Of the subdirectory that was asked for; None where the commit has none."""
    created: datetime
    """The committer's time, UTC; one that no calendar has becomes 1970-01-01."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file, a symbolic link or a submodule."""

    path: str
    mode: str
    """As `git ls-tree` has it: 100644, 100755, 120000 or 160000."""
    blob: str
    size: int = 0
    """Of a file or link, where sizes were asked for; -1 where git lacks the object."""


def find(git: Git, commit: str, subdir: str) -> Commit:
    """A commit, and the tree that it has at `subdir` (empty for its root). CloneFsck."""
    header = _read(git, "commit", [commit])[commit].partition(b"\n\n")[0].decode("utf-8", "replace")
    root = re.match(r"tree ([0-9a-f]+)\n", header)
    tree = root[1] if root else None
    for name in filter(None, subdir.split("/")):
        below = _parsed(_read(git, "tree", [tree])[tree], tree) if tree else ()
        tree = next((found for mode, last, found in below if (mode, last) == (DIRECTORY, name)), None)
    time = re.search(r"^committer .*> (\d{1,11}) [+-]\d{4}$", header, re.MULTILINE)
    created = datetime.fromtimestamp(int(time[1]), tz=UTC) if time else EPOCH
    return Commit(name=commit, tree=tree, created=created)


def entries(git: Git, tree: str, *, sizes: bool = False) -> Iterator[Entry]:
    """Everything below a tree, in no order. CloneFsck; RepositoryLimit where it is too much to be listed."""
    # The listing says which objects to read, and sizes; what lies where, the objects say.
    listed = list(git.records("ls-tree", *RECURSIVELY, "--full-tree", *(["--long"] if sizes else []), tree))
    facts = [record.partition("\t")[0].split() for record in listed]
    size_of = {name: int(size) for _, _, name, size in facts if size.isdecimal()} if sizes else {}
    trees = _read(git, "tree", {tree, *(fact[2] for fact in facts if fact[1] == "tree")})
    waiting, left = [("", tree)], len(listed)
    while waiting:
        place, name = waiting.pop()
        for mode, last, found in _parsed(trees[name], name):
            left -= 1
            if left < 0 or (mode == DIRECTORY and found not in trees):  # changed since it was listed
                raise _damaged("tree", tree)
            if mode == DIRECTORY:
                waiting.append((f"{place}{last}/", found))
            else:
                size = size_of.get(found, -1) if sizes and mode != SUBMODULE else 0
                yield Entry(path=f"{place}{last}", mode=mode, blob=found, size=size)


def _read(git: Git, kind: str, names: Iterable[str]) -> dict[str, bytes]:
    """Objects of one kind, each the one that its name is the hash of."""
    names = sorted(names)
    done = git.run("cat-file", "--batch", stdin="\n".join(names) + "\n", errors="surrogateescape")
    answer = io.BytesIO(done.stdout.encode("utf-8", "surrogateescape"))
    found: dict[str, bytes] = {}
    for name in names:
        told = re.fullmatch(rf"[0-9a-f]+ {kind} (\d+)\n", answer.readline().decode("utf-8", "replace"))
        content = answer.read(int(told[1])) if told else b""
        answer.read(1)
        own = hashlib.new("sha256" if len(name) == 64 else "sha1", usedforsecurity=False)  # noqa: PLR2004
        own.update(b"%s %d\0" % (kind.encode(), len(content)) + content)
        if not told or own.hexdigest() != name:
            raise _damaged(kind, name)
        found[name] = content
    return found


def _parsed(content: bytes, name: str) -> Iterator[tuple[str, str, str]]:
    """A tree's entries: mode, name, object id."""
    end = 0
    for entry in ENTRIES[len(name)].finditer(content):
        if entry.start() != end:
            break
        end = entry.end()
        yield _mode(int(entry[1], 8)), entry[2].decode("utf-8", "surrogateescape"), entry[3].hex()
    if end != len(content):
        raise _damaged("tree", name)


def _mode(mode: int) -> str:
    """As git takes it: old trees hold others."""
    if stat.S_ISREG(mode):
        return "100755" if mode & stat.S_IXUSR else "100644"
    return {stat.S_IFLNK: "120000", stat.S_IFDIR: DIRECTORY}.get(stat.S_IFMT(mode), SUBMODULE)


def _damaged(kind: str, name: str) -> CloneFsck:
    return CloneFsck(f"{kind} {name} is missing or not what its name says", hint="run git fsck there, or clone it anew")

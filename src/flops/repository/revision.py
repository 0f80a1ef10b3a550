"""Which commit a name stands for: asked of the host once, before anything is fetched."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flops.errors import BadRef, CloneAuth, CloneFailed, CloneTimeout, EmptyRepo, RefNotFound

if TYPE_CHECKING:
    from flops.repository.git import Git

FULL = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
SHORT = re.compile(r"[0-9a-f]{7,63}")
#: What `git check-ref-format` refuses, as far as it could be taken for something else on the way.
REF_LIMIT = 255
FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[-/.]|[/.]$|\.lock$|/\.")
#: The host answered, and does not give the commit this way.
REFUSED = re.compile(r"unadvertised object|does not support shallow|couldn't find remote ref|not valid|no such ref")
DEPTH = "--depth="
EVERYTHING = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One commit, and the name on the host that stood for it when it was asked."""

    commit: str
    """The full object id, lower-case hexadecimal."""
    name: str | None = None
    """As `refs/heads/main` or `HEAD`; None where the commit itself was asked for."""


def check_ref(ref: str) -> str:
    """The ref, fit to be given to git; BadRef. An upper-case hash becomes lower-case."""
    if not ref or len(ref) > REF_LIMIT or FORBIDDEN.search(ref):
        raise BadRef(f"{ref[:100]!r} is not a branch, tag or commit", hint="write a name such as main, v1.0 or a hash")
    return ref.lower() if FULL.fullmatch(ref.lower()) else ref


def resolve(git: Git, url: str, ref: str | None) -> Revision:
    """Ask the host at `url` for a branch, a tag (annotated too), a commit, or its HEAD where `ref` is None.

    EmptyRepo, BadRef, RefNotFound and what reaching the host raises. A full hash is taken as it is, unasked.
    """
    if ref is not None and FULL.fullmatch(ref := check_ref(ref)):
        return Revision(commit=ref)
    names = ["HEAD"] if ref is None else [ref] if ref.startswith("refs/") else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    asked = [pattern for name in names for pattern in (name, f"{name}^{{}}")]
    found = _advertised(git, url, *asked)
    for name in names:
        if name in found:
            return Revision(commit=found.get(f"{name}^{{}}", found[name]), name=name)
    everything = _advertised(git, url)
    if not everything:
        raise EmptyRepo("the repository has no commits", hint="commit and push, then try again")
    if ref is not None and SHORT.fullmatch(ref.lower()):
        return Revision(commit=_from_short(git, url, ref.lower(), everything))
    branches = sorted(name.removeprefix("refs/heads/") for name in everything if name.startswith("refs/heads/"))
    raise RefNotFound(
        f"the repository has no {'HEAD' if ref is None else 'branch, tag or commit'} {'' if ref is None else repr(ref)}".strip(),
        hint=f"use --ref with one of its branches: {', '.join(branches[:10])}",
    )


def _advertised(git: Git, url: str, *patterns: str) -> dict[str, str]:
    lines = git.text("ls-remote", "--quiet", "--", url, *patterns).splitlines()
    pairs = (line.partition("\t") for line in lines)
    return {name: commit for commit, _, name in pairs if FULL.fullmatch(commit)}


def _from_short(git: Git, url: str, short: str, advertised: dict[str, str]) -> str:
    """A shortened hash: of a branch's or tag's tip if one fits, else out of the whole history's commits (no files)."""
    peeled = {name.removesuffix("^{}") for name in advertised if name.endswith("^{}")}
    tips = {commit for name, commit in advertised.items() if name not in peeled and commit.startswith(short)}
    if len(tips) == 1:
        return tips.pop()
    with tempfile.TemporaryDirectory(dir=git.directory, prefix="history-") as place:
        history = replace(git, directory=Path(place))
        history.run("init", "--quiet", "--bare", "--template=")
        history.run("fetch", "--quiet", "--filter=tree:0", "--no-write-fetch-head", "--", url, *EVERYTHING)
        done = history.run("rev-parse", "--verify", "--quiet", f"{short}^{{commit}}", check=False)
    if done.code == 0 and FULL.fullmatch(commit := done.stdout.strip()):
        return commit
    raise RefNotFound(
        f"{short} names no commit of the repository's branches and tags, or more than one", hint="write all of the hash"
    )


def fetch(git: Git, url: str, revision: Revision) -> None:
    """Fetch exactly this commit into `git`'s directory, as shallow as the host allows; RefNotFound where it is gone.

    A host that gives no commits by hash is asked for the name; what that stands for by now is checked, and the history
    fetched where it moved on.
    """
    names = [revision.name] if revision.name else []
    ways = [[DEPTH + "1", "--", url, revision.commit], *([DEPTH + "1", "--", url, name] for name in names)]
    whole = ["--", url, *(names or EVERYTHING)]
    # What a shallow fetch left is deepened only by a depth; a host without shallow fetches has to be asked without one.
    for way in (*ways, [DEPTH + str(2**31 - 1), *whole], whole):
        try:
            git.run("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", *way)
        except (CloneAuth, CloneTimeout):
            raise
        except CloneFailed as error:
            if "not our ref" in error.message:  # it looked for the object itself: no other way will find it
                break
            if not REFUSED.search(error.message):
                raise
        if git.run("cat-file", "-t", revision.commit, check=False).stdout.strip() == "commit":
            return
    raise RefNotFound(f"the repository has no commit {revision.commit}", hint="push it, or use another --ref")

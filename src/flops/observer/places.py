"""Where a repository is, for people: its short name, and pages of well-known git hosts that show a commit or a line. Pure."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

#: Path of a file's lines on the hosts that everybody knows; of others, nobody can tell what answers there.
_FILES = {
    "github.com": "/blob/{commit}/{path}",
    "gitlab.com": "/-/blob/{commit}/{path}",
    "codeberg.org": "/src/commit/{commit}/{path}",
}
_COMMITS = {"github.com": "/commit/", "gitlab.com": "/-/commit/", "codeberg.org": "/commit/"}
_HASH = re.compile(r"[0-9a-f]{40,64}")


def name(repository: str) -> str:
    """`acme/digits` of a URL, the last part of a directory."""
    if "://" in repository:
        short = _path(repository).strip("/").removesuffix(".git")
    else:
        short = repository.rstrip("/").rpartition("/")[2]
    return short or repository


def home(repository: str) -> str:
    """What stands before the name: a host, or the directory above."""
    if "://" in repository:
        return repository.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return repository.rstrip("/").rpartition("/")[0]


def commit_page(repository: str, commit: str | None) -> str:
    """The page of a commit; empty where it is not known."""
    host = home(repository)
    if not commit or not _known(repository) or not _HASH.fullmatch(commit):
        return ""
    return f"https://{host}{_base(repository)}{_COMMITS[host]}{commit}"


def line_page(repository: str, commit: str | None, path: str, line: int) -> str:
    """The page of a file at its line; empty where it is not known."""
    host = home(repository)
    if not path or not commit or not _known(repository) or not _HASH.fullmatch(commit):
        return ""
    page = _FILES[host].format(commit=commit, path=quote(path))
    return f"https://{host}{_base(repository)}{page}" + (f"#L{line}" if line else "")


def _known(repository: str) -> bool:
    return repository.startswith("https://") and home(repository) in _FILES


def _base(repository: str) -> str:
    return quote("/" + _path(repository).strip("/").removesuffix(".git"), safe="/%~")


def _path(repository: str) -> str:
    try:
        return urlsplit(repository).path
    except ValueError:
        return ""

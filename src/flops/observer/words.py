"""Where a repository is, for people: its short name, and pages of well-known git hosts that show a commit or a line. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from flops_wire.flops import visible

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


_KILO = 1000.0
_UNITS = ("B", "kB", "MB", "GB", "TB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def amount(count: float | None) -> str:
    """Bytes with a unit (SI); empty where there is no number."""
    if count is None:
        return ""
    value = float(count)
    for unit in _UNITS:
        if abs(value) < _KILO or unit == _UNITS[-1]:
            break
        value /= _KILO
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def span(seconds: float | None) -> str:
    """A duration as people say it: `0.4 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None:
        return ""
    if round(seconds, 1) < _MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE)
    hours = minutes // 60
    if not hours:
        return f"{minutes} min {rest} s"
    days, left = divmod(hours, 24)
    return f"{days} d {left} h" if days else f"{hours} h {minutes % 60} min"


def ago(moment: str | None, now: float) -> str:
    """How long before `now` (seconds since the epoch) something was; the moment as RFC 3339."""
    then = epoch(moment)
    if then is None:
        return ""
    seconds = max(0.0, now - then)
    for size, word in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {word} ago"
    return "just now"


def revision(commit: str | None, length: int = 12) -> str:
    """A commit's beginning; of files that are no commit's (`COMMIT-dirty-HASH`), so much that they are told apart."""
    head, dirty, files = (commit or "").partition("-dirty-")
    if not dirty:
        return head[:length]
    return f"dirty {files[:length]}" if not head.strip("0") else f"{head[:length]}, dirty {files[:length]}"


def clock(moment: str | None) -> str:
    """Hours, minutes, seconds in UTC."""
    then = epoch(moment)
    return "" if then is None else datetime.fromtimestamp(then, UTC).strftime("%H:%M:%S")


def epoch(moment: str | None) -> float | None:
    """RFC 3339 to seconds since the epoch; None for what is none."""
    try:
        return datetime.fromisoformat(moment).timestamp() if moment else None
    except (ValueError, OverflowError):
        return None


def short(text: str, limit: int = 2000) -> str:
    """A long text's beginning, and how much is left out."""
    return text if len(text) <= limit + 40 else f"{text[:limit]}... ({len(text) - limit} more characters)"


def line(text: object) -> str:
    """Foreign text as one line, for what people copy into a terminal."""
    return plain(text).replace("\n", "\\n")


def plain(text: object) -> str:
    """Foreign text with its control characters, escapes and reordering marks made visible; lines stay lines."""
    return visible("" if text is None else str(text))

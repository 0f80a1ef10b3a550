"""A client of the package index (PEP 503, PEP 691), and the pages that it reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
)

from flops import http
from flops.errors import BadSetting, IndexUnreachable
from flops.http import Retry, Transient, is_transient, retry_after, without_credentials
from flops.locking.pylock import FILENAME_LIMIT, parse_wheel_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import httpx
    from packaging.tags import Tag
    from packaging.version import Version

    from flops.locking.pylock import LockTarget


#: Files of one page, of which the largest known has some ten thousand, and characters of a Requires-Python.
FILES_LIMIT = 100_000
REQUIRES_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class IndexFile:
    """One published file."""

    version: Version
    tags: frozenset[Tag]
    """Empty for sources."""
    requires_python: str = ""
    yanked: bool = False

    @property
    def is_wheel(self) -> bool:
        return bool(self.tags)

    def takes(self, python: str) -> bool:
        """Whether Requires-Python allows this full version; one that can't be read allows all."""
        try:
            return SpecifierSet(self.requires_python).contains(python, prereleases=True)
        except InvalidSpecifier:
            return True

    def runs_on(self, target: LockTarget) -> bool:
        return not self.yanked and self.takes(target.python) and any(tag in target.tags for tag in self.tags)


@dataclass(frozen=True, kw_only=True)
class IndexProject:
    """Everything that was published under one name."""

    name: str
    files: tuple[IndexFile, ...]

    @cached_property
    def versions(self) -> tuple[Version, ...]:
        """Published versions, ascending."""
        return tuple(sorted({file.version for file in self.files}))

    def usable(self, targets: Sequence[LockTarget]) -> tuple[Version, ...]:
        """Versions that have a wheel for each of the targets, ascending."""
        found = [{file.version for file in self.files if file.runs_on(target)} for target in targets]
        return tuple(sorted(set.intersection(*found))) if found else self.versions

    def allowed(self, specifier: str) -> tuple[IndexFile, ...]:
        """The files of the versions that a specifier allows; pre-releases if it names one or there are no others."""
        chosen = frozenset(SpecifierSet(specifier).filter(self.versions))
        return tuple(file for file in self.files if file.version in chosen)


def parse(name: str, content_type: str, data: bytes) -> IndexProject:
    """Read one page; files whose names are neither a wheel's nor an sdist's are left out.

    ValueError where it is no page, or one of more than FILES_LIMIT files.
    """
    if "json" in content_type:
        entries = list(_from_json(data))
    else:
        reader = _Anchors()
        reader.feed(data.decode("utf-8", "replace"))
        entries = reader.entries
    found = (_file(canonicalize_name(name), *entry) for entry in entries)
    return IndexProject(name=name, files=tuple(file for file in found if file is not None))


def _from_json(data: bytes) -> Iterator[tuple[str, str, bool]]:
    try:
        document: Any = json.loads(data)
    except RecursionError as error:
        raise ValueError("lists in lists") from error
    if not isinstance(document, dict) or not isinstance(document.get("files"), list):
        raise ValueError("no list of files")  # noqa: TRY004 - one kind for all that is no page
    if len(document["files"]) > FILES_LIMIT:
        raise ValueError("too many files")
    for entry in document["files"]:
        if isinstance(entry, dict) and isinstance(entry.get("filename"), str):
            requires = entry.get("requires-python")
            yield entry["filename"], requires if isinstance(requires, str) else "", bool(entry.get("yanked"))


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields: Mapping[str, str | None] = dict(attrs)
        if tag == "a" and fields.get("href"):
            filename = unquote(urlsplit(fields["href"] or "").path.rpartition("/")[2])
            self.entries.append((filename, fields.get("data-requires-python") or "", "data-yanked" in fields))
            if len(self.entries) > FILES_LIMIT:
                raise ValueError("too many files")


def _file(project: str, filename: str, requires_python: str, yanked: bool) -> IndexFile | None:
    if len(filename) > FILENAME_LIMIT or len(requires_python) > REQUIRES_LIMIT:
        return None
    try:
        if filename.endswith(".whl"):
            name, version, _, tags = parse_wheel_name(filename)
        else:
            (name, version), tags = parse_sdist_filename(filename), frozenset()
    except (InvalidWheelFilename, InvalidSdistFilename, ValueError):
        return None
    if name != project:
        return None
    return IndexFile(version=version, tags=frozenset(tags), requires_python=requires_python, yanked=yanked)


ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
SECONDS = 20.0
#: Seconds before an index that did not answer is asked again; each time twice as long.
PAUSE = 0.5
#: Bytes of one package's page; the largest known have some 10 MB.
PAGE_LIMIT = 32 * 1024 * 1024
HINT = "nothing is wrong with the repository; try again, or set FLOPS_INDEX_URL to an index that answers"


def check_url(url: str) -> str:
    """The index URL as it is; BadSetting where it is none of http or https."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise BadSetting("the package index is no URL", hint="correct FLOPS_INDEX_URL") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise BadSetting(
            f"the package index {without_credentials(url)!r:.200} is not an http or https URL",
            hint="set FLOPS_INDEX_URL to a simple index, https://HOST/simple",
        )
    return url


class Index:
    """A client of one index; `with` closes its connections."""

    def __init__(
        self,
        url: str,
        *,
        ca_bundle: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        retries: int = 0,
    ) -> None:
        self.url = check_url(url).rstrip("/")
        self._shown = without_credentials(self.url)
        self._retry = Retry(tries=retries + 1, first=PAUSE)
        headers = {"Accept": ACCEPT}
        self._client = http.client(
            ca_bundle, transport=transport, seconds=SECONDS, follow_redirects=True, headers=headers
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def knows(self, name: str) -> bool:
        """Whether the index has a package of this name (PEP 503 form); IndexUnreachable."""
        return self._page(name, limit=0) is not None

    def project(self, name: str) -> IndexProject | None:
        """Everything published under a name (PEP 503 form); None if there is no such package. IndexUnreachable."""
        page = self._page(name, limit=PAGE_LIMIT)
        if page is None:
            return None
        try:
            return parse(name, *page)
        except ValueError as error:  # of JSON, too
            raise IndexUnreachable(
                f"the package index {self._shown} answers with no page for {name}", hint=HINT
            ) from error

    def _page(self, name: str, *, limit: int) -> tuple[str, bytes] | None:
        """Content type and up to `limit` bytes of a page; None where there is none."""
        status, kind, data = self._retry.run(lambda: self._get(name, limit))
        if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            return None
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}:
            raise IndexUnreachable(
                f"the package index {self._shown} refuses us (status {status})",
                hint="put the credentials into FLOPS_INDEX_URL, https://USER:TOKEN@HOST/simple",
            )
        if status != HTTPStatus.OK:
            raise self._failed(status)
        return kind, data

    def _get(self, name: str, limit: int) -> tuple[int, str, bytes]:
        """Status, content type and up to `limit` bytes of one answer. Transient where another try may help."""
        import httpx  # noqa: PLC0415 - slow to import, and not needed where everything is remembered

        try:
            with self._client.stream("GET", f"{self.url}/{name}/") as response:
                if is_transient(response.status_code):
                    raise Transient(self._failed(response.status_code), after=retry_after(response))
                pieces = response.iter_bytes() if limit and response.is_success else iter(())
                data = b"".join(_up_to(limit, pieces))
                return response.status_code, response.headers.get("content-type", ""), data
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError, _TooLong) as error:
            why, hint = http.reason(error)
            failure = IndexUnreachable(f"the package index {self._shown} does not answer: {why}", hint=hint or HINT)
            raise (failure if hint else Transient(failure)) from error

    def _failed(self, status: int) -> IndexUnreachable:
        return IndexUnreachable(f"the package index {self._shown} answers with status {status}", hint=HINT)


class _TooLong(Exception):
    """A page is longer than allowed."""


def _up_to(limit: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise _TooLong(f"more than {limit} bytes")
        yield piece

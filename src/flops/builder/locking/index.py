"""The package index (PEP 503, PEP 691), asked directly where uv's answer must be confirmed."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from flops import http
from flops.builder.locking.catalog import Project, parse
from flops.errors import BadSetting, IndexUnreachable
from flops.http import Retry, Transient, is_transient, retry_after, without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

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
        """Whether the index has a package of this name (PEP 503 form); IndexUnreachable where it does not say."""
        return self._page(name, limit=0) is not None

    def project(self, name: str) -> Project | None:
        """Everything published under a name (PEP 503 form); None where there is no such package. IndexUnreachable."""
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
    """A page that goes on."""


def _up_to(limit: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise _TooLong(f"more than {limit} bytes")
        yield piece

"""The package index (PEP 503, PEP 691), asked directly where uv's answer must be confirmed."""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from flops.builder.locking.catalog import Project, parse
from flops.errors import BadSetting, IndexUnreachable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
SECONDS = 20.0
#: Seconds before an index that did not answer is asked again; each time twice as long.
PAUSE = 0.5
#: Bytes of one package's page; the largest known have some 10 MB.
PAGE_LIMIT = 64 * 1024 * 1024
HINT = "nothing is wrong with the repository; try again, or set FLOPS_INDEX_URL to an index that answers"
_USERINFO = re.compile(r"(?<=://)[^/@\s'\"]+@")


def without_credentials(text: str) -> str:
    """The text with the user names and passwords of all URLs in it taken out."""
    return _USERINFO.sub("", text)


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


def tls(ca_bundle: Path | None) -> ssl.SSLContext | bool:
    """What httpx verifies servers with: the given certificates, or its default (SSL_CERT_FILE, SSL_CERT_DIR)."""
    if ca_bundle is None:
        return True
    import ssl  # noqa: PLC0415 - slow to import

    try:
        return ssl.create_default_context(cafile=str(ca_bundle))
    except (OSError, ssl.SSLError) as error:
        raise BadSetting(
            f"{ca_bundle} holds no certificates that can be used", hint="correct FLOPS_CA_BUNDLE"
        ) from error


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
        import httpx  # noqa: PLC0415 - slow to import, and not needed where everything is remembered

        self.url = check_url(url).rstrip("/")
        self._retries = retries
        self._client = httpx.Client(
            verify=tls(ca_bundle) if transport is None else True,
            transport=transport,
            timeout=SECONDS,
            follow_redirects=True,
            headers={"Accept": ACCEPT},
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
            shown = without_credentials(self.url)
            raise IndexUnreachable(f"the package index {shown} answers with no page for {name}", hint=HINT) from error

    def _page(self, name: str, *, limit: int) -> tuple[str, bytes] | None:
        """Content type and up to `limit` bytes of a page; None where there is none."""
        shown = without_credentials(self.url)
        for attempt in range(self._retries + 1):
            try:
                status, kind, data = self._get(name, limit)
            except IndexUnreachable:
                if attempt == self._retries:
                    raise
            else:
                if status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
                    break
            time.sleep(PAUSE * 2**attempt if attempt < self._retries else 0)
        if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            return None
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}:
            raise IndexUnreachable(
                f"the package index {shown} refuses us (status {status})",
                hint="put the credentials into FLOPS_INDEX_URL, https://USER:TOKEN@HOST/simple",
            )
        if status != HTTPStatus.OK:
            raise IndexUnreachable(f"the package index {shown} answers with status {status}", hint=HINT)
        return kind, data

    def _get(self, name: str, limit: int) -> tuple[int, str, bytes]:
        """Status, content type and up to `limit` bytes of one answer. IndexUnreachable where there is none."""
        import httpx  # noqa: PLC0415 - as above

        try:
            with self._client.stream("GET", f"{self.url}/{name}/") as response:
                pieces = response.iter_bytes() if limit and response.is_success else iter(())
                data = b"".join(_up_to(limit, pieces))
                return response.status_code, response.headers.get("content-type", ""), data
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError, _TooLong) as error:
            shown = without_credentials(self.url)
            reason = without_credentials(str(error)) or type(error).__name__
            raise IndexUnreachable(f"the package index {shown} does not answer: {reason:.300}", hint=HINT) from error


class _TooLong(Exception):
    """A page that goes on."""


def _up_to(limit: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise _TooLong(f"more than {limit} bytes")
        yield piece

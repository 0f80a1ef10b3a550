"""HTTP to one registry: tries and pauses, logins, redirects, proxies, and every failure told in our own words."""

from __future__ import annotations

import functools
import json
import ssl
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx

from flops.errors import (
    BadSetting,
    FlopsError,
    RegistryAuth,
    RegistryRefused,
    RegistryTooLarge,
    RegistryUnreachable,
)
from flops.oci import answers
from flops.oci.authentication import SCOPE, RegistryAuthentication
from flops.oci.hosts import check_location
from flops.oci.pressure import Pressure
from flops.oci.retry import Retry, Transient, is_transient, retry_after

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from flops.oci.credentials import Credentials
    from flops.oci.reference import Registry

PIECE = 256 * 1024
_HOPS = 5
#: Seconds; a registry may digest a large blob again before it answers the upload's end.
_TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=180.0, pool=None)
_NO_PROXY = ("localhost", "127.0.0.1", "[::1]")


class Session:
    """Requests to one registry, from any thread. Constructing it connects to nothing."""

    def __init__(
        self,
        registry: Registry,
        *,
        credentials: Credentials | None = None,
        transport: httpx.BaseTransport | None = None,
        verify: Path | None = None,
        workers: int = 4,
        chunk: int | None = None,
        realms: Collection[str] = (),
        retry: Retry | None = None,
    ) -> None:
        self.registry = registry
        self.retry = retry or Retry()
        self.chunk = chunk
        """Bytes of a request's body at most; smaller once the registry, or what stands before it, refused a larger one."""
        connections = 2 * workers + 2
        self.pressure = Pressure(start=workers, most=connections)
        self._reached = False
        self._client = httpx.Client(
            transport=transport,
            verify=_tls(verify),
            auth=RegistryAuthentication(registry, credentials, realms=realms),
            timeout=_TIMEOUT,
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30
            ),
            mounts=_without_proxy(registry) if transport is None else None,
            # A blob must arrive as it lies there: no content encoding.
            headers={"User-Agent": "flops", "Accept": "*/*", "Accept-Encoding": "identity"},
        )

    def close(self) -> None:
        self._client.close()

    def request(self, method: str, path: str | httpx.URL, *, expect: Collection[int], **options: Any) -> httpx.Response:
        """`send`, as often as needed."""
        return self.retry.run(lambda: self.send(method, path, expect=expect, **options))

    def send(
        self,
        method: str,
        path: str | httpx.URL,
        *,
        expect: Collection[int],
        scope: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
    ) -> httpx.Response:
        """One try, its answer read whole; Transient where another may help, else a RegistryError for other statuses."""
        with self.stream(method, path, expect=expect, scope=scope, headers=headers, content=content) as response:
            return response

    @contextmanager
    def stream(
        self,
        method: str,
        path: str | httpx.URL,
        *,
        expect: Collection[int],
        scope: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        unread: bool = False,
    ) -> Iterator[httpx.Response]:
        """One try, as a context. With `unread`, the body of an expected answer is the caller's to iterate over."""
        url = httpx.URL(self.registry.url + path) if isinstance(path, str) else path
        with self.pressure.turn(), self._translated():
            request = self._client.build_request(
                method, url, headers=headers, content=content, extensions={SCOPE: scope}
            )
            response = self._follow(request)
            try:
                self._reached = True
                expected = response.status_code in expect
                whole = response if unread and expected else answers.read(response)
                if not expected:
                    raise self._failure(whole)
                yield whole
            finally:
                response.close()

    def location(self, response: httpx.Response) -> httpx.URL:
        """The Location of an answer, resolved; RegistryRefused where it is missing or may not be followed."""
        text = response.headers.get("location")
        if not text:
            raise RegistryRefused(f"the registry {self.registry.host} told no Location for an upload")
        return self.resolve(response, text)

    def resolve(self, response: httpx.Response, text: str) -> httpx.URL:
        """An address that an answer names; RegistryRefused where it may not be followed."""
        try:
            url = response.request.url.join(text)
            return check_location(self.registry, url)
        except (httpx.InvalidURL, UnicodeError) as error:  # a host that is no IDNA name is seen when it is asked for
            raise RegistryRefused(f"the registry {self.registry.host} told a Location that can't be read") from error

    def refusal(self, response: httpx.Response) -> FlopsError:
        """The error for an answer whose status nobody can use."""
        status, host = response.status_code, self.registry.host
        doing = f"{response.request.method} {response.request.url.path}"
        said = _said(response)
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            hint = "raise the limit of the registry, or of the proxy before it (nginx: client_max_body_size)"
            return RegistryTooLarge(f"{host} takes no body of this size ({doing})", hint=hint)
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            hint = f"log in with `docker login {host}` or `podman login {host}`, and see what the account may do there"
            return RegistryAuth(f"{host} refused us ({doing}: {status}{said})", hint=hint)
        if response.is_redirect:
            hint = f"name the registry as it is reached: {response.headers.get('location', '')[:200]}"
            return RegistryRefused(f"{host} redirects {doing}", hint=hint)
        if b"HTTP request to an HTTPS server" in response.content[:1000]:
            hint = f"write https://{host}"
            return RegistryUnreachable(f"{host} speaks HTTPS, and was spoken to by HTTP", hint=hint)
        return RegistryRefused(f"{host} answered {status} to {doing}{said}", hint=_hint(status))

    def _failure(self, response: httpx.Response) -> Exception:
        failure = self.refusal(response)
        if is_transient(response.status_code):
            return Transient(failure, after=retry_after(response), status=response.status_code)
        return failure

    def _follow(self, request: httpx.Request) -> httpx.Response:
        """Send; follow redirects of reads, which lead to blob storage (never with a credential of the registry)."""
        for _ in range(_HOPS):
            response = self._client.send(request, stream=True)
            if not (response.is_redirect and request.method in {"GET", "HEAD"} and "location" in response.headers):
                return response
            response.close()
            target = self.location(response)
            headers = {"Accept": request.headers["Accept"]}
            request = self._client.build_request(request.method, target, headers=headers, extensions=request.extensions)
        raise RegistryRefused(f"the registry {self.registry.host} redirects without end")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            failure = self._unreachable(error)
            if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError) or "CERTIFICATE" in str(error):
                raise failure from error
            raise Transient(failure, tries=None if self._reached else self.retry.unanswered) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
            raise RegistryRefused(f"the registry {self.registry.host} can't be used: {error}") from error

    def _unreachable(self, error: httpx.TransportError) -> RegistryUnreachable:
        registry, text = self.registry, str(error) or type(error).__name__
        message = f"the registry {registry.url} can't be reached: {text[:200]}"
        if self._reached:
            return RegistryUnreachable(f"the connection to {registry.url} broke: {text[:200]}", hint="try again")
        if isinstance(error, httpx.ProxyError):
            hint = "see HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
        elif "CERTIFICATE" in text:
            hint = "name the file with its authority's certificate in FLOPS_CA_BUNDLE"
        elif "SSL" in text:
            hint = f"if it speaks plain HTTP, write http://{registry.host}"
        elif isinstance(error, httpx.RemoteProtocolError) and registry.plain_http:
            hint = f"if it speaks HTTPS, write https://{registry.host}"
        else:
            hint = "see that it runs and that its name and port are right; plain HTTP needs http:// before its name"
        return RegistryUnreachable(message, hint=hint)


def _without_proxy(registry: Registry) -> dict[str, None]:
    """Loopback is never reached by a proxy. An IPv6 address stands in brackets, as in every URL."""
    own = [f"[{registry.hostname}]" if ":" in registry.hostname else registry.hostname] if registry.loopback else []
    return {f"all://{host}": None for host in (*_NO_PROXY, *own)}


@functools.lru_cache(maxsize=8)
def _tls(bundle: Path | None) -> ssl.SSLContext:
    """Trust the named certificates alone, or what this machine trusts (also SSL_CERT_FILE) and what httpx brings.

    Remembered, since reading certificates takes longer than a push of few bytes.
    """
    try:
        if bundle is not None:
            return ssl.create_default_context(cafile=str(bundle))
        context = httpx.create_ssl_context()
        context.load_default_certs()
    except (OSError, ssl.SSLError) as error:
        raise BadSetting(f"the certificates in {bundle} can't be read", hint="see FLOPS_CA_BUNDLE") from error
    return context


def error_codes(response: httpx.Response) -> set[str]:
    """The codes of an answer's error body (distribution specification, "Error Codes")."""
    return {str(error.get("code")) for error in _errors(response)}


def _errors(response: httpx.Response) -> list[dict[str, Any]]:
    try:
        errors = json.loads(response.content)["errors"]
        return [error for error in errors if isinstance(error, dict)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _said(response: httpx.Response) -> str:
    texts = [f"{error.get('code')}: {error.get('message')}" for error in _errors(response)]
    text = "".join(letter for letter in "; ".join(texts) if letter.isprintable())[:300]
    return f", {text}" if text else ""


def _hint(status: int) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return "see that the name is right and that the project exists there"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return "it may be read-only"
    return "see the registry's own log" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else ""

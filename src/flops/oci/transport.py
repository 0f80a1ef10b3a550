"""HTTP to one registry: tries and pauses, logins, redirects, proxies, and every failure told in our own words."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx

from flops import http
from flops.errors import FlopsError, RegistryAuth, RegistryRefused, RegistryTooLarge, RegistryUnreachable
from flops.http import Retry, Transient, is_transient, retry_after
from flops.oci import responses
from flops.oci.authentication import SCOPE, PinnedTransport, RegistryAuthentication, check_location
from flops.oci.responses import Pressure

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from flops.addresses import PinnedHosts
    from flops.oci.credentials import Credentials
    from flops.oci.reference import Registry

PIECE = 256 * 1024
_HOPS = 5
#: What registries say that have no room: docker's own of its disk (28 is ENOSPC), others of a quota.
_FULL = re.compile(
    rb'no space left on device|"Err": ?28\b|quota (has been )?exceeded|exceed the configured upper limit', re.IGNORECASE
)
#: Seconds; a registry may digest a large blob again before it answers the upload's end.
_TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=180.0, pool=None)


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
        hosts: PinnedHosts | None = None,
    ) -> None:
        self.registry = registry
        self._hosts = hosts
        self.retry = retry or Retry()
        self.chunk = chunk
        """Bytes of a request's body at most; smaller once the registry, or what stands before it, refused a larger one."""
        connections = 2 * workers + 2
        self.pressure = Pressure(start=workers, most=connections)
        self._reached = False
        self._authentication = RegistryAuthentication(registry, credentials, realms=realms, hosts=hosts)
        host = f"[{registry.hostname}]" if ":" in registry.hostname else registry.hostname
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30)
        if hosts is not None and transport is None:
            transport = PinnedTransport(hosts, verify=http.trust(verify), limits=limits)
        self._client = http.client(
            verify,
            transport=transport,
            direct=host if registry.loopback else "",
            auth=self._authentication,
            timeout=_TIMEOUT,
            limits=limits,
            # A blob must arrive as it lies there: no content encoding.
            headers={"Accept": "*/*", "Accept-Encoding": "identity"},
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
                whole = response if unread and expected else responses.read(response)
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
            return check_location(self.registry, url, self._hosts)
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
        if _is_full(response):
            hint = (
                "let `flops images prune` delete old images and the registry collect its garbage, or give it more disk"
            )
            return RegistryRefused(f"{host} has no room left ({doing}: {status}{said})", hint=hint)
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            sent = response.request.headers.get("authorization", "")
            taken = status == HTTPStatus.FORBIDDEN or sent.startswith("Bearer ")
            hint = self._authentication.hint(response.request.extensions.get(SCOPE, ()), taken=taken)
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
        if is_transient(response.status_code) and not _is_full(response):
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
            why, hint = http.reason(error, self.registry.host)
            failure = self._unreachable(error, why, hint)
            if hint or isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
                raise failure from error
            raise Transient(failure, tries=None if self._reached else self.retry.unanswered) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
            raise RegistryRefused(f"the registry {self.registry.host} can't be used: {error}") from error

    def _unreachable(self, error: httpx.TransportError, why: str, hint: str) -> RegistryUnreachable:
        registry, request = self.registry, getattr(error, "_request", None)
        place, own = f"the registry {registry.url}", httpx.URL(registry.url).netloc
        if request is not None and request.url.netloc != own:
            what = "its blobs" if SCOPE in request.extensions else "a token"  # every request to a registry has a scope
            place = f"{request.url.netloc.decode()}, where the registry {registry.host} sends its clients for {what},"
            hint = hint or "see that it runs"
        elif self._reached and not hint:
            return RegistryUnreachable(f"the connection to {registry.url} broke: {why}", hint="try again")
        if isinstance(error, httpx.ProxyError):
            hint = "see HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
        elif "SSL" in why and not hint:
            hint = f"if it speaks plain HTTP, write http://{registry.host}"
        elif isinstance(error, httpx.RemoteProtocolError) and registry.plain_http:
            hint = f"if it speaks HTTPS, write https://{registry.host}"
        return RegistryUnreachable(
            f"{place} can't be reached: {why}",
            hint=hint
            or "see that it runs and that its name and port are right; plain HTTP needs http:// before its name",
        )


def error_codes(response: httpx.Response) -> set[str]:
    """The codes of an answer's error body (distribution specification, "Error Codes")."""
    return {str(error.get("code")) for error in _errors(response)}


def _errors(response: httpx.Response) -> list[dict[str, Any]]:
    try:
        errors = json.loads(response.content)["errors"]
        return [error for error in errors if isinstance(error, dict)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _is_full(response: httpx.Response) -> bool:
    status, limited = response.status_code, {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
    told = status >= HTTPStatus.BAD_REQUEST and status not in limited and _FULL.search(response.content[:8192])
    return status == HTTPStatus.INSUFFICIENT_STORAGE or bool(told)


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

"""Which other hosts a registry may send its clients to (token realms, upload locations, redirects), and the way to hosts of
a registry that somebody else named.
"""

from __future__ import annotations

import ipaddress
import threading
from typing import TYPE_CHECKING, Any

import httpx

from flops.errors import AuthRealm, RegistryRefused
from flops.oci.addresses import PinnedHosts, find_proxy, is_public
from flops.oci.reference import is_loopback

if TYPE_CHECKING:
    from collections.abc import Collection

    from flops.oci.reference import Registry

#: Addresses of one host that are tried, one after the other.
_TRIED = 4
#: A parent domain of fewer labels is a public suffix (`io`), which tells nothing about who owns a host.
_OWNED = 2


def check_realm(
    registry: Registry, realm: httpx.URL, allowed: Collection[str] = (), hosts: PinnedHosts | None = None
) -> None:
    """AuthRealm where no credential of this registry may be sent to a token realm.

    It may to the registry's own host, on any port; to a host under the domain that holds the registry's (as
    auth.example.org for registry.example.org), by https; to the hosts that settings allow. Never to a private address
    for a registry that is not private itself, and by http only for a registry that is spoken to by http.
    """
    host = realm.host
    own = host == registry.hostname or (is_loopback(host) and registry.loopback)
    if realm.scheme != "https" and not (realm.scheme == "http" and registry.plain_http and (own or host in allowed)):
        problem = f"not by https ({realm.scheme or 'no scheme'})"
    elif own or host in allowed:
        return
    elif not _same_domain(registry.url.partition("://")[2].partition(":")[0], host):
        problem = "another host"
    elif is_private(host, hosts) and not is_private(registry.hostname, hosts):
        problem = "at a private address"
    else:
        return
    raise AuthRealm(
        f"the registry {registry.host} sends its clients to {host[:253]} for a token, which is {problem}",
        hint="no credential was sent; where that host is right, the registry's operator must say so in its settings",
    )


def check_location(registry: Registry, url: httpx.URL, hosts: PinnedHosts | None = None) -> httpx.URL:
    """The address that a Location or redirect may be followed to; RegistryRefused where it may not.

    The registry's own host is always spoken to as the reference says (registries behind a proxy write http). Another
    host (a registry's blob storage) is never given a credential; it must be public where the registry is.
    """
    if url.host == registry.hostname and url.scheme == "http" and not registry.plain_http:
        _, _, port = registry.host.rpartition("]")[2].partition(":")
        return url.copy_with(scheme="https", port=int(port) if port else None)
    if url.scheme not in ({"http", "https"} if registry.plain_http else {"https"}):
        problem = f"which is not reached by https ({url.scheme or 'no scheme'})"
    elif url.host != registry.hostname and is_private(url.host, hosts) and not is_private(registry.hostname, hosts):
        problem = "which is at a private address"
    else:
        return url
    raise RegistryRefused(f"the registry {registry.host} sends its clients to {url.host[:253]}, {problem}")


def is_private(host: str, hosts: PinnedHosts | None = None) -> bool:
    """Whether a name or address is not on the public internet; a name that can't be resolved counts as public.

    It then can't be connected to either, unless by a proxy, which decides itself.
    """
    if is_loopback(host):
        return True
    try:
        found = (hosts or PinnedHosts()).find(host)
    except OSError:
        return False
    return not all(is_public(ipaddress.ip_address(one)) for one in found)


class PinnedTransport(httpx.BaseTransport):
    """Connects to judged addresses alone, and speaks there as to the host that was asked for (Host, SNI, certificate).

    Each host has connections of its own: two names at one address never share one. A proxy of the environment is used
    as ever, for hosts that pass the judgement or can't be resolved here. `options` are those of httpx.HTTPTransport.
    """

    def __init__(self, hosts: PinnedHosts, **options: Any) -> None:
        self._hosts = hosts
        self._options = options
        self._transports: dict[tuple[str, str | None], httpx.HTTPTransport] = {}
        self._guard = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """BlockedAddress before anything is sent; httpx's own errors otherwise."""
        host = request.url.raw_host.decode("ascii")
        proxy = None if is_loopback(host) else find_proxy(request.url.scheme, host)
        try:
            addresses = self._hosts.judge(host)
        except OSError as error:
            if proxy is None:
                raise httpx.ConnectError(f"{host} was not found: {error.strerror or error}") from error
            addresses = ()
        transport = self._transport(host, proxy)
        if proxy is not None:
            return transport.handle_request(request)
        failure: Exception = httpx.ConnectError(f"{host} has no address")
        for address in addresses[:_TRIED]:
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return transport.handle_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()

    def _transport(self, host: str, proxy: str | None) -> httpx.HTTPTransport:
        with self._guard:
            if (host, proxy) not in self._transports:
                self._transports[host, proxy] = httpx.HTTPTransport(proxy=proxy, **self._options)
            return self._transports[host, proxy]


def _same_domain(registry: str, host: str) -> bool:
    parent = registry.partition(".")[2]
    return (
        parent.count(".") + 1 >= _OWNED and not parent.replace(".", "").isdigit() and f".{host}".endswith(f".{parent}")
    )

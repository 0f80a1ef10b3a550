"""Which other hosts a registry may send its clients to: token realms, upload locations, redirects."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from flops.errors import AuthRealm, RegistryRefused
from flops.oci.addresses import is_public
from flops.oci.reference import is_loopback

if TYPE_CHECKING:
    from collections.abc import Collection

    import httpx

    from flops.oci.reference import Registry

#: A parent domain of fewer labels is a public suffix (`io`), which tells nothing about who owns a host.
_OWNED = 2


def check_realm(registry: Registry, realm: httpx.URL, allowed: Collection[str] = ()) -> None:
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
    elif is_private(host) and not is_private(registry.hostname):
        problem = "at a private address"
    else:
        return
    raise AuthRealm(
        f"the registry {registry.host} sends its clients to {host[:253]} for a token, which is {problem}",
        hint="no credential was sent; where that host is right, the registry's operator must say so in its settings",
    )


def check_location(registry: Registry, url: httpx.URL) -> httpx.URL:
    """The address that a Location or redirect may be followed to; RegistryRefused where it may not.

    The registry's own host is always spoken to as the reference says (registries behind a proxy write http). Another
    host (a registry's blob storage) is never given a credential; it must be public where the registry is.
    """
    if url.host == registry.hostname and url.scheme == "http" and not registry.plain_http:
        _, _, port = registry.host.rpartition("]")[2].partition(":")
        return url.copy_with(scheme="https", port=int(port) if port else None)
    if url.scheme not in ({"http", "https"} if registry.plain_http else {"https"}):
        problem = f"which is not reached by https ({url.scheme or 'no scheme'})"
    elif url.host != registry.hostname and is_private(url.host) and not is_private(registry.hostname):
        problem = "which is at a private address"
    else:
        return url
    raise RegistryRefused(f"the registry {registry.host} sends its clients to {url.host[:253]}, {problem}")


def is_private(host: str) -> bool:
    """Whether a name or address is not on the public internet; a name that can't be resolved counts as public.

    It then can't be connected to either, unless by a proxy, which decides itself.
    """
    if is_loopback(host):
        return True
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return not all(is_public(ipaddress.ip_address(text.partition("%")[0])) for text in found)


def _same_domain(registry: str, host: str) -> bool:
    parent = registry.partition(".")[2]
    return (
        parent.count(".") + 1 >= _OWNED and not parent.replace(".", "").isdigit() and f".{host}".endswith(f".{parent}")
    )

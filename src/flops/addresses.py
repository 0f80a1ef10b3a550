"""Which internet addresses somebody else may name: public ones, in every spelling that a resolver takes, and what the
operator lists. One judgement for registries and git hosts.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import urllib.request
from typing import TYPE_CHECKING

from flops.errors import BlockedAddress

if TYPE_CHECKING:
    from collections.abc import Collection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: IANA's global unicast space; what else IPv6 has is local, translated or reserved.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
#: The well-known prefix of NAT64 (RFC 6052): the last 32 bits are an IPv4 address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Special purposes that `is_global` does not know in every version of Python.
_SPECIAL = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2001:db8::/32", "3fff::/20"))
)

_LOCAL_NAMES = (".localhost", ".local", ".internal", ".localdomain", ".home.arpa")


def literal(host: str) -> Address | None:
    """The address that a host is, in every spelling that a resolver takes (`2130706433`, `0x7f.1`); None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return None


def is_public(address: Address) -> bool:
    """Whether it is on the public internet; an IPv4 address inside an IPv6 one counts as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_V6:
            return False
    special = any(address.version == network.version and address in network for network in _SPECIAL)
    return address.is_global and not address.is_multicast and not special


def normal(host: str) -> str:
    """A name or address as it is compared: lower case, no final dot, no brackets, addresses in their short form."""
    name = host.strip().strip("[]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def allows(hosts: Collection[str], host: str) -> bool:
    """Whether the operator's list names this host or address."""
    return normal(host) in {normal(one) for one in hosts}


def check_host(host: str, allow_hosts: Collection[str] = ()) -> None:
    """BlockedAddress for an address or name of the operator's own network that is not listed; asks no resolver."""
    if allows(allow_hosts, host):
        return
    name = normal(host)
    address = literal(name)
    local = name == "localhost" or name.endswith(_LOCAL_NAMES)
    if local or (address is not None and not is_public(address)):
        raise blocked(host)


def blocked(host: str, address: str = "") -> BlockedAddress:
    leads = f"{host} leads to {address}, " if address and normal(host) != normal(address) else f"{host} is "
    return BlockedAddress(
        f"{leads}an address inside the operator's own network",
        hint="use a public name of that host, or ask the operator to list this one in FLOPS_ALLOW_HOSTS",
    )


class PinnedHosts:
    """Hosts that somebody else names: each is resolved once, and what was found then is all that is used of it."""

    def __init__(self, allow_hosts: Collection[str] = ()) -> None:
        self._allow_hosts = allow_hosts
        self._found: dict[str, tuple[str, ...]] = {}
        self._guard = threading.Lock()

    def find(self, host: str) -> tuple[str, ...]:
        """The addresses of a host, not judged; OSError where there is no such host."""
        with self._guard:
            if host not in self._found:
                try:
                    entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                except UnicodeError as error:
                    raise OSError(f"{host[:253]!r} is no name of a host") from error
                self._found[host] = tuple(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in entries))
            return self._found[host]

    def judge(self, host: str) -> tuple[str, ...]:
        """The addresses of a host, all of them public or allowed; BlockedAddress, and OSError as `find`."""
        check_host(host, self._allow_hosts)
        addresses = self.find(host)
        if not allows(self._allow_hosts, host):
            for one in addresses:
                if not is_public(ipaddress.ip_address(one)) and not allows(self._allow_hosts, one):
                    raise blocked(host, one)
        return addresses


def find_proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for a host, if there is one."""
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(scheme) or proxies.get("all")
    return None if not proxy or urllib.request.proxy_bypass(host, proxies) else proxy

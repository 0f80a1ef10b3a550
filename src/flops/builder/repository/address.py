"""Which internet addresses a project may name: public ones, in whatever spelling, and what the operator lists by name."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from flops.errors import BlockedAddress
from flops.oci.addresses import is_public, literal

if TYPE_CHECKING:
    from collections.abc import Collection

_LOCAL_NAMES = (".localhost", ".local", ".internal", ".localdomain", ".home.arpa")


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
        hint="use the public name of the repository's host, or ask the operator to list this one in FLOPS_ALLOW_HOSTS",
    )

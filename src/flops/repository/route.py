"""The way to the host of an untrusted source: resolved once, judged, and pinned for every command that follows.

A name is resolved here, and all its addresses are judged before git runs; git is told to use these and no others, so a
resolver that answers otherwise the next time changes nothing. Where a proxy is set for the host, it is the proxy that
connects: what can be resolved here is judged all the same, and the rest is left to the proxy's own rules.

ssh reads no configuration and offers no key of this machine's account. A host that the operator's known hosts name is
held to its key; another one is believed, each time anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flops.addresses import PinnedHosts, find_proxy
from flops.errors import BadUrl, CloneFailed
from flops.repository.git import PORTS, Git, Route

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from flops.repository.git import GitCredential
    from flops.repository.source import Source
    from flops.repository.tree_writer import TreeLimits


def find_route(url: str, *, allow_hosts: Collection[str] = (), credential: GitCredential | None = None) -> Route:
    """Resolve and judge the host of an untrusted URL (https or ssh), without connecting to it.

    BlockedAddress where any of its addresses is not public and neither it nor the name is in `allow_hosts`; CloneFailed
    where there is no such host. A credential for another host is left out.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in PORTS:
        raise BadUrl("the source of a project is neither an https nor an ssh URL")
    try:
        addresses = PinnedHosts(allow_hosts).judge(host)
    except OSError as error:
        if parts.scheme != "https" or find_proxy("https", host) is None:
            raise CloneFailed(
                f"the host {host} was not found", hint="check the URL's spelling and this machine's name service"
            ) from error
        addresses = ()
    port = parts.port or PORTS[parts.scheme]
    fitting = credential if credential is not None and credential.fits(url) else None
    return Route(scheme=parts.scheme, host=host, port=port, addresses=addresses, credential=fitting)


@dataclass(frozen=True, kw_only=True)
class SourceAccess:
    """What reaching a host takes beside its URL; all but the bundle concerns untrusted sources only."""

    ca_bundle: Path | None = None
    credential: GitCredential | None = None
    allow_hosts: Collection[str] = ()

    def git(self, source: Source, directory: Path, limits: TreeLimits) -> Git:
        """Git in `directory` for the host of a source; what `find_route` raises where it is not trusted."""
        route = None
        if not source.trusted:
            route = find_route(source.url, allow_hosts=self.allow_hosts, credential=self.credential)
        return Git(
            directory=directory,
            seconds=limits.seconds,
            trusted=source.trusted,
            network=True,
            route=route,
            ca_bundle=self.ca_bundle,
            pack_bytes=limits.pack_bytes,
            memory=limits.memory,
        )

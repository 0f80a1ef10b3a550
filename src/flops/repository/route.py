"""The way to the host of an untrusted source: resolved once, judged, and pinned for every command that follows.

A name is resolved here, and all its addresses are judged before git runs; git is told to use these and no others, so a
resolver that answers otherwise the next time changes nothing. Where a proxy is set for the host, it is the proxy that
connects: what can be resolved here is judged all the same, and the rest is left to the proxy's own rules.

ssh reads no configuration and offers no key of this machine's account. A host that the operator's known hosts name is
held to its key; another one is believed, each time anew.
"""

from __future__ import annotations

import base64
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flops.addresses import PinnedHosts, find_proxy
from flops.errors import BadUrl, CloneFailed
from flops.repository.git import PORTS, Git

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from flops.repository.git import GitCredential
    from flops.repository.source import Source
    from flops.repository.tree_writer import TreeLimits

#: Where the operator lists host keys: for the whole machine, and for the account that the builder runs as.
KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "~/.ssh/known_hosts")
SSH = (
    "BatchMode=yes",
    "StrictHostKeyChecking=accept-new",
    f"GlobalKnownHostsFile={KNOWN_HOSTS[0]}",
    "UpdateHostKeys=no",
    "ProxyCommand=none",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "IdentityAgent=none",
    "IdentitiesOnly=yes",
    "GSSAPIAuthentication=no",
    "HostbasedAuthentication=no",
    "ConnectTimeout=30",
    "ServerAliveInterval=15",
)


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where git may connect to, and what it may show there."""

    scheme: str
    host: str
    port: int
    addresses: tuple[str, ...]
    """All judged; empty where a proxy resolves the name."""
    credential: GitCredential | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Configuration for git's command line; holds no secret."""
        base = ("http.followRedirects=false", "credential.helper=", "http.emptyAuth=false", "http.delegation=none")
        if self.scheme != "https" or not self.addresses or self.host in self.addresses:
            return base
        written = ",".join(f"[{one}]" if ":" in one else one for one in self.addresses)
        return (*base, f"http.curloptResolve={self.host}:{self.port}:{written}")

    def environment(self, scratch: Path) -> dict[str, str]:
        """Variables for git alone. A credential for https is a header that git gives to this host, port and scheme only."""
        if self.scheme == "ssh":
            return {"GIT_SSH_COMMAND": shlex.join(self._ssh(scratch)), "GIT_SSH_VARIANT": "ssh"}
        if self.credential is None:
            return {}
        pair = f"{self.credential.username}:{self.credential.password}".encode()
        host = f"[{self.host}]" if ":" in self.host else self.host
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.https://{host}:{self.port}/.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {base64.b64encode(pair).decode()}",
        }

    def _ssh(self, scratch: Path) -> list[str]:
        key = "none"
        if self.credential is not None:  # ssh takes keys from files only
            file = scratch / "identity"
            if not file.exists():
                file.touch(mode=0o600)
                file.write_text(self.credential.password.strip() + "\n")
            key = _quoted(file)
        alias = self.host if self.port == PORTS["ssh"] else f"[{self.host}]:{self.port}"
        own = (
            f"HostName={self.addresses[0]}",
            f"HostKeyAlias={alias}",
            f"UserKnownHostsFile={_quoted(scratch / 'known_hosts')} {KNOWN_HOSTS[1]}",  # new ones go to the first
            f"IdentityFile={key}",
        )
        return ["ssh", "-F", "none", *(word for option in (*SSH, *own) for word in ("-o", option))]


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


def _quoted(path: Path) -> str:
    """A path as ssh's configuration reads it (ssh_config(5): arguments in quotes, tokens with %)."""
    return '"' + str(path).replace("%", "%%") + '"'


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

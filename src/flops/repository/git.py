"""The git program, hardened: it talks to the named host and reads objects, and runs nothing that a repository brings along.

Hooks, filters, file system monitors, submodules and every transport but https and ssh are off by options that stand
above all configuration files. What a user's own configuration says about reaching hosts (credential helpers, ssh, proxies)
holds where the source is trusted; otherwise git sees no configuration, and connects only by the `Route` that was judged for it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flops import http, programs
from flops.addresses import normal
from flops.errors import (
    CloneAuth,
    CloneFailed,
    CloneFsck,
    CloneRedirect,
    CloneTimeout,
    DiskFull,
    RepositoryLimit,
    ToolTimeout,
)
from flops.sandbox import limited

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


#: Bytes that each process of git may write in memory, and its seconds of a processor: many times what repositories within
#: the limits need, and what small packs that unfold to gigabytes soon reach.
MEMORY = 2 * 1024**3
PROCESSOR_SECONDS = 200
#: Files that fetching may leave. A host without git's own protocol sends objects one by one, or packs.
RECEIVED_FILES = 20_000
#: How `ls-tree` lists: trees, too, so that a tree of billions of trees without a file is soon too long.
RECURSIVELY = ("-r", "-t", "-z")
#: What git or the system says where it has reached a limit.
NO_MEMORY = re.compile(r"out of memory|cannot allocate memory|unable to create threaded|mmap failed", re.IGNORECASE)
NO_TIME = re.compile(r"signal 24|SIGXCPU")
#: The ports that the schemes stand for.
PORTS = {"https": 443, "ssh": 22}
KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
CONFIGURATION = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.quotePath=false",
    "fetch.fsckObjects=true",
    "transfer.fsckObjects=true",
    "fetch.recurseSubmodules=false",
    "fetch.unpackLimit=1",  # one pack whatever its size, so that one limit on the size of files holds for all of it
    "core.bigFileThreshold=32m",  # larger files are streamed, not held
    "core.deltaBaseCacheLimit=64m",
    "pack.threads=2",
    "gc.auto=0",
    "maintenance.auto=false",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
    "protocol.allow=never",
)
#: The user's own ways of reaching hosts, given to git for a trusted source only.
USER_VARIABLES = (
    "HOME",
    "USER",
    "LOGNAME",
    "XDG_CONFIG_HOME",
    "SSH_AUTH_SOCK",
    "SSH_ASKPASS",
    "GIT_ASKPASS",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_SSH_VARIANT",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_COUNT",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
)
#: What git says, and what it means; the first that is found counts.
MEANINGS: tuple[tuple[str, type[CloneFailed | CloneFsck | CloneRedirect | RepositoryLimit | DiskFull]], ...] = (
    (r"No space left on device", DiskFull),
    (r"File too large|signal 25|SIGXFSZ", RepositoryLimit),
    (r"fsck error|fsck failed|badDate|gitmodules|disallowed submodule|invalid index-pack output", CloneFsck),
    (r"corrupt|hash mismatch|not a tree object", CloneFsck),
    (r"unable to update url base from redirection|returned error: 30\d", CloneRedirect),
    (r"Authentication failed|could not read (Username|Password)|terminal prompts disabled|Access denied", CloneAuth),
    (r"Permission denied|Host key verification failed|The requested URL returned error: 40[13]", CloneAuth),
    (r"Operation too slow|timed out", CloneTimeout),
)
HINTS: Mapping[type[Exception], str] = {
    DiskFull: "free some space, or move FLOPS_CACHE_DIR and TMPDIR to a larger disk",
    RepositoryLimit: "keep data and models out of the repository",
    CloneFsck: "repair the repository's objects with git fsck, or commit its files anew",
    CloneRedirect: "use the address that the host redirects to",
    CloneAuth: "the repository is private or does not exist: see that `git ls-remote URL` works without a prompt",
    CloneTimeout: "try again; a large repository needs a faster connection or --subdir in a smaller one",
    CloneFailed: "check the URL and the network with `git ls-remote URL`",
}
#: Git's TLS libraries tell the cases apart in words of their own, or not at all.
CERTIFICATE = (
    "name the file (PEM) of the authority that signs for this host in FLOPS_CA_BUNDLE; a certificate that has expired, or is "
    "for other names, the host's operator must renew"
)


@dataclass(frozen=True, kw_only=True)
class GitCredential:
    """What the operator gives a project for one host, and for no other."""

    host: str
    """`HOST`, on the scheme's own port, or `HOST:PORT`."""
    username: str
    password: str = field(repr=False)
    """A password or token for https; for ssh a private key without passphrase, in PEM or OpenSSH's form."""

    def fits(self, url: str) -> bool:
        """Whether this URL is at its host and port, and of a kind that it can be used for."""
        try:
            parts = urlsplit(url)
            host, port = normal(parts.hostname or ""), parts.port or PORTS[parts.scheme]
            own = urlsplit(f"//{self.host if self.host.count(':') < 2 else f'[{normal(self.host)}]'}")  # noqa: PLR2004
            own_port = own.port or PORTS[parts.scheme]
        except (ValueError, KeyError):
            return False
        same = (normal(own.hostname or ""), own_port) == (host, port)
        return same and self.is_key == (parts.scheme == "ssh")

    @property
    def is_key(self) -> bool:
        return KEY.match(self.password.lstrip()) is not None


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


def _quoted(path: Path) -> str:
    """A path as ssh's configuration reads it (ssh_config(5): arguments in quotes, tokens with %)."""
    return '"' + str(path).replace("%", "%%") + '"'


@dataclass(frozen=True, kw_only=True)
class Git:
    """A git directory and the way of reaching hosts that belongs to it; constructing it does nothing."""

    directory: Path
    """Where git runs: a bare repository of our own, or a user's work tree that is only read."""
    seconds: float
    """For all commands together, from construction."""
    trusted: bool = True
    network: bool = False
    """Whether https and ssh may be used; for reading a directory nothing is."""
    route: Route | None = None
    """The only way to a host that an untrusted source has."""
    ca_bundle: Path | None = None
    pack_bytes: int | None = None
    """The largest file that git may write, and half of what fetching may write in all: the host may send many, and each gets an index."""
    memory: int = MEMORY
    alternates: Path | None = None
    """An object directory of another repository to read from."""
    started: float = field(default_factory=time.monotonic)

    def run(
        self, *arguments: str | Path, check: bool = True, stdin: str | None = None, errors: str = "replace"
    ) -> programs.Completed:
        """Run one git command; what goes wrong is translated into a SourceError, unless not `check`. More: `process.run`.

        RepositoryLimit in any case where it needs more memory or processor, or writes more output, than it may.
        """
        done = self._run(*arguments, stdin=stdin, errors=errors)
        if done.cut:
            raise RepositoryLimit(
                f"git's answer about the repository has more than {programs.OUTPUT_LIMIT >> 20} MB",
                hint="it has too many branches, tags or directories, or a commit with too long a message",
            )
        if check and done.code != 0:
            raise failure(done.stderr)
        return done

    def records(self, *arguments: str | Path) -> Iterator[str]:
        """The NUL-ended records of a listing (`-z`); of one that is too long its beginning, and then RepositoryLimit."""
        done = self._run(*arguments)
        if done.code != 0 and not done.cut:
            raise failure(done.stderr)
        *whole, rest = done.stdout.split("\0")
        yield from whole
        if rest or done.cut:
            levels = max((record.count("/") for record in whole), default=0) + 1
            raise RepositoryLimit(
                f"the repository's list of files has more than {programs.OUTPUT_LIMIT >> 20} MB, and paths of {levels} levels",
                hint="keep data and models out of the repository, and flatten it",
            )

    def _run(self, *arguments: str | Path, stdin: str | None = None, errors: str = "replace") -> programs.Completed:
        command: list[str | Path] = [programs.find("git"), "-C", self.directory]
        for option in (*CONFIGURATION, *self._protocols()):
            command += ["-c", option]
        left = self.seconds - (time.monotonic() - self.started)
        try:
            done = programs.run(
                limited(
                    [*command, *arguments],
                    data=self.memory,
                    processor_seconds=PROCESSOR_SECONDS,
                    file_bytes=self.pack_bytes,
                ),
                seconds=max(left, 0.1),
                watch=self._check_disk if "fetch" in arguments else None,
                env=self._environment(),
                stdin=stdin,
                check=False,
                errors=errors,
            )
        except ToolTimeout:
            raise CloneTimeout(
                f"the repository was not read within {self.seconds:.0f} s", hint=HINTS[CloneTimeout]
            ) from None
        if done.code != 0 and NO_MEMORY.search(done.stderr):
            raise RepositoryLimit(
                f"git needs more than {self.memory >> 20} MB of memory to read the repository",
                hint="its objects unfold to more than any repository's, or it has too many branches and tags",
            )
        if done.code == -signal.SIGSEGV or (done.code != 0 and "signal 11" in done.stderr):
            raise RepositoryLimit(
                "the repository's directories lie deeper in one another than git can follow",
                hint="flatten the repository",
            )
        if done.code == -signal.SIGXCPU or (done.code != 0 and NO_TIME.search(done.stderr)):
            raise RepositoryLimit(
                f"git needs more than {PROCESSOR_SECONDS} s of a processor to read the repository",
                hint="its objects unfold to more than any repository's",
            )
        return done

    def _check_disk(self) -> None:
        """RepositoryLimit where the files of a repository of our own have become too many or too large."""
        held = count = 0
        for place, _, names in os.walk(self.directory):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    held += (Path(place) / name).lstat().st_size
            count += len(names)
        if count > RECEIVED_FILES or held > 2 * (self.pack_bytes or held):
            raise RepositoryLimit(
                f"the host sends more than {RECEIVED_FILES} files or {2 * (self.pack_bytes or held)} bytes",
                hint=HINTS[RepositoryLimit],
            )

    def text(self, *arguments: str) -> str:
        """The output of a command that must succeed, without the line's end."""
        return self.run(*arguments).stdout.rstrip("\n")

    def _protocols(self) -> list[str]:
        if not self.network:
            # Reading a directory opens no connection, so its owner may be somebody else (a mount in a container).
            return ["safe.directory=*"]
        if self.trusted:
            return ["protocol.https.allow=always", "protocol.ssh.allow=always"]
        return [f"protocol.{self.route.scheme}.allow=always", *self.route.options] if self.route else []

    def _environment(self) -> dict[str, str]:
        given = {name: os.environ[name] for name in USER_VARIABLES if name in os.environ}
        given |= {name: value for name, value in os.environ.items() if re.match(r"GIT_CONFIG_(KEY|VALUE)_\d+$", name)}
        if not self.trusted:
            given = {"HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
            given |= self.route.environment(self.directory) if self.route else {}
        authorities: object = os.environ.get("GIT_SSL_CAINFO") or os.environ.get("SSL_CERT_FILE")
        if self.ca_bundle is not None and self.network:
            authorities = http.authorities(self.ca_bundle, self.directory)
        return {
            **given,
            **({"GIT_SSL_CAINFO": str(authorities)} if authorities else {}),
            # Above all configuration, as no option is: reading may fetch what a repository says that its remote has.
            **({} if self.network else {"GIT_ALLOW_PROTOCOL": "none"}),
            **({"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.alternates)} if self.alternates else {}),
            "GIT_TERMINAL_PROMPT": "0",
            "SSH_ASKPASS_REQUIRE": "never",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_LFS_SKIP_SMUDGE": "1",
        }


def failure(stderr: str) -> CloneFailed | CloneFsck | CloneRedirect | RepositoryLimit | DiskFull:
    """The error that git's own words stand for, without anything that could be a credential."""
    kind = next((kind for pattern, kind in MEANINGS if re.search(pattern, stderr, re.IGNORECASE)), CloneFailed)
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"(fatal|error|remote|ssh):", line)] or lines or ["no message"]
    text = re.sub(r"//[^/@\s]+@", "//", telling[0])[:300]
    hint = CERTIFICATE if kind is CloneFailed and "certificate" in text else HINTS[kind]
    return kind(f"git could not read the repository: {text}", hint=hint)

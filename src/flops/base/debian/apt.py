"""Drive `apt-get` in a private root: another suite, a foreign architecture, no privileges, nothing of the host changed.

The host's own apt configuration gives mirror, proxies and credentials; its hooks, pins and other sources stay out.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from flops.base import BasePackage
from flops.errors import BaseUnavailable, ToolFailed, ToolMissing, ToolTimeout
from flops.http import authorities
from flops.oci.blobs import disk_full
from flops.programs import Completed, find, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flops.platforms import Platform

HINT = "set FLOPS_DEBIAN_MIRROR (and FLOPS_DEBIAN_SECURITY_MIRROR), or use --base-image"
#: Where Debian's keyring package puts its keys.
KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg")
_DEBIAN_SUITES = frozenset(
    {"bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing", "unstable"}
)
#: What a private root takes from the host: how to reach an archive, and how old its index may be.
_COPIED = re.compile(
    r"(?i)acquire::(http|https|retries|forceipv[46]|check-valid-until|check-date|max-validtime|max-futuretime)(::|$)"
)
_OPTION = re.compile(r'^(?P<name>[^\s"]+) "(?P<value>.*)";$')
_URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")
_PASSWORD = re.compile(r"://[^/@\s]+@")
_UPDATE_SECONDS = 180
_RESOLVE_SECONDS = 60
_DOWNLOAD_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class DebianMirror:
    """Where Debian's packages come from, and how to reach and trust it."""

    main: str
    """URI of the archive, as a `deb` line has it."""
    security: str | None = None
    """URI of the security archive; None: no security updates."""
    keyrings: tuple[Path, ...] = ()
    """Keys that sign it; empty: those that the host trusts for every archive."""
    options: tuple[tuple[str, str], ...] = ()
    """The host's settings for reaching it, in apt's configuration: name and value."""
    ca_bundle: Path | None = None
    """Certificates that its server's may be signed by, beside the system's."""


def mirror(
    *,
    main: str | None = None,
    security: str | None = None,
    keyring: Path | None = None,
    ca_bundle: Path | None = None,
    etc: Path = Path("/etc/apt"),
) -> DebianMirror:
    """The mirror by settings, or the one that this host's apt uses for Debian; BaseUnavailable where it has none."""
    try:
        find("apt-get")
        if main is None:
            main, security = _host_archives(security)
        options = _host_options(run(["apt-config", "dump"], seconds=30).stdout)
    except (ToolMissing, ToolFailed, ToolTimeout) as error:
        raise BaseUnavailable(
            f"a base can't be made from Debian packages here: {error.message}",
            hint="use --base-image, or build on a machine that has apt",
        ) from error
    keys = [keyring] if keyring else [Path(name) for name in KEYRINGS if Path(name).is_file()][:1]
    for file in keys:
        if not os.access(file, os.R_OK):
            raise BaseUnavailable(f"the keyring {file} can't be read", hint="correct FLOPS_DEBIAN_KEYRING")
    return DebianMirror(
        main=main,
        security=security,
        keyrings=tuple(key.absolute() for key in keys),
        options=(*options, *_netrc(etc)),
        ca_bundle=ca_bundle,
    )


def _host_archives(security: str | None) -> tuple[str, str | None]:
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
    listed = run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], seconds=30)
    found = read_archives(listed.stdout)
    if found[0] is None:
        raise BaseUnavailable("this machine's apt does not serve Debian", hint=HINT)
    return found[0], security or found[1]


def read_archives(targets: str) -> tuple[str | None, str | None]:
    """Debian's archive and its security archive out of apt's index targets, one `URI RELEASE COMPONENT ORIGIN` a line.

    The origin stands in the signed index and is known once that was fetched; before, the suite's name has to do. What is
    chosen wrongly does no harm: the archive's signature is checked against Debian's keys.
    """
    ranked: dict[bool, list[tuple[int, str]]] = {False: [], True: []}
    for number, line in enumerate(targets.splitlines()):
        words = line.split(" ")
        if len(words) < 3 or words[2] != "main":  # noqa: PLR2004 - the fields asked for
            continue
        uri, release, origin = words[0], words[1], " ".join(words[3:])
        suite = re.split(r"[-/]", release)[0]
        if origin == "Debian" or (origin in ("", "$(ORIGIN)") and suite in _DEBIAN_SUITES):
            secure = release.endswith(("-security", "/updates"))
            ranked[secure].append((number if origin == "Debian" else number + len(targets), uri))
    return tuple(min(ranked[secure])[1] if ranked[secure] else None for secure in (False, True))  # type: ignore[return-value]


def _host_options(dump: str) -> tuple[tuple[str, str], ...]:
    found = (_OPTION.match(line) for line in dump.splitlines())
    return tuple((m["name"], m["value"]) for m in found if m and m["value"] and _COPIED.match(m["name"]))


def _netrc(etc: Path) -> tuple[tuple[str, str], ...]:
    """The host's credentials for archives, where this user may read them (apt_auth.conf(5))."""
    named = (("Dir::Etc::netrc", etc / "auth.conf"), ("Dir::Etc::netrcparts", etc / "auth.conf.d"))
    return tuple((name, str(path)) for name, path in named if os.access(path, os.R_OK))


class AptRoot:
    """A private root under `directory` (empty, ours) for one suite and platform. `update` before all else."""

    def __init__(self, directory: Path, *, mirror: DebianMirror, suite: str, platform: Platform) -> None:
        self._directory = directory.absolute()
        self._mirror = mirror
        self._suite = suite
        self._platform = platform

    def update(self) -> None:
        """Fetch and verify the suite's indexes. BaseUnavailable where a part can't be had or is not signed."""
        for name in ("lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/sources", "log"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        (self._directory / "apt.conf").write_text(self._configuration())
        (self._directory / "etc" / "sources" / "debian.sources").write_text(self._sources())
        self._apt(["update"], what="read", seconds=_UPDATE_SECONDS)

    def resolve(self, names: Sequence[str]) -> tuple[BasePackage, ...]:
        """These packages with all that they depend on, sorted by name."""
        done = self._apt(
            ["-o", "Acquire::ForceHash=SHA256", "install", "--print-uris", "--yes", "--quiet=2", *names],
            what="resolve the base's packages in",
            seconds=_RESOLVE_SECONDS,
        )
        packages = read_print_uris(done.stdout)
        if not packages:
            raise BaseUnavailable(f"apt names no packages for {self._suite}, {self._platform}", hint=HINT)
        return packages

    def download(self, packages: Iterable[BasePackage], destination: Path) -> None:
        """Fetch .debs into `destination`, verified by apt against the signed indexes; named `NAME_VERSION_ARCH.deb`."""
        exact = [f"{package.name}={package.version}" for package in packages]
        if exact:
            words = ["-o", f"APT::Sandbox::Directory={destination}", "download", "--quiet=2", *exact]
            self._apt(words, what="fetch packages from", seconds=_DOWNLOAD_SECONDS, cwd=destination)

    def _apt(self, words: Sequence[str], *, what: str, seconds: float, cwd: Path | None = None) -> Completed:
        try:
            done = run(
                ["apt-get", *words],
                seconds=seconds,
                env={"APT_CONFIG": str(self._directory / "apt.conf")},
                cwd=cwd or self._directory,
                check=False,
            )
        except (ToolMissing, ToolTimeout) as error:
            raise BaseUnavailable(f"can't {what} Debian's archive: {error.message}", hint=HINT) from error
        if done.code != 0 and "No space left on device" in done.stderr:
            raise disk_full(self._directory.parent)
        if done.code != 0:
            raise explain(done.stderr, doing=f"can't {what} Debian's archive for {self._suite}, {self._platform}")
        return done

    def _sources(self) -> str:
        """In deb822 form (sources.list(5)); one line of it can't smuggle in another."""
        archives = [(self._mirror.main, f"{self._suite} {self._suite}-updates")]
        if self._mirror.security:
            archives.append((self._mirror.security, f"{self._suite}-security"))
        signed = ",".join(str(path) for path in self._mirror.keyrings)
        signed_by = f"Signed-By: {signed}\n" if signed else ""
        for uri, _ in archives:
            if any(character.isspace() for character in uri):
                raise BaseUnavailable(f"the mirror {uri!r} is not a URI", hint=HINT)
        return "\n".join(
            f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\n{signed_by}" for uri, suites in archives
        )

    def _configuration(self) -> str:
        root, architecture = self._directory, self._platform.architecture
        lines = {
            "Dir": f"{root}/",
            "Dir::State": f"{root}/",
            "Dir::State::lists": f"{root}/lists/",
            "Dir::State::status": f"{root}/status",
            "Dir::Cache": f"{root}/cache/",
            "Dir::Etc": f"{root}/etc/",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": f"{root}/etc/sources",
            # without a keyring of ours: what the host trusts for every archive
            "Dir::Etc::trusted": "/etc/apt/trusted.gpg",
            "Dir::Etc::trustedparts": "/etc/apt/trusted.gpg.d",
            "Dir::Log": f"{root}/log/",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            # works as any user, also in a user namespace with a single id
            "APT::Sandbox::User": "",
            # otherwise an unreachable security archive leaves exit code 0 and no security updates
            "APT::Update::Error-Mode": "any",
            "APT::Install-Recommends": "0",
            "Acquire::Languages": "none",
            "Acquire::PDiffs": "0",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "0",
            "Acquire::Retries": "2",
            # with pauses between them, apt waits for ever once its disk was full
            "Acquire::Retries::Delay": "false",
            "Acquire::http::Timeout": "20",
            "Acquire::https::Timeout": "20",
        }
        if self._mirror.ca_bundle is not None:
            lines["Acquire::https::CAInfo"] = str(authorities(self._mirror.ca_bundle, root))
        pairs = [*lines.items(), *self._mirror.options]
        return "".join(f'{name} "{value}";\n' for name, value in pairs)


def read_print_uris(text: str) -> tuple[BasePackage, ...]:
    """Read `apt-get --print-uris`, one `'URI' NAME_VERSION_ARCH.deb SIZE SHA256:HEX` a line; other lines say other things."""
    packages = set()
    for line in text.splitlines():
        if match := _URI_LINE.match(line):
            name, version, architecture = match["file"].removesuffix(".deb").split("_")
            packages.add(
                BasePackage(
                    name=name,
                    version=unquote(version),
                    architecture=architecture,
                    size=int(match["size"]),
                    sha256=match["sha256"],
                )
            )
    return tuple(sorted(packages))


def explain(stderr: str, *, doing: str) -> BaseUnavailable:
    """What apt said, shortened, without credentials."""
    lines = [_PASSWORD.sub("://", line) for line in stderr.splitlines()]
    told = [line[2:].strip() for line in lines if line.startswith("E:")] or [
        line.strip() for line in lines if line.strip()
    ]
    missing = re.search(r"NO_PUBKEY ([0-9A-F]+)", stderr)
    if missing:
        return BaseUnavailable(
            f"{doing}: the key {missing[1]} that signs it is not in the keyring",
            hint="install a newer debian-archive-keyring, or set FLOPS_DEBIAN_KEYRING, or use --base-image",
        )
    text = (told or ["no message"])[0][:400]
    hint = "name the file (PEM) of the authority that signs for the mirror in FLOPS_CA_BUNDLE"
    return BaseUnavailable(f"{doing}: {text}", hint=hint if "certificate" in text else HINT)

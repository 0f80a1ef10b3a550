"""Where an image lies: registry, repository, tag, digest; their grammar is that of the OCI distribution specification."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from flops.errors import BadTarget

#: Distribution specification 1.1, "Pulling manifests": `<name>`, one component of it.
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: Registries and engines refuse longer names (host and repository together).
_NAME_LIMIT = 255
_PORT_DIGITS = 5
#: The one registry whose name in references is not its address.
_HUB = "docker.io"
_HUB_ADDRESS = "registry-1.docker.io"


@dataclass(frozen=True, kw_only=True)
class Registry:
    """A registry and the place in it where images are kept."""

    host: str
    """`HOST` or `HOST:PORT`, lower-case; an IPv6 address stands in brackets."""
    prefix: str = ""
    """Put before every repository name; without slashes at its ends."""
    plain_http: bool = False
    """Speak HTTP: `http://` was written, or the host is a loopback address and `https://` was not."""

    @classmethod
    def parse(cls, text: str) -> Registry:
        """Read `[http://|https://]HOST[:PORT][/PREFIX]`; BadTarget says what is wrong with it."""
        scheme, rest = _scheme(text.strip())
        if "@" in rest:
            raise _credential()
        host, slash, prefix = rest.rstrip("/").partition("/")
        _check_host(host, text)
        return cls(host=host, prefix=repository_name(prefix) if slash else "", plain_http=_plain(scheme, host))

    @property
    def hostname(self) -> str:
        """The host without its port and brackets."""
        return _split_port(self.host)[0].strip("[]")

    @property
    def url(self) -> str:
        """`http(s)://HOST[:PORT]` of its API, without a slash at the end."""
        return f"{'http' if self.plain_http else 'https'}://{_HUB_ADDRESS if self.host == _HUB else self.host}"

    @property
    def loopback(self) -> bool:
        return is_loopback(self.hostname)

    def repository(self, *parts: str) -> str:
        """The name below the prefix, lower-cased and checked: `PREFIX/acme/digits/learner`."""
        return repository_path(*((self.prefix, *parts) if self.prefix else parts))

    def reference(self, *parts: str, tag: str | None = None, digest: str | None = None) -> Reference:
        return Reference(registry=self, repository=self.repository(*parts), tag=tag, digest=digest)

    def __str__(self) -> str:
        return f"{self.host}/{self.prefix}" if self.prefix else self.host


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One image, by tag, by digest, or by both (then the digest counts)."""

    registry: Registry
    repository: str
    """The whole name below the host, with the registry's prefix."""
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read `[http://]HOST[:PORT]/NAME[:TAG][@sha256:DIGEST]`, the tag `latest` where neither is written."""
        scheme, rest = _scheme(text.strip())
        rest, at, digest = rest.partition("@")
        if at and not digest.startswith("sha"):
            raise _credential()
        if at and not _DIGEST.fullmatch(digest):
            raise BadTarget(f"the digest of {text!r} can't be read", hint="write @sha256: and 64 hexadecimal digits")
        host, slash, name = rest.partition("/")
        if not slash or not ("." in host or ":" in host or host == "localhost"):
            raise BadTarget(
                f"{text!r} names no registry", hint="write HOST/NAME:TAG, for example localhost:5073/base:1"
            )
        _check_host(host, text)
        name, colon, tag = name.partition(":")
        if colon:
            check_tag(tag)
        if host == _HUB and "/" not in name:
            name = f"library/{name}"
        return cls(
            registry=Registry(host=host, plain_http=_plain(scheme, host)),
            repository=repository_name(name),
            tag=tag if colon else None if digest else "latest",
            digest=digest or None,
        )

    @property
    def selector(self) -> str:
        """What stands in the API's path: the digest, or else the tag."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry.host}/{self.repository}{tag}{digest}"


def repository_path(*parts: str) -> str:
    """Join parts to a repository name, lower-cased; BadTarget where no registry could take it."""
    return repository_name("/".join(parts).lower())


def repository_name(text: str) -> str:
    """Check a repository name as it is written; BadTarget names the wrong component."""
    for component in text.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise BadTarget(
                f"{component!r} can't be part of an image name ({text[:_NAME_LIMIT]!r})",
                hint="use a-z and 0-9, joined by single '.', '_', '-', '/', for example team/project",
            )
    if len(text) > _NAME_LIMIT:
        raise BadTarget(f"the image name {text[:40]!r}... is longer than {_NAME_LIMIT} characters")
    return text


def check_tag(text: str) -> str:
    """The tag itself; BadTarget where it is not one."""
    if not _TAG.fullmatch(text):
        raise BadTarget(
            f"{text[:140]!r} is not a tag", hint="use up to 128 of A-Z, a-z, 0-9, '_', '.', '-', no '.' or '-' in front"
        )
    return text


def is_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether it is `sha256:` and 64 lower-case hexadecimal digits, the only kind that is used here."""
    return _DIGEST.fullmatch(text) is not None


def is_loopback(hostname: str) -> bool:
    """By name or address; a name is not resolved."""
    if hostname == "localhost" or hostname.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def _scheme(text: str) -> tuple[str, str]:
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "", text
    if scheme not in {"http", "https"}:
        raise BadTarget(f"a registry is reached by http or https, not {scheme!r}", hint="write [http://]HOST[:PORT]")
    return scheme, rest


def _plain(scheme: str, host: str) -> bool:
    return scheme == "http" or (scheme == "" and is_loopback(_split_port(host)[0].strip("[]")))


def _split_port(host: str) -> tuple[str, str]:
    if host.startswith("[") or host.count(":") == 1:
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        return name, port
    return host, ""


def _credential() -> BadTarget:
    """Never with the text itself: it would show the password."""
    return BadTarget(
        "a registry's name holds no user name and password",
        hint="write [http://]HOST[:PORT][/PREFIX], and log in with `docker login` or `podman login`",
    )


def _check_host(host: str, text: str) -> None:
    if host != host.lower():
        raise BadTarget(f"the registry {host!r} has upper-case letters", hint=f"write {host.lower()}")
    name, port = _split_port(host)
    wrong_port = (":" in host.rpartition("]")[2]) and not (
        port.isascii() and port.isdigit() and len(port) <= _PORT_DIGITS and 0 < int(port) < 1 << 16
    )
    if wrong_port or not _is_host(name):
        raise BadTarget(f"{text[:_NAME_LIMIT]!r} does not name a registry", hint="write [http://]HOST[:PORT][/PREFIX]")


def _is_host(name: str) -> bool:
    if name.startswith("["):
        try:
            return name.endswith("]") and ipaddress.IPv6Address(name[1:-1]).scope_id is None
        except ValueError:
            return False
    if name.rpartition(".")[2].isdigit():  # no name ends so; `0177.0.0.1` is read differently by different programs
        try:
            return bool(ipaddress.IPv4Address(name))
        except ValueError:
            return False
    return len(name) <= _NAME_LIMIT and all(_LABEL.fullmatch(label) for label in name.split("."))

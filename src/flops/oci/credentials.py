"""Who we are at a registry: docker's and podman's credential files and credential helpers."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flops import programs
from flops.errors import RegistryAuth, ToolMissing, ToolTimeout

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Docker's own name for its public registry in credential files.
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")
#: A helper may have to ask its user (a keychain prompt).
_HELPER_SECONDS = 60.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: By the credential helper protocol: the user name that says that the secret is an identity token.
_TOKEN_USER = "<token>"  # noqa: S105


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A user name and password, or an identity token (an OAuth 2 refresh token)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Credentials(Protocol):
    """Finds the credential for a registry, named as its users write it (`HOST[:PORT]`); None where there is none.

    A registry may have several, each for a part of its repositories; without one, any of them.
    """

    def find(self, host: str, repository: str = "") -> Credential | None: ...


@dataclass(frozen=True, kw_only=True)
class FixedCredentials:
    """Credentials that were handed to us, by host."""

    by_host: Mapping[str, Credential]

    def find(self, host: str, repository: str = "") -> Credential | None:  # noqa: ARG002 - one for each host
        return self.by_host.get(host)


@dataclass(frozen=True, kw_only=True)
class UserCredentials:
    """What `docker login` and `podman login` left: `auths`, `credHelpers` and `credsStore` of their files."""

    files: tuple[Path, ...]
    """Asked in this order, the first that knows the host wins; missing files are passed over."""

    @classmethod
    def of_user(cls, environ: Mapping[str, str] | None = None) -> UserCredentials:
        """The files that docker and podman would read in this environment (our own by default)."""
        env = os.environ if environ is None else environ
        home = Path(env.get("HOME") or Path.home())
        files = [Path(env["REGISTRY_AUTH_FILE"])] if env.get("REGISTRY_AUTH_FILE") else []
        files.append(Path(env.get("DOCKER_CONFIG") or home / ".docker") / "config.json")
        if env.get("XDG_RUNTIME_DIR"):
            files.append(Path(env["XDG_RUNTIME_DIR"]) / "containers" / "auth.json")
        files.append(Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "containers" / "auth.json")
        return cls(files=tuple(files))

    def find(self, host: str, repository: str = "") -> Credential | None:
        """Read the files and ask helpers; RegistryAuth where one can't be read or fails."""
        for path in self.files:
            found = _find_in(_read(path), host, repository, path)
            if found is not None:
                return found
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise RegistryAuth(f"the credential file {path} can't be read", hint="correct it, or log in again") from error
    return document if isinstance(document, dict) else {}


def _find_in(document: dict[str, Any], host: str, repository: str, path: Path) -> Credential | None:
    helpers, auths = document.get("credHelpers"), document.get("auths")
    helper = next((helpers[key] for key in _keys(host) if key in helpers), "") if isinstance(helpers, dict) else ""
    found = _ask_helper(str(helper), host) if helper else None
    if found is None and isinstance(auths, dict):
        entries = _entries(auths, host, repository)
        found = next(filter(None, (_from_entry(entry, host, path) for entry in entries)), None)
    if found is None and not helper and document.get("credsStore"):
        found = _ask_helper(str(document["credsStore"]), host)
    return found


def _keys(host: str) -> tuple[str, ...]:
    return (host, *_HUB_KEYS) if host == "docker.io" else (host,)


def _entries(auths: dict[str, Any], host: str, repository: str) -> list[dict[str, Any]]:
    """Those for a repository, the narrowest first: podman's keys may be `HOST/NAMESPACE` (containers-auth.json)."""
    hosts = [_split(key)[0] for key in _keys(host)]
    found = []
    for key, entry in auths.items():
        name, namespace = _split(key)
        if name in hosts and isinstance(entry, dict) and (not repository or f"{repository}/".startswith(namespace)):
            found.append((-len(namespace) if repository else len(namespace), hosts.index(name), entry))
    return [entry for *_, entry in sorted(found, key=lambda one: one[:2])]


def _split(key: str) -> tuple[str, str]:
    """Host and namespace, which ends with a slash where there is one. Older files hold whole URLs: `https://HOST/v1/`."""
    host, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    namespace = path.strip("/")
    return host.lower(), f"{namespace}/" if namespace not in {"", "v1", "v2"} else ""


def _from_entry(entry: dict[str, Any], host: str, path: Path) -> Credential | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credential(identity_token=token)
    if entry.get("auth"):
        try:
            text = base64.b64decode(str(entry["auth"]), validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise RegistryAuth(f"the entry of {host} in {path} can't be read", hint="log in again") from error
        username, _, password = text.partition(":")
        return Credential(username=username, password=password.rstrip("\0"))
    if entry.get("username"):
        return Credential(username=str(entry["username"]), password=str(entry.get("password", "")))
    return None


def _ask_helper(name: str, host: str) -> Credential | None:
    """Run `docker-credential-NAME get` (docker's credential helper protocol); None where it knows no credential."""
    if not _HELPER_NAME.fullmatch(name):
        raise RegistryAuth(f"{name[:40]!r} can't be the name of a credential helper")
    program = f"docker-credential-{name}"
    server = _HUB_KEYS[0] if host == "docker.io" else host
    try:
        # The user's own program, configured by the user: it sees the user's whole environment (keychains need it).
        done = programs.run([program, "get"], seconds=_HELPER_SECONDS, stdin=server, env=os.environ, check=False)
    except ToolMissing as error:
        raise RegistryAuth(f"{program} is not installed", hint="install it, or remove it from config.json") from error
    except ToolTimeout as error:
        raise RegistryAuth(
            f"{program} did not answer for {host}", hint="log in again, or unlock its keychain"
        ) from error
    if done.code != 0:
        if "not found" in (done.stdout + done.stderr).lower():
            return None
        raise RegistryAuth(f"{program} gave no credential for {host} (it ended with {done.code})", hint="log in again")
    try:
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryAuth(f"the answer of {program} can't be read") from error
    return (
        Credential(identity_token=secret) if username == _TOKEN_USER else Credential(username=username, password=secret)
    )

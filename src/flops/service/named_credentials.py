"""Credentials that the operator named: an SLA holds a name, a setting holds what stands behind it and for which host."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flops.errors import BadSetting, CredentialUnknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flops.settings import Settings

GIT = "FLOPS_GIT_CREDENTIALS"
REGISTRY = "FLOPS_REGISTRY_CREDENTIALS"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_KEYS = ("host", "username", "password")
_FORM = '{"NAME": {"host": "HOST", "username": "...", "password": "..."}}'
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class NamedCredential:
    """A user name and password that are given to one host only."""

    name: str
    host: str
    """`HOST[:PORT]`, in lower case."""
    username: str
    password: str = field(repr=False)

    def to_json(self) -> dict[str, str]:
        """As it stands in a builder's job, which is the only place that it travels to."""
        return {"host": self.host, "username": self.username, "password": self.password}


@dataclass(frozen=True, kw_only=True)
class NamedCredentials:
    """What one setting holds; CredentialUnknown where an SLA names another one, or one of another host."""

    setting: str
    by_name: Mapping[str, NamedCredential] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None, setting: str) -> NamedCredentials:
        """Read a setting's JSON; BadSetting tells where it is wrong and never what stands there."""
        if not text:
            return cls(setting=setting)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise BadSetting(f"{setting} is not JSON", hint=f"write {_FORM}") from None
        if not isinstance(document, dict):
            raise BadSetting(f"{setting} is not a JSON object", hint=f"write {_FORM}")
        return cls(setting=setting, by_name={name: _entry(name, entry, setting) for name, entry in document.items()})

    def find(self, name: str, host: str) -> NamedCredential:
        """The credential of this name, which must be for this host (`HOST[:PORT]`)."""
        found = self.by_name.get(name)
        if found is None:
            known = ", ".join(sorted(self.by_name)) or "none"
            raise CredentialUnknown(
                f"no credential is named {name[:64]!r}", hint=f"the operator's {self.setting} names: {known}"
            )
        if found.host != host.lower():
            raise CredentialUnknown(
                f"the credential {name!r} is for {found.host}, not for {host[:253]}",
                hint=f"name one for {host[:253]}, or ask the operator to add it to {self.setting}",
            )
        return found

    def __iter__(self) -> Iterator[NamedCredential]:
        return iter(self.by_name.values())


@dataclass(frozen=True, kw_only=True)
class CredentialNames:
    """The credentials that an SLA may name; what it is checked against at submission."""

    git: NamedCredentials = field(default_factory=lambda: NamedCredentials(setting=GIT))
    registry: NamedCredentials = field(default_factory=lambda: NamedCredentials(setting=REGISTRY))

    @classmethod
    def of(cls, settings: Settings) -> CredentialNames:
        """BadSetting where one of the two settings can't be read."""
        git, registry = settings.git_credentials, settings.registry_credentials
        return cls(
            git=NamedCredentials.parse(git.get_secret_value() if git else None, GIT),
            registry=NamedCredentials.parse(registry.get_secret_value() if registry else None, REGISTRY),
        )


def _entry(name: str, entry: Any, setting: str) -> NamedCredential:
    where = f"{setting}, {name[:64]!r}"
    if not _NAME.fullmatch(name):
        raise BadSetting(f"{where}: a name has letters, digits, '.', '_' and '-', 64 at most")
    if not isinstance(entry, dict) or set(entry) != set(_KEYS):
        raise BadSetting(f"{where} does not have the keys {', '.join(_KEYS)}", hint=f"write {_FORM}")
    for key in _KEYS:
        value = entry[key]
        if not isinstance(value, str) or not value or _CONTROL.search(value):
            raise BadSetting(f"{where}: {key} is not a text of one line", hint=f"write {_FORM}")
    if not _HOST.fullmatch(entry["host"]):
        raise BadSetting(f"{where}: host is not HOST or HOST:PORT", hint="without https:// and without a path")
    return NamedCredential(
        name=name, host=entry["host"].lower(), username=entry["username"], password=entry["password"]
    )

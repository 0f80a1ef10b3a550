"""Settings: environment variables with the prefix FLOPS_, read once at the edge and passed down as values."""
# ruff: noqa: RUF009 - what `_setting` gives is the same for all, and nobody can change it

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "FLOPS_"
_UNSET = object()


def _setting(parse: Callable[[str], Any] = str, default: Callable[[], Any] = lambda: None) -> Any:
    """A field that is its variable's value as `parse` reads it (ValueError: why not), or `default()` without one.

    Plain dataclasses: pydantic would take a third of the time of a whole `flops check` to be imported.
    """
    return field(default=_UNSET, metadata={"parse": parse, "default": default})


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):  # noqa: PLR2004
            raise ValueError(f"not a whole number from {least} to {most}")
        return int(text)

    return parse


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("not a path")
    return Path(text)


def _home(variable: str, fallback: str) -> Path:
    """By the XDG base directory specification; a relative value counts as unset there."""
    value = os.environ.get(variable, "")
    root = Path(value) if value.startswith("/") else Path.home() / fallback
    return root / "flops"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Each field is `FLOPS_` and its name in upper case, unless it is given; an empty variable counts as unset.

    BadSetting names every variable that can't be used.
    """

    registry: str | None = _setting()
    """Where images are pushed, `[http://]HOST[:PORT][/PREFIX]`."""
    registry_pull: str | None = _setting()
    """The registry's name in results, where nodes reach it by another name."""
    cache_dir: Path = _setting(_path, lambda: _home("XDG_CACHE_HOME", ".cache"))
    """Wheels, layers, locks, base packages: can be deleted at any time."""
    data_dir: Path = _setting(_path, lambda: _home("XDG_DATA_HOME", ".local/share"))
    """Images, registry and database of this machine."""
    debian_mirror: str | None = _setting()
    """Debian's archive; the host's own apt configuration by default."""
    debian_security_mirror: str | None = _setting()
    """Debian's security archive; with a `debian_mirror` and without this there are no security updates."""
    debian_keyring: Path | None = _setting(_path)
    index_url: str | None = _setting()
    """The package index (PEP 503 or 691); uv's default otherwise."""
    torch_index: str | None = _setting()
    ca_bundle: Path | None = _setting(_path)
    """Certificates (PEM) that git, uv and the registry client trust."""
    allow_secrets: str = _setting(str, str)
    """Comma-separated file names that may be packed although they look like secrets."""
    workers: int | None = _setting(_whole(1, 64))
    """Layers that are made at the same time; by default as many as there are processors, two at least."""
    job_id: str | None = _setting()

    def __post_init__(self) -> None:
        wrong = []
        for one in fields(self):
            value = getattr(self, one.name)
            variable = PREFIX + one.name.upper()
            text = os.environ.get(variable) or None if value is _UNSET else value
            try:
                known = one.metadata["default"]() if text is None else text
                value = one.metadata["parse"](text) if isinstance(text, str) else known
            except ValueError as error:
                wrong.append(f"{variable}: {error}")
            object.__setattr__(self, one.name, value)
        if wrong:
            raise BadSetting(f"settings can't be used: {'; '.join(wrong)}", hint="unset or correct these variables")

    @classmethod
    def read(cls) -> Settings:
        """Read the environment."""
        return cls()

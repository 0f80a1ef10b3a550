"""Settings: environment variables with the prefix FLOPS_, read once at the edge and passed down as values."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from flops.errors import BadSetting


def _home(variable: str, fallback: str) -> Path:
    """By the XDG base directory specification; a relative value counts as unset there."""
    value = os.environ.get(variable, "")
    root = Path(value) if value.startswith("/") else Path.home() / fallback
    return root / "flops"


class Settings(BaseSettings):
    """Each field is `FLOPS_` and its name in upper case."""

    model_config = SettingsConfigDict(env_prefix="FLOPS_", extra="ignore", frozen=True, populate_by_name=True)

    registry: str | None = None
    """Where images are pushed, `[http://]HOST[:PORT][/PREFIX]`."""
    registry_pull: str | None = None
    """The registry's name in results, where nodes reach it by another name."""
    cache_dir: Path = Field(default_factory=lambda: _home("XDG_CACHE_HOME", ".cache"))
    """Wheels, layers, locks, base packages: can be deleted at any time."""
    data_dir: Path = Field(default_factory=lambda: _home("XDG_DATA_HOME", ".local/share"))
    """Images, registry and database of this machine."""
    debian_mirror: str | None = None
    """Debian's archive; the host's own apt configuration by default."""
    debian_security_mirror: str | None = None
    """Debian's security archive; with a `debian_mirror` and without this there are no security updates."""
    debian_keyring: Path | None = None
    index_url: str | None = None
    """The package index (PEP 503 or 691); uv's default otherwise."""
    torch_index: str | None = None
    ca_bundle: Path | None = None
    """Certificates (PEM) that git, uv and the registry client trust."""
    python_downloads: str | None = Field(default=None, validation_alias="UV_PYTHON_DOWNLOADS")
    """`never` forbids standalone Pythons. Here uv's own variable counts too, as in the two that follow."""
    python_downloads_url: str | None = Field(default=None, validation_alias="UV_PYTHON_DOWNLOADS_JSON_URL")
    """The list of standalone Pythons, a URL or a file; uv's own by default."""
    python_mirror: str | None = Field(default=None, validation_alias="UV_PYTHON_INSTALL_MIRROR")
    """Where standalone Pythons are fetched instead."""
    allow_secrets: str = ""
    """Comma-separated file names that may be packed although they look like secrets."""
    workers: int | None = Field(default=None, ge=1, le=64)
    """Layers that are made at the same time; by default as many as there are processors, two at least."""

    def check_cache(self) -> None:
        """BadSetting where the cache directory can't be used: better said once than by whoever meets it first."""
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.cache_dir):
                pass
        except OSError as error:
            raise BadSetting(
                f"the cache directory {self.cache_dir} can't be written: {error.strerror}", hint="set FLOPS_CACHE_DIR"
            ) from error

    @classmethod
    def read(cls) -> Settings:
        """Read the environment; BadSetting names every variable that can't be used."""
        try:
            return cls()
        except ValidationError as error:
            wrong = "; ".join(f"FLOPS_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
            raise BadSetting(f"settings can't be used: {wrong}", hint="unset or correct these variables") from error

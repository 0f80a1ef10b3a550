"""Settings: environment variables with the prefix FLOPS_, read once at the edge and passed down as values."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from flops.errors import BadSetting


def _home(variable: str, fallback: str) -> Path:
    """By the XDG base directory specification; a relative value counts as unset there."""
    value = os.environ.get(variable, "")
    root = Path(value) if value.startswith("/") else Path.home() / fallback
    return root / "flops"


#: The manager's settings that its builders get, wherever they run.
BUILDER_SETTINGS = (
    "FLOPS_ALLOW_SECRETS",
    "FLOPS_CACHE_BYTES",
    "FLOPS_DEBIAN_MIRROR",
    "FLOPS_DEBIAN_SECURITY_MIRROR",
    "FLOPS_INDEX_URL",
    "FLOPS_REUSE",
    "FLOPS_TORCH_INDEX",
    "FLOPS_UPLOAD_CHUNK",
    "FLOPS_WORKERS",
    "UV_PYTHON_DOWNLOADS",
    "UV_PYTHON_DOWNLOADS_JSON_URL",
    "UV_PYTHON_INSTALL_MIRROR",
)
#: Those that name files of this machine, or open one: builders here get them too.
LOCAL_BUILDER_SETTINGS = (
    "FLOPS_CA_BUNDLE",
    "FLOPS_CACHE_DIR",
    "FLOPS_DATA_DIR",
    "FLOPS_DEBIAN_KEYRING",
    "FLOPS_SIGN_KEY",
    "FLOPS_SIGN_PASSWORD",
)


def _index(url: str | None) -> str | None:
    """It may hold a password, so the message shows nothing of it."""
    if url is not None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            usable = False
        if not usable:
            wrong = "is empty" if not url.strip() else "is no http or https URL (file:// is none)"
            raise ValueError(f"it {wrong}; write https://HOST/simple, or unset it for the default")
    return url


class Settings(BaseSettings):
    """Each field is `FLOPS_` and its name in upper case."""

    model_config = SettingsConfigDict(env_prefix="FLOPS_", extra="ignore", frozen=True, populate_by_name=True)

    registry: str | None = None
    """Where images are pushed, `[http://]HOST[:PORT][/PREFIX]`."""
    registry_pull: str | None = None
    """The registry's name in results, where nodes reach it by another name."""
    upload_chunk: ByteSize | None = Field(default=None, ge=1024 * 1024)
    """Largest body of a request to the registry (`32MiB`), where a proxy before it says no to larger ones; found out otherwise."""
    cache_dir: Path = Field(default_factory=lambda: _home("XDG_CACHE_HOME", ".cache"))
    """Wheels, layers, locks, base packages: can be deleted at any time."""
    data_dir: Path = Field(default_factory=lambda: _home("XDG_DATA_HOME", ".local/share"))
    """Images, registry and database of this machine."""
    debian_mirror: str | None = None
    """Debian's archive; the host's own apt configuration by default."""
    debian_security_mirror: str | None = None
    """Debian's security archive; with a `debian_mirror` and without this there are no security updates."""
    debian_keyring: Path | None = None
    index_url: Annotated[str | None, AfterValidator(_index)] = None
    """The package index (PEP 503 or 691); uv's default otherwise."""
    torch_index: Annotated[str | None, AfterValidator(_index)] = None
    ca_bundle: Path | None = None
    """Certificates (PEM) that are trusted beside this machine's own, by all clients and by git, uv and apt."""
    python_downloads: str | None = Field(default=None, validation_alias="UV_PYTHON_DOWNLOADS")
    """`never` forbids standalone Pythons. Here uv's own variable counts too, as in the two that follow."""
    python_downloads_url: str | None = Field(default=None, validation_alias="UV_PYTHON_DOWNLOADS_JSON_URL")
    """The list of standalone Pythons, a URL or a file; uv's own by default."""
    python_mirror: str | None = Field(default=None, validation_alias="UV_PYTHON_INSTALL_MIRROR")
    """Where standalone Pythons are fetched instead."""
    reuse: Literal["registry", "local"] = "registry"
    """`registry`: layers and locks are shared with other builders through the registry that is pushed to; whoever may push to
    its `flops/cache` decides what they hold. `local`: what this machine made counts alone, and nothing is shared."""
    cache_bytes: ByteSize | None = None
    """What the cache directory may hold after a build (`20GB`); by default a tenth of its disk, from 2 GB to 20 GB."""
    sign_key: Path | None = None
    """A private key (PEM, ECDSA P-256) that images in a registry are signed with; none by default."""
    sign_password: SecretStr | None = None
    """Of an encrypted `sign_key`."""
    allow_secrets: str = ""
    """Comma-separated file names that may be packed although they look like secrets."""
    workers: int | None = Field(default=None, ge=1, le=64)
    """Layers that are made at the same time; by default as many as there are processors, two at least."""

    # --- the service and its builders ---
    advertise: str | None = None
    """The manager's address for builders and nodes, `http[s]://HOST[:PORT]`; by default where it listens, on loopback."""
    names: str = ""
    """Comma-separated host names, beside that of `advertise`, that the manager is called by; others are refused."""
    auth: Literal["token", "oakestra"] | None = None
    """Who may call the manager; without it the manager binds to loopback only."""
    api_token: SecretStr | None = None
    """The manager's (with `auth` token), and what the client commands send."""
    manager: str | None = None
    """The manager that client commands talk to; `http://127.0.0.1:5072` otherwise."""
    broker: str | None = None
    """FLOps' MQTT broker, `[mqtt[s]://][USER:PASSWORD@]HOST[:PORT]`: what happens is mirrored there."""
    broker_backlog: int = Field(default=10_000, ge=1)
    """Messages that may wait for the broker; beyond them those of the oldest projects are dropped, save their outcomes."""
    observer_host: str | None = None
    """Where `serve` takes the original's TCP messages; the manager's own host otherwise."""
    observer_port: int | None = Field(default=None, ge=0, le=65535)
    """2727 in the original; none by default."""
    orchestrator: str = "local"
    """`local`, `oakestra`, or another module of flops.orchestrators."""
    oakestra_url: str | None = None
    """Oakestra's root, `http://HOST:10000`."""
    oakestra_username: str = "Admin"
    oakestra_password: SecretStr | None = None
    builder_image: str | None = None
    """What an orchestrator of containers runs; `flops images builder` makes and pushes it."""
    builders: int = Field(default=2, ge=1, le=64)
    """Builders at once; further projects wait in order."""
    builder_memory: int | None = Field(default=None, ge=256)
    """Megabytes that one builder may use."""
    project_seconds: float = Field(default=3600, gt=0)
    """From the first builder's deployment to the outcome."""
    keep_days: float = Field(default=90, gt=0)
    """Ended projects are forgotten after this."""
    keep_projects: int = Field(default=10_000, ge=1)
    """And the oldest beyond this many."""
    allow_local: bool = False
    """Projects may name directories of this machine."""
    allow_hosts: str = ""
    """Comma-separated names or addresses inside the operator's network that projects may clone and take base images from."""
    base_images: str = ""
    """Comma-separated base images that an SLA may name: `HOST/NAME:TAG`, or beginnings that end with `/` or `*`. None by
    default. A host inside the operator's network, other than the registry's own, must stand in `allow_hosts` too."""
    git_credentials: SecretStr | None = None
    """JSON, `{NAME: {"host", "username", "password"}}`: what an SLA's `git_credential` names."""
    registry_credentials: SecretStr | None = None
    """JSON, `{NAME: {"host", "username", "password"}}`: what an SLA's `registry_credential` names."""
    registry_token: SecretStr | None = None
    """What the embedded registry wants from those who push."""

    @property
    def default_layout(self) -> Path:
        """The OCI layout that images go to where no other place is named."""
        return self.data_dir / "images"

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
            told = {
                f"FLOPS_{'_'.join(map(str, e['loc'])).upper()}": e["msg"].removeprefix("Value error, ")
                for e in error.errors()
            }
            wrong = "; ".join(f"{name}: {message}" for name, message in told.items())
            raise BadSetting(f"settings can't be used: {wrong}", hint="unset or correct these variables") from error

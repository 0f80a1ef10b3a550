"""Standalone Pythons: uv lists them, fetches them and checks their hashes, for any platform; asked where no base will do.

uv's own settings for them (mirror, list, permission) hold. What it says is kept for a day, so that a machine that reaches
no downloads learns it once a day, in seconds.
"""

from __future__ import annotations

import hashlib
import json
import queue
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from packaging.version import InvalidVersion, Version

from flops import http, programs
from flops.base.packages import key
from flops.errors import BaseUnavailable, BuildError, FlopsError
from flops.http import without_credentials
from flops.locking.compiler import uv_program
from flops.oci.blobs import disk_errors, used
from flops.platforms import Platform
from flops.store.document_store import DocumentStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from packaging.specifiers import SpecifierSet

    from flops.settings import Settings

    #: Address of each build, by version and platform.
    Builds = Mapping[Version, Mapping[Platform, str]]

#: Where it lies in an image, beside the two environments; relative, as layers write it.
PREFIX = "opt/flops/python"
#: The oldest that our worker runs on.
OLDEST = Version("3.9")
#: Seconds that an offer, or the lack of one, is believed.
LIFETIME = 24 * 3600
#: Seconds for uv's list, and for the answer of the host that has the builds.
ASKING = 3.0
#: Seconds for one build, of about 30 MB.
FETCHING = 300.0
#: Raised when the same answers would be read otherwise, or the same files be changed otherwise.
FORMAT = 1
#: "Method not allowed", "not implemented": the server is there, and GET may do.
_NO_HEAD = {405, 501}


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The standalone Python for a request, or why there is none."""

    version: str = ""
    """`3.10.14`; "" where there is none."""
    reason: str = ""
    """Why there is none."""


class StandalonePythons:
    """What uv offers and fetches. Safe between threads and processes."""

    def __init__(self, settings: Settings, *, upgrade: bool = False) -> None:
        self._settings = settings
        self._room = settings.cache_dir / "pythons"
        self._store = DocumentStore(self._room / "offers", kind="offer", lifetime=LIFETIME)
        self._upgrade = upgrade
        self._guard = threading.Lock()
        self._fetching: dict[Path, threading.Lock] = {}

    def offer(self, specifier: SpecifierSet, platforms: Sequence[Platform], *, near: str) -> Offer:
        """The build that fits and that every platform has: of the minor version nearest to `near`, the newest.

        Asks once a day, and waits a few seconds at most.
        """
        if self._settings.python_downloads == "never":
            return Offer(reason="UV_PYTHON_DOWNLOADS is never")
        request = self._request(specifier, platforms)
        for asked in () if self._upgrade else (request, self._anything):
            with suppress(TypeError):
                return Offer(**self._store.get(asked))
        offer = self._ask(specifier, platforms, near)
        self._store.put(request, asdict(offer))
        return offer

    def refuse(self, specifier: SpecifierSet, platforms: Sequence[Platform], reason: str) -> Offer:
        """What was offered could not be fetched: not offered again for a day."""
        offer = Offer(reason=reason)
        self._store.put(self._request(specifier, platforms), asdict(offer))
        return offer

    def identity(self, version: str, platform: Platform) -> str:
        """64 hexadecimal digits for a build, before it is fetched."""
        return key(format=FORMAT, source=self._source, version=version, platform=platform.value)

    def fetch(self, version: str, platform: Platform) -> Path:
        """The directory (`bin`, `lib`) of a build, fetched where it is not here; BaseUnavailable, DiskFull."""
        target = self._room / self.identity(version, platform)
        with self._guard:
            fetching = self._fetching.setdefault(target, threading.Lock())
        with fetching, disk_errors(self._room):
            if used(target) is None:
                self._room.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=".new-", dir=self._room) as name:
                    made = self._install(version, platform, Path(name))
                    with suppress(OSError):  # another process was quicker
                        made.rename(target)
        return target

    # --- pieces -------------------------------------------------------------------------------------------------------
    @cached_property
    def _source(self) -> list[str]:
        """What the builds depend on: uv's own list, or the one that was named; a file by its content."""
        address = self._settings.python_downloads_url or ""
        file = Path(_file(address) or address)
        content = hashlib.sha256(file.read_bytes()).hexdigest() if address and file.is_file() else ""
        urls = (address, self._settings.python_mirror or "")
        return [version_of("uv"), content, *map(without_credentials, urls)]

    @property
    def _anything(self) -> dict[str, object]:
        """The key under which it is kept that no host answers, whatever is asked for."""
        return {"standalone": FORMAT, "source": self._source}

    def _request(self, specifier: SpecifierSet, platforms: Sequence[Platform]) -> dict[str, object]:
        names = sorted(platform.value for platform in platforms)
        return {**self._anything, "specifier": str(specifier), "platforms": names}

    def _ask(self, specifier: SpecifierSet, platforms: Sequence[Platform], near: str) -> Offer:
        try:
            builds = self._builds()
        except FlopsError as error:
            return Offer(reason=f"uv's list of standalone builds can't be read: {error.message}")
        fitting = [
            version
            for version, urls in builds.items()
            if version >= OLDEST and specifier.contains(version) and urls.keys() >= set(platforms)
        ]
        if not fitting:
            return Offer(reason=f"uv has no standalone build of it for {' and '.join(map(str, platforms))}")
        middle = Version(near).minor
        version = min(fitting, key=lambda one: (abs(one.minor - middle), -one.minor, -one.micro))
        reason, answered = _reach([builds[version][platform] for platform in platforms], self._settings.ca_bundle)
        if not answered:
            self._store.put(self._anything, asdict(Offer(reason=reason)))
        return Offer(reason=reason) if reason else Offer(version=str(version))

    def _builds(self) -> Builds:
        words = ["--only-downloads", "--all-versions", "--all-platforms", "--all-arches", "--output-format", "json"]
        with tempfile.TemporaryDirectory(prefix="flops-python-") as home:
            done = self._uv("list", *words, home=Path(home), seconds=2 * ASKING)
        builds: dict[Version, dict[Platform, str]] = {}
        keys = {platform: f"linux-{platform.machine}-gnu" for platform in Platform}
        try:
            for one in json.loads(done):
                for platform, name in keys.items():
                    if one["key"] == f"cpython-{one['version']}-{name}" and one["url"]:
                        builds.setdefault(Version(one["version"]), {})[platform] = one["url"]
        except (ValueError, KeyError, TypeError, InvalidVersion) as error:
            raise BuildError("it is not in the form that this version of flops knows") from error
        return builds

    def _install(self, version: str, platform: Platform, room: Path) -> Path:
        name = f"cpython-{version}-linux-{platform.machine}-gnu"
        try:
            self._uv("install", "--no-bin", "--install-dir", room / "all", name, home=room, seconds=FETCHING)
            made = room / "all" / name
            _relocate(made, version)
        except (BuildError, OSError) as error:
            said = error.message if isinstance(error, FlopsError) else error.strerror
            raise BaseUnavailable(
                f"standalone Python {version} for {platform} can't be fetched: {said}",
                hint="choose a Python that the base has with --python",
            ) from error
        return made

    def _uv(self, command: str, *words: str | Path, home: Path, seconds: float) -> str:
        """What `uv python COMMAND` prints. Addresses go by the environment, where credentials are not for all to read."""
        settings = self._settings
        env = {
            "HOME": str(home),
            "UV_CACHE_DIR": str(settings.cache_dir / "uv"),
            "UV_HTTP_RETRIES": "0",
            "UV_HTTP_CONNECT_TIMEOUT": f"{ASKING:.0f}",
            "UV_PYTHON_DOWNLOADS": settings.python_downloads or "",
            "UV_PYTHON_DOWNLOADS_JSON_URL": settings.python_downloads_url or "",
            "UV_PYTHON_INSTALL_MIRROR": settings.python_mirror or "",
            "SSL_CERT_FILE": str(http.authorities(settings.ca_bundle, home)) if settings.ca_bundle else "",
        }
        options = ["--no-config", "--no-progress", "--color", "never"]
        done = programs.run(
            [uv_program(), "python", command, *options, *words],
            seconds=seconds,
            env={name: value for name, value in env.items() if value},
            cwd=home,
            check=False,
        )
        if done.code != 0:
            raise BuildError(_cause(done.stderr))
        return done.stdout


def _cause(said: str) -> str:
    """The innermost reason that uv gives, on one line and without credentials."""
    lines = [line.strip() for line in without_credentials(said).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("cause: ", "error: "))]
    text = " ".join(lines[lines.index(causes[-1]) :]) if causes else " ".join(lines)
    return text.removeprefix("cause: ").removeprefix("error: ")[:300] or "uv gives no reason"


def _relocate(made: Path, version: str) -> None:
    """Make it independent of where uv put it, so that it has the same bytes everywhere; it will lie at PREFIX."""
    minor = ".".join(version.split(".")[:2])
    (made / "bin" / f"python{minor}").stat()
    for path in (made / "lib" / f"python{minor}").glob("_sysconfigdata_*.py"):
        text = path.read_bytes()
        for place in {str(made), str(made.resolve())}:
            text = text.replace(place.encode(), f"/{PREFIX}".encode())
        path.write_bytes(text)


def _file(url: str) -> str:
    """The path of a file:// URL; "" for others."""
    parts = urlsplit(url)
    return unquote(parts.path) if parts.scheme == "file" else ""


def _reach(urls: Iterable[str], ca_bundle: Path | None) -> tuple[str, bool]:
    """Why one of these can't be had ("" where all can), and whether its host answered at all; within ASKING seconds."""
    import httpx  # noqa: F401, PLC0415 - slow to import, seldom needed, and not to count as the host's time

    answers: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
    wanted = list(urls)
    for url in wanted:
        # of its own and not waited for: nothing else bounds the time that a name server takes
        threading.Thread(target=lambda url=url: answers.put(_head(url, ca_bundle)), daemon=True).start()
    end = time.monotonic() + ASKING
    for _ in wanted:
        try:
            reason, answered = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return f"{urlsplit(wanted[0]).hostname} does not answer within {ASKING:.0f} s", False
        if reason:
            return reason, answered
    return "", True


def _head(url: str, ca_bundle: Path | None) -> tuple[str, bool]:
    import httpx  # noqa: PLC0415 - as above

    file = _file(url)
    if file:
        return ("" if Path(file).is_file() else f"{file} does not exist"), True
    host = urlsplit(url).hostname
    try:
        with http.client(ca_bundle, seconds=ASKING, follow_redirects=True) as client:
            status = client.head(url).status_code
    except (httpx.HTTPError, httpx.InvalidURL, FlopsError, OSError, ValueError, ImportError) as error:
        # the last two: a proxy that httpx can't use
        return f"{host} does not answer: {'; '.join(filter(None, http.reason(error, str(host))))}", False
    if httpx.codes.is_success(status) or status in _NO_HEAD:
        return "", True
    return f"{host} answers with status {status}", True

"""pylock.toml (PEP 751), as uv writes it: bytes in, the exact wheels for one target out."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from flops.errors import NoWheel, ToolFailed
from flops.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from packaging.utils import BuildTag, NormalizedName
    from packaging.version import Version

#: The newest glibc that uv's `--python-platform` knows; newer ones run its wheels too.
NEWEST_GLIBC = (2, 40)
#: The oldest glibc that a manylinux tag can name, by architecture (PEP 600, PEP 571 and PEP 599).
OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
LEGACY_TAGS = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
SHA256 = re.compile(r"[0-9a-f]{64}")
#: What file systems take, and tags that one wheel stands for: a name of three lists stands for all their combinations.
FILENAME_LIMIT, TAGS_LIMIT = 255, 100


@dataclass(frozen=True, kw_only=True)
class LockedWheel:
    """One wheel file of a lock."""

    name: str
    """In PEP 503's normal form."""
    version: str
    filename: str
    url: str
    """http or https, never with credentials."""
    sha256: str
    """64 hexadecimal digits."""
    size: int | None
    """In bytes; None if the index does not report it."""
    yanked: str | None = None
    """Why it was withdrawn (PEP 592), as one line, empty if no reason is given; None if it was not."""


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The exact wheels for one platform and Python, sorted by name."""

    platform: Platform
    python: str
    """Full version, "3.11.2"."""
    wheels: tuple[LockedWheel, ...]

    @property
    def digest(self) -> str:
        """`sha256:` and 64 digits over what is installed; URLs don't count."""
        files = [[wheel.name, wheel.version, wheel.filename, wheel.sha256] for wheel in self.wheels]
        text = json.dumps([self.platform.value, self.python, files], separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Size of all wheels, as far as the index reports sizes."""
        return sum(wheel.size or 0 for wheel in self.wheels)

    @property
    def versions(self) -> dict[str, str]:
        """Version by package."""
        return {wheel.name: wheel.version for wheel in self.wheels}

    def to_json(self) -> dict[str, Any]:
        return {
            "platform": self.platform.value,
            "python": self.python,
            "wheels": [asdict(wheel) for wheel in self.wheels],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Lock:
        """KeyError, TypeError or a FlopsError where the document is not as `to_json` writes it."""
        wheels = tuple(LockedWheel(**wheel) for wheel in document["wheels"])
        for wheel in wheels:
            if not _is_sound(wheel):
                raise TypeError("a wheel of a stored lock is damaged")
        return cls(platform=Platform.parse(document["platform"]), python=document["python"], wheels=wheels)


def parse_wheel_name(filename: str) -> tuple[NormalizedName, Version, BuildTag, frozenset[Tag]]:
    """packaging's `parse_wheel_filename`, once its length and the number of its tags were looked at. InvalidWheelFilename."""
    combined = prod(part.count(".") + 1 for part in filename.removesuffix(".whl").rsplit("-", 3)[1:])
    if len(filename) > FILENAME_LIMIT or combined > TAGS_LIMIT:
        raise InvalidWheelFilename(f"{filename[:FILENAME_LIMIT]!r} is too long, or has too many tags")
    return parse_wheel_filename(filename)


def _is_sound(wheel: LockedWheel) -> bool:
    """Whether a stored wheel is one that `parse` could have made: another builder may have stored anything."""
    words: tuple[object, ...] = (wheel.name, wheel.version, wheel.filename, wheel.url, wheel.sha256, wheel.yanked or "")
    if not all(isinstance(word, str) for word in words) or not isinstance(wheel.size, int | None):
        return False
    try:
        parts = urlsplit(wheel.url)
        name, version, _, _ = parse_wheel_name(wheel.filename)
    except ValueError:  # InvalidWheelFilename is one
        return False
    named = name == wheel.name and str(version) and "/" not in wheel.filename
    return (
        bool(named)
        and parts.scheme in {"http", "https"}
        and parts.username is None
        and bool(SHA256.fullmatch(wheel.sha256))
    )


@dataclass(frozen=True, kw_only=True)
class LockTarget:
    """The platform and Python that wheels are chosen for."""

    platform: Platform
    python: str
    """Full version, "3.11.2"."""
    glibc: tuple[int, int]

    @property
    def minor(self) -> str:
        return ".".join(self.python.split(".")[:2])

    @property
    def uv_platform(self) -> str:
        return self.platform.uv_platform(min(self.glibc, NEWEST_GLIBC))

    @cached_property
    def tags(self) -> dict[Tag, int]:
        """Every wheel tag that fits this target, with its rank (PEP 425, PEP 600); 0 is the best."""
        major, minor = (int(part) for part in self.minor.split("."))
        abi = f"cp{major}{minor}"
        platforms = list(self._platform_tags())
        ordered = [*cpython_tags((major, minor), [abi], platforms), *compatible_tags((major, minor), abi, platforms)]
        ranks: dict[Tag, int] = {}
        for rank, tag in enumerate(ordered):
            ranks.setdefault(tag, rank)
        return ranks

    @property
    def marker_environment(self) -> dict[str, str]:
        """PEP 508's environment; the kernel's release and version are empty, as no wheel may depend on them."""
        return {
            "implementation_name": "cpython",
            "implementation_version": self.python,
            "os_name": "posix",
            "platform_machine": self.platform.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.python,
            "python_version": self.minor,
            "sys_platform": "linux",
            "extra": "",
        }

    def _platform_tags(self) -> Iterator[str]:
        machine = self.platform.machine
        for minor in range(self.glibc[1], OLDEST_GLIBC[machine] - 1, -1):
            yield f"manylinux_2_{minor}_{machine}"
            if minor in LEGACY_TAGS:
                yield f"{LEGACY_TAGS[minor]}_{machine}"
        yield f"linux_{machine}"


def parse(document: bytes, target: LockTarget) -> Lock:
    """Read a lock and choose one wheel per package.

    NoWheel where a package has none for the target. ToolFailed where the document is not what uv was asked for: another
    format, an entry that is not a wheel from http(s), a missing sha256, a package twice.
    """
    try:
        packages = tomllib.loads(document.decode())["packages"]
        wheels = [_package(package, target) for package in packages if _applies(package, target)]
    except (
        tomllib.TOMLDecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,  # of an URL
        InvalidMarker,
        UndefinedComparison,
        UndefinedEnvironmentName,
    ) as error:
        raise ToolFailed(f"uv's lock for {target.platform} can't be read: {error!r:.200}") from error
    wheels.sort(key=lambda wheel: wheel.name)
    names = [wheel.name for wheel in wheels]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ToolFailed(f"uv's lock for {target.platform} has more than one version of {', '.join(twice)}")
    return Lock(platform=target.platform, python=target.python, wheels=tuple(wheels))


def preferences(lock: Lock) -> str:
    """A pylock that holds only versions, which uv prefers."""
    lines = ['lock-version = "1.0"', 'created-by = "flops"', ""]
    for wheel in lock.wheels:
        lines += ["[[packages]]", f'name = "{wheel.name}"', f'version = "{wheel.version}"', ""]
    return "\n".join(lines)


def _applies(package: dict[str, Any], target: LockTarget) -> bool:
    marker = package.get("marker")
    return marker is None or Marker(marker).evaluate(dict(target.marker_environment))


def _package(package: dict[str, Any], target: LockTarget) -> LockedWheel:
    name = canonicalize_name(package["name"])
    for kind in ("vcs", "directory", "archive"):
        if kind in package:
            raise ToolFailed(f"uv locked {name} from a {kind}, which is never installed")
    ranked = []
    for entry in package.get("wheels", ()):
        wheel, rank = _wheel(name, package["version"], entry, target)
        if rank is not None:
            ranked.append((rank, wheel))
    if not ranked:
        raise NoWheel(
            f"{name} {package['version']} has no wheel for Python {target.minor} on {target.platform}",
            hint="use a version that has one",
        )
    return min(ranked, key=lambda pair: (pair[0], pair[1].filename))[1]


def _wheel(
    name: str, version: str, entry: dict[str, Any], target: LockTarget
) -> tuple[LockedWheel, tuple[int, int, str] | None]:
    """The wheel and its rank (tag, then the higher build number, as the wheel specification orders them)."""
    parts = urlsplit(entry["url"])
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ToolFailed(f"uv locked {name} from {parts.scheme or 'a path'}, not from http or https")
    filename = entry.get("name") or unquote(parts.path.rpartition("/")[2])
    sha256 = entry.get("hashes", {}).get("sha256", "").lower()
    if not SHA256.fullmatch(sha256):
        raise ToolFailed(f"{filename}: the package index gives no sha256")
    try:
        found, _, build, tags = parse_wheel_name(filename)
    except InvalidWheelFilename as error:
        raise ToolFailed(f"uv locked {name} as {filename!r:.200}, which is not the name of a wheel") from error
    if found != name:
        raise ToolFailed(f"uv locked {name} as {filename!r:.200}, a wheel of another package")
    url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    size = entry.get("size")
    wheel = LockedWheel(
        name=name,
        version=version,
        filename=filename,
        url=url,
        sha256=sha256,
        size=size if isinstance(size, int) else None,
    )
    ranks = [target.tags[tag] for tag in tags if tag in target.tags]
    return wheel, ((min(ranks), -(build[0] if build else 0), build[1] if build else "") if ranks else None)

# ruff: noqa: INP001 - a command of its own, not a package
"""Refresh the lists of src/flops/resources, exact versions and the hashes of wheels that fit: runtime-MINOR.txt for the FL
runtime, builder-MINOR.txt for the builder image, which holds what this distribution depends on.

    .venv/bin/python scripts/runtime_lock.py [NAME ...]

One list serves both platforms. uv resolves linux/amd64 first, then linux/arm64 with those versions as constraints; where
the two closures differ the command fails. Of each package's wheels only those are listed that the newest glibc we ship
can load; for an older one a part of them remains. No address of an index gets into a list.
"""

from __future__ import annotations

import sys
import tempfile
import tomllib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name
from uv import find_uv_bin

from flops.errors import FlopsError, Unresolvable
from flops.platforms import Platform
from flops.programs import run
from flops.settings import Settings

ROOT = Path(__file__).parents[1]
RESOURCES = ROOT / "src" / "flops" / "resources"
#: Flower 1.42.0 asks for a certifi that does not exist. Actors publish FLOps' messages over MQTT.
WANTED = ("flwr==1.41.0", "paho-mqtt>=2,<3")
#: Python as Debian's suites have it, with their glibc; uv knows manylinux up to 2_40.
BOOKWORM, TRIXIE = ("3.11.2", (2, 36)), ("3.13.5", (2, 40))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a list holds, and for which Python."""

    title: str
    requirements: tuple[str, ...]
    left_out: frozenset[str] = frozenset()
    python: str
    glibc: tuple[int, int]


def lists() -> dict[str, Wanted]:
    """By the file's name without its ending."""
    # Flower's own installer of app dependencies is uv, which actors switch off: 38 MB
    runtime = partial(Wanted, title="The FL runtime", requirements=WANTED, left_out=frozenset({"uv"}))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    builder = partial(Wanted, title="The builder image", requirements=tuple(project["dependencies"]))
    wanted = [("runtime", BOOKWORM, runtime), ("runtime", TRIXIE, runtime), ("builder", TRIXIE, builder)]
    return {
        f"{name}-{python.rpartition('.')[0]}": make(python=python, glibc=glibc)
        for name, (python, glibc), make in wanted
    }


@dataclass(frozen=True, kw_only=True, order=True)
class Locked:
    name: str
    version: str


def lock(wanted: Wanted, platform: Platform, constraints: list[Locked]) -> dict[Locked, set[str]]:
    """Resolve for one platform: the SHA-256 of every wheel that uv found fitting, by package."""
    settings = Settings.read()
    with tempfile.TemporaryDirectory() as directory:
        room = Path(directory)
        (room / "wanted.in").write_text("\n".join(wanted.requirements) + "\n")
        (room / "constraints.txt").write_text("".join(f"{item.name}=={item.version}\n" for item in constraints))
        index = ["--default-index", settings.index_url] if settings.index_url else []
        certificates = {"SSL_CERT_FILE": str(settings.ca_bundle)} if settings.ca_bundle else {}
        fixed = "--quiet --no-config --no-sources --only-binary :all: --no-header --format pylock.toml"
        files = "--constraints constraints.txt -o pylock.runtime.toml wanted.in"
        target = f"--python-version {wanted.python} --python-platform {platform.uv_platform(wanted.glibc)}"
        run(
            [find_uv_bin(), "pip", "compile", *f"{fixed} {target} {files}".split(), *index],
            seconds=300,
            cwd=room,
            env={"HOME": directory, "UV_CACHE_DIR": str(settings.cache_dir / "uv"), **certificates},
        )
        document = tomllib.loads((room / "pylock.runtime.toml").read_text())
    return {
        Locked(name=canonicalize_name(package["name"]), version=package["version"]): {
            wheel["hashes"]["sha256"] for wheel in package["wheels"] if is_wheel(wheel)
        }
        for package in document["packages"]
        if canonicalize_name(package["name"]) not in wanted.left_out
    }


def is_wheel(entry: dict[str, str]) -> bool:
    name = entry.get("name") or unquote(urlsplit(entry["url"]).path)
    return name.endswith(".whl")


def text_of(wanted: Wanted) -> str:
    """The list's text."""
    amd64 = lock(wanted, Platform.LINUX_AMD64, [])
    arm64 = lock(wanted, Platform.LINUX_ARM64, sorted(amd64))
    if set(amd64) != set(arm64):
        odd = ", ".join(f"{item.name} {item.version}" for item in sorted(set(amd64) ^ set(arm64)))
        raise Unresolvable(f"the platforms' closures differ for Python {wanted.python}: {odd}")
    minor = wanted.python.rpartition(".")[0]
    lines = [f"# {wanted.title} for Python {minor}, both platforms. Refresh: scripts/runtime_lock.py\n"]
    for item in sorted(amd64):
        hashes = sorted(amd64[item] | arm64[item])
        lines.append(
            " \\\n".join([f"{item.name}=={item.version}", *(f"    --hash=sha256:{value}" for value in hashes)])
        )
        lines.append("\n")
    return "".join(lines)


def main() -> int:
    known = lists()
    for name in sys.argv[1:] or known:
        target = RESOURCES / f"{name}.txt"
        text = text_of(known[name])
        target.write_text(text)
        sys.stderr.write(f"{target.name}: {text.count('==')} packages\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FlopsError as error:
        sys.exit(f"{error.code}: {error.message}")

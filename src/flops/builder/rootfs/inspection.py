"""What an image offers to stand on: glibc, Python, C++ library; read from its files, nothing of it started."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flops.builder.rootfs.interpreter import library_directories
from flops.errors import BaseUnsuitable
from flops.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.builder.rootfs.image_tree import ImageTree

#: Minor versions that the FL runtime is locked for (resources/runtime-MINOR.txt), the preferred one first.
PYTHONS = ("3.13", "3.11")
#: Wheels of our time are built for manylinux_2_28 and older.
OLDEST_GLIBC = (2, 28)
HINT = f"take an image with glibc {OLDEST_GLIBC[0]}.{OLDEST_GLIBC[1]} or newer and Python {' or '.join(PYTHONS)}"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PYTHON = re.compile(r"python(3\.[0-9]+)")
_BANNER = re.compile(rb"GNU C Library [^\n\0]{0,200}version ([0-9]+)\.([0-9]+)")
_PATCHLEVEL = re.compile(rb'#define\s+PY_VERSION\s+"([0-9.]+)[^"]*"')
_MACHINES = {Platform.LINUX_AMD64: 62, Platform.LINUX_ARM64: 183}  # e_machine, by the psABIs


@dataclass(frozen=True, kw_only=True)
class Inspection:
    python: str
    """The full version, `3.11.2`."""
    glibc: tuple[int, int]
    program: str
    """The interpreter's real file, without a leading slash."""
    has_bytecode: bool
    """Whether the standard library's bytecode lies beside it."""


def inspect(tree: ImageTree, platform: Platform, environment: Mapping[str, str]) -> Inspection:
    """Find and check what an image offers; BaseUnsuitable says what it lacks.

    glibc's version is that of the banner in libc.so.6. Python is the first `python3` on the image's PATH whose minor version
    is supported, or else a supported `python3.N`; its full version stands in patchlevel.h, or else as a string of its own in
    libpython or the program.
    """
    if tree.file(platform.loader) is None:
        musl = any(re.match(r"(?:usr/)?lib/ld-musl-", path) for path in tree.nodes)
        what = "is built on musl, and wheels need glibc" if musl else f"has no {platform.loader}, so no glibc"
        raise BaseUnsuitable(f"the base image {what}", hint=HINT)
    program, minor = _find_python(tree, environment.get("PATH") or _PATH)
    libraries = library_directories(tree, platform, program)
    prefix = program.partition("/bin/")[0]
    home = f"{prefix}/lib/python{minor}"
    if tree.file(f"{home}/os.py") is None:
        raise BaseUnsuitable(f"the base image has /{program} without its standard library in /{home}", hint=HINT)
    if _library(tree, libraries, "libstdc++.so.6") is None:
        raise BaseUnsuitable("the base image has no libstdc++.so.6, which most compiled packages need", hint=HINT)
    libc = _library(tree, libraries, "libc.so.6")
    headers = tree.file(f"{prefix}/include/python{minor}/patchlevel.h")
    libpython = _library(tree, libraries, f"libpython{minor}.so.1.0")
    contents = _contents(tree, [path for path in (libc, program, headers, libpython) if path is not None])
    _check_machine(contents[program], platform, program)
    return Inspection(
        python=_version(minor, contents.get(headers or ""), contents.get(libpython or ""), contents[program]),
        glibc=_glibc(contents.get(libc or "", b"")),
        program=program,
        has_bytecode=f"{home}/__pycache__/os.cpython-{minor.replace('.', '')}.pyc" in tree.nodes,
    )


def _find_python(tree: ImageTree, search: str) -> tuple[str, str]:
    seen = []
    for name in ("python3", *(f"python{minor}" for minor in PYTHONS)):
        for directory in search.split(":"):
            real = tree.file(f"{directory}/{name}") if directory.startswith("/") else None
            match = _PYTHON.fullmatch(real.rpartition("/")[2]) if real else None
            if real and match and "/bin/" in real:
                if match[1] in PYTHONS:
                    return real, match[1]
                seen.append(match[1])
                break
    if seen:
        raise BaseUnsuitable(
            f"the base image has Python {seen[0]}, and the FL runtime is made for {' and '.join(PYTHONS)}", hint=HINT
        )
    raise BaseUnsuitable("the base image has no Python on its PATH", hint=HINT)


def _library(tree: ImageTree, directories: tuple[str, ...], name: str) -> str | None:
    found = (tree.file(f"{directory}/{name}") for directory in directories)
    return next(filter(None, found), None)


def _contents(tree: ImageTree, paths: list[str]) -> dict[str, bytes]:
    """Whole files; the largest here is libpython with a few MB."""
    with tempfile.TemporaryDirectory(prefix="flops-base-") as directory:
        tree.extract(paths, Path(directory))
        return {path: (Path(directory) / path).read_bytes() for path in paths}


def _check_machine(program: bytes, platform: Platform, path: str) -> None:
    machine = int.from_bytes(program[18:20], "little") if program.startswith(b"\x7fELF") else None
    if machine != _MACHINES[platform]:
        raise BaseUnsuitable(f"/{path} of the base image is no program for {platform}", hint=HINT)


def _glibc(libc: bytes) -> tuple[int, int]:
    banner = _BANNER.search(libc)
    if banner is None:
        raise BaseUnsuitable("the base image's libc.so.6 does not tell its version", hint=HINT)
    version = (int(banner[1]), int(banner[2]))
    if version < OLDEST_GLIBC:
        raise BaseUnsuitable(
            f"the base image has glibc {version[0]}.{version[1]}, which is too old for wheels", hint=HINT
        )
    return version


def _version(minor: str, headers: bytes | None, *binaries: bytes | None) -> str:
    if headers is not None and (match := _PATCHLEVEL.search(headers)):
        return match[1].decode()
    alone = re.compile(rb"\0(" + re.escape(minor).encode() + rb"\.[0-9]+)(?:\+|[abr]c?[0-9]+)?\0")
    for content in binaries:
        if content is not None and (match := alone.search(content)):
            return match[1].decode()
    raise BaseUnsuitable(f"the exact version of the base image's Python {minor} can't be told", hint=HINT)

"""A Python out of an image's layers, in a directory, so that this machine can start it (bytecode.py)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flops.builder.rootfs.bytecode import Interpreter
from flops.errors import BaseUnsuitable
from flops.oci.blobs import used

if TYPE_CHECKING:
    from flops.builder.rootfs.image_tree import ImageTree
    from flops.platforms import Platform

#: Never imported by what we start, and half of the files.
_NOT_NEEDED = re.compile(r"/(?:test|tests|idlelib)/")
_LIBRARY = re.compile(r"lib(?:c|m|dl|util|rt|pthread|z|expat|python[0-9.]+|crypt|gcc_s)\.so|ld-|lib(?:c|m)-2")


def python_files(tree: ImageTree, directory: str) -> list[str]:
    """The sources of a standard library, sorted; third-party directories in it are not part of it."""
    third = (f"{directory}/site-packages/", f"{directory}/dist-packages/")
    return tree.files(lambda p: p.startswith(f"{directory}/") and p.endswith(".py") and not p.startswith(third))


def library_directories(tree: ImageTree, platform: Platform, program: str) -> tuple[str, ...]:
    """Where a process of the image finds shared libraries; real directories, each once."""
    prefix = program.partition("/bin/")[0]
    names = [f"lib/{platform.multiarch}", f"usr/lib/{platform.multiarch}", "lib64", "usr/lib64", "lib", "usr/lib"]
    found = (tree.resolve(name) for name in [*names, f"{prefix}/lib"])
    return tuple(dict.fromkeys(path for path in found if path is not None))


def unpack_interpreter(tree: ImageTree, *, program: str, platform: Platform, cache_dir: Path) -> Interpreter:
    """The Python at `program` (a real file, `usr/bin/python3.11`) with its loader, C library and standard library.

    Kept under `cache_dir` by what it is made of. BaseUnsuitable where the image has no loader for the platform.
    """
    minor = program.rpartition("python")[2]
    loader = tree.file(platform.loader)
    if loader is None:
        raise BaseUnsuitable(f"the base has no {platform.loader}, glibc's dynamic loader for {platform}")
    libraries = library_directories(tree, platform, program)
    wanted = _wanted(tree, program, minor, loader, libraries)
    root = cache_dir / tree.key
    if used(root) is None:
        _unpack(tree, wanted, root)
    return Interpreter(root=root, minor=minor, program=program, loader=loader, libraries=libraries)


def _wanted(tree: ImageTree, program: str, minor: str, loader: str, libraries: tuple[str, ...]) -> dict[str, str]:
    """Where each file goes, and which file of the image it is: names that are links get the linked file's bytes."""
    home = f"{program.partition('/bin/')[0]}/lib/python{minor}/"
    sources = [path for path in python_files(tree, home.rstrip("/")) if not _NOT_NEEDED.search(path)]
    wanted = {path: path for path in [program, loader, *sources]}
    for path in tree.nodes:
        directory, _, name = path.rpartition("/")
        if directory in libraries and _LIBRARY.match(name) and (real := tree.file(path)):
            wanted[path] = real
    return wanted


def _unpack(tree: ImageTree, wanted: dict[str, str], root: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root.parent))
    try:
        tree.extract(sorted(set(wanted.values())), partial)
        for path, real in wanted.items():
            if path != real:
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(partial / real, partial / path)
        for directory, _, _ in os.walk(partial):  # so that another user's process can run it
            Path(directory).chmod(0o755)
        with contextlib.suppress(OSError):  # another process was quicker
            partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""Bytecode for sources that lie in an image, made by the base's own interpreter, the same to the byte every time.

Without it each process of a federation compiles anew (a read-only root keeps no cache): starts take three times as long.
Bytecode does not depend on the architecture: the interpreter of this machine's platform compiles for every platform. It is
started through its own dynamic loader, from a directory: no container, no root.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flops import programs, sandbox
from flops.base import bytecode_child
from flops.errors import BaseUnsuitable, BuildError, ToolFailed, ToolMissing, ToolTimeout
from flops.oci.blobs import used
from flops.sandbox import Bounds, limited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from flops.base.image_tree import ImageTree
    from flops.oci.layer import LayerWriter
    from flops.platforms import Platform


#: Raised whenever the same sources would give other bytes.
BYTECODE_VERSION = 1
#: Sources that one process compiles.
_CHUNK_FILES = 200
_CHUNK_BYTES = 4 * 1024 * 1024
_CHUNK_SECONDS = 300
#: Bytes that one such process takes at most, and one of a base image, which is somebody else's program.
_CHUNK_MEMORY = 4 * 1024**3
_FOREIGN_MEMORY = 2 * 1024**3
#: Bytes that it answers at most: a .pyc is seldom larger than twice its source.
_ANSWER_BYTES = 32 * 1024**2
_ANSWER_FACTOR = 16


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python in a directory, with the loader and libraries it was linked against."""

    root: Path
    minor: str
    """`3.11`."""
    program: str
    """Relative to the root: `usr/bin/python3.11`."""
    loader: str
    """The dynamic loader's own file, relative to the root or absolute; a link to it could lead to this machine's."""
    libraries: tuple[str, ...]
    """Directories of shared libraries, relative to the root or absolute."""
    origin: str = ""
    """Whose it is: empty for Debian's and uv's, else the digest of the base image; then it only runs confined."""
    seen: tuple[Path, ...] = ()
    """Directories outside the root that it is started with."""

    def command(self, arguments: Iterable[str | Path]) -> list[str]:
        """What starts this Python with these arguments, with nothing of this machine's own libraries."""
        libraries = ":".join(str(self.root / directory) for directory in self.libraries)
        loader = [str(self.root / self.loader), "--inhibit-cache", "--library-path", libraries]
        return [*loader, str(self.root / self.program), *map(str, arguments)]

    @property
    def home(self) -> Path:
        """The prefix that holds lib/pythonMINOR."""
        return (self.root / self.program).parents[1]


@dataclass(frozen=True, kw_only=True)
class BytecodeTarget:
    """A layer that wants the bytecode of these sources."""

    writer: LayerWriter
    sources: Mapping[str, Callable[[], bytes]]
    """Read each source, by its path in the image without a leading slash."""


@dataclass(frozen=True)
class _Job:
    """One source, and the targets (by number) that hold it at this path."""

    path: str
    source: bytes
    targets: tuple[int, ...]


def pyc_path(path: str, minor: str) -> str:
    """Where the import system looks for a source's bytecode (PEP 3147)."""
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}__pycache__/{name.removesuffix('.py')}.cpython-{minor.replace('.', '')}.pyc"


def write_bytecode(interpreter: Interpreter, targets: Sequence[BytecodeTarget], *, workers: int = 2) -> tuple[str, ...]:
    """Compile all sources and write the .pyc files into their layers, sorted by path; returns the paths left out.

    What several targets share is compiled once. A source that is no Python of this version is left out, as compileall
    does. Memory holds a few chunks of 4 MiB, whatever the sources' number. BuildError where the interpreter fails.
    """
    left_out = []
    with ThreadPoolExecutor(workers) as pool:
        chunks = _chunks(_jobs(targets, interpreter.minor))

        def submit(chunk: list[_Job]) -> Callable[[], tuple[list[_Job], list[bytes]]]:
            future = pool.submit(_compile, interpreter, chunk)
            return lambda: (chunk, future.result())

        running = [submit(chunk) for chunk in islice(chunks, workers)]
        while running:
            chunk, compiled = running.pop(0)()
            running += [submit(chunk) for chunk in islice(chunks, 1)]
            for job, data in zip(chunk, compiled, strict=True):
                if not data:
                    left_out.append(job.path)
                    continue
                for number in job.targets:
                    targets[number].writer.file(pyc_path(job.path, interpreter.minor), data)
    return tuple(left_out)


def _jobs(targets: Sequence[BytecodeTarget], minor: str) -> Iterator[_Job]:
    paths = {path for target in targets for path in target.sources}
    for path in sorted(paths, key=lambda name: pyc_path(name, minor)):
        holders: dict[bytes, list[int]] = {}
        for number, target in enumerate(targets):
            if path in target.sources:
                holders.setdefault(target.sources[path](), []).append(number)
        for source, numbers in holders.items():
            yield _Job(path, source, tuple(numbers))


def _chunks(jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
    chunk: list[_Job] = []
    size = 0
    for job in jobs:
        chunk.append(job)
        size += len(job.source)
        if len(chunk) >= _CHUNK_FILES or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _compile(interpreter: Interpreter, chunk: Sequence[_Job]) -> list[bytes]:
    """Compile a chunk in a process of its own; one .pyc for each source, empty where there is none."""
    pack = bytearray()
    for job in chunk:
        path = b"/" + job.path.encode()
        pack += len(path).to_bytes(4, "little") + len(job.source).to_bytes(4, "little") + path + job.source
    output = _ANSWER_BYTES + _ANSWER_FACTOR * len(pack)
    # -S -s: nothing but the standard library; the hash seed orders sets of constants. No -P, which Python 3.10 does not know:
    # the child imports built-in modules only
    flags = ["-S", "-s", "-B", "-X", "utf8", "-W", "ignore"]
    seed = {"PYTHONHASHSEED": "0", "PYTHONHOME": str(interpreter.home)}
    command = interpreter.command([*flags, bytecode_child.__file__])
    first, last = chunk[0].path, chunk[-1].path
    try:
        if interpreter.origin:
            answer = sandbox.run(
                command,
                seen=(interpreter.root, *interpreter.seen, Path(bytecode_child.__file__)),
                bounds=Bounds(seconds=_CHUNK_SECONDS, memory=_FOREIGN_MEMORY, processes=4, output=output),
                stdin=bytes(pack),
                env=seed,
            )
        else:
            answer = programs.exchange(
                limited(command, memory=_CHUNK_MEMORY, processor_seconds=_CHUNK_SECONDS, file_bytes=0),
                stdin=bytes(pack),
                seconds=_CHUNK_SECONDS,
                output=output,
                env=programs.environment(seed),
            )
    except (ToolFailed, ToolMissing, ToolTimeout) as error:
        raise BuildError(f"the base's Python can't compile {first} to {last}: {error.message}") from error
    if answer.code != 0:
        why = f"it ended with {answer.code}: {programs.last_line(answer.stderr)}"
        raise BuildError(f"the base's Python can't compile {first} to {last}: {why}")
    compiled, start = [], 0
    for _ in chunk:
        end = start + 4 + int.from_bytes(answer.stdout[start : start + 4], "little")
        compiled.append(answer.stdout[start + 4 : end])
        start = end
    if start != len(answer.stdout):
        raise BuildError(
            f"the base's Python wrote no bytecode for {first} to {last}: "
            f"its {len(answer.stdout)} bytes are not one piece for each of {len(chunk)} sources"
        )
    return compiled


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

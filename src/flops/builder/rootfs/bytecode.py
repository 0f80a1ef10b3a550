"""Bytecode for sources that lie in an image, made by the base's own interpreter, the same to the byte every time.

Without it each process of a federation compiles anew (a read-only root keeps no cache): starts take three times as long.
Bytecode does not depend on the architecture: the interpreter of this machine's platform compiles for every platform. It is
started through its own dynamic loader, from a directory: no container, no root.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flops.builder.limits import limited
from flops.builder.rootfs import bytecode_child
from flops.builder.sandbox import confined
from flops.errors import BuildError, ToolFailed, ToolMissing, ToolTimeout
from flops.process import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from flops.oci.layer import LayerWriter

#: Raised whenever the same sources would give other bytes.
BYTECODE_VERSION = 1
#: Sources that one process compiles.
_CHUNK_FILES = 200
_CHUNK_BYTES = 4 * 1024 * 1024
_CHUNK_SECONDS = 300
#: Of one such process: a base image's Python is somebody else's program. Bytes of address space, bytes of a file.
_CHUNK_MEMORY = 4 * 1024**3
_CHUNK_OUTPUT = 512 * 1024**2


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
class Target:
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


def write_bytecode(interpreter: Interpreter, targets: Sequence[Target], *, workers: int = 2) -> tuple[str, ...]:
    """Compile all sources and write the .pyc files into their layers, sorted by path; returns the paths left out.

    What several targets share is compiled once. A source that is no Python of this version is left out, as compileall
    does. Memory holds a few chunks of 4 MiB, whatever the sources' number. BuildError where the interpreter fails.
    """
    left_out = []
    with tempfile.TemporaryDirectory(prefix="flops-bytecode-") as directory, ThreadPoolExecutor(workers) as pool:
        chunks = enumerate(_chunks(_jobs(targets, interpreter.minor)))

        def submit(number: int, chunk: list[_Job]) -> Callable[[], tuple[list[_Job], list[bytes]]]:
            future = pool.submit(_compile, interpreter, chunk, Path(directory), number)
            return lambda: (chunk, future.result())

        running = [submit(*item) for item in islice(chunks, workers)]
        while running:
            chunk, compiled = running.pop(0)()
            running += [submit(*item) for item in islice(chunks, 1)]
            for job, data in zip(chunk, compiled, strict=True):
                if not data:
                    left_out.append(job.path)
                    continue
                for number in job.targets:
                    targets[number].writer.file(pyc_path(job.path, interpreter.minor), data)
    return tuple(left_out)


def _jobs(targets: Sequence[Target], minor: str) -> Iterator[_Job]:
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


def _compile(interpreter: Interpreter, chunk: Sequence[_Job], room: Path, number: int) -> list[bytes]:
    """Compile a chunk in a process of its own; one .pyc for each source, empty where there is none."""
    sources, bytecode = room / f"{number}.sources", room / f"{number}.bytecode"
    with sources.open("wb") as pack:
        for job in chunk:
            path = b"/" + job.path.encode()
            pack.write(len(path).to_bytes(4, "little") + len(job.source).to_bytes(4, "little") + path + job.source)
    # -S -s: nothing but the standard library; the hash seed orders sets of constants. No -P, which Python 3.10 does not know:
    # the child imports built-in modules only
    flags = ["-S", "-s", "-B", "-X", "utf8", "-W", "ignore"]
    seed = {"PYTHONHASHSEED": "0", "PYTHONHOME": str(interpreter.home)}
    try:
        command: Sequence[str | Path] = interpreter.command([*flags, bytecode_child.__file__, sources, bytecode])
        if interpreter.origin:
            seen = (interpreter.root, *interpreter.seen, Path(bytecode_child.__file__))
            command = confined(command, seen=seen, writable=room)
        run(
            limited(command, memory=_CHUNK_MEMORY, processor_seconds=_CHUNK_SECONDS, file_bytes=_CHUNK_OUTPUT),
            seconds=_CHUNK_SECONDS,
            env=seed,
            cwd=room,
        )
    except (ToolFailed, ToolMissing, ToolTimeout) as error:
        first, last = chunk[0].path, chunk[-1].path
        raise BuildError(f"the base's Python can't compile {first} to {last}: {error.message}") from error
    try:
        with bytecode.open("rb") as pack:
            compiled = [pack.read(int.from_bytes(pack.read(4), "little")) for _ in chunk]
    except OSError as error:
        raise BuildError(f"the base's Python wrote no bytecode for {chunk[0].path}: {error.strerror}") from error
    sources.unlink()
    bytecode.unlink()
    return compiled

"""A standalone Python becomes layers upon a base: its files, then bytecode of its standard library."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from flops.base.bytecode import BYTECODE_VERSION, BytecodeTarget, Interpreter, write_bytecode
from flops.base.packages import key
from flops.base.standalone import PREFIX
from flops.errors import BaseUnavailable, BuildError
from flops.oci.blobs import disk_errors
from flops.oci.entries import File, Link, write_entries
from flops.oci.layer import FORMAT_VERSION, LayerWriter, compressor_tag
from flops.platforms import Platform
from flops.progress import Stage
from flops.wheels.layer_cache import LayerCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from flops.base import Base, BaseProvider
    from flops.base.standalone import StandalonePythons
    from flops.oci.blobs import BlobStore
    from flops.oci.layer import Layer
    from flops.progress import Reporter
    from flops.recipe import Compression
    from flops.repair.pythons import PythonChoice
    from flops.store.shared import SharedCache

#: Raised whenever other files of the same build would be taken.
CHOICE_VERSION = 1
#: The program and the standard library.
_KEPT = re.compile(r"bin/python[0-9.]*|lib/python3\.\d+/.*")
#: Of some builds the program is linked with it, of others it is only there for programs that embed Python.
_LIBRARY = re.compile(r"lib/libpython[^/]*\.so[^/]*")
#: Of these: what compiles and links (nothing does in an image), installs, draws windows or tests; and bytecode of others.
_LEFT_OUT = re.compile(
    r"/(?:config-[^/]*|site-packages|ensurepip|idlelib|tkinter|turtledemo|tests?|idle_test|__pycache__)/"
    r"|/lib-dynload/(?:_tkinter|_test|_ctypes_test|_xx|xx)[^/]*$|\.a$"
)


class StandaloneLayers:
    """One standalone Python, for the platforms of one build. Layers are remembered by what they are made of."""

    def __init__(
        self,
        version: str,
        pythons: StandalonePythons,
        *,
        cache_dir: Path,
        blobs: BlobStore,
        compression: Compression,
        reporter: Reporter,
        shared: SharedCache | None = None,
    ) -> None:
        self._version = version
        self._minor = ".".join(version.split(".")[:2])
        self._pythons = pythons
        self._room = cache_dir / "bases"
        self._layers = LayerCache(self._room / "layers", blobs, shared)
        self._blobs = blobs
        self._compression = compression
        self._reporter = reporter
        self._lock = threading.Lock()
        self._files: dict[Platform, Layer] = {}

    def obtain(self, platforms: Sequence[Platform]) -> Mapping[Platform, Layer]:
        """Fetch the builds and make the layers of their files; BaseUnavailable, and a second call waits for the first."""
        with self._lock, disk_errors(self._room):
            todo = sorted(set(platforms) - self._files.keys())
            with ThreadPoolExecutor(max(1, len(todo))) as pool:
                self._files |= dict(zip(todo, pool.map(self._files_layer, todo), strict=True))
        return {platform: self._files[platform] for platform in platforms}

    def upon(
        self, bases: Mapping[Platform, Base], interpreter: Callable[[], Interpreter | None]
    ) -> Mapping[Platform, Base]:
        """The bases with this Python in them; `interpreter`: the base's own, whose loader starts this one here."""
        files = self.obtain(list(bases))
        with disk_errors(self._room):
            bytecode = self._bytecode(files, interpreter)
        return {
            platform: replace(
                base,
                layers=(*base.layers, files[platform], *bytecode.get(platform, ())),
                lock="sha256:" + key(base=base.lock, python=files[platform].diff_id),
                ml_interpreter=f"/{PREFIX}/bin/python{self._minor}",
            )
            for platform, base in bases.items()
        }

    def _files_layer(self, platform: Platform) -> Layer:
        name = key(
            choice=CHOICE_VERSION,
            build=self._pythons.identity(self._version, platform),
            format=FORMAT_VERSION,
            compressor=compressor_tag(self._compression),
        )
        layer = self._layers.find(name)
        if layer is None:
            root = self._pythons.fetch(self._version, platform)
            with self._blobs.writer() as blob:
                writer = LayerWriter(blob, compression=self._compression)
                write_entries([_entry(root, path) for path in _paths(root, self._minor)], writer)
                layer = writer.close(comment=f"Python {self._version}, standalone")
                blob.commit(layer.digest)
            self._layers.keep(name, layer)
        return layer

    def _bytecode(
        self, files: Mapping[Platform, Layer], interpreter: Callable[[], Interpreter | None]
    ) -> dict[Platform, tuple[Layer]]:
        """The standard library's, where this machine can start such a Python; else a warning."""
        names = {platform: key(bytecode=BYTECODE_VERSION, layer=layer.digest) for platform, layer in files.items()}
        found = {platform: (layer,) for platform, name in names.items() if (layer := self._layers.find(name))}
        todo = [platform for platform in files if platform not in found]
        if todo:
            try:
                made = self._compile(todo, self._startable(interpreter))
            except BuildError as error:
                self._reporter.warning(
                    Stage.RESOLVE,
                    f"Python {self._version} gets no bytecode of its standard library, so processes start slower: "
                    f"{error.message}",
                )
                return found
            for platform, layer in made.items():
                self._layers.keep(names[platform], layer)
                found[platform] = (layer,)
        return found

    def _startable(self, interpreter: Callable[[], Interpreter | None]) -> Interpreter:
        """The build for this machine, with the base's loader and C library."""
        host, own = Platform.host(), interpreter()
        if host is None or own is None:
            raise BaseUnavailable("no base that this machine can start was made")
        return Interpreter(
            root=self._pythons.fetch(self._version, host),
            minor=self._minor,
            program=f"bin/python{self._minor}",
            loader=str(own.root / own.loader),
            libraries=("lib", *(str(own.root / directory) for directory in own.libraries)),
            origin=own.origin,
            seen=(own.root,),
        )

    def _compile(self, platforms: Sequence[Platform], interpreter: Interpreter) -> dict[Platform, Layer]:
        with ExitStack() as stack:
            blobs = {platform: stack.enter_context(self._blobs.writer()) for platform in platforms}
            writers = {p: LayerWriter(blob, compression=self._compression) for p, blob in blobs.items()}
            targets = []
            for platform, writer in writers.items():
                root = self._pythons.fetch(self._version, platform)
                sources = [path for path in _paths(root, self._minor) if path.endswith(".py")]
                targets.append(
                    BytecodeTarget(
                        writer=writer, sources={f"{PREFIX}/{path}": (root / path).read_bytes for path in sources}
                    )
                )
            write_bytecode(interpreter, targets)
            layers = {p: w.close(comment=f"bytecode of Python {self._version}") for p, w in writers.items()}
            for platform, layer in layers.items():
                blobs[platform].commit(layer.digest)
        return layers


class StandaloneBase:
    """A BaseProvider: another base, with a standalone Python upon it for the ML environment."""

    def __init__(self, choice: PythonChoice, below: BaseProvider, layers: StandaloneLayers) -> None:
        self._choice = choice
        self._below = below
        self.layers = layers

    def choice(self, platforms: Sequence[Platform]) -> PythonChoice:  # noqa: ARG002 - it was chosen before
        return self._choice

    def prepare(self, platforms: Sequence[Platform]) -> Mapping[Platform, Base]:
        """The builds are fetched while the base below is being made."""
        with ThreadPoolExecutor(1) as pool:
            bases = pool.submit(self._below.prepare, platforms)
            self.layers.obtain(platforms)
            return self.layers.upon(bases.result(), self._below.interpreter)

    def interpreter(self) -> Interpreter | None:
        """The base's below, which the FL runtime keeps."""
        return self._below.interpreter()

    def compiler(self) -> str | None:
        return self._below.compiler()


def _paths(root: Path, minor: str) -> Iterator[str]:
    """What an image needs of a build, relative to it."""
    linked = f"libpython{minor}.so".encode() in (root / "bin" / f"python{minor}").read_bytes()
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        kept = _KEPT.fullmatch(name) or (linked and _LIBRARY.fullmatch(name))
        if kept and not _LEFT_OUT.search(name) and (path.is_symlink() or path.is_file()):
            yield name


def _entry(root: Path, name: str) -> File | Link:
    """BaseUnavailable for a link that leaves the build."""
    path = root / name
    if not path.is_symlink():
        executable = bool(path.stat().st_mode & 0o100)
        return File(path=f"{PREFIX}/{name}", data=path, executable=executable)
    target = path.readlink()
    if target.is_absolute() or not path.resolve().is_relative_to(root.resolve()):
        raise BaseUnavailable(f"the standalone build of Python has a link that leaves it: {name:.100}")
    return Link(path=f"{PREFIX}/{name}", target=target.as_posix())

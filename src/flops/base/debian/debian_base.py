"""The base made from Debian packages: resolved and verified by apt, unpacked by us, no script run, no root, any platform."""

from __future__ import annotations

import tempfile
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from flops.base import Base, BasePackage
from flops.base.bytecode import BYTECODE_VERSION, BytecodeTarget, python_files, unpack_interpreter, write_bytecode
from flops.base.debian import apt
from flops.base.debian.deb import DebEntry, read_control, unpack_data
from flops.base.debian.filesystem import TREE_VERSION, Package, write_tree
from flops.base.image_tree import ImageTree
from flops.base.packages import PackageStore, key
from flops.errors import BaseUnavailable
from flops.oci.blobs import disk_errors
from flops.oci.layer import FORMAT_VERSION, LayerWriter, compressor_tag
from flops.platforms import Platform
from flops.progress import Reporter, Silent, Stage
from flops.recipe import Compression
from flops.repair.pythons import PythonChoice
from flops.wheels.layer_cache import LayerCache

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.base.bytecode import Interpreter
    from flops.oci.blobs import BlobStore
    from flops.oci.layer import Layer
    from flops.settings import Settings
    from flops.store.shared import SharedCache

#: Suites with a Python that Flower runs on.
SUITES = ("bookworm", "trixie")
_PIECE = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A release of Debian, as `resources/debian-NAME.toml` describes it."""

    name: str
    version: int
    """Of the list itself."""
    purpose: str = ""
    """What the list is for; empty for actor images."""
    python: str
    """`3.11.2`."""
    glibc: tuple[int, int]
    wanted: tuple[str, ...]
    left_out: frozenset[str]

    @property
    def minor(self) -> str:
        return ".".join(self.python.split(".")[:2])

    @classmethod
    def read(cls, name: str) -> Suite:
        document = tomllib.loads((files("flops") / "resources" / f"debian-{name}.toml").read_text())
        return cls(
            name=document["suite"],
            version=document["version"],
            purpose=document.get("purpose", ""),
            python=document["python"],
            glibc=(document["glibc"][0], document["glibc"][1]),
            wanted=tuple(document["wanted"]),
            left_out=frozenset(document["left_out"]),
        )


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A platform's packages and the layer made of them."""

    packages: tuple[BasePackage, ...]
    layer: Layer


class DebianBase:
    """A BaseProvider. Package sets are kept for a week (`upgrade` asks anew), .debs and layers as long as the cache is."""

    def __init__(
        self,
        suite: Suite,
        *,
        cache_dir: Path,
        blobs: BlobStore,
        settings: Settings,
        compression: Compression = Compression.GZIP,
        upgrade: bool = False,
        reporter: Reporter | None = None,
        shared: SharedCache | None = None,
    ) -> None:
        self._suite = suite
        self._room = cache_dir / "bases"
        self._blobs = blobs
        self._store = PackageStore(self._room, shared=shared)
        self._layers = LayerCache(self._room / "layers", blobs, shared)
        self._settings = settings
        self._compression = compression
        self._upgrade = upgrade
        self._reporter = reporter or Silent()
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._unpacking = threading.Lock()
        self._mirror: apt.DebianMirror | None = None
        self._made: dict[Platform, _Made] = {}

    def choice(self, platforms: Sequence[Platform]) -> PythonChoice:  # noqa: ARG002 - the suite has one for all
        suite = self._suite
        return PythonChoice(
            version=suite.python, minor=suite.minor, glibc=suite.glibc, provider="debian", suite=suite.name
        )

    def compiler(self) -> str:
        """Debian's own Python, the same on every machine."""
        return ""

    def prepare(self, platforms: Sequence[Platform]) -> Mapping[Platform, Base]:
        """Make or recall the base of each platform, in parallel; BaseUnavailable says what is missing."""
        with disk_errors(self._room):
            self._make([*platforms, *self._needed_too(platforms)])
            bytecode = self._bytecode(platforms)
        return {platform: self._base(platform, bytecode[platform]) for platform in platforms}

    def interpreter(self) -> Interpreter:
        """This base's Python, as this machine can start it from the cache."""
        host = Platform.host()
        if host is None:
            raise BaseUnavailable(
                "bytecode can't be made on this machine: Debian's Python here is for amd64 and arm64 only",
                hint="build on one of these",
            )
        with disk_errors(self._room):
            self._make([host])
        with self._unpacking, disk_errors(self._room):  # unpacked once, whoever asks first
            return unpack_interpreter(
                ImageTree.read([self._made[host].layer], self._blobs),
                program=f"usr/bin/python{self._suite.minor}",
                platform=host,
                cache_dir=self._room / "interpreters",
            )

    def _needed_too(self, platforms: Sequence[Platform]) -> list[Platform]:
        """This machine's platform, whose Python compiles; not where all that it would compile is remembered."""
        host = Platform.host()
        if host is None or host in platforms:
            return []
        sets = [self._store.packages(self._set_key(platform)) for platform in platforms]
        known = [one is not None and self._layers.find(self._bytecode_key(one)) is not None for one in sets]
        return [] if all(known) and not self._upgrade else [host]

    def _base(self, platform: Platform, bytecode: Layer) -> Base:
        made = self._made[platform]
        python = next(package.version for package in made.packages if package.name == self._python)
        return Base(
            platform=platform,
            python=python.partition("-")[0],
            glibc=self._suite.glibc,
            interpreter=f"/usr/bin/python{self._suite.minor}",
            layers=(made.layer, bytecode),
            lock="sha256:" + self._contents(made.packages),
            packages=made.packages,
        )

    @property
    def _python(self) -> str:
        """The package whose version is Python's."""
        return f"python{self._suite.minor}-minimal"

    def _make(self, platforms: Sequence[Platform]) -> None:
        with self._lock:
            todo = sorted(set(platforms) - self._made.keys())
            with ThreadPoolExecutor(max(1, len(todo))) as pool:
                self._made |= dict(zip(todo, pool.map(self._packages_layer, todo), strict=True))

    def _packages_layer(self, platform: Platform) -> _Made:
        packages = None if self._upgrade else self._store.packages(self._set_key(platform))
        if packages is not None and not any(package.name == self._python for package in packages):
            packages = None  # another builder's, and none of ours
        if packages is None or (self._recall(packages) is None and self._store.missing(packages)):
            packages = self._fetch(platform, packages)
        layer = self._recall(packages)
        if layer is None:
            layer = self._compose(packages)
            self._layers.keep(self._layer_key(packages), layer)
        return _Made(packages=packages, layer=layer)

    def _recall(self, packages: Sequence[BasePackage]) -> Layer | None:
        return self._layers.find(self._layer_key(packages))

    def _fetch(self, platform: Platform, known: tuple[BasePackage, ...] | None) -> tuple[BasePackage, ...]:
        """Resolve (unless the set is known) and download; an old set helps where the mirror does not answer."""
        self._room.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="apt-", dir=self._room) as directory:
            root = apt.AptRoot(
                Path(directory), mirror=self._reached_mirror(), suite=self._suite.name, platform=platform
            )
            try:
                root.update()
            except BaseUnavailable as error:
                return self._stale(platform, error)
            if known is not None:
                try:
                    self._download(root, known, Path(directory))
                except BaseUnavailable:  # the archive keeps no version for long
                    known = None
            if known is None:
                resolved = root.resolve(self._suite.wanted)
                known = tuple(package for package in resolved if package.name not in self._suite.left_out)
                if self._recall(known) is None:
                    self._download(root, known, Path(directory))
                self._store.keep_packages(self._set_key(platform), known)
        return known

    def _stale(self, platform: Platform, error: BaseUnavailable) -> tuple[BasePackage, ...]:
        packages = self._store.packages(self._set_key(platform), any_age=True)
        if self._upgrade or packages is None or (self._recall(packages) is None and self._store.missing(packages)):
            raise error
        self._reporter.warning(
            Stage.RESOLVE, f"the base for {platform} is older than a week: {error.message}", hint=error.hint
        )
        return packages

    def _download(self, root: apt.AptRoot, packages: Sequence[BasePackage], directory: Path) -> None:
        missing = self._store.missing(packages)
        target = directory / "debs"
        target.mkdir(exist_ok=True)
        root.download(missing, target)
        self._store.take_debs(missing, target)

    def _reached_mirror(self) -> apt.DebianMirror:
        with self._asking:  # asked once, for all platforms
            self._mirror = self._mirror or apt.mirror(
                main=self._settings.debian_mirror,
                security=self._settings.debian_security_mirror,
                keyring=self._settings.debian_keyring,
                ca_bundle=self._settings.ca_bundle,
            )
            return self._mirror

    def _compose(self, packages: Sequence[BasePackage]) -> Layer:
        with ExitStack() as stack:
            blob = stack.enter_context(self._blobs.writer())
            unpacked = [
                self._unpacked(package, stack.enter_context(tempfile.TemporaryFile(dir=self._room)))
                for package in packages
            ]
            writer = LayerWriter(blob, compression=self._compression)
            write_tree(unpacked, self._suite.minor, writer)
            layer = writer.close(comment=f"Debian {self._suite.name}: {len(packages)} packages")
            blob.commit(layer.digest)
        return layer

    def _unpacked(self, package: BasePackage, spool: BinaryIO) -> Package:
        """A package's tree in a temporary file; decompressed once, read in any order."""
        path = self._store.deb(package)
        entries = tuple(unpack_data(path, spool))
        return Package(
            name=package.name, control=read_control(path), entries=entries, read=lambda entry: _pieces(spool, entry)
        )

    def _bytecode(self, platforms: Sequence[Platform]) -> dict[Platform, Layer]:
        """The standard library's bytecode for each platform; what they share is compiled once."""
        keys = {platform: self._bytecode_key(self._made[platform].packages) for platform in platforms}
        found = {platform: self._layers.find(keys[platform]) for platform in platforms}
        todo = [platform for platform in platforms if found[platform] is None]
        if todo:
            made = self._compile(todo)
            for platform, layer in made.items():
                self._layers.keep(keys[platform], layer)
            found |= made
        return {platform: layer for platform, layer in found.items() if layer is not None}

    def _compile(self, platforms: Sequence[Platform]) -> dict[Platform, Layer]:
        interpreter = self.interpreter()
        with ExitStack() as stack:
            blobs = {platform: stack.enter_context(self._blobs.writer()) for platform in platforms}
            writers = {p: LayerWriter(blob, compression=self._compression) for p, blob in blobs.items()}
            targets = []
            for platform, writer in writers.items():
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sources-", dir=self._room)))
                tree = ImageTree.read([self._made[platform].layer], self._blobs)
                paths = python_files(tree, f"usr/lib/python{self._suite.minor}")
                tree.extract(paths, directory)
                targets.append(
                    BytecodeTarget(writer=writer, sources={path: (directory / path).read_bytes for path in paths})
                )
            write_bytecode(interpreter, targets)
            layers = {p: w.close(comment=f"bytecode of Python {self._suite.minor}") for p, w in writers.items()}
            for platform, layer in layers.items():
                blobs[platform].commit(layer.digest)
        return layers

    def _set_key(self, platform: Platform) -> str:
        settings, purpose = self._settings, self._suite.purpose
        return key(
            **({"purpose": purpose} if purpose else {}),
            suite=self._suite.name,
            version=self._suite.version,
            platform=platform.value,
            mirror=[settings.debian_mirror, settings.debian_security_mirror],
        )

    def _contents(self, packages: Sequence[BasePackage]) -> str:
        return key(tree=TREE_VERSION, list=self._suite.version, packages=[p.sha256 for p in packages])

    def _layer_key(self, packages: Sequence[BasePackage]) -> str:
        return key(
            contents=self._contents(packages), format=FORMAT_VERSION, compressor=compressor_tag(self._compression)
        )

    def _bytecode_key(self, packages: Sequence[BasePackage]) -> str:
        return key(bytecode=BYTECODE_VERSION, layer=self._layer_key(packages))


def _pieces(spool: BinaryIO, entry: DebEntry) -> Iterator[bytes]:
    spool.seek(entry.offset)
    left = entry.size
    while left and (piece := spool.read(min(_PIECE, left))):
        left -= len(piece)
        yield piece

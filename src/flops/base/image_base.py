"""A base that is an image in a registry (`--base-image`): pulled, checked, and completed where FL actors need it."""

from __future__ import annotations

import re
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flops import sandbox
from flops.base import ACTOR, Base
from flops.base.bytecode import library_directories, unpack_interpreter
from flops.base.debian.filesystem import HOME, USER
from flops.base.image_tree import ImageTree
from flops.errors import BaseUnavailable, BaseUnsuitable, BlockedAddress, ImageNotFound, RegistryError
from flops.oci.blobs import disk_errors
from flops.oci.layer import LayerWriter
from flops.platforms import Platform
from flops.progress import Reporter, Silent, Stage
from flops.recipe import Compression
from flops.repair.pythons import PythonChoice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.base.bytecode import Interpreter
    from flops.oci.blobs import BlobStore
    from flops.oci.client import RegistryClient
    from flops.oci.layer import Layer
    from flops.oci.pull import PulledImage
    from flops.oci.reference import Reference


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
class BaseInspection:
    python: str
    """The full version, `3.11.2`."""
    glibc: tuple[int, int]
    program: str
    """The interpreter's real file, without a leading slash."""
    has_bytecode: bool
    """Whether the standard library's bytecode lies beside it."""


def inspect(tree: ImageTree, platform: Platform, environment: Mapping[str, str]) -> BaseInspection:
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
    return BaseInspection(
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


_MOST_LAYERS = 60


@dataclass(frozen=True, kw_only=True)
class _Found:
    image: PulledImage
    tree: ImageTree
    inspection: BaseInspection


class ImageBase:
    """A BaseProvider. The image needs glibc 2.28, libstdc++, and a Python that the FL runtime is locked for.

    No bytecode of the standard library is added: where the image has none, processes start slower, which is reported.
    The runtime's bytecode is made by the image's own Python, where the image is also offered for this machine's platform.
    """

    def __init__(
        self,
        reference: Reference,
        client: RegistryClient,
        *,
        cache_dir: Path,
        blobs: BlobStore,
        compression: Compression = Compression.GZIP,
        reporter: Reporter | None = None,
    ) -> None:
        self._reference = reference
        self._client = client
        self._room = cache_dir / "bases"
        self._blobs = blobs
        self._compression = compression
        self._reporter = reporter or Silent()
        self._lock = threading.Lock()
        self._found: dict[Platform, _Found] = {}

    def choice(self, platforms: Sequence[Platform]) -> PythonChoice:
        """The image's Python; it is pulled and looked at. BaseUnavailable, BaseUnsuitable."""
        found = [one.inspection for one in self._inspected(platforms).values()]
        python = found[0].python
        return PythonChoice(
            version=python,
            minor=".".join(python.split(".")[:2]),
            glibc=min(one.glibc for one in found),
            provider="base-image",
            suite="",
        )

    def compiler(self) -> str | None:
        interpreter = self.interpreter()
        return interpreter.origin if interpreter else None

    def prepare(self, platforms: Sequence[Platform]) -> Mapping[Platform, Base]:
        """Pull and check each platform's image. BaseUnavailable, or BaseUnsuitable with what is missing."""
        found = self._inspected(platforms)
        for platform, one in found.items():
            if not one.inspection.has_bytecode:
                self._reporter.warning(
                    Stage.RESOLVE,
                    f"the base image for {platform} holds no bytecode of its standard library",
                    hint="processes start slower; compile it in the image with python -m compileall",
                )
        return {platform: self._base(platform, one) for platform, one in found.items()}

    def _inspected(self, platforms: Sequence[Platform]) -> dict[Platform, _Found]:
        self._find(platforms)
        found = {platform: self._found[platform] for platform in platforms}
        versions = sorted({(one.inspection.python, str(platform)) for platform, one in found.items()})
        if len({version for version, _ in versions}) > 1:
            told = ", ".join(f"{version} on {platform}" for version, platform in versions)
            raise BaseUnsuitable(f"the base image {self._reference} has different Pythons: {told}")
        return found

    def interpreter(self) -> Interpreter | None:
        """The image's own Python, startable on this machine, confined: it is somebody else's program.

        None where the image is not offered for this machine's platform, or bubblewrap can't be used.
        """
        host = Platform.host()
        if host is None:
            return None
        try:
            self._find([host])
        except BaseUnsuitable:
            return None
        if not sandbox.available():
            return None
        found = self._found[host]
        with disk_errors(self._room):
            interpreter = unpack_interpreter(
                found.tree, program=found.inspection.program, platform=host, cache_dir=self._room / "interpreters"
            )
        return replace(interpreter, origin=found.image.digest)

    def _find(self, platforms: Sequence[Platform]) -> None:
        with self._lock:
            todo = sorted(set(platforms) - self._found.keys())
            with ThreadPoolExecutor(max(1, len(todo))) as pool:
                self._found |= dict(zip(todo, pool.map(self._pulled, todo), strict=True))

    def _pulled(self, platform: Platform) -> _Found:
        try:
            image = self._pull(platform)
        except BlockedAddress as error:
            raise BlockedAddress(
                f"the base image {self._reference} can't be pulled: {error.message}", hint=error.hint
            ) from error
        except ImageNotFound as error:
            raise BaseUnavailable(error.message, hint=error.hint or "check --base-image") from error
        except RegistryError as error:
            raise BaseUnavailable(
                f"the base image {self._reference} can't be pulled: {error.message}", hint=error.hint
            ) from error
        if ACTOR in image.parsed_config.labels:
            raise BaseUnsuitable(
                f"the base image {self._reference} is an image of a learner or an aggregator",
                hint="name an image that these can stand on: one with Python, such as `flops images base` makes",
            )
        if len(image.layers) > _MOST_LAYERS:
            raise BaseUnsuitable(
                f"the base image has {len(image.layers)} layers, {_MOST_LAYERS} at most leave room for ours",
                hint="squash it",
            )
        tree = ImageTree.read(image.layers, self._blobs)
        try:
            inspection = inspect(tree, platform, image.parsed_config.environment)
        except BaseUnsuitable as error:
            raise BaseUnsuitable(f"{error.message} ({self._reference}, {platform})", hint=error.hint) from error
        return _Found(image=image, tree=tree, inspection=inspection)

    def _pull(self, platform: Platform) -> PulledImage:
        offered = self._client.images(self._reference.repository, self._reference.selector)
        if offered is None:
            raise BaseUnavailable(f"there is no base image {self._reference}", hint="check --base-image")
        if platform not in offered:
            there = ", ".join(map(str, sorted(offered))) or "no platform of ours"
            raise BaseUnsuitable(
                f"the base image {self._reference} is not offered for {platform}",
                hint=f"it is offered for {there}; name these with --platform",
            )
        return self._client.pull(self._reference, self._blobs, platform)

    def _base(self, platform: Platform, found: _Found) -> Base:
        return Base(
            platform=platform,
            python=found.inspection.python,
            glibc=found.inspection.glibc,
            interpreter=f"/{found.inspection.program}",
            layers=(*found.image.layers, self._completion(found.tree)),
            lock=found.image.digest,
            environment=dict(found.image.parsed_config.environment),
        )

    def _completion(self, tree: ImageTree) -> Layer:
        """A layer with the actors' user, its home and /tmp; the image's own users stay."""
        texts = _texts(tree, ("etc/passwd", "etc/group"))
        texts["etc/passwd"] = _with_line(texts["etc/passwd"], f"flops:x:{USER}:{USER}:flops:/{HOME}:/usr/sbin/nologin")
        texts["etc/group"] = _with_line(texts["etc/group"], f"flops:x:{USER}:")
        with self._blobs.writer() as blob:
            writer = LayerWriter(blob, compression=self._compression)
            for path, text in sorted(texts.items()):
                writer.file(path, text)
            writer.directory(HOME, uid=USER, gid=USER)
            writer.directory("tmp", mode=0o1777)
            layer = writer.close(comment="FLOps: user and home")
            blob.commit(layer.digest)
        return layer


def _texts(tree: ImageTree, paths: Sequence[str]) -> dict[str, bytes]:
    real = {path: tree.file(path) for path in paths}
    with tempfile.TemporaryDirectory(prefix="flops-base-") as directory:
        tree.extract([path for path in real.values() if path], Path(directory))
        return {path: (Path(directory) / found).read_bytes() if found else b"" for path, found in real.items()}


def _with_line(text: bytes, line: str) -> bytes:
    """The file with this entry at its end, unless the id in the third field is taken already."""
    taken = {entry.split(b":")[2] for entry in text.splitlines() if entry.count(b":") > 1}
    if line.split(":")[2].encode() in taken:
        return text
    return (text if not text or text.endswith(b"\n") else text + b"\n") + line.encode() + b"\n"

"""The builder image: this program with all that a job needs, for orchestrators that run containers.

It holds Debian packages (git, apt, ssh, bubblewrap), Python with the dependencies of this distribution by a committed list
of hashes, and this distribution as it is installed here. It runs `flops job`; `python3 main.py ...`, FLOps' own form, works
in its working directory. It runs as any user, on a read-only root with a tmpfs on /tmp that allows execution.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from flops import actors
from flops.base.bytecode import BytecodeTarget, write_bytecode
from flops.base.debian.debian_base import DebianBase, Suite
from flops.images import runtime
from flops.images.assemble import Assembly, LayerTools
from flops.images.compose import LOCK, annotated_image
from flops.images.plan import runtime_layers
from flops.locking.lock import Locker
from flops.oci.blobs import BlobStore
from flops.oci.entries import Directory, File, Link, write_entries
from flops.oci.image import ImageConfig, index
from flops.oci.layer import LayerWriter
from flops.progress import Reporter, Silent, Stage
from flops.recipe import Compression
from flops.version import __version__
from flops.wheels.layer_cache import LayerCache
from flops.wheels.wheel_cache import WheelCache

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.base import Base
    from flops.base.bytecode import Interpreter
    from flops.images.plan import PlannedLayer
    from flops.locking.lock import Lock
    from flops.oci.entries import Entry
    from flops.oci.image import Image, ImageIndex
    from flops.oci.layer import Layer
    from flops.platforms import Platform
    from flops.settings import Settings

#: Below a registry's prefix.
REPOSITORY = "flops/builder"
PREFIX = "opt/flops/builder"
WORK = "opt/flops/job"
#: The image is the same whenever it is made.
CREATED = "1970-01-01T00:00:00Z"
_PACKAGES = ("flops", "flops_wire", "flops_actor", "flops_worker")
_PYTHON = f"/{PREFIX}/bin/python"
#: -P: nothing is imported from the current directory.
_PROGRAM = f"#!{_PYTHON} -P\nimport sys\n\nfrom flops.cli.main import main\n\nsys.exit(main())\n"
_MAIN = (
    '"""FLOps\' own form: python3 main.py REGISTRY_URL PROJECT_ID MQTT_IP OBSERVER_IP ... fl_actors REPO_URL FLAVOR"""\n\n'
    'import sys\n\nfrom flops.compat.flops_form import main\n\nif __name__ == "__main__":\n    sys.exit(main())\n'
)


@dataclass(frozen=True, kw_only=True)
class BuilderImage:
    """The image over platforms; its layers are in `store`."""

    index: ImageIndex
    store: BlobStore

    @property
    def tag(self) -> str:
        """Names this image alone, since nodes pull a tag only once."""
        return f"{__version__}-{self.index.digest.partition(':')[2][:12]}"


def builder_image(
    platforms: Sequence[Platform], *, settings: Settings, reporter: Reporter | None = None, upgrade: bool = False
) -> BuilderImage:
    """Make the image, reusing layers from the cache; nothing is pushed. BaseUnavailable, IndexUnreachable and others."""
    reporter = reporter or Silent()
    suite = Suite.read("builder")
    blobs = BlobStore(settings.cache_dir)
    base = DebianBase(
        suite, cache_dir=settings.cache_dir, blobs=blobs, settings=settings, upgrade=upgrade, reporter=reporter
    )
    locker = Locker(settings.cache_dir, index_url=settings.index_url, ca_bundle=settings.ca_bundle, upgrade=upgrade)
    wheels = WheelCache(settings.cache_dir / "wheels", index_url=settings.index_url, ca_bundle=settings.ca_bundle)
    tools = LayerTools(
        wheels=wheels,
        layers=LayerCache(settings.cache_dir / "layers", blobs),
        blobs=blobs,
        compression=Compression.GZIP,
        interpreter=lambda _version: base.interpreter(),
        workers=settings.workers or max(2, os.cpu_count() or 2),
        offer=lambda _layer: None,
        reporter=reporter,
    )
    with wheels, ThreadPoolExecutor(1) as pool, Assembly(tools) as assembly:
        preparing = pool.submit(base.prepare, platforms)
        with reporter.stage(Stage.RESOLVE, "the builder's packages"):
            locks = _locks(locker, suite, platforms)
        planned = {platform: _environment(lock, suite) for platform, lock in locks.items()}
        assembly.add(layer for layers in planned.values() for layer in layers)
        with reporter.stage(Stage.ASSEMBLE, ", ".join(map(str, platforms))):
            bases = preparing.result()
            made = assembly.finish(layer for layers in planned.values() for layer in layers)
            own = _own_layer(next(iter(bases.values())), base.interpreter(), blobs)
    images = [_image(bases[p], [*(made[layer] for layer in planned[p]), own], locks[p]) for p in platforms]
    return BuilderImage(index=index(images, _labels()), store=blobs)


def _locks(locker: Locker, suite: Suite, platforms: Sequence[Platform]) -> dict[Platform, Lock]:
    pins = runtime.read_pins(f"builder-{suite.minor}")
    with ThreadPoolExecutor(len(platforms)) as pool:
        found = pool.map(
            lambda platform: runtime.lock_pins(locker, pins, platform=platform, python=suite.python, glibc=suite.glibc),
            platforms,
        )
        return dict(zip(platforms, found, strict=True))


def _environment(lock: Lock, suite: Suite) -> tuple[PlannedLayer, ...]:
    return runtime_layers(lock, suite.minor, bytecode=True, prefix=PREFIX, title="builder")


def _own_layer(base: Base, interpreter: Interpreter, blobs: BlobStore) -> Layer:
    """This distribution with its bytecode; the same for every platform."""
    entries = [*_skeleton(base), *distribution(base.minor)]
    sources = {
        entry.path: entry.data.read_bytes
        for entry in entries
        if isinstance(entry, File) and isinstance(entry.data, Path) and entry.path.endswith(".py")
    }
    with blobs.writer() as blob:
        writer = LayerWriter(blob)
        write_entries(entries, writer)
        write_bytecode(interpreter, [BytecodeTarget(writer=writer, sources=sources)])
        layer = writer.close(comment=f"flops {__version__}")
        blob.commit(layer.digest)
    return layer


def _skeleton(base: Base) -> Iterator[Entry]:
    yield from actors.environment_skeleton(PREFIX, base.interpreter, base.minor)
    yield File(path=f"{PREFIX}/bin/flops", data=_PROGRAM.encode(), executable=True)
    yield Directory(path=WORK)
    yield File(path=f"{WORK}/main.py", data=_MAIN.encode())
    # git starts ssh through a shell
    yield Link(path="usr/bin/sh", target="dash")


def distribution(minor: str) -> Iterator[Entry]:
    """The files of this distribution as they are installed here, save the bundled examples."""
    for name in _PACKAGES:
        root = Path(str(resources.files(name)))
        for source in sorted(root.rglob("*")):
            relative = source.relative_to(root).as_posix()
            left_out = "__pycache__" in relative or relative.startswith("resources/examples/")
            if source.is_file() and not left_out:
                yield File(path=f"{actors.site_packages(PREFIX, minor)}/{name}/{relative}", data=source)


def _image(base: Base, layers: Sequence[Layer], lock: Lock) -> Image:
    config = ImageConfig(
        platform=base.platform,
        created=CREATED,
        environment=_variables(),
        entrypoint=("flops",),
        command=("job",),
        working_directory=f"/{WORK}",
        user=f"{actors.USER}:{actors.USER}",
        labels=_labels() | {LOCK: lock.digest},
    )
    return annotated_image(config, [*base.layers, *layers])


def _labels() -> dict[str, str]:
    return {
        "org.opencontainers.image.title": "FLOps image builder",
        "org.opencontainers.image.version": __version__,
        "org.opencontainers.image.created": CREATED,
    }


def _variables() -> Mapping[str, str]:
    """Everything is written below /tmp; FLOPS_CACHE_DIR names a mounted cache."""
    return {
        "PATH": f"/{PREFIX}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp/home",  # noqa: S108 - inside the image, a tmpfs
        "FLOPS_CACHE_DIR": "/tmp/flops/cache",  # noqa: S108
        "FLOPS_DATA_DIR": "/tmp/flops/data",  # noqa: S108
        "LANG": "C.UTF-8",
        "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
        "PYTHONUNBUFFERED": "1",
    }

"""Which base an image stands on: Debian's suites, or the base image that was named; prepared while other work goes on."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from flops.builder.doctor import PythonChoice
from flops.builder.rootfs.debian import SUITES, DebianBase, Suite
from flops.errors import BaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flops.builder.bytecode import Interpreter
    from flops.builder.rootfs import Base
    from flops.builder.rootfs.base_image import ImageBase
    from flops.oci.layout import BlobStore
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.recipe import Recipe
    from flops.settings import Settings


class Foundation:
    """The bases of one build. `start` begins to prepare one; `bases` waits for it."""

    def __init__(
        self,
        recipe: Recipe,
        platforms: Sequence[Platform],
        *,
        settings: Settings,
        blobs: BlobStore,
        reporter: Reporter,
        upgrade: bool,
    ) -> None:
        self._recipe = recipe
        self._platforms = platforms
        self._settings = settings
        self._blobs = blobs
        self._reporter = reporter
        self._upgrade = upgrade
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="base")
        self._guard = threading.Lock()
        self._providers: dict[str, DebianBase | ImageBase] = {}
        self._prepared: dict[str, Future[Mapping[Platform, Base]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def choices(self) -> list[PythonChoice]:
        """The Pythons on offer, the preferred one first; with a base image it is pulled and looked at now."""
        if self._recipe.base is None:
            suites = [Suite.read(name) for name in SUITES]
            return [
                PythonChoice(version=one.python, minor=one.minor, glibc=one.glibc, provider="debian", suite=one.name)
                for one in suites
            ]
        bases = self._start("").result().values()
        base = next(iter(bases))
        glibc = min(one.glibc for one in bases)
        return [PythonChoice(version=base.python, minor=base.minor, glibc=glibc, provider="base-image", suite="")]

    def start(self, choice: PythonChoice) -> None:
        """Begin to prepare this base; a second call changes nothing."""
        self._start(choice.suite)

    def bases(self, choice: PythonChoice) -> Mapping[Platform, Base]:
        """The base of each platform; BaseUnavailable, BaseUnsuitable."""
        return self._start(choice.suite).result()

    def interpreter(self, choice: PythonChoice) -> Interpreter | None:
        """The base's own Python as this machine can start it; None where a base image is not offered for this machine."""
        return self._provider(choice.suite).interpreter()

    def _start(self, suite: str) -> Future[Mapping[Platform, Base]]:
        with self._guard:
            if suite not in self._prepared:
                provider = self._provider(suite)
                self._prepared[suite] = self._pool.submit(provider.prepare, self._platforms)
            return self._prepared[suite]

    def _provider(self, suite: str) -> DebianBase | ImageBase:
        if suite not in self._providers:
            self._providers[suite] = self._debian(suite) if suite else self._image()
        return self._providers[suite]

    def _debian(self, suite: str) -> DebianBase:
        return DebianBase(
            Suite.read(suite),
            cache_dir=self._settings.cache_dir,
            blobs=self._blobs,
            settings=self._settings,
            compression=self._recipe.compression,
            upgrade=self._upgrade,
            reporter=self._reporter,
        )

    def _image(self) -> ImageBase:
        if self._recipe.base is None:
            raise BaseUnavailable("no base image was named", hint="--base-image REF")
        # slow to import, and seldom needed
        from flops.builder.rootfs.base_image import ImageBase  # noqa: PLC0415
        from flops.oci.client import RegistryClient  # noqa: PLC0415
        from flops.oci.credentials import UserCredentials  # noqa: PLC0415
        from flops.oci.reference import Reference  # noqa: PLC0415

        reference = Reference.parse(self._recipe.base)
        client = RegistryClient(
            reference.registry, credentials=UserCredentials.of_user(), verify=self._settings.ca_bundle
        )
        return ImageBase(
            reference,
            client,
            cache_dir=self._settings.cache_dir,
            blobs=self._blobs,
            compression=self._recipe.compression,
            reporter=self._reporter,
        )

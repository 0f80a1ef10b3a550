"""Which base an image stands on: Debian's suites, or the base image that was named; prepared while other work goes on.

Where no base has the Python that was asked for, a standalone one is laid upon it for the ML environment, if it can be had.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from flops.base.debian.debian_base import SUITES, DebianBase, Suite
from flops.base.standalone import Offer, StandalonePythons
from flops.base.standalone_layers import StandaloneLayers
from flops.errors import BaseUnavailable
from flops.repair.pythons import STANDALONE, PythonChoice, Wish, not_standalone, standalone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.base import Base
    from flops.base.bytecode import Interpreter
    from flops.base.image_base import ImageBase
    from flops.errors import Finding
    from flops.oci.client import RegistryClient
    from flops.oci.layout import BlobStore
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.request import Request
    from flops.settings import Settings
    from flops.store.shared import SharedCache
    from flops.wheels.shared_layers import SharedLayers


class Bases:
    """The bases of one build. `start` begins to prepare one; `bases` waits for it."""

    def __init__(
        self,
        request: Request,
        *,
        settings: Settings,
        blobs: BlobStore,
        reporter: Reporter,
        shared: SharedCache | None = None,
        records: SharedLayers | None = None,
    ) -> None:
        self._shared = shared
        self._records = records
        self._request = request
        self._recipe = request.recipe
        self._platforms = request.platforms
        self._settings = settings
        self._blobs = blobs
        self._reporter = reporter
        self._pool = ThreadPoolExecutor(max_workers=3, thread_name_prefix="base")
        self._guard = threading.Lock()
        self._client: RegistryClient | None = None
        self._providers: dict[str, DebianBase | ImageBase] = {}
        self._prepared: dict[tuple[str, str], Future[Mapping[Platform, Base]]] = {}
        self._pythons = StandalonePythons(settings, upgrade=request.upgrade)
        self._offers: dict[str, Offer] = {}
        self._standalone: dict[str, StandaloneLayers] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._client is not None:
            self._client.close()

    def choices(self, wish: Wish | None = None) -> list[PythonChoice]:
        """The Pythons on offer, the preferred one first; with a base image it is pulled and looked at now.

        Where none of them is what is wished for, uv is asked for a standalone one, which may take some seconds once a day.
        """
        bases = self._bases_choices()
        if wish is None or any(wish.fits(choice) for choice in bases):
            return bases
        near = self.likely(wish)
        offer = self._offer(wish, near)
        if not offer.version:
            return bases
        minor = ".".join(offer.version.split(".")[:2])
        own = replace(near, version=offer.version, minor=minor, provider=STANDALONE, base=near.version)
        # another release of the same minor version takes the same wheels: a second trial could only fail alike
        return [own, *(choice for choice in bases if choice.minor != minor)]

    def likely(self, wish: Wish | None) -> PythonChoice:
        """The base that will be taken, as far as that can be told without asking anybody."""
        bases = self._bases_choices()
        return min(bases, key=wish.rank) if wish else bases[0]

    def notes(self, wish: Wish | None, choice: PythonChoice) -> tuple[Finding, ...]:
        """What there is to tell about where the ML environment's Python comes from."""
        if wish is None:
            return ()
        if choice.provider == STANDALONE:
            return (standalone(wish, choice),)
        offer = self._offers.get(str(wish.specifier))
        return (not_standalone(wish, offer.reason),) if offer and offer.reason else ()

    def obtained(self, wish: Wish | None, choice: PythonChoice) -> bool:
        """Whether a standalone Python could be fetched, which is waited for; if not, `choices` offers it no more."""
        if wish is None or choice.provider != STANDALONE:
            return True
        try:
            self._layers(choice.version).obtain(self._platforms)
        except BaseUnavailable as error:
            self._offers[str(wish.specifier)] = self._pythons.refuse(wish.specifier, self._platforms, error.message)
            self._tell(wish)
            return False
        return True

    def start(self, choice: PythonChoice) -> Future[Mapping[Platform, Base]]:
        """Begin to prepare this base; a second call gives the same future."""
        base = self._start(choice.suite)
        if choice.provider != STANDALONE:
            return base
        layers, provider = self._layers(choice.version), self._provider(choice.suite)

        def upon() -> Mapping[Platform, Base]:
            layers.obtain(self._platforms)  # while the base is being made
            return layers.upon(base.result(), provider.interpreter)

        with self._guard:
            key = (choice.suite, choice.version)
            if key not in self._prepared:
                self._prepared[key] = self._pool.submit(upon)
            return self._prepared[key]

    def bases(self, choice: PythonChoice) -> Mapping[Platform, Base]:
        """The base of each platform; BaseUnavailable, BaseUnsuitable."""
        return self.start(choice).result()

    def interpreter(self, choice: PythonChoice) -> Interpreter | None:
        """The base's own Python as this machine can start it; None where a base image is not offered for this machine."""
        return self._provider(choice.suite).interpreter()

    def _bases_choices(self) -> list[PythonChoice]:
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

    def _offer(self, wish: Wish, near: PythonChoice) -> Offer:
        key = str(wish.specifier)
        if key not in self._offers:
            self._offers[key] = self._pythons.offer(wish.specifier, self._platforms, near=near.version)
            self._tell(wish)
        return self._offers[key]

    def _tell(self, wish: Wish) -> None:
        """At once, since the lack of a Python may end the build."""
        reason = self._offers[str(wish.specifier)].reason
        if reason:
            self._reporter.finding(not_standalone(wish, reason))

    def _layers(self, version: str) -> StandaloneLayers:
        with self._guard:
            if version not in self._standalone:
                self._standalone[version] = StandaloneLayers(
                    version,
                    self._pythons,
                    cache_dir=self._settings.cache_dir,
                    blobs=self._blobs,
                    compression=self._recipe.compression,
                    reporter=self._reporter,
                    # a base image's own loader starts it there: what it compiles is for images on that base
                    records=self._records if self._recipe.base is None else None,
                )
            return self._standalone[version]

    def _start(self, suite: str) -> Future[Mapping[Platform, Base]]:
        with self._guard:
            if (suite, "") not in self._prepared:
                provider = self._provider(suite)
                self._prepared[suite, ""] = self._pool.submit(provider.prepare, self._platforms)
            return self._prepared[suite, ""]

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
            upgrade=self._request.upgrade,
            reporter=self._reporter,
            shared=self._shared,
            records=self._records,
        )

    def _image(self) -> ImageBase:
        if self._recipe.base is None:
            raise BaseUnavailable("no base image was named", hint="--base-image REF")
        # slow to import, and seldom needed
        from flops.addresses import PinnedHosts  # noqa: PLC0415
        from flops.base.image_base import ImageBase  # noqa: PLC0415
        from flops.oci.client import RegistryClient  # noqa: PLC0415
        from flops.oci.credentials import UserCredentials  # noqa: PLC0415
        from flops.oci.reference import Reference  # noqa: PLC0415

        reference = Reference.parse(self._recipe.base)
        request, registry = self._request, reference.registry
        credentials, hosts = request.registry_credentials, None
        if request.source.trusted:
            credentials = credentials or UserCredentials.of_user()
        elif request.registry is None or registry.url != request.registry.url:
            credentials, hosts = None, PinnedHosts(request.allow_hosts)
        self._client = RegistryClient(registry, credentials=credentials, hosts=hosts, verify=self._settings.ca_bundle)
        return ImageBase(
            reference,
            self._client,
            cache_dir=self._settings.cache_dir,
            blobs=self._blobs,
            compression=self._recipe.compression,
            reporter=self._reporter,
        )

"""Which base an image stands on, prepared while other work goes on.

Where no base has the Python that was asked for, a standalone one is laid upon it for the ML environment, if it can be had.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from flops.base.debian.debian_base import SUITES, DebianBase, Suite
from flops.base.standalone import Offer, StandalonePythons
from flops.base.standalone_layers import StandaloneBase, StandaloneLayers
from flops.errors import BaseUnavailable
from flops.repair.pythons import STANDALONE, PythonChoice, PythonConstraint, not_standalone, standalone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.base import Base, BaseContext, BaseProvider
    from flops.base.bytecode import Interpreter
    from flops.errors import Finding
    from flops.platforms import Platform


def debian_bases(context: BaseContext, _stack: ExitStack) -> list[BaseProvider]:
    """Debian's suites, where no base is named."""
    if context.recipe.base is not None:
        return []
    return [
        DebianBase(
            Suite.read(name),
            cache_dir=context.settings.cache_dir,
            blobs=context.blobs,
            settings=context.settings,
            compression=context.recipe.compression,
            upgrade=context.request.upgrade,
            reporter=context.reporter,
            shared=context.shared,
        )
        for name in SUITES
    ]


def image_bases(context: BaseContext, stack: ExitStack) -> list[BaseProvider]:
    """The image that the request names."""
    if context.recipe.base is None:
        return []
    # slow to import, and seldom needed
    from flops.addresses import PinnedHosts  # noqa: PLC0415
    from flops.base.image_base import ImageBase  # noqa: PLC0415
    from flops.oci.client import RegistryClient  # noqa: PLC0415
    from flops.oci.credentials import UserCredentials  # noqa: PLC0415
    from flops.oci.reference import Reference  # noqa: PLC0415

    reference = Reference.parse(context.recipe.base)
    request, registry = context.request, reference.registry
    credentials, hosts = request.registry_credentials, None
    if request.source.trusted:
        credentials = credentials or UserCredentials.of_user()
    elif request.registry is None or registry.url != request.registry.url:
        credentials, hosts = None, PinnedHosts(request.allow_hosts)
    client = RegistryClient(registry, credentials=credentials, hosts=hosts, verify=context.settings.ca_bundle)
    stack.callback(client.close)
    return [
        ImageBase(
            reference,
            client,
            cache_dir=context.settings.cache_dir,
            blobs=context.blobs,
            compression=context.recipe.compression,
            reporter=context.reporter,
        )
    ]


#: The kinds of bases; the first that offers one for the request is taken.
KINDS = (debian_bases, image_bases)


class Bases:
    """The bases of one build. `start` begins to prepare one; `bases` waits for it."""

    def __init__(self, context: BaseContext) -> None:
        self._platforms = context.request.platforms
        self._context = context
        self._pool = ThreadPoolExecutor(max_workers=3, thread_name_prefix="base")
        self._stack = ExitStack()
        self._guard = threading.RLock()
        self._offered: dict[str, BaseProvider] = {}
        """By the suite of their choices."""
        self._choices: list[PythonChoice] = []
        self._prepared: dict[tuple[str, str], Future[Mapping[Platform, Base]]] = {}
        self._pythons = StandalonePythons(context.settings, upgrade=context.request.upgrade)
        self._offers: dict[str, Offer] = {}
        self._standalone: dict[tuple[str, str], StandaloneBase] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._stack.close()

    def choices(self, wish: PythonConstraint | None = None) -> list[PythonChoice]:
        """The Pythons on offer, the preferred one first; with a base image it is pulled and looked at now.

        Where none of them is what is wished for, uv is asked for a standalone one, which may take some seconds once a day.
        """
        bases = self._base_choices()
        if wish is None or any(wish.allows(choice) for choice in bases):
            return bases
        near = self.likely(wish)
        offer = self._offer(wish, near)
        if not offer.version:
            return bases
        minor = ".".join(offer.version.split(".")[:2])
        own = replace(near, version=offer.version, minor=minor, provider=STANDALONE, base=near.version)
        # another release of the same minor version takes the same wheels: a second trial could only fail alike
        return [own, *(choice for choice in bases if choice.minor != minor)]

    def likely(self, wish: PythonConstraint | None) -> PythonChoice:
        """The base that will be taken, as far as that can be told without asking anybody."""
        bases = self._base_choices()
        return min(bases, key=wish.rank) if wish else bases[0]

    def notes(self, wish: PythonConstraint | None, choice: PythonChoice) -> tuple[Finding, ...]:
        """Where the ML environment's Python comes from, if it is not the base's own or should not have been."""
        if wish is None:
            return ()
        if choice.provider == STANDALONE:
            return (standalone(wish, choice),)
        offer = self._offers.get(str(wish.specifier))
        return (not_standalone(wish, offer.reason),) if offer and offer.reason else ()

    def obtained(self, wish: PythonConstraint | None, choice: PythonChoice) -> bool:
        """Whether a standalone Python could be fetched, which is waited for; if not, `choices` offers it no more."""
        if wish is None or choice.provider != STANDALONE:
            return True
        try:
            self._standalone_base(choice).layers.obtain(self._platforms)
        except BaseUnavailable as error:
            self._offers[str(wish.specifier)] = self._pythons.refuse(wish.specifier, self._platforms, error.message)
            self._report_lack(wish)
            return False
        return True

    def start(self, choice: PythonChoice) -> Future[Mapping[Platform, Base]]:
        """Begin to prepare this base; a second call gives the same future."""
        key = (choice.suite, choice.version if choice.provider == STANDALONE else "")
        with self._guard:
            if key not in self._prepared:
                self._prepared[key] = self._pool.submit(self._provider(choice).prepare, self._platforms)
            return self._prepared[key]

    def bases(self, choice: PythonChoice) -> Mapping[Platform, Base]:
        """The base of each platform; BaseUnavailable, BaseUnsuitable."""
        return self.start(choice).result()

    def interpreter(self, choice: PythonChoice) -> Interpreter | None:
        """The base's own Python as this machine can start it; None where it can't be started here."""
        return self._offered[choice.suite].interpreter()

    def compiler(self, choice: PythonChoice) -> str | None:
        """Whose Python compiles the FL runtime's bytecode; None: nobody's."""
        return self._offered[choice.suite].compiler()

    def _base_choices(self) -> list[PythonChoice]:
        with self._guard:
            if not self._choices:
                for kind in KINDS:
                    if providers := kind(self._context, self._stack):
                        self._choices = [provider.choice(self._platforms) for provider in providers]
                        self._offered = {
                            choice.suite: provider for choice, provider in zip(self._choices, providers, strict=True)
                        }
                        break
            return list(self._choices)

    def _provider(self, choice: PythonChoice) -> BaseProvider:
        self._base_choices()
        return self._standalone_base(choice) if choice.provider == STANDALONE else self._offered[choice.suite]

    def _offer(self, wish: PythonConstraint, near: PythonChoice) -> Offer:
        key = str(wish.specifier)
        if key not in self._offers:
            self._offers[key] = self._pythons.offer(wish.specifier, self._platforms, near=near.version)
            self._report_lack(wish)
        return self._offers[key]

    def _report_lack(self, wish: PythonConstraint) -> None:
        """At once, since the lack of a Python may end the build."""
        reason = self._offers[str(wish.specifier)].reason
        if reason:
            self._context.reporter.finding(not_standalone(wish, reason))

    def _standalone_base(self, choice: PythonChoice) -> StandaloneBase:
        with self._guard:
            key = (choice.suite, choice.version)
            if key not in self._standalone:
                self._base_choices()
                below = self._offered[choice.suite]
                layers = StandaloneLayers(
                    choice.version,
                    self._pythons,
                    cache_dir=self._context.settings.cache_dir,
                    blobs=self._context.blobs,
                    compression=self._context.recipe.compression,
                    reporter=self._context.reporter,
                    # a base image's own loader starts it there: what it compiles is for images on that base
                    shared=self._context.shared if self._context.recipe.base is None else None,
                )
                self._standalone[key] = StandaloneBase(choice, below, layers)
            return self._standalone[key]

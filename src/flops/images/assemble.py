"""Execute a plan: fetch the wheels that are needed, make each distinct layer once, hand it on as soon as it is there."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from flops.images import bytecode_layer
from flops.images.layer_cache import files_key, layer_key
from flops.images.plan import BytecodeLayer, FilesLayer, WheelsLayer, cost
from flops.oci.entries import write_entries
from flops.oci.layer import LayerWriter
from flops.progress import Stage
from flops.wheels.wheel_layer import WheelFile, WheelLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from flops.base.bytecode import Interpreter
    from flops.images.layer_cache import LayerCache
    from flops.images.plan import PlannedLayer
    from flops.locking.lock import LockedWheel
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.progress import Reporter
    from flops.recipe import Compression
    from flops.wheels.wheel_cache import WheelCache

    #: Makes layers that belong together, in their order.
    Make = Callable[[Sequence[PlannedLayer]], list[Layer]]

#: Wheels that are fetched at the same time.
FETCHING = 8
#: Layers that travel at the same time while others are made.
TRAVELLING = 3
#: Layers that are looked for among other builders' records at the same time.
SEARCHING = 8


@dataclass(frozen=True, kw_only=True)
class LayerTools:
    """What layers are made with."""

    wheels: WheelCache
    layers: LayerCache
    blobs: BlobStore
    compression: Compression
    interpreter: Callable[[str], Interpreter]
    """The base's own Python of this full version; called where bytecode is wanted, waits for the base."""
    offer: Callable[[Layer], None]
    """Told of each layer that is ready, from threads of its own."""
    reporter: Reporter
    workers: int = field(default_factory=lambda: max(2, os.cpu_count() or 2))
    """Layers that are made at the same time; no byte of any layer depends on it."""


class Assembly:
    """One run over the layers of a plan. Work begins with the first `add`; `finish` waits for it; `with` cleans up.

    `add` may be called from several threads.
    """

    def __init__(self, workshop: LayerTools) -> None:
        self._workshop = workshop
        self._fetchers = ThreadPoolExecutor(FETCHING, thread_name_prefix="fetch")
        self._makers = ThreadPoolExecutor(workshop.workers, thread_name_prefix="layer")
        # of its own: it waits for the base, and no maker shall wait with it
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="bytecode")
        self._carriers = ThreadPoolExecutor(TRAVELLING, thread_name_prefix="offer")
        self._searchers = ThreadPoolExecutor(SEARCHING, thread_name_prefix="search")
        self._wheels: dict[str, Future[Path]] = {}
        self._layers: dict[PlannedLayer, Future[Layer]] = {}
        self._offers: list[Future[None]] = []
        self._searches: list[Future[None]] = []
        self._adding = threading.Lock()
        self._wanting = threading.Lock()
        self._guard = threading.Lock()
        self._abandoned = threading.Event()
        self._bytes: dict[Stage, int] = defaultdict(int)
        self._totals: dict[Stage, int] = defaultdict(int)
        self.downloaded = 0
        self.reused = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._abandoned.set()
        for pool in (self._searchers, self._fetchers, self._makers, self._compiler, self._carriers):
            pool.shutdown(cancel_futures=True)

    def add(self, layers: Iterable[PlannedLayer]) -> None:
        """Begin with these layers: those that are remembered are there at once, the others fetch and make."""
        with self._adding:
            fresh = [layer for layer in dict.fromkeys(layers) if layer not in self._layers]
            missing = sorted((layer for layer in fresh if not self._recalled(layer)), key=cost, reverse=True)
            self._layers |= {layer: Future() for layer in missing}
            with self._guard:
                self._totals[Stage.ASSEMBLE] += sum(map(_weight, missing))
            for group in _groups(missing):
                if self._workshop.layers.records is not None:
                    self._searches.append(self._searchers.submit(self._search, group))
                else:
                    self._begin(group)

    def offer(self, layer: Layer) -> None:
        """A layer that was made elsewhere (the base's) may travel."""
        self._offers.append(self._carriers.submit(self._workshop.offer, layer))

    def wait_for_wheels(self, *others: Future[Any]) -> None:
        """Until every wheel that is wanted so far is here; the first failure, of `others` too, is raised."""
        _first_failure([*self._searches, *others], until=self._searches)
        wheels = list(self._wheels.values())
        _first_failure([*wheels, *others], until=wheels)

    def finish(self, layers: Iterable[PlannedLayer]) -> dict[PlannedLayer, Layer]:
        """These layers, made; the first failure is raised, but not of what was begun and is not wanted after all."""
        wanted = {layer: self._layers[layer] for layer in layers}
        self._count(Stage.ASSEMBLE, 0)
        _first_failure(self._searches)
        wheels = {
            wheel.sha256: self._wheels[wheel.sha256]
            for layer in wanted
            if isinstance(layer, WheelsLayer | BytecodeLayer)
            for wheel in layer.wheels
            if wheel.sha256 in self._wheels
        }
        _first_failure([*wheels.values(), *wanted.values()], until=list(wanted.values()))
        return {layer: future.result() for layer, future in wanted.items()}

    def wait_for_offers(self) -> None:
        _first_failure(self._offers)

    # --- pieces -------------------------------------------------------------------------------------------------------
    def _recalled(self, layer: PlannedLayer) -> bool:
        key = self._key(layer)
        known = self._workshop.layers.get(key) if key else None
        if known is None:
            return False
        self._layers[layer] = Future()
        self._give(layer, known)
        return True

    def _give(self, layer: PlannedLayer, known: Layer) -> None:
        with self._guard:
            self.reused += known.size
        self.offer(known)
        self._layers[layer].set_result(known)

    def _found(self, layer: PlannedLayer, known: Layer) -> None:
        """Counted as to be made, and need not be."""
        self._give(layer, known)
        self._count(Stage.ASSEMBLE, _weight(layer))

    def _search(self, group: Sequence[PlannedLayer]) -> None:
        """Take what other builders recorded; the rest of the group is made."""
        left = []
        for layer in group:
            key = self._key(layer)
            known = self._workshop.layers.recorded(key) if key else None
            if known is None:
                left.append(layer)
            else:
                self._found(layer, known)
        if left:
            self._begin(left)

    def _begin(self, group: Sequence[PlannedLayer]) -> None:
        """Fetch, then make, layers that are made together."""
        wheels = {wheel: None for layer in group for wheel in getattr(layer, "wheels", ())}
        if isinstance(group[0], BytecodeLayer):
            self._when_fetched(tuple(wheels), group, self._make_bytecode, self._compiler)
        else:
            self._when_fetched(tuple(wheels), group, self._make, self._makers)

    def _key(self, layer: PlannedLayer) -> str | None:
        compression = self._workshop.compression
        match layer:
            case WheelsLayer():
                hashes = [wheel.sha256 for wheel in layer.wheels]
                return layer_key(hashes, prefix=layer.prefix, python=layer.python, compression=compression)
            case BytecodeLayer():
                return bytecode_layer.key(layer, compression)
            case FilesLayer():
                return files_key(layer, compression)
            case _:
                return None

    def _when_fetched(
        self, wheels: Sequence[LockedWheel], layers: Sequence[PlannedLayer], make: Make, pool: ThreadPoolExecutor
    ) -> None:
        """Make layers in `pool` once their wheels are here; no maker waits for a wheel."""
        futures = [self._layers[layer] for layer in layers]
        with self._wanting:
            sources = [self._fetch(wheel) for wheel in wheels]
        left = len(sources)

        def fetched(source: Future[Path]) -> None:
            nonlocal left
            if source.cancelled() or source.exception() is not None:
                return  # told through the wheel's own future
            with self._guard:
                left -= 1
                ready = left == 0
            if ready:
                pool.submit(self._work, layers, futures, make)

        if not sources:
            pool.submit(self._work, layers, futures, make)
        for source in sources:
            source.add_done_callback(fetched)

    def _work(self, layers: Sequence[PlannedLayer], futures: Sequence[Future[Layer]], make: Make) -> None:
        try:
            made = make(layers)
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            for future in futures:
                future.set_exception(error)
            return
        for future, planned, layer in zip(futures, layers, made, strict=True):
            self._offers.append(self._carriers.submit(self._carry, layer, self._key(planned)))
            self._count(Stage.ASSEMBLE, _weight(planned))
            future.set_result(layer)

    def _carry(self, layer: Layer, key: str | None) -> None:
        """A layer that was made here travels, and is then recorded for others."""
        self._workshop.offer(layer)
        if key is not None:
            self._workshop.layers.record(key, layer)

    def _fetch(self, wheel: LockedWheel) -> Future[Path]:
        if wheel.sha256 not in self._wheels:
            self._totals[Stage.FETCH] += wheel.size or 0
            self._wheels[wheel.sha256] = self._fetchers.submit(self._fetch_now, wheel)
        return self._wheels[wheel.sha256]

    def _fetch_now(self, wheel: LockedWheel) -> Path:
        if self._workshop.wheels.has(wheel):
            self._count(Stage.FETCH, wheel.size or 0)
            return self._workshop.wheels.path(wheel)

        def count(number: int) -> None:
            if self._abandoned.is_set() and number > 0:
                raise CancelledError  # nobody waits for this wheel any more
            with self._guard:
                self.downloaded += number
            self._count(Stage.FETCH, number)

        return self._workshop.wheels.fetch(wheel, on_bytes=count)

    def _make(self, layers: Sequence[PlannedLayer]) -> list[Layer]:
        (layer,) = layers
        match layer:
            case WheelsLayer():
                made: Layer = self._workshop.layers.layer_for(
                    [
                        WheelFile(
                            path=self._wheels[wheel.sha256].result(), sha256=wheel.sha256, filename=wheel.filename
                        )
                        for wheel in layer.wheels
                    ],
                    prefix=layer.prefix,
                    python=layer.python,
                    compression=self._workshop.compression,
                )
            case FilesLayer():
                made = self._make_files(layer)
                key = self._key(layer)
                if key is not None:
                    self._workshop.layers.put(key, WheelLayer(**made.to_json()))
            case _:
                raise TypeError(f"a {type(layer).__name__} is not made here")
        return [made]

    def _make_files(self, layer: FilesLayer) -> Layer:
        with self._workshop.blobs.writer() as blob:
            writer = LayerWriter(blob, compression=self._workshop.compression)
            write_entries(layer.entries, writer)
            made = writer.close(comment=layer.title)
            blob.commit(made.digest)
        return made

    def _make_bytecode(self, layers: Sequence[PlannedLayer]) -> list[Layer]:
        wanted = [layer for layer in layers if isinstance(layer, BytecodeLayer)]
        paths = {wheel.sha256: self._wheels[wheel.sha256].result() for layer in wanted for wheel in layer.wheels}
        made = bytecode_layer.make(
            wanted,
            paths,
            interpreter=self._workshop.interpreter(wanted[0].python_full),
            blobs=self._workshop.blobs,
            compression=self._workshop.compression,
            workers=self._workshop.workers,
        )
        found: list[Layer] = []
        for layer in wanted:
            one = WheelLayer(**made[layer].to_json())
            self._workshop.layers.put(bytecode_layer.key(layer, self._workshop.compression), one)
            found.append(one)
        return found

    def _count(self, stage: Stage, number: int) -> None:
        with self._guard:
            self._bytes[stage] += number
            done, total = self._bytes[stage], self._totals[stage]
        self._workshop.reporter.progress(stage, done=done, total=max(done, total))


def _weight(layer: PlannedLayer) -> int:
    """Bytes of the wheels that a layer is made of: what progress counts."""
    return sum(wheel.size or 0 for wheel in getattr(layer, "wheels", ()))


def _groups(layers: Iterable[PlannedLayer]) -> list[list[PlannedLayer]]:
    """What is made at once: bytecode of one interpreter, so that sources that layers share are compiled once; else each alone."""
    bytecode: dict[str, list[PlannedLayer]] = defaultdict(list)
    others: list[list[PlannedLayer]] = []
    for layer in layers:
        if isinstance(layer, BytecodeLayer):
            bytecode[layer.python_full].append(layer)
        else:
            others.append([layer])
    return [*bytecode.values(), *others]


def _first_failure(futures: Sequence[Future[Any]], *, until: Sequence[Future[Any]] | None = None) -> None:
    """Wait for `until` (or for all), or for the first failure among `futures`, which is raised."""
    left = set(until if until is not None else futures)
    while left:
        wait(futures, timeout=0.05 if until is not None else None, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and not future.cancelled() and (error := future.exception()) is not None:
                raise error
        left = {future for future in left if not future.done()}

"""Execute a plan: fetch the wheels that are needed, make each distinct layer once, and offer it as soon as it is made."""

from __future__ import annotations

import os
import re
import threading
from collections import defaultdict
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from flops.base.bytecode import BytecodeTarget, write_bytecode
from flops.images.plan import BytecodeLayer, FilesLayer, WheelsLayer, cache_key, cost, wheel_bytes, wheels_of
from flops.oci.entries import write_entries
from flops.oci.layer import LayerWriter
from flops.progress import Stage
from flops.wheels.wheel_layer import WheelFile, open_wheels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from flops.base.bytecode import Interpreter
    from flops.images.plan import PlannedLayer
    from flops.locking.lock import LockedWheel
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.progress import Reporter
    from flops.recipe import Compression
    from flops.wheels.layer_cache import LayerCache
    from flops.wheels.wheel_cache import WheelCache

#: Wheels that are fetched at the same time.
FETCHES = 8
#: Layers that are uploaded at the same time while others are made.
OFFERS = 3
#: Layers that are looked up in the registry at the same time.
LOOKUPS = 8
#: Packages' own tests: an eighth of all sources, and no actor imports them (see `plan.SOURCES_VERSION`).
_NOT_IMPORTED = re.compile(r"/(?:tests?|SelfTest)/")


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
    """Called with each layer that is ready, from several threads."""
    reporter: Reporter
    workers: int = field(default_factory=lambda: max(2, os.cpu_count() or 2))
    """Layers that are made at the same time; no byte of any layer depends on it."""


class Assembly:
    """One run over the layers of a plan. Work begins with the first `add`; `finish` waits for it; `with` cleans up.

    `add` may be called from several threads.
    """

    def __init__(self, tools: LayerTools) -> None:
        self._tools = tools
        self._fetch_pool = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        self._make_pool = ThreadPoolExecutor(tools.workers, thread_name_prefix="layer")
        # a pool of its own, since bytecode waits for the base and must not block other layers
        self._bytecode_pool = ThreadPoolExecutor(1, thread_name_prefix="bytecode")
        self._offer_pool = ThreadPoolExecutor(OFFERS, thread_name_prefix="offer")
        self._lookup_pool = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="search")
        self._wheels: dict[str, Future[Path]] = {}
        self._layers: dict[PlannedLayer, Future[Layer]] = {}
        self._offers: list[Future[None]] = []
        self._lookups: list[Future[None]] = []
        self._add_lock = threading.Lock()
        self._fetch_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._abandoned = threading.Event()
        self._bytes: dict[Stage, int] = defaultdict(int)
        self._totals: dict[Stage, int] = defaultdict(int)
        self.downloaded = 0
        self.reused = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._abandoned.set()
        for pool in (self._lookup_pool, self._fetch_pool, self._make_pool, self._bytecode_pool, self._offer_pool):
            pool.shutdown(cancel_futures=True)

    def add(self, layers: Iterable[PlannedLayer]) -> None:
        """Begin with these layers: take those that this machine has, then fetch and make the others."""
        with self._add_lock:
            new = [layer for layer in dict.fromkeys(layers) if layer not in self._layers]
            self._layers |= {layer: Future() for layer in new}
            missing = sorted((layer for layer in new if not self._take_local(layer)), key=cost, reverse=True)
            with self._count_lock:
                self._totals[Stage.ASSEMBLE] += sum(map(wheel_bytes, missing))
            for group in _groups(missing):
                if self._tools.layers.is_shared:
                    self._lookups.append(self._lookup_pool.submit(self._look_up, group))
                else:
                    self._begin(group)

    def offer(self, layer: Layer) -> None:
        """Offer a layer that was made elsewhere (the base's)."""
        self._offers.append(self._offer_pool.submit(self._tools.offer, layer))

    def wait_for_wheels(self, *others: Future[Any]) -> None:
        """Wait for every wheel that is wanted so far; raise the first failure, of `others` too."""
        _raise_first(self._lookups, others)
        _raise_first(list(self._wheels.values()), others)

    def finish(self, layers: Iterable[PlannedLayer]) -> dict[PlannedLayer, Layer]:
        """These layers, made; raises the first failure, except of layers that were added but are not among these."""
        wanted = {layer: self._layers[layer] for layer in layers}
        self._count(Stage.ASSEMBLE, 0)
        _raise_first(self._lookups)
        hashes = {wheel.sha256 for layer in wanted for wheel in wheels_of(layer)}
        _raise_first(list(wanted.values()), [self._wheels[one] for one in hashes if one in self._wheels])
        return {layer: future.result() for layer, future in wanted.items()}

    def wait_for_offers(self) -> None:
        _raise_first(self._offers)

    # --- finding layers -----------------------------------------------------------------------------------------------
    def _take_local(self, layer: PlannedLayer) -> bool:
        key = self._key(layer)
        known = self._tools.layers.local(key) if key else None
        if known is not None:
            self._reuse(layer, known)
        return known is not None

    def _look_up(self, group: Sequence[PlannedLayer]) -> None:
        """Take what other builders recorded; the rest of the group is made."""
        missing = []
        for layer in group:
            key = self._key(layer)
            known = self._tools.layers.shared(key) if key else None
            if known is None:
                missing.append(layer)
            else:
                self._reuse(layer, known)
                self._count(Stage.ASSEMBLE, wheel_bytes(layer))
        if missing:
            self._begin(missing)

    def _reuse(self, layer: PlannedLayer, known: Layer) -> None:
        with self._count_lock:
            self.reused += known.size
        self.offer(known)
        self._layers[layer].set_result(known)

    def _key(self, layer: PlannedLayer) -> str | None:
        return cache_key(layer, self._tools.compression)

    # --- fetching wheels ----------------------------------------------------------------------------------------------
    def _begin(self, layers: Sequence[PlannedLayer]) -> None:
        """Make layers together once their wheels are here; no thread that makes layers waits for a wheel."""
        pool = self._bytecode_pool if isinstance(layers[0], BytecodeLayer) else self._make_pool
        with self._fetch_lock:
            wheels = [
                self._fetch(wheel) for wheel in dict.fromkeys(wheel for one in layers for wheel in wheels_of(one))
            ]
        left = len(wheels)

        def fetched(wheel: Future[Path]) -> None:
            nonlocal left
            if wheel.cancelled() or wheel.exception() is not None:
                return  # raised by the waiting methods, which look at the wheel's own future
            with self._count_lock:
                left -= 1
                ready = left == 0
            if ready:
                pool.submit(self._make, layers)

        if not wheels:
            pool.submit(self._make, layers)
        for wheel in wheels:
            wheel.add_done_callback(fetched)

    def _fetch(self, wheel: LockedWheel) -> Future[Path]:
        if wheel.sha256 not in self._wheels:
            self._totals[Stage.FETCH] += wheel.size or 0
            self._wheels[wheel.sha256] = self._fetch_pool.submit(self._fetch_now, wheel)
        return self._wheels[wheel.sha256]

    def _fetch_now(self, wheel: LockedWheel) -> Path:
        if self._tools.wheels.has(wheel):
            self._count(Stage.FETCH, wheel.size or 0)
            return self._tools.wheels.path(wheel)

        def count(number: int) -> None:
            if self._abandoned.is_set() and number > 0:
                raise CancelledError  # nobody waits for this wheel any more
            with self._count_lock:
                self.downloaded += number
            self._count(Stage.FETCH, number)

        return self._tools.wheels.fetch(wheel, on_bytes=count)

    # --- making layers ------------------------------------------------------------------------------------------------
    def _make(self, layers: Sequence[PlannedLayer]) -> None:
        try:
            made = self._made(layers)
        except BaseException as error:  # noqa: BLE001 - raised where the layer is waited for
            for planned in layers:
                self._layers[planned].set_exception(error)
            return
        for planned, layer in zip(layers, made, strict=True):
            self._offers.append(self._offer_pool.submit(self._offer_and_share, layer, self._key(planned)))
            self._count(Stage.ASSEMBLE, wheel_bytes(planned))
            self._layers[planned].set_result(layer)

    def _offer_and_share(self, layer: Layer, key: str | None) -> None:
        self._tools.offer(layer)
        if key is not None:
            self._tools.layers.share(key, layer)

    def _made(self, layers: Sequence[PlannedLayer]) -> list[Layer]:
        match layers[0]:
            case WheelsLayer() as layer:
                files, compression = self._wheel_files(layer), self._tools.compression
                layers_of = self._tools.layers
                return [layers_of.layer_for(files, prefix=layer.prefix, python=layer.python, compression=compression)]
            case FilesLayer() as layer:
                made = [self._make_files(layer)]
            case BytecodeLayer():
                made = self._make_bytecode([layer for layer in layers if isinstance(layer, BytecodeLayer)])
            case layer:
                raise TypeError(f"a {type(layer).__name__} is not made here")
        for planned, one in zip(layers, made, strict=True):
            if key := self._key(planned):
                self._tools.layers.put(key, one)
        return made

    def _wheel_files(self, layer: PlannedLayer) -> list[WheelFile]:
        return [
            WheelFile(path=self._wheels[wheel.sha256].result(), sha256=wheel.sha256, filename=wheel.filename)
            for wheel in wheels_of(layer)
        ]

    def _make_files(self, layer: FilesLayer) -> Layer:
        with self._tools.blobs.writer() as blob:
            writer = LayerWriter(blob, compression=self._tools.compression)
            write_entries(layer.entries, writer)
            made = writer.close(comment=layer.title)
            blob.commit(made.digest)
        return made

    def _make_bytecode(self, layers: Sequence[BytecodeLayer]) -> list[Layer]:
        interpreter = self._tools.interpreter(layers[0].python_full)
        return make_bytecode({layer: self._wheel_files(layer) for layer in layers}, interpreter, self._tools)

    def _count(self, stage: Stage, number: int) -> None:
        with self._count_lock:
            self._bytes[stage] += number
            done, total = self._bytes[stage], self._totals[stage]
        self._tools.reporter.progress(stage, done=done, total=max(done, total))


def make_bytecode(
    layers: Mapping[BytecodeLayer, Sequence[WheelFile]], interpreter: Interpreter, tools: LayerTools
) -> list[Layer]:
    """Write each layer, in the order given; sources that layers share are compiled once."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(tools.blobs.writer()) for _ in layers]
        writers = [LayerWriter(output, compression=tools.compression) for output in outputs]
        targets = []
        for (layer, wheels), writer in zip(layers.items(), writers, strict=True):
            opened = stack.enter_context(open_wheels(wheels, prefix=layer.prefix, python=layer.python))
            sources = {path: read for path, read in opened.sources().items() if not _NOT_IMPORTED.search(path)}
            targets.append(BytecodeTarget(writer=writer, sources=sources))
        write_bytecode(interpreter, targets, workers=tools.workers)
        made = []
        for layer, writer, output in zip(layers, writers, outputs, strict=True):
            made.append(writer.close(comment=layer.title))
            output.commit(made[-1].digest)
    return made


def _groups(layers: Iterable[PlannedLayer]) -> list[list[PlannedLayer]]:
    """Layers that are made together: bytecode of one interpreter, since sources that layers share are compiled once."""
    bytecode: dict[str, list[PlannedLayer]] = defaultdict(list)
    others: list[list[PlannedLayer]] = []
    for layer in layers:
        if isinstance(layer, BytecodeLayer):
            bytecode[layer.python_full].append(layer)
        else:
            others.append([layer])
    return [*bytecode.values(), *others]


def _raise_first(wanted: Sequence[Future[Any]], others: Sequence[Future[Any]] = ()) -> None:
    """Wait for all that is wanted, or for the first failure among both, which is raised."""
    futures = [*wanted, *others]
    left = set(wanted)
    while left:
        wait(futures, timeout=0.05 if others else None, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and not future.cancelled() and (error := future.exception()) is not None:
                raise error
        left = {future for future in left if not future.done()}

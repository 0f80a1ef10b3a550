"""Sizes of a result's images, layer by layer, and which layers several of them share. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops.observer.fold import mapping, number, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WIDTH = 1000


@dataclass(frozen=True, kw_only=True)
class LayerBar:
    digest: str
    title: str
    bytes: float
    length: int
    """Of WIDTH, which the largest layer has."""
    others: tuple[str, ...]
    """The other actors that hold it: a node that has their image has it already."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    actor: str
    platform: str
    digest: str
    """Of the platform's manifest."""
    bars: tuple[LayerBar, ...]
    """Bottom to top."""

    @property
    def bytes(self) -> float:
        return sum(bar.bytes for bar in self.bars)

    @property
    def shared_bytes(self) -> float:
        """Of layers that another actor's images hold too."""
        return sum(bar.bytes for bar in self.bars if bar.others)

    @property
    def others(self) -> tuple[str, ...]:
        return tuple(sorted({actor for bar in self.bars for actor in bar.others}))


def layers(result: Mapping[str, Any] | None) -> tuple[Layers, ...]:
    """Of every image of a result (`flops build --json`); none where it does not tell them."""
    found = [(actor, platform, text(one.get("digest")), list(_layers(one))) for actor, platform, one in _images(result)]
    actors = {(digest, actor) for actor, *_, entries in found for digest, _, _ in entries}
    names = sorted({actor for actor, *_ in found})
    largest = max((size for *_, entries in found for _, _, size in entries), default=0) or 1
    return tuple(
        Layers(
            actor=actor,
            platform=platform,
            digest=manifest,
            bars=tuple(
                LayerBar(
                    digest=digest,
                    title=title,
                    bytes=size,
                    length=max(2, round(size / largest * WIDTH)),
                    others=tuple(name for name in names if name != actor and (digest, name) in actors),
                )
                for digest, title, size in entries
            ),
        )
        for actor, platform, manifest, entries in found
        if entries
    )


def _images(result: Mapping[str, Any] | None) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for actor, image in mapping((result or {}).get("images")).items():
        for platform, one in mapping(mapping(image).get("platforms")).items():
            yield text(actor), text(platform), mapping(one)


def _layers(image: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    entries = image.get("layer_sizes")
    for entry in entries if isinstance(entries, list) else ():
        one = mapping(entry)
        size = number(one.get("bytes"))
        if text(one.get("digest")) and size is not None:
            yield text(one["digest"]), text(one.get("title")), size

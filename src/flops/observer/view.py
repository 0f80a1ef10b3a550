"""All that the templates of a project show, at one moment. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flops.observer import words
from flops.observer.fold import mapping, number, text
from flops.observer.state import Card, Level
from flops.observer.timeline import LANE_WIDTH, timeline
from flops_wire.manager import ENDED, PROJECTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flops.observer.feed import Feed
    from flops.observer.state import Line, Outcome


#: What builders put before a unified diff of the user's file.
_MARK = "as a patch:\n"
#: A definition or a requirement that is to be written, with what stands there and remarks beside it.
_CODE = re.compile(
    r"write ((?:def|class) .+?:|[\w.,\[\]-]+[<>=!~]=?[^\s;()]+)(?: instead of [^\s;()]+| and [^;()]+)?(?: \([^()]*\))?"
)


@dataclass(frozen=True, kw_only=True)
class PatchLine:
    kind: str
    """add, del, at (where), or same."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    words: str
    patch: str = ""
    """A unified diff; empty where there is none."""

    @property
    def code(self) -> str:
        """What is copied: the code alone where the words are about one piece of it, else all of them."""
        found = _CODE.fullmatch(self.words)
        return found[1] if found else self.words

    @property
    def parts(self) -> tuple[tuple[str, bool], ...]:
        """The words in pieces, and whether each is code."""
        found = _CODE.fullmatch(self.words)
        if not found:
            return ((self.words, False),)
        begin, end = found.span(1)
        pieces = ((self.words[:begin], False), (self.words[begin:end], True), (self.words[end:], False))
        return tuple(piece for piece in pieces if piece[0])

    @property
    def lines(self) -> tuple[PatchLine, ...]:
        return tuple(PatchLine(kind=_kind(line), text=line) for line in self.patch.splitlines())


def advice(hint: str) -> Advice:
    """The parts of an error's or a finding's hint."""
    words, mark, patch = hint.partition(_MARK)
    if not mark or not patch.startswith("--- "):
        return Advice(words=hint)
    return Advice(words=words.rstrip(" ;,\n"), patch=patch)


def _kind(line: str) -> str:
    if line.startswith(("--- ", "+++ ", "@@")):
        return "at"
    return {"+": "add", "-": "del"}.get(line[:1], "same")


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


#: Lines of the log that a page begins with; all of them are had by asking for them.
LINES = 500
#: Warnings that stand beside the notes.
WARNINGS = 50


def view(document: Mapping[str, Any], feed: Feed, *, after: int, now: float, whole: bool = False) -> dict[str, Any]:
    """`after`: the last line that the viewer has, by its sequence."""
    outcome = feed.outcome
    begun, ended = words.epoch(document["created"]), words.epoch(document["ended"])
    lines: Sequence[Line] = [line for line in feed.lines if line.sequence > after]
    left_out = 0 if after or whole else max(0, len(lines) - LINES)
    wrong = _wrong(outcome)
    return {
        "project": document,
        "now": now,
        "over": document["state"] in ENDED,
        "still": is_still(document),
        "timeline": timeline(feed.attempts, now=now),
        "width": LANE_WIDTH,
        "lines": lines[left_out:],
        "left_out": left_out,
        "last": feed.last,
        "wrong": wrong,
        "told": _told(outcome, wrong),
        "remedy": _remedy(outcome, wrong),
        "notes": [*(card for card in feed.cards if card.level is Level.NOTE), *_warnings(feed.lines)],
        "adjustments": feed.adjustments,
        "images": feed.images,
        "outcome": outcome,
        "layers": layers(outcome.result if outcome else None),
        "result": outcome.result if outcome else None,
        "tagging": feed.tagging,
        "lasted": (ended or now) - begun if begun is not None else None,
        "events": f"{PROJECTS}/{document['id']}/events",
    }


def is_still(document: Mapping[str, Any]) -> bool:
    """It has ended, and nothing of its builder is left: no event will come."""
    return document["state"] in ENDED and document["builder"] in ("none", "removed")


def _wrong(outcome: Outcome | None) -> Sequence[Card]:
    """Every place that a failure is about; the failure itself where it is about none."""
    return (outcome.findings or outcome.cards) if outcome else ()


def _warnings(lines: Sequence[Line]) -> Iterable[Card]:
    """Each once, though a second attempt says it again."""
    found = {
        (line.text, line.hint): Card(level=Level.NOTE, code=line.code, message=line.text, hint=line.hint)
        for line in lines
        if line.level is Level.WARNING
    }
    return list(found.values())[:WARNINGS]


def _told(outcome: Outcome | None, wrong: Sequence[Card]) -> str:
    """What a failure says beyond its cards."""
    error = outcome.error if outcome else None
    if error is None or any(card.message in error.message for card in wrong if card.message):
        return ""
    return error.message


def _remedy(outcome: Outcome | None, wrong: Sequence[Card]) -> Advice | None:
    """The failure's own hint, where the cards are about places and don't say it."""
    error = outcome.error if outcome else None
    if error is None or not error.hint or error in wrong:
        return None
    known = [card.hint for card in wrong if card.hint]
    found = advice(error.hint)
    if any(hint in found.words for hint in known):  # said already
        return replace(found, words="") if found.patch else None
    return found

"""All that the templates of a project show, at one moment. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flops.observer import words
from flops.observer.advice import Advice, advice
from flops.observer.sizes import layers
from flops.observer.state import Card, Level
from flops.observer.timeline import WIDTH, timeline
from flops_wire.manager import ENDED, PROJECTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flops.observer.feed import Feed
    from flops.observer.state import Line, Outcome

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
        "width": WIDTH,
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

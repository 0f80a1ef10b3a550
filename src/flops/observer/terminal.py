"""A project's state on a terminal: a live tree while it runs, plain lines elsewhere, and at its end what came of it.

Text from repositories and programs is written out as text: no escapes, no markup, no second line that passes for ours.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from flops.observer import words
from flops.observer.fold import between
from flops.observer.state import Level, StageState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flops.errors import Adjustment
    from flops.observer.feed import Feed, Told
    from flops.observer.state import Card, ImageView, Line, Progress, StageView

_MARKS = {
    StageState.WAITING: ("·", "dim"),
    StageState.RUNNING: ("●", "bold cyan"),
    StageState.DONE: ("✓", "green"),
    StageState.FAILED: ("✗", "bold red"),
    StageState.SKIPPED: ("-", "dim"),
}
_STYLES = {
    Level.INFO: "",
    Level.ADJUSTED: "bold cyan",
    Level.NOTE: "bold yellow",
    Level.WARNING: "bold yellow",
    Level.ERROR: "bold red",
    Level.SUCCESS: "bold green",
}
_OUTCOMES = {"succeeded": ("images are ready", "bold green"), "failed": ("failed", "bold red"), "cancelled": ("cancelled", "bold red")}  # fmt: skip
#: Adjustments below the tree while it is live; the end shows them all.
_RECENT = 6
_MEGA, _BAR = 1e6, 20
#: Further lines of one message.
_LINES = 200
#: Columns that a reason needs to be read.
_REASON = 24


class View(Protocol):
    """What a feed is shown on; used as a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *failure: object) -> None: ...
    def show(self, feed: Feed, lines: Iterable[Line]) -> None:
        """The feed has changed, by these new lines."""


class LiveTree:
    """Redrawn a few times a second, in place; at exit its last state stays."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._feed: Feed | None = None
        # what is said on stderr goes above the tree where both are one terminal, and stays out of it elsewhere
        both = sys.stderr.isatty()
        self._live = Live(console=console, get_renderable=self._now, refresh_per_second=4, redirect_stderr=both)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, feed: Feed, lines: Iterable[Line]) -> None:
        self._feed = feed
        for line in lines:
            if line.level in (Level.WARNING, Level.NOTE):
                self._live.console.print(line_text(line))

    def _now(self) -> RenderableType:
        return tree(self._feed, self._title, now=datetime.now(UTC).isoformat()) if self._feed else text(self._title)


class PlainLines:
    """One line for each thing that happens; progress is left out."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._attempt = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, feed: Feed, lines: Iterable[Line]) -> None:
        for line in lines:
            if line.attempt > self._attempt:
                self._attempt = line.attempt
                self._console.print(Text(f"attempt {line.attempt}"))
            told_at_the_end = feed.outcome is not None and line.level in (Level.ERROR, Level.SUCCESS)
            if line.text and not told_at_the_end:
                self._console.print(line_text(line))


def view(console: Console, title: str) -> View:
    """A tree where the cursor can be moved."""
    moving = console.is_terminal and not console.is_dumb_terminal
    return LiveTree(console, title) if moving else PlainLines(console)


def text(foreign: str, style: str = "") -> Text:
    """Foreign text on one line, of which a terminal gets no more than it can show."""
    return Text(words.line(words.short(foreign)), style=style)


def line_text(line: Line) -> Text:
    word = line.level.value + (f"[{line.code}]" if line.code else "")
    head = Text("") if line.level is Level.INFO else Text.assemble(text(word, _STYLES[line.level]), ": ")
    where = f" ({line.platform})" if line.platform else ""
    told = Text.assemble(head, text(line.stage), text(where), ": ", text(line.text))
    if line.hint and line.level in (Level.NOTE, Level.WARNING, Level.ERROR):
        told = Text.assemble(told, "\n  ", ("hint", "bold cyan"), ": ", text(line.hint))
    return told


def told_lines(told: Told) -> list[Text]:
    """A message of FLOps' broker; its further lines stand in, so that none passes for another message."""
    first, *others = told.text.splitlines() or [""]
    head = Text.assemble(text(told.source, _STYLES[told.level] or "bold"), ": ", text(first))
    if len(others) > _LINES:
        others[_LINES:] = [f"({len(others) - _LINES} more lines)"]
    return [head, *(Text.assemble("  ", text(other)) for other in others)]


def tree(feed: Feed, title: str, *, now: str) -> RenderableType:
    """The newest attempt's stages, where others were lost, and the newest adjustments; `now` (RFC 3339) times what still
    runs. It fits 24 lines: what a terminal has no room for is cut off at the bottom, where things happen.
    """
    root = Tree(_cut(text(title, "bold")), guide_style="dim")
    attempts = feed.attempts
    for attempt in attempts:
        newest = attempt is attempts[-1]
        lost = "" if newest else ": its builder was lost"
        branch = root if len(attempts) == 1 else root.add(Text(f"attempt {attempt.number}{lost}", "bold"))
        told = [one for one in attempt.stages if newest or one.state is StageState.FAILED]
        if feed.outcome is not None:  # nobody waits for the builder's removal
            told = [one for one in told if one.state is not StageState.WAITING]
        _stages(branch, told, now)
    if feed.adjustments and feed.outcome is None:  # the end tells them all
        branch = root.add(Text(f"adjustments ({len(feed.adjustments)})", "bold"))
        for one in feed.adjustments[-_RECENT:]:
            branch.add(_cut(text(change(one))))
    return root


def _stages(branch: Tree, stages: Iterable[StageView], now: str) -> None:
    for stage in stages:
        mark, style = _MARKS[stage.state]
        seconds = stage.seconds if stage.state is not StageState.RUNNING else between(stage.started, now)
        told = Text.assemble((f"{mark} {stage.name:<9}", style), Text("" if seconds is None else f"{seconds:>7.1f} s"))
        if stage.message and stage.state in (StageState.RUNNING, StageState.FAILED):
            told = Text.assemble(told, "  ", text(stage.message, "dim"))
        node = branch.add(_cut(told))
        for one in stage.progress:
            node.add(_cut(_progress(one)))


def _cut(line: Text) -> Text:
    """One line of the tree; where it does not fit, that is seen."""
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _progress(one: Progress) -> Text:
    share = min(one.done / one.total, 1.0) if one.total else None
    bar = "" if share is None else "━" * round(share * _BAR) + " " * (_BAR - round(share * _BAR)) + f" {share:>4.0%}"
    scale, unit = (_MEGA, "MB") if one.unit == "bytes" else (1.0, one.unit)
    total = "" if one.total is None else f" of {one.total / scale:.1f}"
    return Text.assemble(
        text(f"{one.platform or 'all':<12} "), (bar, "cyan"), text(f" {one.done / scale:.1f}{total} {unit}")
    )


def change(one: Adjustment) -> str:
    """An adjustment in one line."""
    match one.before, one.after:
        case "", "" if one.code != "ADDED":  # a requirement without a version
            what = "taken out"
        case "", after:
            what = f"added, {after or 'any version'}"
        case before, "":
            what = f"{before} taken out"
        case before, after:
            what = f"{before} -> {after}"
    place = f" ({one.where})" if one.where else ""
    return f"{one.package} {what}{f' on {one.platform}' if one.platform else ''}{place}: {one.reason}"


def summary(feed: Feed) -> RenderableType:
    """What came of it: adjustments, what was wrong, images and how to get them, the outcome."""
    parts: list[RenderableType] = []
    if feed.adjustments:
        parts += [_Adjustments(feed), ""]
    told: set[str] = set()
    for card in feed.outcome.cards if feed.outcome else ():
        parts += card_lines(replace(card, hint="") if card.path == "" and card.hint in told else card)
        told.add(card.hint)
    if feed.images:
        columns = ("actor", "platform", "pulled", "unpacked", "layers")
        parts += [_table("images", columns, _images(feed.images))]
        parts += [text(f"  {image.pull or image.reference}") for image in feed.images]
    if feed.outcome:
        word, style = _OUTCOMES.get(feed.outcome.kind, (feed.outcome.kind, "bold"))
        spent = "" if feed.outcome.seconds is None else f", built in {feed.outcome.seconds:.1f} s"
        at = f" at {feed.outcome.stage}" if feed.outcome.kind == "failed" and feed.outcome.stage else ""
        parts.append(Text.assemble(text(word, style), text(spent or at)))
    return Group(*parts)


class _Adjustments:
    """A table; lines where it would leave the reasons no room."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        *names, why = ("where", "package", "before", "after", "platform", "why")
        rows = _changes(self._feed)
        fixed = sum(max([len(name), *(text(row[at]).cell_len for row in rows)]) + 2 for at, name in enumerate(names))
        if fixed + _REASON <= options.max_width:
            yield _table("adjustments", (*names, why), rows)
            return
        yield Text("adjustments", "italic")
        yield from (text(change(one)) for one in self._feed.adjustments)


def card_lines(card: Card) -> list[Text]:
    """A finding or failure in the form that compilers have made familiar."""
    word = f"{card.level.value}[{card.code}]"
    first, *others = card.message.splitlines() or [""]
    lines = [Text.assemble(text(word, _STYLES[card.level]), ": ", text(first, "bold"))]
    lines += [Text.assemble("      ", text(other, "bold")) for other in others]
    if card.path:
        lines.append(Text.assemble(("  --> ", "blue"), text(f"{card.path}:{card.line}" if card.line else card.path)))
    if card.quote:
        lines.append(Text.assemble(("    | ", "blue"), text(card.quote)))
    for number, part in enumerate(card.hint.splitlines()):
        lines.append(Text.assemble(("hint: ", "bold cyan") if number == 0 else "      ", text(part)))
    return lines


def _changes(feed: Feed) -> list[tuple[str, ...]]:
    return [
        (
            one.where,
            one.package,
            one.before or ("-" if one.code == "ADDED" else "any"),
            one.after or ("any" if one.code == "ADDED" else "-"),
            one.platform or "all",
            one.reason,
        )
        for one in feed.adjustments
    ]


def _images(images: Iterable[ImageView]) -> list[tuple[str, ...]]:
    return [
        (
            image.actor,
            one.platform,
            f"{one.bytes / _MEGA:.1f} MB",
            f"{one.uncompressed_bytes / _MEGA:.1f} MB",
            str(one.layers),
        )
        for image in images
        for one in image.platforms
    ]


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(text(cell) for cell in row))
    return table

"""How results, failures and progress look: data on stdout, everything else on stderr; foreign text always as text."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from flops.errors import OutputError
from flops.progress import Silent
from flops_wire.flops import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from flops.errors import Adjustment, Finding, FlopsError
    from flops.progress import Reporter, Stage

_Told = TypeVar("_Told", bound="Adjustment | Finding")

MEGABYTE = 1e6
#: The code of what was not asked for: nothing stood there before.
ADDED = "ADDED"
#: Characters of a reason that stand on a line at least, where no other column is folded for it.
REASON = 12
#: Columns where nothing folds.
WIDE = 4096
#: Columns that have room for long bars.
_ROOMY = 80


def plain(text: str) -> str:
    """Foreign text without terminal escapes: control characters other than a line feed become visible."""
    return visible(text)


def data_console() -> Console:
    """Folds at a terminal's edge only: whoever reads a file or a pipe wants whole lines."""
    console = Console(soft_wrap=True, highlight=False)
    return console if console.is_terminal else Console(soft_wrap=True, highlight=False, width=WIDE)


def fits(console: Console, table: Table) -> bool:
    """Whether a table's lines are whole there."""
    wanted = console.measure(table, options=console.options.update(width=WIDE)).maximum
    return not console.is_terminal or wanted <= console.width


def one_line(text: str) -> str:
    """Foreign text where a second line could pass for one of ours."""
    return plain(text).replace("\n", "\\n")


def megabytes(count: float) -> str:
    return f"{count / MEGABYTE:.1f} MB"


def print_json(document: Mapping[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(_finite(document), indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"can't write to standard output: {error.strerror}") from error


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity (RFC 8259, 6): null stands for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def error_lines(error: FlopsError) -> list[Text]:
    """A failure in the form that compilers have made familiar: code, place, what to write."""
    lines: list[Text] = []
    for finding in error.findings:
        lines += finding_lines(finding, "error", "bold red")
    lines.append(_headline("error", error.code, error.message, "bold red"))
    if error.hint and error.hint not in {finding.hint for finding in error.findings}:
        lines.append(_hint(error.hint))
    return lines


def finding_lines(finding: Finding, word: str, style: str) -> list[Text]:
    lines = [
        _headline(word, finding.code, finding.message, style),
        Text.assemble(("  --> ", "blue"), one_line(finding.where)),
    ]
    if finding.quote:
        lines.append(Text.assemble(("    | ", "blue"), one_line(finding.quote)))
    if finding.hint:
        lines.append(_hint(finding.hint))
    return lines


def _headline(word: str, code: str, message: str, style: str) -> Text:
    return Text.assemble((f"{word}[{code}]", style), ": ", (plain(message), "bold"))


def _hint(hint: str) -> Text:
    first, *rest = plain(hint).splitlines() or [""]
    text = Text.assemble(("hint", "bold cyan"), ": ", first)
    for line in rest:
        text.append(f"\n      {line}")
    return text


def _change(adjustment: Adjustment) -> str:
    match adjustment.before, adjustment.after:
        case "", "" if adjustment.code != ADDED:  # a requirement without a version
            return "taken out"
        case "", after:
            return f"added, {after or 'any version'}"
        case before, "":
            return f"{before} taken out"
        case before, after:
            return f"{before} -> {after}"


def adjustment_table(adjustments: Iterable[Adjustment], *, width: int) -> Table:
    """Before, after and why; one row per adjustment. Within `width` columns the reasons are folded first."""
    names = ("where", "package", "before", "after", "platform", "why")
    rows = [tuple(Text(one_line(cell)) for cell in _cells(one)) for one in adjustments]
    widths = [max([len(name), *(row[place].cell_len for row in rows)]) for place, name in enumerate(names[:-1])]
    whole = sum(widths) + 2 * len(widths) + REASON <= width
    table = Table(title="adjustments", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=whole and name != "why", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _cells(one: Adjustment) -> tuple[str, ...]:
    added = one.code == ADDED
    before, after = one.before or ("-" if added else "any"), one.after or ("any" if added else "-")
    return one.where, one.package, before, after, one.platform or "all", one.reason


class LineReporter:
    """Plain lines on stderr: where it is no terminal, as in CI, or one that can't move its cursor."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: list[Adjustment | Finding] = []

    @property
    def shared(self) -> Sequence[Adjustment | Finding]:
        """What was told where stdout goes too: all of it where both are somebody's terminal, else nothing."""
        return self._told if self._console.is_terminal and sys.stdout.isatty() else ()

    @contextmanager
    def stage(self, stage: Stage, message: str) -> Iterator[None]:
        begun = time.monotonic()
        self._say(f"{stage.value}: {message}")
        yield
        self._say(f"{stage.value}: done in {time.monotonic() - begun:.1f} s")

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:
        """Lines do not move: the end of a stage tells enough."""

    def adjusted(self, adjustment: Adjustment) -> None:
        one = adjustment
        self._told.append(one)
        platform = f" on {one.platform}" if one.platform else ""
        where = f" ({one.where})" if one.where else ""
        self._say(f"adjusted[{one.code}]: {one.package} {_change(one)}{platform}{where}: {one.reason}")

    def _say(self, text: str) -> None:
        self._console.print(Text(one_line(text)))

    def finding(self, finding: Finding) -> None:
        self._told.append(finding)
        for line in finding_lines(finding, "note", "bold yellow"):
            self._console.print(line)

    def warning(self, stage: Stage, message: str, *, hint: str = "") -> None:
        self._console.print(Text.assemble(("warning", "bold yellow"), f": {stage.value}: {plain(message)}"))
        if hint:
            self._console.print(_hint(hint))


def _whole() -> Column:
    return Column(no_wrap=True)


class _Bytes(DownloadColumn):
    """Bytes done and their total, for stages that count them."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields.get("counted") else Text("")


class _Message(ProgressColumn):
    """What a stage is about, on one line: this is cut where a terminal is narrow, and numbers are not."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class BarReporter(LineReporter):
    """One live line per stage on a terminal; adjustments and warnings above them."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="✓", table_column=_whole()),
            TextColumn("{task.fields[stage]:<9}", markup=False, table_column=_whole()),
            _Message(),
            BarColumn(bar_width=24 if console.width >= _ROOMY else 10, table_column=_whole()),
            _Bytes(table_column=_whole()),
            TimeElapsedColumn(table_column=_whole()),
            console=console,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, stage: Stage, message: str) -> Iterator[None]:
        with self._lock:
            task = self._tasks.get(stage.value)
            if task is None:
                task = self._progress.add_task(one_line(message), total=None, stage=stage.value, counted=False)
                self._tasks[stage.value] = task
        yield
        with self._lock:
            done = next(one.completed for one in self._progress.tasks if one.id == task)
            self._progress.update(task, total=max(done, 1), completed=max(done, 1))
            self._progress.stop_task(task)

    def progress(self, stage: Stage, *, done: int, total: int | None = None, platform: str | None = None) -> None:  # noqa: ARG002
        with self._lock:
            task = self._tasks.get(stage.value)
            if task is not None:
                self._progress.update(task, completed=done, total=total, counted=True)


@contextmanager
def reporter(*, quiet: bool) -> Iterator[Reporter]:
    """Bars on a terminal, lines elsewhere, nothing where `quiet`."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if quiet:
        yield Silent()
    elif console.is_terminal and not console.is_dumb_terminal:
        with BarReporter(console) as bars:
            yield bars
    else:
        yield LineReporter(console)


def untold(reporter: Reporter, found: Iterable[_Told]) -> Sequence[_Told]:
    """What a report on stdout has to tell of `found`: not again what stands on the same terminal already."""
    seen = reporter.shared if isinstance(reporter, LineReporter) else ()
    return [one for one in found if one not in seen]

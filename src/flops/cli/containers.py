"""A federation on this machine: one aggregator and some learners in containers, from images as they were pushed."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flops.cli.render import plain
from flops.errors import TrainingFailed, UsageError
from flops_wire import rounds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flops.oci.engine import Engine, Limits
    from flops.programs import Running
    from flops_wire.rounds import Round

#: Seconds that a whole federation may take.
DEADLINE = 6 * 3600.0
#: Seconds that learners may take to end after their aggregator.
FAREWELL = 90.0
#: Seconds to read what an ended actor said last.
FLUSH = 5.0
#: Lines of a failed actor that a message carries: of its last error, from the start on, and of its output's end.
ERROR_LINES = 60
LAST_LINES = 12
#: An error in an actor's log (flops_actor.life); its lines go on until the next entry.
ERROR = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR ")


@dataclass(frozen=True, kw_only=True)
class ContainerFederation:
    """What to run. Learner number i of n trains on every n-th row of the data, from row i on: disjoint parts."""

    engine: Engine
    learner: str
    """Image references, as the engine knows them."""
    aggregator: str
    data: Path
    """A directory of parquet files."""
    learners: int
    rounds: int
    limits: Limits
    """Of each container."""
    on_line: Callable[[str, str], None] = lambda _actor, _line: None
    """Gets each line of each actor's output, and what the engine warns of under the engine's name."""
    on_round: Callable[[Round], None] = lambda _round: None
    name: str = field(default_factory=lambda: f"flops-try-{secrets.token_hex(4)}")


def federate(federation: ContainerFederation) -> list[Round]:
    """Run to the last round and give all of them; TrainingFailed with the end of the log of whoever failed."""
    check_data(federation.data)
    engine = federation.engine
    seen: list[Round] = []
    number = str(federation.learners)
    words = ["try", "-", "-", "-", "CLASSIC_AGGREGATOR", str(federation.rounds), number, number, number]
    with ExitStack() as stack:
        stack.callback(engine.remove, federation.name)
        for line in engine.hold_network(federation.aggregator, name=federation.name, limits=federation.limits):
            federation.on_line(engine.program, line)
        aggregator = _Member(federation, "aggregator", seen)
        aggregator.start(stack, federation.aggregator, words)
        learners = [_Member(federation, f"learner {i + 1}", seen) for i in range(federation.learners)]
        for i, learner in enumerate(learners):
            learner.start(
                stack,
                federation.learner,
                ["try", "-", "-", "127.0.0.1", "-"],
                environment={"FLOPS_DATA": "/data", "FLOPS_DATA_SHARD": f"{i}/{federation.learners}"},
                data=federation.data,
            )
        _follow(aggregator, learners)
    if len(seen) != federation.rounds:
        raise TrainingFailed(f"the aggregator ended after {len(seen)} of {federation.rounds} rounds")
    return seen


def check_data(directory: Path) -> None:
    """UsageError where actors, which run as another user, could not read the data."""
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory", hint="--data names a directory of parquet files")
    files = sorted(directory.glob("*.parquet"))
    if not files:
        raise UsageError(f"{directory} holds no parquet file", hint="name them TAG.ANYTHING.parquet")
    closed = [path.name for path in files if not path.stat().st_mode & 0o004]
    if closed or not directory.stat().st_mode & 0o001:
        raise UsageError(
            f"actors run as another user and can't read {closed[0] if closed else directory}",
            hint=f"chmod -R o+rX {directory}",
        )


class LastWords:
    """What of an actor's output tells why it ended: a traceback's first line is its most telling one, and may be long ago."""

    def __init__(self) -> None:
        self._error: list[str] = []
        self._end: deque[str] = deque(maxlen=LAST_LINES)
        self._more = 0

    def hear(self, line: str) -> None:
        found = ERROR.match(line)
        if found:
            self._error, self._more = [line[found.end() :]], 0
            self._end.clear()
        elif self._error and len(self._error) < ERROR_LINES:
            self._error.append(line)
        else:
            self._more += 1
            self._end.append(line)

    def __str__(self) -> str:
        left_out = self._more - len(self._end)
        gap = [f"... {left_out} lines ..."] if self._error and left_out else []
        return "\n".join([*self._error, *gap, *self._end])


class _Member:
    """One actor in its container."""

    def __init__(self, federation: ContainerFederation, title: str, seen: list[Round]) -> None:
        self.title = title
        self._federation = federation
        self._seen = seen
        self._name = f"{federation.name}-{title.replace(' ', '-')}"
        self._words = LastWords()
        self._guard = threading.Lock()
        self.running: Running | None = None

    def start(
        self,
        stack: ExitStack,
        image: str,
        words: list[str],
        *,
        environment: dict[str, str] | None = None,
        data: Path | None = None,
    ) -> None:
        stack.callback(self._federation.engine.remove, self._name)
        self.running = stack.enter_context(
            self._federation.engine.start(
                image,
                words,
                name=self._name,
                network=self._federation.name,
                limits=self._federation.limits,
                on_line=self._hear,
                environment=environment,
                mounts={data.resolve(): "/data"} if data else None,
            )
        )

    @property
    def code(self) -> int | None:
        return self.running.code if self.running else None

    def failure(self) -> TrainingFailed:
        if self.running is not None:
            self.running.wait(FLUSH)
        with self._guard:
            said = str(self._words)
        return TrainingFailed(
            f"the {self.title} ended with {self.code}:\n{plain(said)}",
            hint="the actors' whole output: flops try --logs; more memory for each of them: --memory SIZE",
        )

    def _hear(self, line: str) -> None:
        with self._guard:
            self._words.hear(line)
        found = rounds.parse(line) if self.title == "aggregator" else None
        if found is not None:
            self._seen.append(found)
            self._federation.on_round(found)
        self._federation.on_line(self.title, line)


def _follow(aggregator: _Member, learners: list[_Member]) -> None:
    """Until the aggregator is done, then until the learners are; the first failure ends it."""
    end = time.monotonic() + DEADLINE
    while aggregator.code is None:
        failed = next((learner for learner in learners if learner.code not in (None, 0)), None)
        if failed is not None:
            raise failed.failure()
        if time.monotonic() > end:
            raise TrainingFailed(f"the federation did not end within {DEADLINE:.0f} s")
        time.sleep(0.1)
    if aggregator.code != 0:
        raise aggregator.failure()
    end = time.monotonic() + FAREWELL
    for learner in learners:
        while learner.code is None and time.monotonic() < end:
            time.sleep(0.1)
        if learner.code != 0:
            raise learner.failure()

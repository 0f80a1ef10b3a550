"""The rounds of a federation, over Flower's grid: fit, average, evaluate. Averages are Flower's own FedAvg."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from flops_actor import journal
from flops_wire.rounds import Round

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flwr.serverapp import Grid

#: Seconds between two looks at the grid; Flower's own three would be a good part of a short round.
PULSE = 0.3
EXAMPLES = "num-examples"

log = logging.getLogger("flops.actor")


class FederationFailed(Exception):
    """The rounds can't go on; the message says in which, and holds what the learners told."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    rounds: int
    min_available: int
    """Learners that must be connected before anything is sent."""
    min_fit: int
    """Learners that must fit without a failure."""
    min_evaluate: int
    learners_seconds: float
    rejoin_seconds: float
    round_seconds: float


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One message to every learner, and what comes back."""

    name: str
    type: str
    number: int
    """The round, from 1."""
    enough: int
    """Answers without a failure, below which the federation ends."""


@dataclass(kw_only=True)
class Federation:
    grid: Grid
    plan: Plan
    journal: journal.Writer
    strategy: FedAvg = field(default_factory=FedAvg)

    def run(self, arrays: ArrayRecord) -> ArrayRecord:
        """All rounds from these parameters on; the last round's parameters. FederationFailed."""
        for number in range(1, self.plan.rounds + 1):
            phase = Phase(name="fit", type=MessageType.TRAIN, number=number, enough=self.plan.min_fit)
            fitted = self._exchange(phase, arrays)
            trained = self._examples(phase, fitted)
            arrays, _ = self.strategy.aggregate_train(number, fitted)
            phase = Phase(name="evaluate", type=MessageType.EVALUATE, number=number, enough=self.plan.min_evaluate)
            judged = self._exchange(phase, arrays)
            evaluated = self._examples(phase, judged)
            metrics = self.strategy.aggregate_evaluate(number, judged)
            told = Round(
                number=number,
                total=self.plan.rounds,
                loss=float(metrics["loss"]),
                accuracy=float(metrics["accuracy"]),
                trained=trained,
                evaluated=evaluated,
                learners=len(judged),
            )
            self.journal.write(journal.ROUND, **told._asdict())
        return arrays

    def _exchange(self, phase: Phase, arrays: ArrayRecord) -> list[Message]:
        """Send the parameters to every connected learner and return the good answers, which are enough."""
        nodes = self._connected(phase)
        config = ConfigRecord({"server-round": phase.number, "rounds": self.plan.rounds})
        content = RecordDict({"arrays": arrays, "config": config})
        sent = [Message(content, dst_node_id=node, message_type=phase.type) for node in nodes]
        identities = list(self.grid.push_messages(sent))
        if len(identities) != len(nodes):
            raise FederationFailed(
                f"round {phase.number}, {phase.name}: Flower's link refused the parameters: too large"
            )
        waiting = {
            str(identity): node for identity, node in zip(identities, nodes, strict=True) if identity is not None
        }
        good, troubles, end = [], [], time.monotonic() + self.plan.round_seconds
        while waiting and time.monotonic() < end:
            for reply in self.grid.pull_messages(list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
                trouble = _trouble(reply, arrays if phase.type == MessageType.TRAIN else None)
                if trouble:
                    troubles.append(self._note(f"node {node}: {trouble}"))
                else:
                    good.append(reply)
            if waiting:
                time.sleep(PULSE)
        late = f"no answer within {self.plan.round_seconds:.0f} s"
        troubles += [
            self._note(f"node {node}, round {phase.number}, {phase.name}: {late}") for node in waiting.values()
        ]
        if len(good) < max(1, phase.enough):
            raise FederationFailed(
                f"round {phase.number}, {phase.name}: {len(good)} of {len(nodes)} learners succeeded, "
                f"{max(1, phase.enough)} must\n" + "\n".join(troubles)
            )
        return good

    def _connected(self, phase: Phase) -> list[int]:
        needed = max(self.plan.min_available, phase.enough)
        first = phase.number == 1 and phase.type == MessageType.TRAIN
        seconds = self.plan.learners_seconds if first else self.plan.rejoin_seconds
        end, last = time.monotonic() + seconds, -1
        while len(nodes := sorted(self.grid.get_node_ids())) < needed:
            if len(nodes) != last:
                log.info("waiting for learners: %d of %d are connected", len(nodes), needed)
                last = len(nodes)
            if time.monotonic() > end:
                raise FederationFailed(
                    f"round {phase.number}, {phase.name}: {len(nodes)} of {needed} learners were connected "
                    f"within {seconds:.0f} s"
                )
            time.sleep(PULSE)
        return nodes

    def _examples(self, phase: Phase, replies: Sequence[Message]) -> int:
        total = sum(int(_metrics(reply)[EXAMPLES]) for reply in replies)
        if total == 0:
            raise FederationFailed(f"round {phase.number}, {phase.name}: all learners together had 0 examples")
        return total

    def _note(self, trouble: str) -> str:
        self.journal.write(journal.TROUBLE, text=trouble)
        return trouble


def _metrics(reply: Message) -> Any:
    return reply.content["metrics"]


def _trouble(reply: Message, sent: ArrayRecord | None) -> str:
    """Why an answer does not count; empty where it does. `sent`: what the answer's arrays must look like."""
    if reply.has_error():
        reason = reply.error.reason or f"Flower's error {reply.error.code}"
        return "".join(c for c in reason if c.isprintable() or c in "\n\t")
    wanted = (EXAMPLES,) if sent is not None else (EXAMPLES, "loss", "accuracy")
    metrics = reply.content.get("metrics")
    if not isinstance(metrics, MetricRecord) or not all(isinstance(metrics.get(one), int | float) for one in wanted):
        return f"its answer lacks {', '.join(wanted)}"
    if sent is None:
        return ""
    got = reply.content.get("arrays")
    if not isinstance(got, ArrayRecord):
        return "its answer has no parameters"
    ours, theirs = [tuple(a.shape) for a in sent.values()], [tuple(a.shape) for a in got.values()]
    if list(sent) != list(got) or ours != theirs:
        return f"its parameters have the shapes {theirs}, not {ours}"
    return ""

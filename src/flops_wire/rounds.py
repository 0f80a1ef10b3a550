"""The line that an aggregator prints on its stdout after each round, written and read here only."""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE = re.compile(
    r"round (?P<number>\d+)/(?P<total>\d+): loss=(?P<loss>\S+) accuracy=(?P<accuracy>\S+) "
    r"trained=(?P<trained>\d+) evaluated=(?P<evaluated>\d+) learners=(?P<learners>\d+)"
)


class Round(NamedTuple):
    """One finished round. Loss and accuracy are means over the learners, weighed by their evaluation examples."""

    number: int
    total: int
    loss: float
    accuracy: float
    trained: int
    """Training examples of all learners."""
    evaluated: int
    """Evaluation examples of all learners."""
    learners: int
    """Learners that evaluated the round's model."""

    def line(self) -> str:
        """`round 1/3: loss=0.5 accuracy=0.9 trained=1437 evaluated=360 learners=2`; floats in full (repr)."""
        return (
            f"round {self.number}/{self.total}: loss={self.loss!r} accuracy={self.accuracy!r} "
            f"trained={self.trained} evaluated={self.evaluated} learners={self.learners}"
        )


def parse(line: str) -> Round | None:
    """The round that a line of an aggregator's output tells of; None for every other line."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return None
    try:
        return Round(
            number=int(found["number"]),
            total=int(found["total"]),
            loss=float(found["loss"]),
            accuracy=float(found["accuracy"]),
            trained=int(found["trained"]),
            evaluated=int(found["evaluated"]),
            learners=int(found["learners"]),
        )
    except ValueError:
        return None

"""Where things lie in an actor image, and how long things may take; each with an environment variable."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Places:
    ml_python: Path
    """FLOPS_ML_PYTHON: the interpreter of the user's environment."""
    repository: Path
    """FLOPS_REPO: the user's files."""
    programs: Path
    """Flower's programs: they lie beside the interpreter that runs this."""


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """All in seconds."""

    aggregator: float
    """FLOPS_AGGREGATOR_SECONDS: a learner waits so long for an aggregator (its image may be pulled meanwhile)."""
    link: float
    """FLOPS_LINK_SECONDS: so long may the aggregator be out of reach, once a learner took part."""
    learners: float
    """FLOPS_LEARNERS_SECONDS: the aggregator waits so long for enough learners before the first round."""
    rejoin: float
    """FLOPS_REJOIN_SECONDS: the same before every later round."""
    round: float
    """FLOPS_ROUND_SECONDS: so long may learners take to fit, and to evaluate."""


def places(environment: Mapping[str, str] = os.environ) -> Places:
    return Places(
        ml_python=Path(environment.get("FLOPS_ML_PYTHON", "/opt/flops/ml/bin/python")),
        repository=Path(environment.get("FLOPS_REPO", "/opt/flops/repo")),
        programs=Path(sys.executable).parent,
    )


def deadlines(environment: Mapping[str, str] = os.environ) -> Deadlines:
    """ValueError where a variable holds no number of seconds."""

    def seconds(name: str, default: float) -> float:
        text = environment.get(f"FLOPS_{name}_SECONDS", "")
        return float(text) if text else default

    return Deadlines(
        aggregator=seconds("AGGREGATOR", 3600),
        link=seconds("LINK", 30),
        learners=seconds("LEARNERS", 3600),
        rejoin=seconds("REJOIN", 300),
        round=seconds("ROUND", 12 * 3600),
    )

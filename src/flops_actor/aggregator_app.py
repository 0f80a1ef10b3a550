"""What Flower runs in the aggregator for the whole federation: it reads the plan and writes the journal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from flops_actor import journal
from flops_actor.federation import Federation, FederationFailed, Plan
from flops_actor.life import start_log
from flops_actor.worker import SOCKET_VARIABLE, WorkerClient, WorkerFailed

if TYPE_CHECKING:
    from flops_wire import frames

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
    """Run all rounds; every end but a crash is written into the journal, which the launcher follows."""
    start_log()
    writer = journal.Writer(Path(os.environ[journal.VARIABLE]))
    plan = Plan(**json.loads(os.environ[journal.PLAN_VARIABLE]))
    try:
        with WorkerClient.connect(os.environ[SOCKET_VARIABLE]) as worker:
            _, initial = worker.call("get_parameters")
        Federation(grid=grid, plan=plan, journal=writer).run(ArrayRecord([_array(array) for array in initial]))
    except WorkerFailed as error:
        writer.write(journal.FAILED, text=error.report)
    except FederationFailed as error:
        writer.write(journal.FAILED, text=str(error))
    else:
        writer.write(journal.FINISHED)


def _array(array: frames.Array) -> np.ndarray:
    return np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape)

"""What Flower runs in a learner for each message, in a fresh process: it passes the message on to the worker.

It imports as little as possible, since each message pays for it.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flops_actor import standing
from flops_actor.worker import SOCKET_VARIABLE, WorkerClient, WorkerFailed
from flops_wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable

#: Flower's code for "the client app raised an exception".
RAISED = 2
#: Characters of a failure that travel to the aggregator; its end says what happened.
REPORT_LIMIT = 16_000

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
    return _answer(message, "fit", _fit)


@app.evaluate()  # type: ignore[untyped-decorator]
def evaluate(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
    return _answer(message, "evaluate", _evaluate)


def _answer(message: Message, phase: str, work: Callable[[WorkerClient], RecordDict]) -> Message:
    config = message.content["config"]
    number, total = int(config["server-round"]), int(config["rounds"])
    failure, path = "", Path(os.environ[standing.VARIABLE])
    try:
        with WorkerClient.connect(os.environ[SOCKET_VARIABLE]) as worker:
            arrays = message.content["arrays"].to_numpy_ndarrays()
            worker.call("set_parameters", [frames.pack(array) for array in arrays])
            answer = Message(work(worker), reply_to=message)
    except (WorkerFailed, OSError, frames.FrameError) as error:
        failure = error.report if isinstance(error, WorkerFailed) else f"the worker is gone: {error}"
        answer = Message(Error(RAISED, _report(phase, number, failure)), reply_to=message)
    standing.write(standing.Standing(round=number, rounds=total, phase=phase, failure=failure), path)
    return answer


def _fit(worker: WorkerClient) -> RecordDict:
    examples, _ = worker.call("fit")
    _, arrays = worker.call("get_parameters")
    parameters = [np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape) for array in arrays]
    return RecordDict({"arrays": ArrayRecord(parameters), "metrics": MetricRecord({"num-examples": examples})})


def _evaluate(worker: WorkerClient) -> RecordDict:
    (loss, accuracy, examples), _ = worker.call("evaluate")
    return RecordDict({"metrics": MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": examples})})


def _report(phase: str, number: int, failure: str) -> str:
    name = os.environ.get("FLOPS_LEARNER_NAME") or platform.node()
    tags = os.environ.get("FLOPS_TAGS", "")
    who = f"learner {name}" + (f" (tags {tags})" if tags else "")
    cut = failure if len(failure) <= REPORT_LIMIT else f"...{failure[-REPORT_LIMIT:]}"
    return f"{who}, round {number}, {phase}: {cut}"

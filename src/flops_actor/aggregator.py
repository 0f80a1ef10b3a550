"""The aggregator: `python main.py PROJECT_ID MQTT_IP OBSERVER_IP TRACKING_URL AGGREGATOR_TYPE ITERATIONS MIN_AVAILABLE
MIN_FIT MIN_EVALUATE [ROOT_AGGREGATOR_IP] [--track-locally] [--deactivate-notifications]`.

It takes the first parameters from the user's ModelManager (without data), runs Flower's link and the federation, and
prints a line on stdout for each round (flops_wire.rounds). It ends with 0 after its rounds, with 1 on a failure,
with 69 for a role that it can't play yet, with 143 after SIGTERM.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops_actor import flower, journal, worker
from flops_actor.arguments import Endpoint, parse_aggregator
from flops_actor.life import EXIT_DONE, EXIT_UNSUPPORTED, ActorFailed, ending, live, tell
from flops_actor.notify import TEXT_LIMIT, Notifier
from flops_actor.places import deadlines, places
from flops_wire import flops
from flops_wire.rounds import Round

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

    from flops_actor.arguments import AggregatorArguments
    from flops_actor.life import Children
    from flops_actor.places import Deadlines

PULSE = 0.2
#: Seconds from the link's start until it answers; long enough for an emulated Python.
LINK_SECONDS = 180.0

log = logging.getLogger("flops.actor")


def main(words: Sequence[str] | None = None) -> int:
    """Parse, live, and return the exit code."""
    arguments = parse_aggregator(words)
    return live(lambda children, scratch: _aggregate(arguments, children, scratch))


def _aggregate(arguments: AggregatorArguments, children: Children, scratch: Path) -> int:
    with Notifier(broker=arguments.broker, observer=arguments.observer) as notifier:
        messages = _Messages(arguments=arguments, notifier=notifier)
        messages.started()
        if arguments.type != flops.CLASSIC_AGGREGATOR:
            text = f"UNSUPPORTED_ROLE: this image can't be a {arguments.type} yet; only {flops.CLASSIC_AGGREGATOR}"
            log.error("%s", text)
            messages.failed(text)
            return EXIT_UNSUPPORTED
        if arguments.tracking:
            log.warning("nothing is tracked at %s: this aggregator does no tracking yet", arguments.tracking)
        try:
            messages.succeeded(_federate(arguments, children, scratch))
        except ActorFailed as error:
            messages.failed(str(error))
            raise
    return EXIT_DONE


@dataclass(frozen=True, kw_only=True)
class _Messages:
    """What FLOps' manager and observer are told; `aggregator_type` stands in every message to the manager."""

    arguments: AggregatorArguments
    notifier: Notifier

    def started(self) -> None:
        fields = {"aggregator_type": self.arguments.type}
        self.notifier.manager(flops.AGGREGATOR_STARTED, flops.payload(self.arguments.project, **fields))
        self.notifier.observer("Aggregator started")

    def succeeded(self, last: Round) -> None:
        success = flops.aggregator_success(
            self.arguments.project, aggregator_type=self.arguments.type, accuracy=last.accuracy, loss=last.loss
        )
        self.notifier.manager(flops.AGGREGATOR_SUCCESS, success)
        self.notifier.observer(
            f"Aggregator tasks completed successfully after {last.total} rounds.\n"
            f"- accuracy: {last.accuracy}\n- loss: {last.loss}"
        )

    def failed(self, text: str) -> None:
        text = text[-TEXT_LIMIT:]
        told = flops.failure(self.arguments.project, text, aggregator_type=self.arguments.type)
        self.notifier.manager(flops.AGGREGATOR_FAILED, told)
        self.notifier.observer(text)


def _federate(arguments: AggregatorArguments, children: Children, scratch: Path) -> Round:
    """Everything from the worker's start to the last round. ActorFailed."""
    where, limits = places(), deadlines()
    process = worker.start(children, where, scratch)
    env = flower.environment(
        scratch,
        where,
        **{
            worker.SOCKET_VARIABLE: str(process.socket),
            journal.VARIABLE: str(scratch / "journal"),
            journal.PLAN_VARIABLE: json.dumps(_plan(arguments, limits)),
        },
    )
    # Flower needs seconds to start, and so does the user's environment: both at once
    link = flower.start_link(children, where, env, arguments.port)
    _check_model(process)
    _wait_for_link(link, arguments.port)
    run = flower.start_run(children, where, env, scratch, arguments.port)
    return _follow(run, link, journal.Reader(scratch / "journal"))


def _plan(arguments: AggregatorArguments, limits: Deadlines) -> dict[str, float]:
    return {
        "rounds": arguments.rounds,
        "min_available": arguments.min_available,
        "min_fit": arguments.min_fit,
        "min_evaluate": arguments.min_evaluate,
        "learners_seconds": limits.learners,
        "rejoin_seconds": limits.rejoin,
        "round_seconds": limits.round,
    }


def _check_model(process: worker.WorkerProcess) -> None:
    try:
        with process.client() as client:
            info, _ = client.call("info")
    except worker.WorkerFailed as error:
        raise ActorFailed(f"the aggregator can't get the model's first parameters: {error.report}") from error
    log.info("worker: %s, Python %s, %d parameters", info["machine"], info["python"], len(info["parameters"]))


def _wait_for_link(link: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + LINK_SECONDS
    while not flower.reachable(Endpoint(host="127.0.0.1", port=port)):
        if link.poll() is not None:
            raise ActorFailed(f"Flower's link {ending(link)} at its start; is port {port} free?")
        if time.monotonic() > end:
            raise ActorFailed(f"Flower's link did not answer on port {port} within {LINK_SECONDS:.0f} s")
        time.sleep(PULSE)


def _follow(run: subprocess.Popen[bytes], link: subprocess.Popen[bytes], reader: journal.Reader) -> Round:
    """Pass the journal on until the federation ended; the last round. ActorFailed."""
    last: Round | None = None
    while True:
        over = run.poll() is not None or link.poll() is not None  # before the journal is read, which may end it
        for entry in reader.new():
            kind = entry.pop("kind")
            if kind == journal.ROUND:
                last = Round(**entry)
                tell(last.line())
            elif kind == journal.TROUBLE:
                log.error("a learner failed: %s", entry["text"])
            elif kind == journal.FAILED:
                raise ActorFailed(f"the federation failed: {entry['text']}")
            elif kind == journal.FINISHED and last is not None:
                return last
        if over:
            ended = link if link.poll() is not None else run
            what = "Flower's link" if ended is link else "Flower's run"
            raise ActorFailed(f"{what} {ending(ended)} before the last round; Flower's log above says why")
        time.sleep(PULSE)

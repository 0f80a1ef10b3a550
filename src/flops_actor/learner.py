"""The learner: `python main.py PROJECT_ID MQTT_IP OBSERVER_IP AGGREGATOR_IP TAG[,TAG]`.

It starts the worker, loads the data, waits for the aggregator, and lets Flower's node take part. It ends with 0 when
the last round was evaluated and the aggregator is gone; with 1 when the user's code or data fail before the first round,
when the worker dies, or when the aggregator goes away before the last round; with 143 after SIGTERM.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops_actor import flower, standing, worker
from flops_actor.arguments import parse_learner
from flops_actor.life import EXIT_DONE, ActorFailed, ending, live, tell
from flops_actor.notify import TEXT_LIMIT, Notifier
from flops_actor.places import deadlines, places
from flops_wire import flops

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

    from flops_actor.arguments import LearnerArguments
    from flops_actor.life import Children
    from flops_actor.places import Deadlines, Places

#: Seconds between two looks at the processes, the standing and the link.
PULSE = 0.5
#: Seconds for a node to deliver its last answer, before it is stopped.
DELIVERY_SECONDS = 30.0
#: Seconds out of reach after which a node that took no part is stopped and waits for an aggregator anew.
IDLE_LINK_SECONDS = 5.0
NODE_RESTARTS = 5

log = logging.getLogger("flops.actor")


class OwnFailure(ActorFailed):
    """What failed is this learner's own: FLOps' manager and the observer are told."""


def main(words: Sequence[str] | None = None) -> int:
    """Parse, live, and return the exit code."""
    arguments = parse_learner(words)
    return live(lambda children, scratch: _learn(arguments, children, scratch))


def _learn(arguments: LearnerArguments, children: Children, scratch: Path) -> int:
    with Notifier(broker=arguments.broker, observer=arguments.observer) as notifier:
        try:
            where = places()
            process = worker.start(children, where, scratch, _data_variables(arguments))
            _prepare(process)
            node = Node(
                arguments=arguments,
                children=children,
                scratch=scratch,
                places=where,
                deadlines=deadlines(),
                worker=process,
            )
            return node.take_part()
        except OwnFailure as error:
            text = str(error)[-TEXT_LIMIT:]
            notifier.manager(flops.LEARNER_FAILED, flops.failure(arguments.project, text))
            notifier.observer(text)
            raise


def _data_variables(arguments: LearnerArguments) -> dict[str, str]:
    return {"FLOPS_DATA_TAGS": ",".join(arguments.tags)} if arguments.tags else {}


def _prepare(process: worker.WorkerProcess) -> None:
    """Load the user's code and data, and show what the worker runs on."""
    try:
        with process.client() as client:
            client.call("set_model_data")
            info, _ = client.call("info")
    except worker.WorkerFailed as error:
        raise OwnFailure(f"the learner can't start: {error.report}") from error
    shapes = ", ".join(f"{tuple(entry['shape'])} {entry['dtype']}" for entry in info["parameters"])
    tell(f"worker: platform.machine() = {info['machine']}, Python {info['python']}")
    tell(f"worker: {len(info['parameters'])} parameters: {shapes}")


@dataclass(frozen=True, kw_only=True)
class Node:
    """Flower's node under supervision."""

    arguments: LearnerArguments
    children: Children
    scratch: Path
    places: Places
    deadlines: Deadlines
    worker: worker.WorkerProcess

    def take_part(self) -> int:
        """Wait for the aggregator and follow it to its end; once more where it vanishes before the first round."""
        env = flower.environment(
            self.scratch,
            self.places,
            **{
                worker.SOCKET_VARIABLE: str(self.worker.socket),
                standing.VARIABLE: str(self._standing),
                "FLOPS_TAGS": ",".join(self.arguments.tags),
            },
        )
        restarts = 0
        while restarts <= NODE_RESTARTS:
            self._wait_for_link()
            node = flower.start_node(
                self.children, self.places, env, self.arguments.aggregator, self.arguments.node_port
            )
            done = self._follow(node)
            self.children.stop(node)
            if done:
                return EXIT_DONE
            restarts += 1
        raise OwnFailure(f"Flower's node ended {restarts} times before the first round; its log above says why")

    @property
    def _standing(self) -> Path:
        return self.scratch / "standing.json"

    def _wait_for_link(self) -> None:
        end, told = time.monotonic() + self.deadlines.aggregator, False
        while not flower.reachable(self.arguments.aggregator):
            self._check_worker()
            if time.monotonic() > end:
                raise OwnFailure(
                    f"no aggregator at {self.arguments.aggregator} within {self.deadlines.aggregator:.0f} s"
                )
            if not told:
                log.info("waiting for the aggregator at %s", self.arguments.aggregator)
                told = True
            time.sleep(PULSE)

    def _follow(self, node: subprocess.Popen[bytes]) -> bool:
        """True when the federation is over, False where the node is to be started anew."""
        seen = time.monotonic()
        finished: float | None = None
        while True:
            time.sleep(PULSE)
            now, state = time.monotonic(), standing.read(self._standing)
            if self.worker.child.poll() is not None:
                self._deliver(node)
                self._check_worker()
            if flower.reachable(self.arguments.aggregator):
                seen = now
            gone = now - seen
            if state is not None and state.finished:
                finished = finished or now
                if gone > PULSE or node.poll() is not None or now - finished > DELIVERY_SECONDS:
                    return self._finish(state)
            elif state is not None and (gone > self.deadlines.link or (gone > PULSE and state.failure)):
                self._finish(state)
                raise ActorFailed(
                    f"the aggregator at {self.arguments.aggregator} went away after round {state.round} of {state.rounds}"
                )
            elif state is None and gone > IDLE_LINK_SECONDS:
                return False
            if node.poll() is not None:
                if state is None:
                    return False
                raise OwnFailure(f"Flower's node {ending(node)} in round {state.round} of {state.rounds}")

    def _finish(self, state: standing.Standing) -> bool:
        if state.failure:
            raise OwnFailure(f"round {state.round} of {state.rounds} failed here: {state.failure}")
        log.info("all %d rounds are done", state.rounds)
        return True

    def _deliver(self, node: subprocess.Popen[bytes]) -> None:
        """The worker is dead, but the node may be about to tell the aggregator so."""
        end = time.monotonic() + DELIVERY_SECONDS
        while time.monotonic() < end and node.poll() is None:
            state = standing.read(self._standing)
            if state is not None and state.failure:
                time.sleep(5)
                return
            time.sleep(PULSE)

    def _check_worker(self) -> None:
        if self.worker.child.poll() is not None:
            raise OwnFailure(f"the worker {ending(self.worker.child)}")

"""The command lines of both actors, in FLOps' form."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flops_wire import flops

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_ADDRESS = ("", "-", "none")
_ADDRESS_HELP = 'HOST or HOST:PORT; "-" for none'


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class LearnerArguments:
    project: str
    broker: Endpoint | None
    """FLOps' MQTT broker, where the manager listens; None: send nothing."""
    observer: Endpoint | None
    aggregator: Endpoint
    tags: tuple[str, ...]
    """Only data with one of these tags; empty for all data."""
    node_port: int
    """Port of the node's own API on 127.0.0.1; 0 for a free one."""


@dataclass(frozen=True, kw_only=True)
class AggregatorArguments:
    project: str
    broker: Endpoint | None
    observer: Endpoint | None
    tracking: str
    """MLflow's URL; recorded nowhere yet, said in the log."""
    type: str
    rounds: int
    min_available: int
    min_fit: int
    min_evaluate: int
    root: Endpoint | None
    port: int


def endpoint(text: str, port: int) -> Endpoint | None:
    """`HOST`, `HOST:PORT`, `[IPV6]:PORT` or a bare IPv6 address; None for no address. ValueError for a bad port."""
    text = text.strip()
    if text.lower() in NO_ADDRESS:
        return None
    host, separator, digits = text.rpartition(":")
    if not separator or (":" in host and not host.endswith("]")):
        return Endpoint(host=text.strip("[]"), port=port)
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits) < 2**16 and host):
        raise ValueError(f"{text!r} has no valid port")
    return Endpoint(host=host.strip("[]"), port=int(digits))


def parse_learner(words: Sequence[str] | None) -> LearnerArguments:
    """Ends the process with 2 and the usage where the words don't fit (argparse)."""
    parser = argparse.ArgumentParser(prog="main.py", description="The learner: trains the model on this node's data.")
    parser.add_argument("project_id")
    parser.add_argument("mqtt_ip", help=f"FLOps' broker: {_ADDRESS_HELP} (port {flops.BROKER_PORT})")
    parser.add_argument("observer_ip", help=f"the project's observer: {_ADDRESS_HELP} (port {flops.OBSERVER_PORT})")
    parser.add_argument("aggregator_ip", help=f"HOST or HOST:PORT (port {flops.AGGREGATOR_PORT})")
    parser.add_argument("data_tags", nargs="?", default="-", help='TAG[,TAG]; "-" or nothing for all data')
    parser.add_argument("--node-port", type=_port, default=0, help="port of the node's own API; default: a free one")
    found = parser.parse_args(words)
    aggregator = _endpoint(parser, found.aggregator_ip, flops.AGGREGATOR_PORT)
    if aggregator is None:
        parser.error("a learner needs an aggregator: give its address")
    tags = (
        () if found.data_tags.lower() in NO_ADDRESS else tuple(filter(None, map(str.strip, found.data_tags.split(","))))
    )
    return LearnerArguments(
        project=found.project_id,
        broker=_endpoint(parser, found.mqtt_ip, flops.BROKER_PORT),
        observer=_endpoint(parser, found.observer_ip, flops.OBSERVER_PORT),
        aggregator=aggregator,
        tags=tags,
        node_port=found.node_port,
    )


def parse_aggregator(words: Sequence[str] | None) -> AggregatorArguments:
    """Ends the process with 2 and the usage where the words don't fit (argparse)."""
    parser = argparse.ArgumentParser(prog="main.py", description="The aggregator: averages what the learners learnt.")
    parser.add_argument("project_id")
    parser.add_argument("mqtt_ip", help=f"FLOps' broker: {_ADDRESS_HELP} (port {flops.BROKER_PORT})")
    parser.add_argument("observer_ip", help=f"the project's observer: {_ADDRESS_HELP} (port {flops.OBSERVER_PORT})")
    parser.add_argument("tracking_url", help='MLflow\'s tracking server; "-" for none')
    parser.add_argument("aggregator_type", choices=flops.AGGREGATOR_TYPES)
    for name in ("iterations", "min_available", "min_fit", "min_evaluate"):
        parser.add_argument(name, type=_positive)
    parser.add_argument("root_aggregator_ip", nargs="?", default="-", help="of a cluster aggregator")
    parser.add_argument("--track-locally", action="store_true", help="no remote tracking (nothing is tracked yet)")
    parser.add_argument("--deactivate-notifications", action="store_true", help="send nothing to broker and observer")
    parser.add_argument("--port", type=_port, default=flops.AGGREGATOR_PORT, help="where learners connect")
    found = parser.parse_args(words)
    silent = found.deactivate_notifications
    return AggregatorArguments(
        project=found.project_id,
        broker=None if silent else _endpoint(parser, found.mqtt_ip, flops.BROKER_PORT),
        observer=None if silent else _endpoint(parser, found.observer_ip, flops.OBSERVER_PORT),
        tracking="" if found.track_locally or found.tracking_url.lower() in NO_ADDRESS else found.tracking_url,
        type=found.aggregator_type,
        rounds=found.iterations,
        min_available=found.min_available,
        min_fit=found.min_fit,
        min_evaluate=found.min_evaluate,
        root=_endpoint(parser, found.root_aggregator_ip, flops.AGGREGATOR_PORT),
        port=found.port,
    )


def _endpoint(parser: argparse.ArgumentParser, text: str, port: int) -> Endpoint | None:
    try:
        return endpoint(text, port)
    except ValueError as error:
        parser.error(str(error))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)

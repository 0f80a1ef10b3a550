"""What Prometheus asks: standings are read from the database when it asks, sums grow with every event."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from flops.version import __version__
from flops_wire.events import KINDS, STAGES, TERMINAL_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from flops.service.operations import Manager
    from flops.service.project import Project
    from flops.service.streams import Streams

_STAGE_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
_PROJECT_SECONDS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_TALLIES = {
    "notes": "Messages that came by FLOps' own port.",
    "notes_dropped": "Messages among them that no project is known for.",
    "logins_failed": "Wrong tokens at the manager, its attempts and its embedded registry.",
    "mirror_dropped": "Messages for FLOps' broker beyond what may wait for it.",
}
_BYTES = ("downloaded", "uploaded", "reused")


class Metrics:
    """A registry of its own, so that several managers in one process don't mix."""

    def __init__(self, manager: Manager, streams: Streams) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Standing(manager, streams))
        self._events = Counter("flops_events", "Events that were stored.", ["stage", "kind"], registry=self._registry)
        self._stages = Histogram(
            "flops_stage_seconds",
            "Seconds of a finished stage.",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=self._registry,
        )
        self._projects = Histogram(
            "flops_project_seconds",
            "Seconds from a project's request to its outcome.",
            ["outcome"],
            buckets=_PROJECT_SECONDS,
            registry=self._registry,
        )
        self._failures = Counter(
            "flops_failures", "Failed projects by the code of their error.", ["code"], registry=self._registry
        )
        self._bytes = Counter(
            "flops_build_bytes", "Bytes that successful builds moved or found.", ["what"], registry=self._registry
        )
        self._requests = Histogram(
            "flops_http_request_seconds",
            "Seconds until a request's answer began.",
            ["method", "route", "status"],
            buckets=_REQUEST_SECONDS,
            registry=self._registry,
        )

    def heard(self, project: Project, event: dict[str, Any]) -> None:
        """A stored event (`Bus.listen`); never raises for what a builder wrote into it."""
        stage, kind, data = event.get("stage"), event.get("kind"), event.get("data")
        if stage not in STAGES or kind not in KINDS:
            return
        data = data if isinstance(data, dict) else {}
        self._events.labels(stage, kind).inc()
        seconds = _number(data.get("seconds"))
        if kind == "finished" and seconds is not None:
            self._stages.labels(stage).observe(seconds)
        if kind in TERMINAL_KINDS:
            self._projects.labels(kind).observe(max(0.0, (project.ended or time.time()) - project.created))
        if kind == "failed":
            self._failures.labels(str((project.error or {}).get("code", ""))[:64]).inc()
        moved = (project.result or {}).get("bytes") if kind == "succeeded" else None
        if isinstance(moved, dict):
            for what in _BYTES:
                self._bytes.labels(what).inc(_number(moved.get(what)) or 0)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)


class _Standing:
    """Asked anew at each scrape: how many projects, builders, readers and unsent messages there are."""

    def __init__(self, manager: Manager, streams: Streams) -> None:
        self._manager = manager
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        counts, numbers = self._manager.counts(), self._manager.statistics()
        yield _gauge("flops_projects", "Projects by state.", "state", counts["projects"])
        yield _gauge("flops_builders", "Projects by the standing of their builder.", "builder", counts["builders"])
        yield _single("flops_queue_length", "Projects that wait for a builder.", counts["builders"].get("queued", 0))
        yield _single("flops_mirror_backlog", "Messages that FLOps' broker did not take yet.", numbers["outbox"])
        yield _single("flops_event_streams", "Open event streams.", self._streams.count)
        yield _single(
            "flops_reconciled_seconds_ago",
            "Since the reconciler last looked at all builders.",
            numbers["reconciled_seconds_ago"],
        )
        for name, told in _TALLIES.items():
            counter = CounterMetricFamily(f"flops_{name}", told)
            counter.add_metric([], numbers.get(name, 0))
            yield counter
        version = GaugeMetricFamily("flops_build_info", "The version that runs.", labels=["version"])
        version.add_metric([__version__], 1)
        yield version


def _single(name: str, told: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, told)
    family.add_metric([], value)
    return family


def _gauge(name: str, told: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, told, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _number(value: object) -> float | None:
    """Of what somebody else wrote: a finite number that is not negative, or nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:  # noqa: PLR2004
        return None
    return float(value)

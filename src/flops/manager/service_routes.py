"""Routes about the service itself: its health, its metrics, and the list of its operations."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.responses import HTMLResponse, JSONResponse
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations when it runs
from starlette.responses import RedirectResponse, Response

import flops
from flops.manager import documents
from flops.manager.login import HOME
from flops.manager.openapi import TOKEN, add_route, answers, example, lock
from flops.manager.pages import docs_page

if TYPE_CHECKING:
    from fastapi import FastAPI

    from flops.manager.health import Health
    from flops.manager.metrics import Metrics


class ServiceRoutes:
    def __init__(self, health: Health, metrics: Metrics, *, locked: bool) -> None:
        self._lock = lock("operator", TOKEN) if locked else []
        self._health = health
        self._metrics = metrics

    def add_to(self, app: FastAPI) -> None:
        add_route(app, "/healthz", self.healthz, "GET", tag="service", responses=_HEALTH)
        add_route(
            app,
            "/metrics",
            self.metrics,
            "GET",
            tag="service",
            responses=_METRICS,
            dependencies=self._lock,
            response_class=Response,
        )
        app.add_api_route("/healthz", self.healthz, methods=["HEAD"], include_in_schema=False, response_model=None)
        app.add_api_route("/docs", self.docs, include_in_schema=False, response_class=HTMLResponse)
        app.add_api_route("/", self.home, include_in_schema=False, response_class=RedirectResponse)

    def healthz(self) -> Response:
        """Whether database, reconciler and registry are well; for probes, without a login."""
        checks = self._health.look()
        well = all(told == "ok" for told in checks.values())
        document: dict[str, Any] = {
            "status": "ok" if well else "failing",
            "checks": checks,
            "version": flops.__version__,
        }
        return JSONResponse(document, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE)

    def metrics(self) -> Response:
        """For Prometheus, in its text format."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def docs(self, request: Request) -> Response:
        """The operations, for people."""
        return HTMLResponse(docs_page(request.app.openapi()))

    def home(self) -> Response:
        return RedirectResponse(HOME, HTTPStatus.SEE_OTHER)


_HEALTH = answers(
    documents.HealthDocument,
    "Everything is well.",
    {"status": "ok", "checks": {"database": "ok", "reconciler": "ok", "registry": "ok"}, "version": flops.__version__},
) | {503: {"model": documents.HealthDocument, "description": "Something is not; `checks` says what."}}
_METRICS = example("text/plain", "The metrics.")

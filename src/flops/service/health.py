"""How the service is: each part is asked, briefly remembered, and told by name."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooSlow
from http import HTTPStatus
from typing import TYPE_CHECKING

import httpx

from flops import http
from flops.errors import FlopsError, InternalError, RegistryUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from flops.service.operations import Manager
    from flops.service.store import Store

_log = logging.getLogger("flops.health")
#: Seconds that an answer is good for: probes come often, and from anybody.
_FRESH = 3.0
_PATIENCE = 5.0
_REGISTRY_PATIENCE = 4.0
RECONCILER_PATIENCE = 60.0


class Health:
    """`checks` by name; one thread asks them, however many want to know."""

    def __init__(self, checks: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.monotonic) -> None:
        self._checks = dict(checks)
        self._clock = clock
        self._guard = threading.Lock()
        self._until = float("-inf")
        self._words: dict[str, str] = {}

    def look(self) -> dict[str, str]:
        """By part: `ok`, or the code of what is wrong; its words are for the log, since anybody may ask."""
        with self._guard:
            if self._clock() >= self._until:
                found = self._ask()
                for name, told in found.items():
                    if told != self._words.get(name, "ok"):
                        _log.log(logging.INFO if told == "ok" else logging.WARNING, "health of %s: %s", name, told)
                self._words = found
                self._until = self._clock() + _FRESH
            return {name: told.partition(":")[0] for name, told in self._words.items()}

    def _ask(self) -> dict[str, str]:
        """At once, and none is waited for longer than the others."""
        pool = ThreadPoolExecutor(max_workers=max(1, len(self._checks)), thread_name_prefix="flops-health")
        try:
            asked = {name: pool.submit(check) for name, check in self._checks.items()}
            told = {}
            until = time.monotonic() + _PATIENCE
            for name, future in asked.items():
                try:
                    future.result(max(0.0, until - time.monotonic()))
                    told[name] = "ok"
                except TooSlow:
                    told[name] = f"TIMEOUT: no answer within {_PATIENCE:.0f} s"
                except FlopsError as error:
                    told[name] = f"{error.code}: {error.message}"
                except Exception as error:  # noqa: BLE001 - a part that fails in a new way is not well either
                    told[name] = f"INTERNAL: {type(error).__name__}"
            return told
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def check_registry(url: str, ca_bundle: Path | None = None) -> None:
    """RegistryUnreachable where nothing answers at `URL/v2/`; a login that it wants is an answer too."""
    try:
        with http.client(ca_bundle, seconds=_REGISTRY_PATIENCE, trust_env=False) as client:
            status = client.get(f"{url}/v2/").status_code
    except (httpx.HTTPError, OSError) as error:
        raise RegistryUnreachable(f"{url} does not answer: {'; '.join(filter(None, http.reason(error)))}") from error
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise RegistryUnreachable(f"{url} answers with {status}")


def check_store(store: Store) -> None:
    """StoreError, DiskFull where nothing can be written."""
    with store.write() as tables:
        tables.set_meta("looked_at", str(int(time.time())))


def check_reconciler(manager: Manager) -> None:
    """InternalError where its thread has ended or hangs."""
    seconds = manager.statistics()["reconciled_seconds_ago"]
    if seconds > RECONCILER_PATIENCE:
        raise InternalError(f"the reconciler was last at work {seconds:.0f} s ago")

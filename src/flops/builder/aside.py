"""A call that runs beside others, and whose end nobody has to wait for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Aside:
    """Begins at once, in a thread that does not keep the process alive; `result` waits, and raises what it raised."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="flops-aside", daemon=True)
        self._thread.start()

    def result(self) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._failure = error

"""The worker that holds the user's model: started by a launcher, called by the launcher and by Flower's processes."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from flops_actor.life import ending
from flops_wire import frames

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from flops_actor.life import Children
    from flops_actor.places import Places

#: Where Flower's processes, which inherit the launcher's environment, find the socket.
SOCKET_VARIABLE = "FLOPS_WORKER_SOCKET"
#: Seconds from a worker's start to its socket; long enough for an emulated Python.
START_SECONDS = 120.0
CALLS = {
    "set_model_data": "ModelManager().set_model_data()",
    "get_parameters": "get_model_parameters()",
    "set_parameters": "set_model_parameters()",
    "fit": "fit_model()",
    "evaluate": "evaluate_model()",
    "info": "get_model_parameters()",
}


class WorkerFailed(Exception):
    """The user's code raised or broke the contract: `summary` in a line, `report` with the traceback."""

    def __init__(self, summary: str, report: str = "") -> None:
        super().__init__(summary)
        self.summary = summary
        self.report = f"{summary}\n{report}" if report else summary


@dataclass(frozen=True, kw_only=True)
class WorkerProcess:
    child: subprocess.Popen[bytes]
    socket: Path

    def client(self) -> WorkerClient:
        """Connect as soon as the socket is there; WorkerFailed where the process ends before."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                return WorkerClient.connect(self.socket)
            except (FileNotFoundError, ConnectionRefusedError):
                if self.child.poll() is not None:
                    raise WorkerFailed(f"the worker {ending(self.child)} before it was ready") from None
                time.sleep(0.05)
        raise WorkerFailed(f"the worker was not ready within {START_SECONDS:.0f} s")


class WorkerClient:
    """One connection to a worker."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, path: Path | str) -> Self:
        """OSError where nobody listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            raise
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def call(self, name: str, arrays: Sequence[frames.Array] = ()) -> tuple[Any, tuple[frames.Array, ...]]:
        """The call's result and arrays; takes as long as the user's code does. WorkerFailed."""
        try:
            frames.send(self._connection, {"call": name}, arrays)
            answer = frames.receive(self._connection)
        except (frames.Disconnected, ConnectionError) as error:
            raise WorkerFailed(
                f"the worker ended while it ran {CALLS[name]}: it was killed, crashed, or ran out of memory"
            ) from error
        if "error" not in answer.header:
            return answer.header.get("result"), answer.arrays
        told = answer.header["error"]
        raise WorkerFailed(f"{told['type']} in {CALLS[name]}: {told['message']}", told["traceback"])


def start(children: Children, places: Places, scratch: Path, extra: Mapping[str, str] | None = None) -> WorkerProcess:
    """Start the worker in the user's environment; it listens on a socket in `scratch`."""
    path = scratch / "worker.sock"
    environment = {
        **os.environ,
        "PATH": f"{places.ml_python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "FLOPS_REPO": str(places.repository),
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }
    # not started in the repository: a file of the user's must not stand in for a module that the worker itself imports
    words: list[str | Path] = [places.ml_python, "-m", "flops_worker.process"]
    words += ["--socket", path, "--repository", places.repository]
    return WorkerProcess(child=children.start(words, env=environment, cwd=scratch), socket=path)

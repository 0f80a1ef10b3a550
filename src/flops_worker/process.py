"""The worker process: `python -m flops_worker.process --socket PATH`, started by an actor, serves one actor.

It keeps the user's model and data for the actor's whole life. One connection is served at a time, and each frame in it
is a call: {"call": NAME} with arrays for set_parameters, answered by {"result": ...} with arrays for get_parameters,
or by {"error": {"call", "type", "message", "traceback"}}.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_wire import frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flops_worker.model import Model

#: Characters of a traceback that travel; its end says what happened.
TRACEBACK_LIMIT = 32_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the actor that started this process is gone or stops it."""
    parser = argparse.ArgumentParser(prog="python -m flops_worker.process", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where to listen (a Unix socket that is made)")
    parser.add_argument("--repository", type=Path, default=None, help="the ML repository; default: $FLOPS_REPO")
    options = parser.parse_args(arguments)
    repository = (options.repository or Path(os.environ.get("FLOPS_REPO", "/opt/flops/repo"))).resolve()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(options.socket))
        listener.listen()
        _leave_start_directory()
        model = _model()
        _enter(repository)
        _serve(listener, model)
    return 0


def _leave_start_directory() -> None:
    """`python -m` put the directory that it was started in first; nothing of it is the user's."""
    if not getattr(sys.flags, "safe_path", False) and sys.path:
        del sys.path[0]


def _model() -> Model:
    """Imported late: numpy takes a moment, and the socket is there meanwhile.

    Imported before the repository is on the path: its platform.py or numpy.py must not stand in for what a worker needs.
    """
    from flops_worker.model import Model  # noqa: PLC0415

    return Model()


def _enter(repository: Path) -> None:
    """The repository becomes the working directory and the first place for imports, as when its files are run there."""
    os.chdir(repository)
    sys.path.insert(0, str(repository))


def _serve(listener: socket.socket, model: Model) -> None:
    ours = [listener]
    # a process that the user's code forks must not keep a connection open that ends with this one, nor answer on it
    os.register_at_fork(after_in_child=lambda: _close(ours))
    while True:
        connection, _ = listener.accept()
        ours[1:] = [connection]
        # an actor's client may be stopped in mid-call: that ends its connection, never the worker
        with connection, contextlib.suppress(frames.FrameError, BrokenPipeError, ConnectionResetError):
            while True:
                request = frames.receive(connection)
                _reply(connection, request, *_answer(model, request))


def _close(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _reply(
    connection: socket.socket, request: frames.Frame, header: dict[str, Any], arrays: Sequence[frames.Array]
) -> None:
    try:
        frames.send(connection, header, arrays)
    except frames.FrameError as error:  # too much for a frame: nothing was sent yet
        frames.send(connection, {"error": _described(request, error)})


def _answer(model: Model, request: frames.Frame) -> tuple[dict[str, Any], Sequence[frames.Array]]:
    call = request.header.get("call")
    try:
        if call == "get_parameters":
            return {"result": None}, model.parameters()
        if call == "set_parameters":
            model.set_parameters(request.arrays)
            return {"result": None}, ()
        calls = {
            "set_model_data": model.set_data,
            "fit": model.fit,
            "evaluate": model.evaluate,
            "info": model.info,
        }
        return {"result": calls[str(call)]()}, ()
    except BaseException as error:  # noqa: BLE001 - whatever the user's code raises is the answer
        return {"error": _described(request, error)}, ()


def _described(request: frames.Frame, error: BaseException) -> dict[str, Any]:
    """A failure as it travels, also one that can't be printed; its traceback goes to the log."""
    text = _traceback(error)
    with contextlib.suppress(Exception):  # the user's code may have closed it
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - the log is what a worker writes
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a __str__ of the user's
        message = "(it has no text)"
    call, kind = request.header.get("call"), type(error).__name__
    return {"call": call, "type": kind, "message": _text(message[:2000]), "traceback": _text(text)}


def _text(text: str) -> str:
    """Without surrogates, which no log, protocol or file takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _traceback(error: BaseException) -> str:
    """From the user's first line on: what lies above it is ours and tells the user nothing."""
    ours, here = str(Path(__file__).parent), error.__traceback__
    while here is not None and _is_machinery(here.tb_frame.f_code.co_filename, ours):
        here = here.tb_next
    return "".join(traceback.format_exception(type(error), error, here))[-TRACEBACK_LIMIT:].rstrip()


def _is_machinery(filename: str, ours: str) -> bool:
    return filename.startswith((ours, "<frozen importlib")) or filename.endswith("importlib/__init__.py")


def _end_with_parent(parent: int) -> None:
    """An actor that was killed leaves no worker behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

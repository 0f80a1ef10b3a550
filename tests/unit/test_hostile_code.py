"""User code that forks, raises the unspeakable, shadows modules, or answers with more than a frame holds."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from flops.oci.engine import Engine, Limits
from flops_actor.worker import WorkerFailed, WorkerProcess
from flops_wire import frames

SOURCE = Path(__file__).parents[2] / "src"
#: `{fit}` is one statement of fit_model.
MODEL = """
import numpy as np
class ModelManager:
    def set_model_data(self): pass
    def get_model(self): return None
    def get_model_parameters(self): return [np.zeros(3)]
    def set_model_parameters(self, parameters): pass
    def fit_model(self): {fit}
    def evaluate_model(self): return 0.1, 0.2, 3
"""
RAISES = "raise RuntimeError('the repository took over')\n"


@pytest.fixture
def worker(tmp_path, tmp_path_factory):
    """Starts a worker on a ModelManager with this fit_model, beside further files."""
    started = []

    def start(fit, files=None):
        repository = tmp_path / "repo"
        repository.mkdir()
        for name, text in {"model_manager.py": MODEL.format(fit=textwrap.dedent(fit)), **(files or {})}.items():
            (repository / name).parent.mkdir(exist_ok=True)
            (repository / name).write_text(text)
        path = tmp_path_factory.mktemp("s") / "w"
        words = [sys.executable, "-m", "flops_worker.process", "--socket", path, "--repository", repository]
        with (tmp_path / "worker.log").open("wb") as log:
            child = subprocess.Popen(
                words,
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
                stdout=log,
                stderr=log,
                cwd=path.parent,
                start_new_session=True,
            )
        started.append(child)
        return WorkerProcess(child=child, socket=path)

    yield start
    for child in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        child.wait()


def fit(process):
    """fit_model's result, its failure, or "no answer" after 20 s."""
    answer = ["no answer"]

    def ask():
        try:
            with process.client() as client:
                answer[0] = client.call("fit")[0]
        except WorkerFailed as error:
            answer[0] = error.summary

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(20)
    return answer[0]


def test_files_of_the_repository_do_not_stand_in_for_what_the_worker_imports(worker):
    names = ("main.py", "numpy.py", "platform.py", "random.py", "flops_wire.py", "sitecustomize.py", "usercustomize.py")
    packages = (
        "flops_worker/__init__.py",
        "flops_utils/__init__.py",
        "flops_wire/__init__.py",
        "encodings/__init__.py",
    )
    process = worker("return 7", dict.fromkeys((*names, *packages), RAISES))
    assert fit(process) == 7
    with process.client() as client:
        assert client.call("info")[0]["machine"]


def test_a_forked_process_keeps_no_call_waiting(worker):
    process = worker("import os, time; os.fork() or time.sleep(60); os._exit(3)")
    assert "ended while it ran fit_model()" in fit(process)


def test_a_forked_process_does_not_answer(worker):
    process = worker("import os; return 5 if os.fork() else 6")
    with process.client() as client:
        assert client.call("fit")[0] == 5
        assert client.call("evaluate")[0] == [0.1, 0.2, 3], "the next answer belongs to the next call"


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt in fit_model(): "),
        ("raise type('Odd', (BaseException,), {})('x')", "Odd in fit_model(): x"),
        ("raise type('Mute', (Exception,), {'__str__': lambda s: 1 / 0})", "Mute in fit_model(): (it has no text)"),
        ("raise ValueError('a\\ud800b')", "ValueError in fit_model(): a\\ud800b"),
        ("import sys; sys.stderr.close(); raise ValueError('x')", "ValueError in fit_model(): x"),
    ],
)
def test_whatever_is_raised_is_the_answer_and_the_worker_lives(worker, raised, told):
    process = worker(raised)
    assert fit(process) == told
    assert fit(process) == told


def test_more_than_a_frame_holds_is_an_answer_too(worker):
    files = {"model_manager.py": MODEL.format(fit="return 1").replace("[np.zeros(3)]", "[np.zeros(1)] * 100_001")}
    process = worker("return 1", files)
    with process.client() as client:
        with pytest.raises(WorkerFailed, match="100001 arrays: the limit is"):
            client.call("get_parameters")
        assert client.call("fit")[0] == 1


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2[]", b"\0\0\0\5{bad}", b"\xff" * 64, b""])
def test_a_peer_that_sends_no_frame_ends_its_connection_alone(worker, garbage):
    process = worker("return 1")
    with process.client() as client:
        client._connection.sendall(garbage)
    with process.client() as client:
        frames.send(client._connection, {"call": ["fit"]})
        assert "error" in frames.receive(client._connection).header
    assert fit(process) == 1


def test_what_actors_print_fills_no_disk():
    limits = Limits.share(3)
    words = Engine(program="podman")._run_words("image", (), variant=(), network="none", limits=limits)
    assert words[words.index("--log-driver") + 1] == "none"

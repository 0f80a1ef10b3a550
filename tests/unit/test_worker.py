"""The worker process against small repositories, as an actor drives it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from flops_actor.worker import WorkerClient, WorkerFailed, WorkerProcess
from flops_wire import frames

SOURCE = Path(__file__).parents[2] / "src"
GOOD = """
    import numpy as np
    from flops_utils.ml_repo_templates import ModelManagerTemplate
    import data_manager

    class ModelManager(ModelManagerTemplate):
        def __init__(self):
            self.parameters = [np.zeros((2, 3), order="F"), np.float32(1)]
            self.data = None
            self.rounds = 0
        def set_model_data(self):
            self.data = data_manager.rows()
        def get_model(self):
            return None
        def get_model_parameters(self):
            return self.parameters
        def set_model_parameters(self, parameters):
            self.parameters = parameters
        def fit_model(self):
            self.rounds += 1
            for parameter in self.parameters:
                parameter += self.rounds
            print("fitting")
            return len(self.data)
        def evaluate_model(self):
            return np.float32(0.25), np.float64(0.5), np.int64(len(self.data))
"""


@pytest.fixture
def worker(tmp_path, tmp_path_factory):
    """Starts a worker on a repository that is given as {file: text}; its log is worker.log."""
    started = []

    def start(files):
        repository = tmp_path / "repo"
        repository.mkdir()
        for name, text in {"data_manager.py": "def rows():\n    return [1, 2, 3]\n", **files}.items():
            (repository / name).write_text(textwrap.dedent(text))
        path = tmp_path_factory.mktemp("s") / "w"
        environment = {
            **os.environ,
            "PYTHONPATH": f"{SOURCE}:{SOURCE / 'flops_worker/compat'}",
            "PYTHONUNBUFFERED": "1",
        }
        words = [sys.executable, "-m", "flops_worker.process", "--socket", path, "--repository", repository]
        with (tmp_path / "worker.log").open("wb") as log:
            child = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=path.parent)
        started.append(child)
        return WorkerProcess(child=child, socket=path)

    yield start
    for child in started:
        child.kill()
        child.wait()


def good(**changes):
    return {"model_manager.py": GOOD, **changes}


def with_method(text):
    return {"model_manager.py": textwrap.dedent(GOOD) + textwrap.indent(textwrap.dedent(text), "    ")}


def call(process, name, *arrays):
    with process.client() as client:
        return client.call(name, [frames.pack(np.asarray(array)) for array in arrays])


def values(answer):
    return [np.frombuffer(array.data, array.dtype).reshape(array.shape) for array in answer[1]]


def test_the_model_lives_as_long_as_the_worker(worker):
    process = worker(good())
    assert call(process, "set_model_data") == (None, ())
    assert (
        call(
            process,
            "fit",
        )[0]
        == 3
    )
    matrix, scalar = values(call(process, "get_parameters"))
    assert (matrix.shape, scalar.shape) == ((2, 3), ())
    call(process, "set_parameters", np.full((2, 3), 10.0), np.float32(5))
    assert call(process, "fit")[0] == 3
    matrix, scalar = values(call(process, "get_parameters"))
    assert (matrix == 12).all(), "the second round adds two: it is the same ModelManager"
    assert scalar == 7
    assert scalar.dtype == np.float32
    assert call(process, "evaluate")[0] == [0.25, 0.5, 3]


def test_info_tells_the_machine_and_the_shapes(worker):
    import platform

    info, _ = call(worker(good()), "info")
    assert info["machine"] == platform.machine()
    assert info["parameters"] == [{"dtype": "<f8", "shape": [2, 3]}, {"dtype": "<f4", "shape": []}]


def test_prints_of_the_user_go_to_the_log(worker, tmp_path):
    process = worker(good())
    call(process, "set_model_data")
    call(process, "fit")
    assert "fitting" in (tmp_path / "worker.log").read_text()


def test_an_exception_arrives_with_its_traceback_and_the_worker_goes_on(worker, tmp_path):
    process = worker(with_method("def fit_model(self):\n    return 1 // self.rounds\n"))
    with pytest.raises(WorkerFailed) as caught:
        call(process, "fit")
    assert caught.value.summary == "ZeroDivisionError in fit_model(): integer division or modulo by zero"
    assert "return 1 // self.rounds" in caught.value.report
    assert "flops_worker" not in caught.value.report, "our own frames tell the user nothing"
    assert "return 1 // self.rounds" in (tmp_path / "worker.log").read_text()
    assert call(process, "info")[0]["parameters"]


def test_sys_exit_in_user_code_is_an_answer(worker):
    process = worker(with_method("def fit_model(self):\n    raise SystemExit('enough')\n"))
    with pytest.raises(WorkerFailed, match="SystemExit in fit_model\\(\\): enough"):
        call(process, "fit")
    assert call(process, "info")


def test_code_that_can_t_be_imported_is_told_at_the_first_call(worker):
    process = worker(good(**{"data_manager.py": "import nowhere_to_be_found\n"}))
    with pytest.raises(WorkerFailed, match="No module named 'nowhere_to_be_found'") as caught:
        call(process, "set_model_data")
    assert 'data_manager.py", line 1' in caught.value.report
    assert "importlib" not in caught.value.report


def test_a_missing_class_is_named(worker):
    with pytest.raises(WorkerFailed, match="defines no class ModelManager"):
        call(worker({"model_manager.py": "x = 1\n"}), "info")


def test_a_missing_method_is_named_by_the_template(worker):
    text = textwrap.dedent(GOOD).replace("def evaluate_model", "def evaluate")
    with pytest.raises(WorkerFailed, match="evaluate_model"):
        call(worker({"model_manager.py": text}), "info")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "returned None as the number of examples"),
        ("True", "returned bool True as the number"),
        ("3.0", "returned float 3.0"),
        ("-1", "returned int -1"),
        ("2**60", "number of training examples"),
        ("(1, 2)", "a tuple of 2"),
    ],
)
def test_fit_model_must_return_a_count(worker, returned, message):
    process = worker(with_method(f"def fit_model(self):\n    return {returned}\n"))
    with pytest.raises(WorkerFailed) as caught:
        call(process, "fit")
    assert message in caught.value.summary
    assert caught.value.summary.startswith("ContractBroken in fit_model()")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "it returned None"),
        ("0.5", "it returned float 0.5"),
        ("(1.0, 2.0)", "a tuple of 2"),
        ("('low', 0.5, 3)", "loss was str 'low', not a number"),
        ("(1.0, [0.5, 0.5], 3)", "accuracy was a list of 2, not a number"),
        ("(1.0, 0.5, 2.5)", "float 2.5 as the number of examples"),
    ],
)
def test_evaluate_model_must_return_three_numbers(worker, returned, message):
    process = worker(with_method(f"def evaluate_model(self):\n    return {returned}\n"))
    with pytest.raises(WorkerFailed) as caught:
        call(process, "evaluate")
    assert message in caught.value.summary


def test_a_loss_that_is_no_number_any_more_arrives(worker):
    process = worker(with_method("def evaluate_model(self):\n    return float('nan'), 0.5, 3\n"))
    loss, _, _ = call(process, "evaluate")[0]
    assert loss != loss


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "returned None, not a list"),
        ("{'w': np.zeros(2)}", "returned a dict, not a list"),
        ("np.zeros(3)", "returned a ndarray, not a list"),
        ("[]", "empty list"),
        ("[np.zeros(1), 'text']", "[1] is str 'text' of dtype <U4"),
        ("[np.array([None])]", "[0] is a ndarray of dtype object"),
        ("[[[1], [1, 2]]]", "[0] is a list of 2, which is no numpy array"),
        ("[np.zeros(1, dtype=np.longdouble)]", "[0] is a ndarray of dtype float128"),
    ],
)
def test_parameters_must_be_arrays_of_numbers(worker, returned, message):
    process = worker(with_method(f"def get_model_parameters(self):\n    return {returned}\n"))
    with pytest.raises(WorkerFailed) as caught:
        call(process, "get_parameters")
    assert message in caught.value.summary


def test_files_of_the_repository_don_t_stand_in_for_our_imports(worker):
    process = worker(good(**{"socket.py": "raise SystemExit\n", "argparse.py": "raise SystemExit\n"}))
    assert call(process, "info")


def test_the_repository_is_the_working_directory(worker):
    process = worker(
        with_method("def set_model_data(self):\n    self.data = open('rows.txt').read()\n") | {"rows.txt": "ab"}
    )
    call(process, "set_model_data")
    assert call(process, "fit")[0] == 2


def test_an_unknown_call_is_an_error_not_an_end(worker):
    process = worker(good())
    with process.client() as client:
        frames.send(client._connection, {"call": "shutdown"})
        assert frames.receive(client._connection).header["error"]["type"] == "KeyError"
        assert client.call("info")


def test_a_client_that_goes_away_in_mid_call_does_not_end_the_worker(worker):
    process = worker(with_method("def fit_model(self):\n    import time; time.sleep(0.3)\n    return 1\n"))
    with process.client() as client:
        frames.send(client._connection, {"call": "fit"})
    assert call(process, "info")


def test_a_worker_that_dies_in_a_call_is_told_apart(worker):
    process = worker(with_method("def fit_model(self):\n    import os; os._exit(3)\n"))
    with pytest.raises(WorkerFailed, match="ended while it ran fit_model\\(\\)"):
        call(process, "fit")
    process.child.wait(timeout=10)
    with pytest.raises(WorkerFailed, match="the worker ended with 3 before it was ready"):
        process.client()


def test_a_worker_ends_with_the_actor_that_started_it(tmp_path):
    path = tmp_path / "w"
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'flops_worker.process', '--socket', {str(path)!r}, "
        f"'--repository', {str(tmp_path)!r}])\nprint(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        end = time.monotonic() + 30
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(pid)


def alive(pid):
    """A zombie has no command line any more."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nobody_listens():
    with pytest.raises(OSError):
        WorkerClient.connect("/nonexistent/socket")

"""An actor's processes and the files between them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flops_actor import journal, life, standing
from flops_actor.places import Places

SOURCE = Path(__file__).parents[2] / "src"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Children write to our stderr, which pytest replaces by a file without a descriptor of its own."""
    with (tmp_path / "stderr").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield tmp_path / "stderr"


def test_children_are_stopped_with_their_own_children(outputs, tmp_path, monkeypatch):
    monkeypatch.setattr(life, "STOP_SECONDS", 0.5)
    program = (
        "import subprocess, sys, pathlib, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid) + '.')\n"
        "time.sleep(60)\n"
    )
    with life.Children() as children:
        child = children.start([sys.executable, "-c", program])
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("."))
    assert child.returncode == -signal.SIGKILL, "it ignored SIGTERM"
    wait_until(lambda: not alive(int((tmp_path / "pid").read_text()[:-1])))


def test_a_child_s_output_is_no_data_of_ours(capfd):
    with life.Children() as children:
        children.start([sys.executable, "-c", "print('round 1/1: forged')"]).wait(timeout=20)
    assert capfd.readouterr() == ("", "round 1/1: forged\n")


ACTOR = """
import signal, sys, time
from flops_actor import life

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts the tests may ignore it

def work(children, scratch):
    child = children.start([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, scratch, flush=True)
    if sys.argv[1] == "fail":
        raise life.ActorFailed("it went wrong")
    time.sleep(60)

sys.exit(life.live(work))
"""


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM"),
        (signal.SIGINT, 130, "interrupted"),
        (None, 1, "ERROR it went wrong"),
    ],
    ids=["SIGTERM", "SIGINT", "failure"],
)
def test_every_end_stops_the_children_and_removes_the_scratch_directory(number, code, text):
    words = [sys.executable, "-c", ACTOR, "fail" if number is None else "wait"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    actor = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with actor:
        pid, scratch = actor.stdout.readline().split()
        if number is not None:
            actor.send_signal(number)
        _, log = actor.communicate(timeout=20)
    assert actor.returncode == code
    assert text in log
    assert "Traceback" not in log
    assert not alive(int(pid))
    assert not Path(scratch).exists()


def test_how_a_child_ended_is_put_in_words(outputs):
    with life.Children() as children:
        one = children.start([sys.executable, "-c", "raise SystemExit(3)"])
        two = children.start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
        one.wait(timeout=20)
        two.wait(timeout=20)
        assert life.ending(one) == "ended with 3"
        assert life.ending(two) == "was killed by SIGKILL (out of memory?)"


def test_the_standing_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "standing.json"
    assert standing.read(path) is None
    told = standing.Standing(round=2, rounds=3, phase="fit", failure="ValueError")
    standing.write(told, path)
    assert standing.read(path) == told
    assert os.listdir(tmp_path) == ["standing.json"]


@pytest.mark.parametrize(
    ("number", "phase", "finished"), [(3, "evaluate", True), (3, "fit", False), (2, "evaluate", False)]
)
def test_a_learner_is_finished_after_the_last_evaluation(number, phase, finished):
    assert standing.Standing(round=number, rounds=3, phase=phase).finished is finished


def test_the_journal_yields_whole_lines_once(tmp_path):
    path = tmp_path / "journal"
    reader, writer = journal.Reader(path), journal.Writer(path)
    assert list(reader.new()) == []
    writer.write(journal.ROUND, loss=float("nan"), number=1)
    (entry,) = reader.new()
    assert entry["number"] == 1
    assert entry["loss"] != entry["loss"]
    with path.open("a") as stream:
        stream.write(json.dumps({"kind": "trouble", "text": "ü"})[:10])
    assert list(reader.new()) == []
    with path.open("a") as stream:
        stream.write(json.dumps({"kind": "trouble", "text": "ü"})[10:] + "\n")
    writer.write(journal.FINISHED)
    assert [entry["kind"] for entry in reader.new()] == ["trouble", "finished"]
    assert list(reader.new()) == []


@pytest.mark.parametrize("role", ["ROOT_AGGREGATOR", "CLUSTER_AGGREGATOR"])
def test_a_role_that_is_not_there_yet_is_named(role, capfd):
    from flops_actor import aggregator

    assert aggregator.main(["p", "-", "-", "-", role, "1", "1", "1", "1"]) == 69
    assert f"UNSUPPORTED_ROLE: this image can't be a {role} yet" in capfd.readouterr().err


def test_places_are_values():
    assert Places(ml_python=Path("a"), repository=Path("b"), programs=Path("c")).programs == Path("c")

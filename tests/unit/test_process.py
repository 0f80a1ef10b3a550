"""Children end in time, are seen to end, and leave nothing behind; with pidfd and without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flops import programs
from flops.errors import Cancelled, ToolFailed, ToolMissing, ToolTimeout
from flops.sandbox import limited

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(params=["pidfd", "without"])
def waiting(request, monkeypatch):
    if request.param == "without":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    return request.param


def test_output_and_exit_code_come_back(waiting):
    program = "import sys; print(sys.stdin.read()); print('no', file=sys.stderr); sys.exit(3)"
    done = programs.run([sys.executable, "-c", program], seconds=30, stdin="text", check=False)
    assert (done.code, done.stdout, done.stderr) == (3, "text\n", "no\n")
    with pytest.raises(ToolFailed, match="ended with 3: no"):
        programs.run([sys.executable, "-c", program], seconds=30)


def test_a_deadline_ends_the_whole_group(waiting, tmp_path):
    note = tmp_path / "pid"
    program = f"""
import pathlib, subprocess, time
pathlib.Path({str(note)!r}).write_text(f"{{subprocess.Popen(['sleep', '600']).pid}}.")
time.sleep(600)
"""
    while not (note.exists() and note.read_text().endswith(".")):  # on a busy machine it may not have begun by then
        with pytest.raises(ToolTimeout, match="did not end within 1 s"):
            programs.run([sys.executable, "-Sc", program], seconds=1)
    until(lambda: not runs(int(note.read_text().rstrip("."))))


def test_a_child_that_ended_by_a_signal_has_a_negative_code(waiting):
    done = programs.run(["sh", "-c", "kill -9 $$"], seconds=30, check=False)
    assert done.code == -9


def test_a_program_that_is_not_there_is_told():
    with pytest.raises(ToolMissing):
        programs.run(["flops-has-no-such-program"], seconds=1)


def test_after_an_interrupt_only_what_takes_things_away_runs(monkeypatch):
    monkeypatch.setattr(programs, "_cancelled", threading.Event())
    programs.cancel()
    with pytest.raises(Cancelled):
        programs.run(["true"], seconds=30)
    assert programs.run(["true"], seconds=30, cancelled=True).code == 0


#: A parent with a child and a grandchild in one group, and a detached one; it tells their numbers, and the lifeline's.
PARENT = """
import os, pathlib, sys, threading
from flops import lifeline, programs
def tell(*words):  # in one piece
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
program = "import subprocess, sys, time; c = subprocess.Popen(['sleep', '600']); print(c.pid, flush=True); time.sleep(600)"
with programs.Running([sys.executable, "-c", f"import os; print(os.getpid(), flush=True); {program}"], on_line=tell):
    threading.Thread(target=programs.run, args=(["sleep", "600"],), kwargs={"seconds": 600}, daemon=True).start()
    while len(programs._running) < 1:
        pass
    tell(next(iter(programs._running)).pid)
    detached = programs.detach(["sleep", "600"], env={}, output=pathlib.Path(sys.argv[1]), cwd=pathlib.Path("/"))
    tell("detached", detached.pid)
    tell("lifeline", lifeline._child.pid)
    sys.stdin.read()
"""


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


@pytest.mark.parametrize("replaced", [False, True], ids=["", "its first lifeline was killed"])
def test_what_was_started_ends_with_a_parent_that_is_killed_and_what_was_detached_does_not(tmp_path, replaced):
    program = PARENT
    if replaced:
        program = program.replace(
            "    detached =", "    lifeline._child.kill(); lifeline._child.wait(); lifeline.drop(0)\n    detached ="
        )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        [sys.executable, "-uc", program, tmp_path / "out"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        told = [parent.stdout.readline().split() for _ in range(5)]
        named = {words[0]: int(words[1]) for words in told if len(words) > 1}
        started = [int(words[0]) for words in told if len(words) == 1]
        try:
            assert len(started) == 3
            assert all(map(runs, [*started, *named.values()]))
            parent.kill()
            until(lambda: not any(map(runs, [*started, named["lifeline"]])))
            assert runs(named["detached"])
        finally:
            parent.kill()
            os.kill(named["detached"], signal.SIGKILL)


def test_a_program_whose_parent_was_killed_before_it_began_does_not_begin(tmp_path):
    mark = tmp_path / "mark"
    words = limited(["/usr/bin/touch", mark])
    parent = f"import subprocess; subprocess.run({[str(word) for word in words]!r})"
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=True
    )  # not its own parent
    assert "its parent is gone" in done.stderr
    assert not mark.exists()
    assert subprocess.run(words, check=True).returncode == 0
    assert mark.exists()


#: As a manager runs that is not root, or no longer.
CONFINE = """
import os, subprocess
from flops import programs
if os.getuid() == 0:
    os.setuid(65534)
ended = subprocess.Popen(["true"])
os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
programs.confine(ended.pid, programs.ProcessLimits(memory=2**30))
with subprocess.Popen(["nice", "-n", "15", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as nicer:
    nicer.stdin.write(b"x")
    nicer.stdin.flush()
    nicer.stdout.read(1)
    programs.confine(nicer.pid, programs.ProcessLimits())
    print(os.getpriority(os.PRIO_PROCESS, nicer.pid))
    nicer.stdin.close()
"""


def test_limits_of_one_that_has_ended_or_has_less_already_are_no_failure():
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", CONFINE], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (str(min(19, os.getpriority(os.PRIO_PROCESS, 0) + 15)), "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_that_writes_without_end_is_ended(waiting, stream):
    program = f"import sys\nwhile True: sys.{stream}.write('x' * 1_000_000)"
    done = programs.run([sys.executable, "-Sc", program], seconds=100, check=False)
    assert (done.cut, done.code) == (True, -signal.SIGKILL)
    assert len(getattr(done, stream)) == programs.OUTPUT_LIMIT
    with pytest.raises(ToolFailed, match="wrote more than 16 MB"):
        programs.run([sys.executable, "-Sc", program], seconds=100)


def test_what_a_watcher_raises_ends_the_program(waiting, tmp_path):
    note = tmp_path / "pid"
    program = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(f'{{os.getpid()}}.'); time.sleep(600)"

    def watch():
        if note.exists() and note.read_text().endswith("."):
            raise ToolFailed("too much")

    with pytest.raises(ToolFailed, match="too much"):
        programs.run([sys.executable, "-Sc", program], seconds=100, watch=watch)
    until(lambda: not runs(int(note.read_text().rstrip("."))))

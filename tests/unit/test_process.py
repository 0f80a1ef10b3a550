"""Children end in time, are seen to end, and leave nothing behind; with pidfd and without."""

from __future__ import annotations

import os
import sys
import time

import pytest

from flops import process
from flops.errors import ToolFailed, ToolMissing, ToolTimeout


@pytest.fixture(params=["pidfd", "without"])
def waiting(request, monkeypatch):
    if request.param == "without":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    return request.param


def test_output_and_exit_code_come_back(waiting):
    program = "import sys; print(sys.stdin.read()); print('no', file=sys.stderr); sys.exit(3)"
    done = process.run([sys.executable, "-c", program], seconds=30, stdin="text", check=False)
    assert (done.code, done.stdout, done.stderr) == (3, "text\n", "no\n")
    with pytest.raises(ToolFailed, match="ended with 3: no"):
        process.run([sys.executable, "-c", program], seconds=30)


def test_a_deadline_ends_the_whole_group(waiting, tmp_path):
    mark = tmp_path / "mark"
    program = f"import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 2; touch {mark}']); time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(ToolTimeout, match="did not end within 1 s"):
        process.run([sys.executable, "-c", program], seconds=1)
    assert time.monotonic() - begun < 30
    time.sleep(2.5)
    assert not mark.exists()


def test_a_child_that_ended_by_a_signal_has_a_negative_code(waiting):
    done = process.run(["sh", "-c", "kill -9 $$"], seconds=30, check=False)
    assert done.code == -9


def test_a_program_that_is_not_there_is_told():
    with pytest.raises(ToolMissing):
        process.run(["flops-has-no-such-program"], seconds=1)

"""Memory does not grow with the size of a wheel: the short version of bench/memory.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

PROGRAM = Path(__file__).parents[2] / "bench" / "memory.py"
#: MB of the wheels.
SMALL, LARGE = 40, 240


def test_a_wheel_six_times_as_large_takes_no_more_memory():
    words = [sys.executable, PROGRAM, "--sizes", f"{SMALL},{LARGE}", "--json"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    peaks = json.loads(done.stdout)["peaks"]
    assert set(peaks) == {str(SMALL), str(LARGE)}
    assert peaks[str(LARGE)] - peaks[str(SMALL)] < 10
    assert max(peaks.values()) < 120

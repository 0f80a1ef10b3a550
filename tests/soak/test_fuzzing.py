"""Every reader of others' text and bytes with damaged samples, ten minutes each (FLOPS_FUZZ_SECONDS): no failure that is none of ours,

no sample that takes 5 s of a processor or 300 MB. Each finds its planted bugs first. What is printed: samples, bugs, lines that are reached.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.fuzz_targets import TARGETS, coverage, found_after

SECONDS = float(os.environ.get("FLOPS_FUZZ_SECONDS", "600"))
MEANINGS = {-signal.SIGPROF: "it took more than 5 s of a processor", -signal.SIGKILL: "it was killed"}


@pytest.mark.timeout(SECONDS * 2 + 900)
@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_stands_damaged_samples(name, tmp_path):
    target = TARGETS[name]
    found = [found_after(target, plant, tmp_path, 20_000) for plant in target.plants]
    assert all(found), found
    start, status = time.time_ns() // 1000, tmp_path / "status"
    words = ["--from", str(start), "--seconds", str(SECONDS), "--status", str(status)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_targets", name, *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    seed = int(status.read_text())
    told = MEANINGS.get(done.returncode, done.stderr[-2000:])
    assert done.returncode == 0, f"python -m tests.fuzz_targets {name} --seed {seed}: {told}"
    shown = ", ".join(f"{module} {part:.0f} %" for module, part in coverage(target, tmp_path, 500).items())
    sys.stdout.write(f"{name}: {seed - start + 1} samples; planted bugs after {found} samples; lines: {shown}\n")

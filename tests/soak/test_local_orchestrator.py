"""A manager that is killed at any moment of a deployment leaves one builder or none, and the next one finds which."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import flops
from flops.orchestrators import BuilderPhase, Deployment
from flops.orchestrators.local import LocalOrchestrator
from flops.orchestrators.processes import scan

LOOPS = int(os.environ.get("FLOPS_SOAK_LOOPS", "40"))
SLEEP = "import time; time.sleep(600)"
MANAGER = """
import sys
from pathlib import Path
from flops.orchestrators import Deployment
from flops.orchestrators.local import LocalOrchestrator
orchestrator = LocalOrchestrator(Path(sys.argv[1]), command=[sys.executable, "-c", sys.argv[3]])
print("ready", flush=True)
sys.stdin.readline()
orchestrator.deploy(Deployment(job=sys.argv[2], project="p", url="u", token="t"))
print("deployed", flush=True)
sys.stdin.readline()
"""


def test_a_manager_killed_while_it_deploys(tmp_path):
    prefix, chance = uuid.uuid4().hex[:6], random.Random(7)
    environment = {**os.environ, "PYTHONPATH": str(Path(flops.__file__).parents[1])}
    counted = {"found": 0, "started": 0, "gone": 0}
    later = LocalOrchestrator(tmp_path / "builders", command=[sys.executable, "-c", SLEEP], grace=1)
    for number in range(LOOPS):
        job = f"{prefix}{number:012d}1"
        words = [sys.executable, "-c", MANAGER, tmp_path / "builders", job, SLEEP]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as manager:
            manager.stdout.readline()
            manager.stdin.write(b"\n")
            manager.stdin.flush()
            time.sleep(chance.uniform(0, 0.08))  # a moment of the deployment, or just after it
            manager.send_signal(signal.SIGKILL)
        before = {one.pid for one in scan() if one.job == job}
        handle = later.deploy(Deployment(job=job, project="p", url="u", token="t"))
        running = {one.pid for one in scan() if one.job == job}
        status = later.status(job, handle)
        assert len(running) == (status.phase is BuilderPhase.RUNNING)
        assert before <= running
        counted["gone" if not running else "found" if before else "started"] += 1
        assert later.remove(job, handle)
    assert not later.orphans(prefix, [])
    print(counted)  # noqa: T201 - what `make soak` is for
    assert counted["found"]
    assert counted["started"] + counted["gone"]

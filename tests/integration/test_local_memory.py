"""A builder that the kernel itself kills for lack of memory, in a cgroup with a small limit, is told from one that somebody kills."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from pathlib import Path

import pytest

from flops.orchestrators import BuilderPhase, Deployment
from flops.orchestrators.local import LocalOrchestrator

pytestmark = pytest.mark.integration

LIMIT = 48 * 1024 * 1024
#: Where cgroups with limits of memory may be made, and the limit's name there: version 2, version 1.
PLACES = ((Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"))
GREEDY = """
import sys
open(sys.argv[1], "w").write("0")
data = [b"x" * 1000000 for _ in range(1000)]
"""


@pytest.fixture
def cgroup():
    for place, limit in PLACES:
        made = place / f"flops-test-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):
            made.mkdir()
            try:
                if (made / limit).exists():  # else no cgroup, or one without the controller
                    (made / limit).write_text(str(LIMIT))
                    yield made
                    return
            finally:
                made.rmdir()
    pytest.skip("this account can't make a cgroup with a limit of memory")


def test_the_kernel_s_own_kill_is_counted(tmp_path, cgroup):
    program = tmp_path / "greedy.py"
    program.write_text(GREEDY)
    orchestrator = LocalOrchestrator(
        tmp_path / "builders", command=[sys.executable, str(program), str(cgroup / "cgroup.procs")]
    )
    deployment = Deployment(job=uuid.uuid4().hex[:20], project="p", url="http://127.0.0.1:1", token="t")
    handle = orchestrator.deploy(deployment)
    try:
        end = time.monotonic() + 60
        while (status := orchestrator.status(deployment.job, handle)).phase is BuilderPhase.RUNNING:
            assert time.monotonic() < end, f"it was not killed: {os.listdir(cgroup)}"
            time.sleep(0.02)
        assert status.exit_code == 137, orchestrator.logs(deployment.job, handle)
        assert status.memory_kills
    finally:
        assert orchestrator.remove(deployment.job, handle)

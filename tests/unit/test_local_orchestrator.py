"""Builders as real processes: started once, found again, limited, and gone with all that they started."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from flops import programs
from flops.errors import BadSetting, DeployFailed, DiskFull, OrchestratorUnreachable
from flops.orchestrators import BuilderPhase, Deployment
from flops.orchestrators.local import SETTINGS, LocalOrchestrator
from flops.orchestrators.processes import Process, family, memory_kills, read, scan

#: Children as a builder has them: in sessions of their own, one of them with another environment, all deaf to SIGTERM.
FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"]
one = subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.PIPE)
other = subprocess.Popen(sleep, start_new_session=True, env={}, stdout=subprocess.PIPE)
one.stdout.readline(), other.stdout.readline()
print("pids", one.pid, other.pid, flush=True)
time.sleep(600)
"""


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)
    return found


class Place:
    """An orchestrator whose builders run a small program; takes away whatever a test leaves."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.prefix = uuid.uuid4().hex[:6]
        self.jobs: list[str] = []
        self.orchestrators: list[LocalOrchestrator] = []
        self.orchestrator = self.made("import time; time.sleep(600)")

    def made(self, program, **more):
        path = self.directory / f"{uuid.uuid4().hex[:8]}.py"
        path.write_text(textwrap.dedent(program))
        made = LocalOrchestrator(self.directory / "builders", command=[sys.executable, str(path)], grace=0.3, **more)
        self.orchestrators.append(made)
        return made

    def deployment(self, number=1, **more):
        job = f"{self.prefix}{uuid.uuid4().hex[:12]}{number}"
        self.jobs.append(job)
        return Deployment(
            job=job, project="p", url="http://127.0.0.1:1/api/flops/projects/p/attempts/1", token="secret", **more
        )

    def clean(self):
        for job in self.jobs:
            for orchestrator in self.orchestrators:
                assert orchestrator.remove(job, None)
        assert not [one for one in scan() if one.job.startswith(self.prefix)]


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.clean()


def said(orchestrator, deployment, handle):
    """The log, once it ends with a whole line."""
    return until(lambda: (text := orchestrator.logs(deployment.job, handle)).endswith("\n") and text)


def ended(orchestrator, job, handle):
    return until(lambda: (s := orchestrator.status(job, handle)).phase is not BuilderPhase.RUNNING and s)


def test_a_builder_runs_ends_and_tells_its_code(place):
    orchestrator = place.made("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    orchestrator.prepare()
    deployment = place.deployment()
    handle = orchestrator.deploy(deployment)
    status = ended(orchestrator, deployment.job, handle)
    assert (status.phase, status.exit_code) == (BuilderPhase.ENDED, 7)
    assert "exit code 7" in status.reason
    assert orchestrator.logs(deployment.job, handle).split() == ["out", "err"]
    assert orchestrator.remove(deployment.job, handle)
    assert orchestrator.status(deployment.job, handle).phase is BuilderPhase.GONE
    assert orchestrator.remove(deployment.job, handle)  # as often as asked


def test_a_killed_builder_ends_with_137_and_leaves_no_zombie(place):
    deployment = place.deployment()
    handle = place.orchestrator.deploy(deployment)
    assert place.orchestrator.status(deployment.job, handle).phase is BuilderPhase.RUNNING
    os.kill(handle["pid"], signal.SIGKILL)
    status = ended(place.orchestrator, deployment.job, handle)
    assert status.exit_code == 137
    assert status.memory_kills == (None if memory_kills() is None else 0)
    assert not Path(f"/proc/{handle['pid']}").exists()


def test_what_the_kernel_killed_for_lack_of_memory_since_a_builder_s_start_is_counted(place):
    for before, after, told in ((7, 7, 0), (7, 9, 2), (None, 9, None), (7, None, None)):
        orchestrator = place.made("import time; time.sleep(600)", kills=iter([before, after]).__next__)
        deployment = place.deployment()
        handle = orchestrator.deploy(deployment)
        os.kill(handle["pid"], signal.SIGKILL)
        assert ended(orchestrator, deployment.job, handle).memory_kills == told


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cgroup/a/b/memory.events": "low 0\noom 3\noom_kill 2\n", "proc/vmstat": "nr_free 1\noom_kill 9\n"}, 2),
        ({"cgroup/memory.events": "oom_kill 1\n", "proc/vmstat": "oom_kill 9\n"}, 9),  # another cgroup's
        ({"proc/vmstat": "oom_kill 9\n"}, 9),
        ({"cgroup/a/b/memory.events": "oom 3\n", "proc/vmstat": "nr_free 1\n"}, None),
        ({}, None),
    ],
)
def test_the_kernel_s_count_is_that_of_our_cgroup_or_of_the_machine(tmp_path, files, expected):
    for name, text in {"proc/self/cgroup": "4:memory:/x\n0::/a/b\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_kills(tmp_path / "proc", tmp_path / "cgroup") == expected


def test_deploying_again_finds_the_one_that_runs(place):
    deployment = place.deployment()
    handle = place.orchestrator.deploy(deployment)
    until(lambda: place.orchestrator.orphans(place.prefix, []))
    assert place.orchestrator.deploy(deployment) == handle
    assert place.made("").deploy(deployment, {"pid": 1}) == handle
    assert [one.pid for one in scan() if one.job == deployment.job] == [handle["pid"]]


def test_deploying_again_what_has_ended_starts_nothing(place):
    orchestrator = place.made("print('once')")
    deployment = place.deployment()
    ended(orchestrator, deployment.job, orchestrator.deploy(deployment))
    again = orchestrator.deploy(deployment)
    assert orchestrator.status(deployment.job, again).exit_code == 0
    later = place.made("print('twice')")
    assert later.status(deployment.job, later.deploy(deployment)).phase is BuilderPhase.GONE
    assert later.logs(deployment.job, None) == "once\n"


def test_a_manager_that_was_killed_after_the_start_is_followed_by_one_that_takes_the_builder_on(place):
    deployment = place.deployment()
    program = f"""
        import os, signal, sys
        from pathlib import Path
        from flops.orchestrators import Deployment
        from flops.orchestrators.local import LocalOrchestrator
        orchestrator = LocalOrchestrator(Path({str(place.directory / "builders")!r}), command={place.orchestrator._command!r})
        orchestrator.deploy(Deployment(job={deployment.job!r}, project="p", url="u", token="t"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=False, env=os.environ | {"PYTHONPATH": path_of_ours()}
    )
    assert killed.returncode == -9
    [running] = [one for one in scan() if one.job == deployment.job]
    handle = place.orchestrator.deploy(deployment)
    assert handle == {"pid": running.pid, "start": running.start}
    assert place.orchestrator.orphans(place.prefix, []) == {deployment.job: handle}
    assert place.orchestrator.status(deployment.job, handle).phase is BuilderPhase.RUNNING
    os.kill(running.pid, signal.SIGKILL)
    # whose child it is not, can't tell its code
    assert ended(place.orchestrator, deployment.job, handle).exit_code is None


def path_of_ours():
    return str(Path(programs.__file__).parents[1])


def test_removal_takes_all_that_a_builder_started(place):
    orchestrator = place.made(FAMILY)
    deployment, beside = place.deployment(), place.deployment(2)
    handle, kept = orchestrator.deploy(deployment), place.orchestrator.deploy(beside)
    pids = [int(word) for word in said(orchestrator, deployment, handle).split()[1:]]
    assert all(map(read, pids))
    assert orchestrator.remove(deployment.job, handle)
    assert not any(map(read, [handle["pid"], *pids]))
    assert place.orchestrator.status(beside.job, kept).phase is BuilderPhase.RUNNING


def test_removal_after_a_restart_takes_what_the_builder_left_behind(place):
    orchestrator = place.made(FAMILY)
    deployment = place.deployment()
    handle = orchestrator.deploy(deployment)
    one, other = (int(word) for word in said(orchestrator, deployment, handle).split()[1:])
    try:
        os.kill(handle["pid"], signal.SIGKILL)
        later = place.made("")
        assert list(later.orphans(place.prefix, [])) == [deployment.job]
        assert later.remove(deployment.job, None)
        assert read(handle["pid"]) is None
        assert read(one) is None
    finally:  # which does not carry the name, and whose parent died before anybody looked
        os.kill(other, signal.SIGKILL)


def test_what_a_killed_builder_had_written_goes_with_it(place, tmp_path):
    (tmp_path / "temporary").mkdir()
    program = "import tempfile, time; print(tempfile.mkdtemp(prefix='clone-'), flush=True); time.sleep(600)"
    orchestrator = place.made(program, settings={"TMPDIR": str(tmp_path / "temporary")})
    deployment = place.deployment()
    handle = orchestrator.deploy(deployment)
    clone = Path(until(lambda: orchestrator.logs(deployment.job, handle).strip()))
    assert clone.is_dir()
    assert clone.parent == tmp_path / "temporary" / f"flops-{deployment.job}"
    assert clone.parent.stat().st_mode & 0o777 == 0o700
    os.kill(handle["pid"], signal.SIGKILL)
    later = place.made("", settings={"TMPDIR": str(tmp_path / "temporary")})  # a manager that comes after
    assert later.remove(deployment.job, handle)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_place_for_temporary_files_that_somebody_else_has_taken_is_not_used(place, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "theirs").touch()
    orchestrator = place.made("import time; time.sleep(600)", settings={"TMPDIR": str(tmp_path)})
    deployment = place.deployment()
    taken = tmp_path / f"flops-{deployment.job}"
    taken.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeployFailed, match="can't be started"):
        orchestrator.deploy(deployment)
    assert (tmp_path / "elsewhere" / "theirs").exists()
    taken.unlink()


def test_removal_at_once_after_the_start(place):
    for number in range(20):
        deployment = place.deployment(number)
        handle = place.orchestrator.deploy(deployment)
        assert place.orchestrator.remove(deployment.job, handle)
        assert read(handle["pid"]) is None


def test_a_builder_ends_its_own_children(place):
    """They get no SIGTERM beside it: it would take their end for a failure of theirs."""
    orchestrator = place.made("""
        import os, signal, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        def told(*_):
            time.sleep(0.1)
            os.write(1, f"{child.poll()}\\n".encode())
            child.kill()
            child.wait()
            time.sleep(0.3)  # seen by whoever removes it, and no reason to be asked again
            sys.exit(0)
        signal.signal(signal.SIGTERM, told)
        print("ready", flush=True)
        time.sleep(600)
    """)
    orchestrator._grace = 20
    deployment = place.deployment()
    handle = orchestrator.deploy(deployment)
    said(orchestrator, deployment, handle)
    assert orchestrator.remove(deployment.job, handle)
    assert orchestrator.logs(deployment.job, None).split() == ["ready", "None"]


def test_a_builder_that_heeds_sigterm_is_not_killed(place):
    orchestrator = place.made("""
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"told\\n"), sys.exit(0)))
        print("ready", flush=True)
        time.sleep(600)
    """)
    orchestrator._grace = 20
    deployment = place.deployment()
    handle = orchestrator.deploy(deployment)
    said(orchestrator, deployment, handle)
    assert orchestrator.remove(deployment.job, handle)
    assert orchestrator.logs(deployment.job, None).split() == ["ready", "told"]


def test_a_number_that_somebody_else_has_now_is_left_alone(place):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        try:
            found = until(lambda: read(other.pid))
            earlier = {"pid": other.pid, "start": found.start - 1}
            job = place.deployment().job
            assert place.orchestrator.status(job, earlier).phase is BuilderPhase.GONE
            # the same number and start, but not the builder
            assert place.orchestrator.status(job, {"pid": found.pid, "start": found.start}).phase is BuilderPhase.GONE
            assert place.orchestrator.remove(job, earlier)
            Process(pid=found.pid, start=found.start - 1, parent=0, job=job).send(signal.SIGKILL)
            assert other.poll() is None
        finally:
            other.kill()


def test_the_environment_is_an_allow_list(place):
    orchestrator = place.made(
        "import os; print(*sorted(f'{k}={v}' for k, v in os.environ.items()), sep='\\n')",
        settings={
            "FLOPS_CACHE_DIR": "/cache",
            "FLOPS_WORKERS": "3",
            "UV_PYTHON_DOWNLOADS": "never",
            "FLOPS_API_TOKEN": "never-1",
            "FLOPS_GIT_CREDENTIALS": "never-2",
            "FLOPS_REGISTRY_CREDENTIALS": "never-3",
            "FLOPS_OAKESTRA_PASSWORD": "never-4",
            "FLOPS_REGISTRY_TOKEN": "never-5",
            "AWS_SECRET_ACCESS_KEY": "never-6",
        },
    )
    deployment = place.deployment()
    handle = orchestrator.deploy(deployment)
    ended(orchestrator, deployment.job, handle)
    text = orchestrator.logs(deployment.job, handle)
    assert "never-" not in text
    found = dict(line.split("=", 1) for line in text.splitlines())
    assert {name: found[name] for name in found if name.startswith(("FLOPS_", "UV_"))} == {
        "FLOPS_CACHE_DIR": "/cache",
        "FLOPS_WORKERS": "3",
        "UV_PYTHON_DOWNLOADS": "never",
        "FLOPS_JOB_ID": deployment.job,
        "FLOPS_JOB_URL": deployment.url,
        "FLOPS_JOB_TOKEN": "secret",
    }
    secrets = [name for name in SETTINGS if "TOKEN" in name or "CREDENTIAL" in name or "PASSWORD" in name]
    assert secrets == ["FLOPS_SIGN_PASSWORD"]


def test_limits_hold_for_a_builder_and_what_it_starts(place):
    orchestrator = place.made("""
        import os, resource, subprocess, sys, time
        while os.getpriority(os.PRIO_PROCESS, 0) < 10 or resource.getrlimit(resource.RLIMIT_DATA)[0] < 0:
            time.sleep(0.01)
        text = "import os, resource as r; print(r.getrlimit(r.RLIMIT_CORE), r.getrlimit(r.RLIMIT_DATA), "
        text += "r.getrlimit(r.RLIMIT_NOFILE)[0] <= 4096, os.getpriority(os.PRIO_PROCESS, 0), os.getsid(0) == os.getpid(), "
        text += "open('/proc/self/oom_score_adj').read().strip(), sys.stdin.read() == '')"
        exec(text)
        sys.stdout.flush()
        subprocess.run([sys.executable, "-c", "import sys;" + text], check=True)
        bytearray(512 * 1024 * 1024)
    """)
    deployment = place.deployment(memory=256)
    handle = orchestrator.deploy(deployment)
    status = ended(orchestrator, deployment.job, handle)
    first, second, *rest = orchestrator.logs(deployment.job, handle).splitlines()
    data = 256 * 1024 * 1024
    assert first == f"(0, 0) ({data}, {data}) True 10 True 500 True"
    assert second == f"(0, 0) ({data}, {data}) True 10 False 500 True"
    assert (status.exit_code, rest[-1]) == (1, "MemoryError")


def test_logs_are_shown_and_kept_within_bounds(place):
    orchestrator = place.made("""
        import time
        for _ in range(90):
            print("x" * 65535)
        print("the end", flush=True)
        time.sleep(600)
    """)
    deployment = place.deployment()
    handle = orchestrator.deploy(deployment)
    text = until(lambda: (t := orchestrator.logs(deployment.job, handle)).endswith("the end\n") and t)
    assert len(text) == 65536
    orchestrator.status(deployment.job, handle)
    assert orchestrator.logs(deployment.job, handle) == text
    assert orchestrator._log(deployment.job).stat().st_size == 65536


def test_logs_go_when_they_are_old_and_nobody_knows_them(place):
    orchestrator = place.made("print('word')", keep_days=1)
    old, wanted, new = (place.deployment(n) for n in (1, 2, 3))
    for deployment in (old, wanted, new):
        ended(orchestrator, deployment.job, orchestrator.deploy(deployment))
        orchestrator.remove(deployment.job, None)
    for deployment in (old, wanted):
        os.utime(orchestrator._log(deployment.job), (1, 1))
    assert orchestrator.orphans(place.prefix, [wanted.job]) == {}
    assert [bool(orchestrator.logs(one.job, None)) for one in (old, wanted, new)] == [False, True, True]


def test_orphans_are_builders_of_this_manager_alone(place):
    mine, known, other = place.deployment(1), place.deployment(2), place.deployment(3)
    handles = {one.job: place.orchestrator.deploy(one) for one in (mine, known, other)}
    elsewhere = LocalOrchestrator(place.directory / "builders")
    until(lambda: len(elsewhere.orphans(place.prefix, [])) == 3)
    assert elsewhere.orphans(place.prefix, [known.job]) == {j: h for j, h in handles.items() if j != known.job}
    assert elsewhere.orphans(mine.job, []) == {mine.job: handles[mine.job]}
    assert elsewhere.orphans("zzzzzz", []) == {}


def test_what_cannot_be_started_is_told(place, tmp_path):
    orchestrator = LocalOrchestrator(tmp_path / "builders", command=["/nowhere/flops"])
    with pytest.raises(DeployFailed, match="can't be started"):
        orchestrator.deploy(place.deployment())
    assert not list((tmp_path / "builders").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(BadSetting, match="can't be made"):
        LocalOrchestrator(tmp_path / "file" / "builders").prepare()
    with pytest.raises(DeployFailed, match="no name of a builder"):
        orchestrator.logs("../../etc/passwd", None)


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, DiskFull), (errno.EAGAIN, OrchestratorUnreachable), (errno.EIO, DeployFailed)],
)
def test_what_lacks_only_now_is_asked_for_again(place, monkeypatch, number, error):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    deployment = place.deployment()
    with monkeypatch.context() as patched:
        patched.setattr(programs, "detach", refuse)
        with pytest.raises(error):
            place.orchestrator.deploy(deployment)
    handle = place.orchestrator.deploy(deployment)
    assert place.orchestrator.status(deployment.job, handle).phase is BuilderPhase.RUNNING


def test_the_command_of_a_builder_is_this_program(place):
    orchestrator = LocalOrchestrator(place.directory / "builders", settings={"PYTHONPATH": path_of_ours()})
    orchestrator._command = (*orchestrator._command[:-1], "--version")
    deployment = place.deployment()
    handle = orchestrator.deploy(deployment)
    assert ended(orchestrator, deployment.job, handle).exit_code == 0
    assert orchestrator.logs(deployment.job, handle).startswith("flops ")


def test_a_family_are_those_that_carry_the_name_and_their_descendants():
    processes = [
        Process(pid=n, start=n, parent=p, job=j)
        for n, p, j in [(-2, 1, "a"), (-3, -2, ""), (-9, -8, ""), (-8, -3, ""), (-4, 1, "b"), (-5, 1, ""), (-6, -4, "")]
    ]
    assert sorted(one.pid for one in family(processes, "a", {(-5, -5)})) == [-9, -8, -5, -3, -2]
    assert [one.pid for one in family(processes, "a", {(-5, -4)})] == [-2, -3, -8, -9]

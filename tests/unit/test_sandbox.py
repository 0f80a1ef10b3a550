"""Somebody else's program runs confined: what tests/hostile_program.py reaches outside, it does not reach in the sandbox."""

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests import hostile_program

from flops import sandbox
from flops.errors import ToolFailed, ToolTimeout
from flops.images.plan import BytecodeLayer, cache_key
from flops.recipe import Compression
from flops.sandbox import Bounds

MIB = 1024 * 1024
BOUNDS = Bounds(seconds=60, memory=256 * MIB, processes=16, output=MIB)
PYTHON = Path(sys.executable).resolve()
PROGRAM = Path(hostile_program.__file__)
SEEN = [path for path in (Path(sys.base_prefix), *map(Path, ("/usr", "/lib", "/lib64", "/bin"))) if path.exists()]
SECRET = "canary-5ab1"
#: Of the things that it makes, those for which it needs no right.
OPEN = ("link", "fifo", "socket", "file")


def test_bytecode_of_a_base_image_is_never_taken_for_debians():
    debians = BytecodeLayer(title="", prefix="opt/flops/runtime", python="3.11", python_full="3.11.2", wheels=())
    foreign = replace(debians, origin="sha256:" + 64 * "1")
    other = replace(debians, origin="sha256:" + 64 * "2")
    assert len({cache_key(one, Compression.GZIP) for one in (debians, foreign, other)}) == 3


def outside(attack, *arguments):
    """What the attack reaches without a sandbox."""
    done = subprocess.run(
        [PYTHON, PROGRAM, attack, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.splitlines()


def confined(*words, **bounds):
    command = [PYTHON, "-S", PROGRAM, *map(str, words)]
    return sandbox.run(command, seen=[*SEEN, PROGRAM], bounds=replace(BOUNDS, **bounds))


@pytest.fixture
def inside():
    """What the attack reaches in the sandbox."""
    if not sandbox.available():
        pytest.skip("bubblewrap is not installed, or this host forbids namespaces")
    return lambda *words, **bounds: confined(*words, **bounds).stdout.decode("utf-8", "replace").splitlines()


@pytest.fixture
def victim():
    """A process of the host with a secret in its environment."""
    with subprocess.Popen(["sleep", "300"], env={"PATH": os.environ["PATH"], "TOKEN": SECRET}) as process:
        yield process
        process.kill()


def test_what_a_confined_program_is_given(inside):
    assert inside("look") == ["[0, 1, 2]", "[]", "(65534, 65534)"]


def test_files_of_the_host_are_neither_read_nor_written(inside, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    assert outside("read", secret) == [SECRET]
    assert inside("read", secret) == inside("overwrite", secret) == []
    assert secret.read_text() == SECRET
    outside("overwrite", secret)
    assert secret.read_text() == "overwritten"


def test_other_processes_are_not_there(inside, victim):
    assert SECRET in str(outside("environments"))
    assert SECRET not in str(inside("environments"))
    assert "signal" in outside("process", victim.pid)
    assert inside("process", victim.pid) == []


def test_listeners_of_the_host_are_not_reached(inside):
    name = f"flops-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as named:
        named.bind("\0" + name)
        named.listen()
        words = ("sockets", port.getsockname()[1], name)
        assert outside(*words) == ["connected", "connected"]
        assert inside(*words) == []


def test_nothing_is_made_where_somebody_else_could_open_it(inside, tmp_path):
    assert {f"{tmp_path}/{name}" for name in OPEN} <= set(outside("things", tmp_path))
    places = [tmp_path / "other", Path("/"), Path("/tmp"), Path("/proc"), Path("/dev"), Path("/usr"), PROGRAM.parent]
    places[0].mkdir()
    assert inside("things", *places) == []
    found = inside("things", *places, scratch=MIB)  # a directory of its own, which ends with it
    assert {f"/tmp/{name}" for name in OPEN} <= set(found)
    # whatever lies below the host's /tmp lies in the sandbox's own there, as far as it is seen at all
    assert {path for path in found if not path.startswith("/tmp/")} == set()
    assert {path.name for path in PROGRAM.parent.iterdir()}.isdisjoint(OPEN)
    assert list(places[0].iterdir()) == []


def test_root_changes_nothing_of_the_kernel_and_of_devices(inside):
    """Without capabilities too it is root to the kernel, where it must stay root."""
    devices = ("/dev/null", "/dev/zero", "/dev/tty")
    if os.geteuid() == 0:
        assert "/proc/sys/kernel/core_pattern" in outside("kernel")
        assert "/dev/null" in outside("modes", *devices)
    assert inside("kernel") == inside("modes", *devices) == []


def test_calls_that_hide_memory_or_reach_the_kernel_are_refused(inside):
    assert {"memfd_create", "shmget"} <= set(outside("calls"))
    assert inside("calls") == []


@pytest.fixture(params=["control groups", "looking"])
def holding(request, monkeypatch):
    """Bounds hold with control groups, where we may make some, and without."""
    if request.param == "looking":
        monkeypatch.setattr(sandbox, "_CGROUPS", Path("/nowhere"))
        monkeypatch.setattr(resource, "prlimit", lambda *_: None)


def test_processes_are_bounded(inside, holding):
    assert outside("forks", 100, 0.1) == ["100"]
    try:
        assert int(inside("forks", 400, 3)[0]) <= BOUNDS.processes
    except ToolFailed as error:
        assert error.message == "the confined program started more than 16 processes and threads"  # noqa: PT017


def test_memory_is_bounded_in_each_process_and_in_all_together(inside, holding):
    assert outside("memory", 1, 300 * MIB) == [str(300 * MIB)]
    assert inside("memory", 1, 300 * MIB) == ["0"]
    with pytest.raises(ToolFailed, match=f"took more than {256 * MIB} bytes of memory"):
        inside("memory", 5, 100 * MIB)


def test_a_control_group_holds_what_is_not_looked_at(inside, monkeypatch):
    if not os.access("/sys/fs/cgroup/memory", os.W_OK):
        pytest.skip("control groups of version 1 can't be made here")
    monkeypatch.setattr(sandbox, "_STATUS", re.compile(b"(nothing)(0)"))
    with pytest.raises(ToolFailed, match="of memory"):
        inside("memory", 5, 100 * MIB)


def test_files_are_bounded_in_size_and_number_and_so_are_open_ones(inside, holding):
    assert outside("descriptors", 500) == ["500"]
    assert int(inside("descriptors", 500)[0]) <= 64
    assert inside("fill", "/tmp", 64 * MIB) == ["0"]
    assert 6 * MIB < int(inside("fill", "/tmp", 64 * MIB, scratch=8 * MIB)[0]) <= 8 * MIB
    try:
        assert int(inside("files", "/tmp", 100_000, scratch=8 * MIB, memory=80 * MIB)[0]) < 80 * MIB / 1024
    except ToolFailed as error:
        assert "of memory" in error.message  # noqa: PT017


def test_output_is_bounded(inside):
    with pytest.raises(ToolFailed, match=f"wrote more than {MIB} bytes"):
        inside("endless")


def test_a_deadline_ends_it_and_nothing_that_it_started_goes_on(inside):
    with pytest.raises(ToolTimeout, match="did not end within 1 s"):
        inside("sleep", 600, seconds=1)
    mark = f"flops-stays-{os.getpid()}"
    inside("stay", 300, mark)
    assert not running(mark)
    try:
        assert outside("stay", 300, mark) == ["started"]
        assert len(running(mark)) == 1
    finally:
        for pid in running(mark):
            os.kill(pid, signal.SIGKILL)


def running(mark):
    """Processes that have this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words:
            found.append(int(path.parent.name))
    return found


def test_it_ends_with_a_builder_that_is_killed(inside):
    mark = f"flops-kill-{os.getpid()}"
    program = f"""
from tests.unit.test_sandbox import confined
confined("sleep", 300, {mark!r})
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROGRAM.parents[1]) as builder:
        try:
            until(lambda: len(running(mark)) == 3)  # bubblewrap twice, and the program
        finally:
            builder.kill()
    until(lambda: not running(mark))


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


def test_what_it_says_is_no_command_to_a_terminal(inside):
    answer = confined("terminal")
    assert answer.code == 3
    assert answer.stderr == "\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\u202eend\n"


@pytest.fixture(params=[1, 2])
def groups(request, monkeypatch, tmp_path):
    """The directories of control groups that may be made below: this machine's of version 1, or files in the form of version 2."""
    if request.param == 2:
        own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
        if not own:
            pytest.skip("this machine has no control groups of version 2")
        (tmp_path / own[0].lstrip("/")).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup.controllers").write_text("memory pids")
        monkeypatch.setattr(sandbox, "_CGROUPS", tmp_path)
        return [tmp_path]
    places = [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/pids")]
    if not all(os.access(place, os.W_OK) for place in places):
        pytest.skip("control groups of version 1 can't be made here")
    return places


def test_a_namespace_is_held_by_control_groups_which_go_with_it(groups, victim):
    with sandbox.held(victim.pid, memory=64 * MIB, processes=7):
        made = [path for place in groups for path in place.glob(f"**/flops-{os.getpid()}-{victim.pid}")]
        texts = {
            path.name: path.read_text().strip() for group in made for path in group.iterdir() if path.name in FILES
        }
        if len(groups) == 1:
            shutil.rmtree(made[0])
    assert texts.pop("cgroup.procs") == str(victim.pid)
    assert sorted(texts.values()) == [str(64 * MIB), "8"]
    assert victim.wait(timeout=0) == -signal.SIGKILL
    assert not any(path.exists() for path in made)


FILES = ("memory.max", "memory.limit_in_bytes", "pids.max", "cgroup.procs")


def test_where_root_may_it_is_another_users_process(inside, monkeypatch):
    if os.geteuid() != 0 or sandbox._proc(65534) is None:
        pytest.skip("root alone may change to another user")
    system = [path for path in map(Path, ("/usr", "/lib", "/lib64", "/bin", "/etc")) if path.exists()]
    answer = sandbox.run(["/bin/cat", "/etc/shadow"], seen=system, bounds=BOUNDS)
    assert (answer.code, answer.stdout) == (1, b"")
    assert "Permission denied" in answer.stderr
    monkeypatch.setattr(sandbox, "_open_to_all", lambda path: False)
    assert sandbox.run(["/bin/cat", "/etc/shadow"], seen=system, bounds=BOUNDS).code == 0

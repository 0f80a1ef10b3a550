"""What is done to a manager and its projects, from outside; each returns what it is judged by."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.faults.builders import is_fetch, is_tag
from tests.faults.service import descendants, processes, wait_until

from flops.orchestrators.processes import read

#: A tmpfs of 64 MB in containers, unless they were given another one.
SHARED = Path("/dev/shm")
SMALL = 128 * 1024 * 1024
#: Where a project is when its manager is killed.
MOMENTS = ("accepted", "queued", "deploying", "building", "tagging", "removing")


def manager_killed(world, moment):
    """A project whose manager is killed at this moment and started again: the project, and how many builders it had."""
    service = world.service
    revision = world.commit()
    if moment == "accepted":
        world.git_gate.close()  # its commit is being asked for
    elif moment == "tagging":
        world.gate.close(is_tag, after=1)
    elif moment in ("building", "removing", "queued"):
        world.git_gate.close(is_fetch)
    others = []
    if moment == "queued":
        others = [world.begin() for _ in range(service.builders)]
        world.git_gate.wait(len(others))
    number = world.begin(revision)
    with service.watch(number) as watch:
        _reach(world, watch, number, moment)
        service.kill()
        world.git_gate.open()
        world.gate.open()
        service.start()
        for other in others:
            world.audit(other)
        return world.audit(number)


def _reach(world, watch, number, moment):
    service = world.service
    if moment == "accepted":
        world.git_gate.wait()
    elif moment == "queued":
        wait_until(lambda: service.project(number)["builder"] == "queued", "the queue")
    elif moment == "deploying":
        watch.wait("deploy")
    elif moment == "building":
        world.git_gate.wait()
    elif moment == "tagging":
        world.gate.wait()
    else:
        pid = watch.builder()
        world.git_gate.wait()
        os.kill(pid, signal.SIGSTOP)  # it does not heed SIGTERM: some seconds pass until it is gone
        assert service.cancel(number) == 200
        wait_until(lambda: watch.last == ("remove", "started"), "its removal")


def killed_between_its_children(world):
    """A manager that is killed while it asks for a commit and has a builder: those that it had of each."""
    service, everything = world.service, threading.Event()
    world.git_gate.close(lambda method, path: everything.is_set() or is_fetch(method, path))
    begun = world.begin()
    with service.watch(begun) as watch:
        job = watch.job()
        world.git_gate.wait()
        everything.set()
        asked = world.begin("main")  # a commit by its hash is asked for by its builder alone
        world.git_gate.wait(2)
        builder = set(processes(job))
        own = descendants(service.child.pid) - set().union(*map(descendants, builder)) - builder
        service.kill()
        wait_until(lambda: not any(map(read, own)), "the end of what the manager had started")
        left = builder & set(processes(job))
        world.git_gate.open()
        service.start()
        for number in (begun, asked):
            assert world.audit(number)["state"] == "images_ready"
    return own, builder, left


def cancelled_in(world, stage):
    """A project that is cancelled while its builder is known to be held there."""
    gate, rule = (world.gate, is_tag) if stage == "tagging" else (world.git_gate, is_fetch)
    gate.close(rule)
    number = world.begin()
    with world.service.watch(number) as watch:
        watch.builder()
        gate.wait()
        status = world.service.cancel(number)
        gate.open()
        return status, world.audit(number)


def cancel_races_tags(world):
    """A project that is cancelled in the very moment in which its builder gets its leave to tag: status and project."""
    number = world.begin()
    with world.service.watch(number) as watch:
        watch.wait("push")
        status = world.service.cancel(number)
        project = world.audit(number)
    assert (status, project["state"]) in ((200, "cancelled"), (409, "images_ready"))
    if status == 200:
        assert not [tag for actor in ("learner", "aggregator") for tag in world.tags(actor, project["commit"])]
    return status, project


def at_once(world, keys):
    """The same SLA once for each key, all at the same time: the ids that were answered."""
    document = world.sla(world.commit())
    barrier = threading.Barrier(len(keys))

    def post(key):
        barrier.wait()
        answer = world.service.post(document, key=key)
        assert answer.status_code == 200, answer.text
        return answer.json()["project"]["id"]

    with ThreadPoolExecutor(len(keys)) as pool:
        return list(pool.map(post, keys))


def builders_seen(world, numbers):
    """How many builders all these projects had together."""
    events = [one for number in numbers for one in world.service.events(number)]
    return sum((one["stage"], one["kind"]) == ("deploy", "started") for one in events)


def registry_away(world, seconds):
    """A project whose registry is away when it pushes, and comes back after a while (None: never)."""
    number = world.begin()
    with world.service.watch(number) as watch:
        watch.wait("check")
        world.gate.down = True
        try:
            if seconds is None:
                wait_until(lambda: watch.outcome, "its failure", 180)
            else:
                threading.Event().wait(seconds)
        finally:
            world.gate.down = False
        return world.audit(number)


@contextlib.contextmanager
def small_disk(place, megabytes):
    """A file system of that size, or the small one that containers have; skips where this account may mount none and has none."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    mounted = subprocess.run(words, check=False, capture_output=True, text=True)
    if mounted.returncode == 0:
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
    elif SHARED.is_dir() and shutil.disk_usage(SHARED).total <= SMALL:
        with tempfile.TemporaryDirectory(dir=SHARED) as name:
            yield Path(name)
    else:
        pytest.skip(f"no small file system: {mounted.stderr.strip()}; and {SHARED} is none")


def cache_full(world, disk, spare):
    """A project whose builder finds so many bytes on its cache directory's disk, and one of the same commit that has room again."""
    revision = world.commit()
    filler = fill(disk, spare=spare)
    failed = world.audit(world.begin(revision))
    filler.unlink()
    return failed, world.audit(world.begin(revision))


def check_disk_full(project, disk):
    """It failed at once, with directory and bytes; nothing that was begun is left on the disk."""
    error = project["error"]
    assert (project["state"], error["code"], project["attempt"]) == ("failed", "DISK_FULL", 1), error
    assert re.search(rf"{re.escape(str(disk))}\S*: \d+ of \d+ bytes are free", error["message"]), error
    left = [path for path in disk.rglob("*") if path.name.startswith((".new-", "apt-", "sources-"))]
    assert not left


def fill(place, *, spare=0):
    """A file that takes all that is left there, or all but so many bytes."""
    path = place / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    os.truncate(path, max(0, path.stat().st_size - spare))
    return path

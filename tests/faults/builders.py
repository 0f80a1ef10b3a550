"""Builders that are killed, from outside and without warning, in a stage that was seen in their own events."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

#: In the order in which a builder goes through them; push is first without, then with the leave to move tags.
STAGES = ("deploy", "clone", "check", "resolve", "fetch", "assemble", "verify", "push")
TAG = re.compile(r"/v2/acme/digits/(learner|aggregator)/manifests/[0-9a-f]{40}")
#: Seconds that a paced builder may work, and that its news have to arrive, for each step.
STEP, LOOK = 0.003, 0.015


def is_tag(method, path):
    """The request that moves a tag."""
    return method == "PUT" and TAG.match(path) is not None


def is_fetch(method, path):
    """The request for a commit's objects, and for a builder's second look; a manager asks only for names."""
    return method == "POST" and path.endswith("/git-upload-pack")


def kill(pid):
    """Whether something was alive that could be killed."""
    try:
        alive = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return alive


class Paced:
    """A builder that works in small steps (SIGSTOP, SIGCONT), so that it is not far from what it was last heard of."""

    def __init__(self, watch, pid):
        self.watch, self.pid = watch, pid

    def until(self, stage):
        """Stopped, with its newest event in this stage, or in a later one where it was too quick; that stage."""
        wanted = STAGES.index(stage)
        while True:
            os.kill(self.pid, signal.SIGSTOP)
            time.sleep(LOOK)
            seen = self.watch.last[0]
            if seen not in STAGES or STAGES.index(seen) >= wanted:
                return seen
            os.kill(self.pid, signal.SIGCONT)
            time.sleep(STEP if seen in STAGES and STAGES.index(seen) == wanted - 1 else 4 * STEP)


def in_stage(world, stage):
    """A project whose first builder is killed in a stage, or a little later: the stage that its events tell, and the project."""
    revision = world.commit()
    world.git_gate.close(is_fetch)
    number = world.begin(revision)
    with world.service.watch(number) as watch:
        pid = watch.builder()
        if stage == "deploy":
            os.kill(pid, signal.SIGSTOP)  # before it has said anything
            watch.wait("deploy", "finished")
        else:
            world.git_gate.wait()
            watch.wait("clone")
        seen = stage
        if stage not in ("deploy", "clone"):
            os.kill(pid, signal.SIGSTOP)
            world.git_gate.open()
            seen = Paced(watch, pid).until(stage)
        assert kill(pid)
        world.git_gate.drop()
        return seen, world.audit(number)


def after_tagging(world, moved, revision=None, **more):
    """A project whose builder is killed when so many of its four tags have moved (each actor's exact one first)."""
    revision = revision or world.commit()
    world.gate.close(is_tag, after=moved)
    number = world.begin(revision, **more)
    with world.service.watch(number) as watch:
        world.gate.wait()
        pid = watch.builder()
        assert watch.wait("push", code="TAGGING")
        assert kill(pid)
        world.gate.drop()
        return world.audit(number)


def forced(world, moved):
    """The same of a forced project, where other images of its commit and recipe stand: their digests, and the project."""
    revision = world.commit()
    assert world.audit(world.begin(revision))["state"] == "images_ready"
    before = {actor: world.put_older(actor, revision) for actor in ("learner", "aggregator")}
    return before, after_tagging(world, moved, revision, force=True)

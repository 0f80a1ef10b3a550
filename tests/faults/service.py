"""`flops serve` as a process that is killed and started again at the same address, and a reader of its event streams."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from flops.orchestrators.processes import scan
from flops_wire.events import TERMINAL_KINDS
from flops_wire.manager import ENDED, JOB_ID, PROJECTS

SOURCE = Path(__file__).parents[2] / "src"
#: Seconds; a machine that is busy with other things makes all of this slow.
PATIENCE = 90.0


def wait_until(condition, what="it", seconds=PATIENCE):
    """What `condition` gives, as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.01)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes(job):
    """Numbers of all processes that carry a builder's name (or begin with it)."""
    mark, found = f"{JOB_ID}={job}".encode(), []
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if any(word.startswith(mark) for word in place.read_bytes().split(b"\0")):
                found.append(int(place.parent.name))
    return sorted(found)


def descendants(pid):
    """Numbers of all processes that a process has started, and that these have."""
    found = [one for one in scan() if one.pid != pid]
    pids = {pid}
    while more := {one.pid for one in found if one.parent in pids} - pids:
        pids |= more
    return pids - {pid}


class Service:
    """The manager. `start` and `kill` as often as wanted; `stop` at the end takes its builders away too."""

    def __init__(self, directory, *words, **variables):
        self.directory = directory
        self.port, self.registry_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLOPS_")}
        cache = {name: os.environ[name] for name in ("FLOPS_CACHE_DIR",) if name in os.environ}
        path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
        self.environment = {**kept, **cache, "FLOPS_DATA_DIR": str(directory / "data"), "PYTHONPATH": path, **variables}
        ports = ("--port", str(self.port), "--registry-port", str(self.registry_port))
        self.words = [sys.executable, "-m", "flops.cli.main", "serve", *ports, "--json", *words]
        self.log = directory / "serve.log"
        token = variables.get("FLOPS_API_TOKEN")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False, headers=self.headers)
        self.builders = int(variables.get("FLOPS_BUILDERS", "2"))
        self.child = None
        self.places = {}
        self.jobs = set()

    def start(self):
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.words, stdout=subprocess.PIPE, stderr=log, env=self.environment, text=True
            )
        text = ""
        while not text.endswith("\n}\n"):
            line = self.child.stdout.readline()
            assert line, self.log.read_text()[-4000:]
            text += line
        self.places = json.loads(text)
        return self

    def end(self, number):
        self.child.send_signal(number)
        code = self.child.wait(60)
        self.child.stdout.close()
        return code

    def kill(self):
        self.end(signal.SIGKILL)

    def stop(self):
        """The end of a test: whatever is left of its builders goes too."""
        if self.child is not None and self.child.poll() is None:
            self.end(signal.SIGTERM)
        for job in self.jobs:
            for pid in processes(job):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.client.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    # --- as its users ---
    def post(self, document, *, key=None, force=False):
        headers = {"Idempotency-Key": key} if key else {}
        return self.client.post(PROJECTS, json=document, headers=headers, params={"force": force})

    def begin(self, document, **options):
        """The id of a new project."""
        answer = self.post(document, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()["project"]["id"]

    def project(self, number):
        return self.client.get(f"{PROJECTS}/{number}").json()

    def cancel(self, number):
        return self.client.post(f"{PROJECTS}/{number}/cancel").status_code

    def logs(self, number):
        return self.client.get(f"{PROJECTS}/{number}/logs").text

    def events(self, number):
        answer = self.client.get(f"{PROJECTS}/{number}/events", params={"follow": False})
        assert answer.status_code in (200, 204), answer.text
        return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]

    def over(self, number):
        """The project, once it has ended and nothing of its builder is left."""

        def ended():
            project = self.project(number)
            return project if project["state"] in ENDED and project["builder"] in ("none", "removed") else None

        try:
            return wait_until(ended, f"the end of project {number}")
        except AssertionError as error:
            told = [(one["stage"], one["kind"], one["message"]) for one in self.events(number)]
            raise AssertionError(f"{error}: {self.project(number)}\n{told}\n{self.log.read_text()[-3000:]}") from error

    def watch(self, number):
        return Watch(self, number)


class Watch:
    """Follows a project's events from a thread, through restarts of the manager."""

    def __init__(self, service, number):
        self.service, self.number = service, number
        self.events = []
        self.changed = threading.Condition()
        self.done = False
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done = True

    @property
    def last(self):
        """Stage and kind of the newest stored event."""
        with self.changed:
            return (self.events[-1]["stage"], self.events[-1]["kind"]) if self.events else ("", "")

    @property
    def outcome(self):
        with self.changed:
            return next((one for one in self.events if one["kind"] in TERMINAL_KINDS), None)

    def wait(self, stage, kind="started", *, code=None, attempt=None, seconds=PATIENCE):
        """The first event that fits."""

        def fits(one):
            same = (one["stage"], one["kind"]) == (stage, kind) and attempt in (None, one["attempt"])
            return same and (code is None or one["code"] == code)

        def found():
            return next((one for one in self.events if fits(one)), None)

        with self.changed:
            there = self.changed.wait_for(lambda: found() or self.outcome_now(), seconds)
            told = [(one["stage"], one["kind"], one["message"]) for one in self.events]
            assert there, f"{stage} {kind} did not come: {told}"
            assert found(), f"it ended before {stage} {kind}: {told}"
            return found()

    def outcome_now(self):
        return any(one["kind"] in TERMINAL_KINDS for one in self.events)

    def job(self, attempt=1):
        """The name of an attempt's builder."""
        job = self.wait("deploy", attempt=attempt)["message"].split(" builder ")[1].split()[0]
        self.service.jobs.add(job)
        return job

    def builder(self, attempt=1):
        """Its first process."""
        job = self.job(attempt)
        return wait_until(lambda: processes(job), "the builder's start")[0]

    def _work(self):
        while not self.done:
            after = next((one["sequence"] for one in reversed(self.events)), 0)
            with contextlib.suppress(httpx.HTTPError):
                self._read(after)
            time.sleep(0.02)

    def _read(self, after):
        url = f"{self.service.url}{PROJECTS}/{self.number}/events"
        timeout = httpx.Timeout(40, connect=5)
        options = {"params": {"after": after}, "headers": self.service.headers, "timeout": timeout, "trust_env": False}
        with httpx.stream("GET", url, **options) as answer:
            self.done = self.done or answer.status_code == 204
            for line in answer.iter_lines():
                if self.done:
                    return
                if line.startswith("data: ") and (event := json.loads(line[6:]))["sequence"] is not None:
                    with self.changed:
                        self.events.append(event)
                        self.changed.notify_all()

"""Idle connections: 25,000 that ask for nothing, for a minute, at a real `flops serve`; whoever asks is answered within a second.

    python bench/idle.py [--connections 25000] [--seconds 60] [--addresses 20] [--first 4000] [--again 1000]

Two processes open them from several addresses of this machine, at the manager and at the embedded registry, so many in a
second (this machine has to do both sides' work); what the server ends is opened anew. Meanwhile /healthz is asked, a
logged-in user starts projects, and the registry's root is asked, each on a connection of its own. Exit code 1 where an
answer took longer than a second, or was none.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from flops_wire.manager import PROJECTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Event

TOKEN = "t0ken-of-the-operator-0123456789"
#: Seconds.
LIMIT = 1.0
PATIENCE = 10.0
PAUSE, STEP = 0.2, 0.02
CROWDS = 2


def crowd(place: tuple[str, int], options: argparse.Namespace, opened: Synchronized[int], stop: Event) -> None:
    """Opens its part of the connections, then again what was ended."""
    wanted = options.connections // CROWDS
    sources = [f"127.0.1.{number + 1}" for number in range(options.addresses)]
    poll = select.epoll()
    there: dict[int, socket.socket] = {}
    while not stop.is_set():
        rate = options.first if opened.value < wanted else options.again
        for _ in range(min(wanted - len(there), int(rate / CROWDS * STEP))):
            one = socket.socket()
            try:
                one.settimeout(1)
                one.bind((sources[opened.value % len(sources)], 0))
                one.connect(place)
            except OSError:
                one.close()
                continue
            opened.value += 1
            there[one.fileno()] = one
            poll.register(one, select.EPOLLIN | select.EPOLLRDHUP)
        until = time.monotonic() + STEP
        while (left := until - time.monotonic()) > 0:
            for number, _ in poll.poll(left):
                there.pop(number).close()


@contextmanager
def crowds(places: list[tuple[str, int]], options: argparse.Namespace) -> Iterator[list[Synchronized[int]]]:
    """How many each has opened so far."""
    stop, opened = multiprocessing.Event(), [multiprocessing.Value("i", 0) for _ in places]
    children = [
        multiprocessing.Process(target=crowd, args=(place, options, count, stop))
        for place, count in zip(places, opened, strict=True)
    ]
    for child in children:
        child.start()
    try:
        yield opened
    finally:
        stop.set()
        for child in children:
            child.join()


@contextmanager
def serving(directory: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FLOPS_")}
    environ |= {"FLOPS_AUTH": "token", "FLOPS_API_TOKEN": TOKEN, "FLOPS_DATA_DIR": str(directory)}
    words = [sys.executable, "-m", "flops.cli.main", "serve", "--port", "0", "--registry-port", "0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environ, text=True) as child:
        assert child.stdout is not None
        try:
            text = ""
            while not text.endswith("\n}\n"):
                text += child.stdout.readline()
            yield child.pid, json.loads(text)
        finally:
            child.terminate()


def ask(method: str, url: str, **more: Any) -> float:
    """Seconds until it was answered with 200; PATIENCE where it was not."""
    begun = time.perf_counter()
    try:
        with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
            seconds = time.perf_counter() - begun  # our own: a context for TLS is made
            answer = client.request(method, url, **more)
    except httpx.HTTPError:
        return PATIENCE
    return time.perf_counter() - begun - seconds if answer.status_code == httpx.codes.OK else PATIENCE


def megabytes(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("\nPss:")[2].split()[0]) / 1024


def measure(pid: int, places: dict[str, Any], options: argparse.Namespace) -> bool:
    manager, registry = places["manager"], places["registry"]
    # a host that refuses at once: what is measured is the answer, which comes before anybody is asked for the commit
    sla = {"ml_repo_url": "https://git.invalid/acme/digits", "ml_model_flavor": "sklearn"}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    targets = [(url.removeprefix("http://").split(":")[0], int(url.rpartition(":")[2])) for url in (manager, registry)]
    took: dict[str, list[float]] = {"GET /healthz": [], "POST a project": [], "GET /v2/": []}
    before, most = megabytes(pid), 0.0
    with crowds(targets, options) as opened:
        until = time.monotonic() + options.seconds
        while time.monotonic() < until:
            took["GET /healthz"].append(ask("GET", f"{manager}/healthz"))
            took["POST a project"].append(ask("POST", f"{manager}{PROJECTS}", json=sla, headers=bearer))
            took["GET /v2/"].append(ask("GET", f"{registry}/v2/"))
            most = max(most, len(list(Path(f"/proc/{pid}/fd").iterdir())))
            time.sleep(PAUSE)
        reached = sum(count.value for count in opened)
    print(f"opened {reached} connections")
    print(f"manager: {before:.0f} MB before, {megabytes(pid):.0f} MB after, at most {most:.0f} files open")
    for name, seconds in took.items():
        print(f"{name:<16}{len(seconds):>5} times, median {sorted(seconds)[len(seconds) // 2]:.3f} s, at most {max(seconds):.3f} s")  # fmt: skip
    return reached >= options.connections and all(max(seconds) < LIMIT for seconds in took.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=25_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--addresses", type=int, default=20)
    parser.add_argument("--first", type=int, default=4000, help="opened in a second, until all are")
    parser.add_argument("--again", type=int, default=1000, help="opened in a second after that")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="flops-bench-") as directory, serving(Path(directory)) as (pid, places):
        return 0 if measure(pid, places, options) else 1


if __name__ == "__main__":
    sys.exit(main())

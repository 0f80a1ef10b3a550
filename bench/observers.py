"""What watching costs a build: 200 viewers of one project, and one that never reads, against nobody.

    python bench/observers.py [--pairs 5] [--viewers 200] [--streams-only] [--rebuild]

A real `flops serve` for each build of the example, for two platforms, with warm caches except for layers: all of them are
made and pushed. Interleaved in pairs. A viewer holds an event
stream and, as the page does, asks for the changed parts of the page when something was stored. All viewers run in one
process of this machine, whose own work is part of what is measured. Seconds are the project's own, from accepted to ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flops.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits-sklearn"
PROJECTS = "/api/flops/projects"
#: Seconds, for one build.
PATIENCE = 600


SETTLE = 0.15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--streams-only", action="store_true", help="viewers don't ask for parts of the page")
    parser.add_argument(
        "--rebuild", action="store_true", help="everything is in the registry: a second, worst for viewers"
    )
    options = parser.parse_args()
    alone: list[float] = []
    watched: list[float] = []
    for number in range(options.pairs):
        for viewers in (0, options.viewers) if number % 2 == 0 else (options.viewers, 0):
            with tempfile.TemporaryDirectory(prefix="flops-bench-", ignore_cleanup_errors=True) as name:
                (watched if viewers else alone).append(one(Path(name), f"pair {number + 1}", viewers, options))
    show("nobody looks on", alone)
    show(f"{options.viewers} viewers and a deaf one", watched)
    ratio, more = (
        statistics.median(watched) / statistics.median(alone),
        statistics.median(watched) - statistics.median(alone),
    )
    print(f"\nratio of the medians: {ratio:.2f}, difference: {more:+.2f} s")
    return 0


def one(place: Path, name: str, viewers: int, options: argparse.Namespace) -> float:
    """Seconds of a build at a manager of its own."""
    with serve(place, warm=options.rebuild) as (url, manager):
        if options.rebuild:
            build(url)
        before = processor(manager)
        took, heard = build(url, viewers=viewers, parts=not options.streams_only)
        spent = processor(manager) - before
    told = f"{name}, {viewers:3} viewers: {took:.2f} s, processor of the manager {spent:.2f} s"
    if viewers:
        told += f", {heard['events']} events and {heard['parts']} parts came, processor of the viewers {heard['processor']} s"
    print(told, flush=True)
    return took


def show(name: str, seconds: list[float]) -> None:
    print(f"{name}: median {statistics.median(seconds):.2f} s, from {min(seconds):.2f} to {max(seconds):.2f}")


def processor(pid: int) -> float:
    """Seconds of processor time that a process has had (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def build(url: str, *, viewers: int = 0, parts: bool = True) -> tuple[float, dict[str, float]]:
    """Seconds of a build, and what its viewers heard."""
    sla = {
        "ml_repo_url": str(EXAMPLE),
        "ml_model_flavor": "sklearn",
        "supported_platforms": ["linux/amd64", "linux/arm64"],
    }
    project = ask(f"{url}{PROJECTS}?force=true", sla)["project"]["id"]
    heard: multiprocessing.Queue[dict[str, float]] = multiprocessing.Queue()
    crowd = multiprocessing.Process(target=watch, args=(url, project, viewers, parts, heard), daemon=True)
    if viewers:
        crowd.start()
    until = time.monotonic() + PATIENCE
    while (told := ask(f"{url}{PROJECTS}/{project}"))["builder"] != "removed":
        if time.monotonic() > until:
            raise SystemExit(f"no end after {PATIENCE} s: {told}")
        time.sleep(0.2)
    if told["state"] != "images_ready":
        raise SystemExit(f"the build failed: {told['error']}")
    counts = heard.get(timeout=60) if viewers else {}
    if viewers:
        crowd.join(60)
    return epoch(told["ended"]) - epoch(told["created"]), counts


def ask(address: str, document: Any = None) -> Any:
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(address, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def epoch(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


@contextmanager
def serve(place: Path, *, warm: bool) -> Iterator[tuple[str, int]]:
    """`flops serve` with the user's own caches, its layers left out unless `warm`; the manager's URL and process."""
    cache = Settings().cache_dir
    if not warm:
        (place / "cache").mkdir()
        for kept in ("wheels", "locks", "uv", "bases", "pythons", "provides"):
            (cache / kept).mkdir(parents=True, exist_ok=True)
            (place / "cache" / kept).symlink_to(cache / kept)
        cache = place / "cache"
    env = {**os.environ, "FLOPS_DATA_DIR": str(place / "data"), "FLOPS_CACHE_DIR": str(cache)}
    words = [
        sys.executable,
        "-m",
        "flops.cli.main",
        "serve",
        "--port",
        "0",
        "--registry-port",
        "0",
        "--allow-local",
        "--json",
    ]
    with (place / "log").open("wb") as log:
        child = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
            text=True,
        )
    try:
        text = ""
        while child.stdout and not text.endswith("\n}\n"):
            line = child.stdout.readline()
            if not line:
                raise SystemExit((place / "log").read_text())
            text += line
        yield json.loads(text)["manager"], child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


# --- the viewers' process ---
def watch(url: str, project: str, viewers: int, parts: bool, heard: multiprocessing.Queue[dict[str, float]]) -> None:
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    path = f"{PROJECTS}/{project}/events"
    with socket.socket() as deaf:  # asks for everything and reads nothing
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect((host, port))
        deaf.sendall(request(url, path))
        counts = {"events": 0, "parts": 0}
        asyncio.run(crowd(url, project, viewers, parts, counts))
    heard.put({**counts, "processor": round(time.process_time(), 2)})


async def crowd(url: str, project: str, viewers: int, parts: bool, counts: dict[str, int]) -> None:
    await asyncio.gather(*(viewer(url, project, parts, counts) for _ in range(viewers)))


async def viewer(url: str, project: str, parts: bool, counts: dict[str, int]) -> None:
    """What a page does, without the browser: until its stream ends."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(request(url, f"{PROJECTS}/{project}/events"))
    settle, pending = [SETTLE], None
    last = 0
    while line := await reader.readline():
        if not line.startswith(b"id: "):
            continue
        last = int(line[4:])
        counts["events"] += 1
        if parts and (pending is None or pending.done()):
            pending = asyncio.create_task(refresh(url, f"/projects/{project}/live?after={last - 1}", settle, counts))
    if pending is not None:
        await pending
    writer.close()


async def refresh(url: str, path: str, settle: list[float], counts: dict[str, int]) -> None:
    await asyncio.sleep(settle[0] * (0.5 + random.random()))
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(request(url, path))
    answer = await reader.read(-1)
    writer.close()
    head, _, _ = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(head.decode("latin-1"))
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"flops-settle: "):
            settle[0] = int(line.partition(b": ")[2]) / 1000
    counts["parts"] += 1


def request(url: str, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nConnection: close\r\n\r\n".encode()


if __name__ == "__main__":
    sys.exit(main())

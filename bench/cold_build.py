"""Measure the main job: the example, both platforms, both images, pushed to a local registry; cold caches, then code changed.

    python bench/cold_build.py [--runs 3]

Seconds per stage are the build's own (`flops build --json`); stages overlap. Memory is sampled and summed over the builder
and all its children; a page that several of them share is shared out among them (PSS, proc(5)). The registry is Debian's docker-registry where it is
installed, our embedded one otherwise; its memory and processor time are not the builder's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flops.registry.app import EmbeddedRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits-sklearn"
PLATFORMS = "linux/amd64,linux/arm64"
#: Seconds between two looks at the processes' memory.
SAMPLE = 0.1
MEGABYTE = 1e6
#: What the project promises.
MOST_SECONDS, MOST_MEGABYTES = 30, 400


@dataclass(frozen=True, kw_only=True)
class Run:
    """One build, measured."""

    result: dict[str, Any]
    seconds: float
    """From the start of the process to its end."""
    processor: float
    """Seconds of processor time, user and system, with children."""
    memory: float
    """Highest sum over builder and children, in MB."""
    largest: float
    """Highest of the builder's own process, in MB."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    cold, warm = [], []
    for number in range(options.runs):
        with tempfile.TemporaryDirectory(prefix="flops-bench-", ignore_cleanup_errors=True) as name:
            place = Path(name)
            repository = make_repository(place / "digits")
            with registry(place / "registry") as address:
                cold.append(build(place, repository, address))
                change_code(repository)
                warm.append(build(place, repository, address))
        print(f"run {number + 1}: cold {cold[-1].seconds:.1f} s, code changed {warm[-1].seconds:.1f} s", flush=True)
    show("cold caches", cold)
    show("only the code changed", warm)
    seconds = statistics.median(one.seconds for one in cold)
    memory = max(one.memory for one in cold)
    print(f"\npromised: below {MOST_SECONDS} s and {MOST_MEGABYTES} MB; measured: {seconds:.1f} s and {memory:.0f} MB")
    return int(seconds > MOST_SECONDS or memory > MOST_MEGABYTES)


def make_repository(directory: Path) -> Path:
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("data", "__pycache__"))
    git(directory, "init", "--quiet")
    commit(directory)
    return directory


def change_code(repository: Path) -> None:
    with (repository / "model_manager.py").open("a") as file:
        file.write("\n# another way to say the same\n")
    commit(repository)


def commit(repository: Path) -> None:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "Digits")


def git(directory: Path, *words: str) -> None:
    who = ["-c", "user.name=Bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=directory, check=True, timeout=60)


@contextmanager
def registry(place: Path) -> Iterator[str]:
    """A registry's address, `127.0.0.1:PORT`."""
    if shutil.which("docker-registry") is None:
        with EmbeddedRegistry(place) as embedded:
            yield embedded.registry.host
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place.mkdir()
    storage = f"storage: {{filesystem: {{rootdirectory: {place}/data}}}}"
    (place / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n{storage}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (place / "log").open("wb") as log:
        words = ["docker-registry", "serve", str(place / "config.yml")]
        child = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(timeout=10)


def build(place: Path, repository: Path, address: str) -> Run:
    words = [sys.executable, "-m", "flops.cli.main", "build", str(repository), "--platform", PLATFORMS]
    env = {name: value for name, value in os.environ.items() if name not in ("FLOPS_CACHE_DIR", "FLOPS_DATA_DIR")}
    env |= {"FLOPS_CACHE_DIR": str(place / "cache"), "FLOPS_DATA_DIR": str(place / "data")}
    with (place / "out").open("w+") as out, (place / "err").open("w+") as err:
        begun = time.monotonic()
        child = subprocess.Popen(
            [*words, "--registry", address, "--json"], stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env
        )
        memory = Memory(child.pid)
        with memory:
            _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode:
            raise SystemExit(f"the build failed:\n{err.read()}")
        result = json.load(out)
    return Run(
        result=result,
        seconds=seconds,
        processor=usage.ru_utime + usage.ru_stime,
        memory=memory.highest / MEGABYTE,
        largest=memory.highest_own / MEGABYTE,
    )


class Memory:
    """Samples the memory of a process and of everything below it, while `with` lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.highest = self.highest_own = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE):
            sizes = {pid: held(pid) for pid in tree(self._pid)}
            self.highest = max(self.highest, sum(sizes.values()))
            self.highest_own = max(self.highest_own, sizes.get(self._pid, 0))


def tree(root: int) -> set[int]:
    """A process and its descendants, by what /proc says now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # the name in parentheses may hold anything; the parent is the second field after it
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, left = set(), [root]
    while left:
        pid = left.pop()
        found.add(pid)
        left += children.get(pid, [])
    return found


def held(pid: int) -> int:
    """Bytes: the proportional set size; 0 for a process that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def show(title: str, runs: Sequence[Run]) -> None:
    rows = {f"stage {stage}": [one.result["seconds"][stage] for one in runs] for stage in runs[0].result["seconds"]}
    rows["process, s"] = [one.seconds for one in runs]
    rows["processor, s"] = [one.processor for one in runs]
    rows["memory with children, MB"] = [one.memory for one in runs]
    rows["memory of the builder, MB"] = [one.largest for one in runs]
    rows |= {f"{name}, MB": [one.result["bytes"][name] / MEGABYTE for one in runs] for name in runs[0].result["bytes"]}
    print(f"\n{title}: {len(runs)} runs on {os.cpu_count()} processors{'':>2}median    lowest   highest")
    for name, values in rows.items():
        print(f"  {name:<32}{statistics.median(values):>14.1f}{min(values):>10.1f}{max(values):>10.1f}")


if __name__ == "__main__":
    sys.exit(main())

"""Measure what builders save each other: the example, then the same pins with other code from an empty cache, then changed code.

    python bench/reuse.py [--runs 1] [--embedded]

Both platforms, both images. `uploaded` is the build's own count; `registry` is by how much the registry's directory grew.
The registry is Debian's docker-registry where it is installed (our embedded one with --embedded).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cold_build import MEGABYTE, Run, build, change_code, make_repository, registry

from flops.registry.app import EmbeddedRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGES = ("clone", "check", "resolve", "fetch", "assemble", "verify", "push")
#: What the project promises: a second project uploads less than this part of the first one's bytes, changed code so many.
MOST_PART, MOST_CODE = 0.01, 100_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--embedded", action="store_true")
    options = parser.parse_args()
    kept = True
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(prefix="flops-bench-", ignore_cleanup_errors=True) as name:
            kept = measure(Path(name), embedded=options.embedded) and kept
    print(f"\npromised: second below {MOST_PART:.0%} and without a wheel, changed code below {MOST_CODE} bytes: {kept}")
    return int(not kept)


def measure(place: Path, *, embedded: bool) -> bool:
    first, second = make_repository(place / "digits"), make_repository(place / "figures")
    change_code(second)
    stored = place / "registry" if embedded else place / "registry" / "data"  # beside docker-registry's log
    head = f"{'':<34}{'process':>9}{'uploaded':>13}{'registry':>13}{'downloaded':>12}   stages, s"
    print(head)
    seen: dict[str, tuple[Run, int]] = {}
    with (embedded_registry if embedded else registry)(place / "registry") as address:
        for title, repository, empty, changed in (
            ("first project", first, True, False),
            ("second project, empty cache", second, True, False),
            ("its code changed", second, False, True),
            ("its code changed, empty cache", second, True, True),
        ):
            if changed:
                change_code(repository)
            if empty:
                shutil.rmtree(place / "cache", ignore_errors=True)
            before = size(stored)
            run = build(place, repository, address)
            seen[title] = run, size(stored) - before
            show(title, run, seen[title][1])
    whole = seen["first project"][0].result["bytes"]["uploaded"]
    again = seen["second project, empty cache"]
    codes = [one for title, one in seen.items() if title.startswith("its code")]
    return (
        max(again[0].result["bytes"]["uploaded"], again[1]) < MOST_PART * whole
        and again[0].result["bytes"]["downloaded"] == 0
        and all(max(run.result["bytes"]["uploaded"], grown) < MOST_CODE for run, grown in codes)
    )


def show(title: str, run: Run, grown: int) -> None:
    moved, seconds = run.result["bytes"], run.result["seconds"]
    stages = "  ".join(f"{name} {seconds[name]:.1f}" for name in STAGES)
    print(
        f"{title:<34}{run.seconds:>7.1f} s{moved['uploaded']:>13,}{grown:>13,}"
        f"{moved['downloaded'] / MEGABYTE:>9.1f} MB   {stages}",
        flush=True,
    )


@contextmanager
def embedded_registry(place: Path) -> Iterator[str]:
    with EmbeddedRegistry(place) as one:
        yield one.registry.host


def size(root: Path) -> int:
    """Bytes of the files below a directory, hard links once."""
    files = [path.stat() for path in root.rglob("*") if path.is_file()]
    return sum({told.st_ino: told.st_size for told in files}.values())


if __name__ == "__main__":
    sys.exit(main())

# ruff: noqa: T201 - a table on stdout is what it is for
"""Breaks healthy repositories and counts what the doctor repairs.

    python -m tests.mutation.run [--seed N ...] [--kind K ...] [--sample S ...] [--cache DIR] [--verbose]

Each of ten samples is damaged in each of ten ways. What happens to a mutant:

    repaired     it locks on both platforms, with an adjustment that tells what was changed
    proposed     it is refused with a code and a line, and its repair locks when it is written into the file
    told         it is refused with a code and a line, or a finding tells it, without a repair
    untold       it is refused without a line, or it is taken as if nothing were wrong
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.mutation.kinds import KINDS, REAL, Mutant, mutate
from tests.mutation.samples import SAMPLES

from flops.errors import DependencyError, FlopsError
from flops.locking.lock import Locker
from flops.platforms import Platform
from flops.progress import Silent, StageClock
from flops.recipe import Accelerator, Recipe
from flops.repair import rewrite
from flops.repair.inspection import inspect
from flops.repair.pythons import PythonChoice
from flops.repair.resolve import LockRequest, resolve
from flops.repository.source import parse_source
from flops.request import Request
from flops.settings import Settings
from flops.wheels.provides import Provides
from flops.wheels.wheel_cache import WheelCache

PYTHONS = (
    PythonChoice(version="3.11.2", minor="3.11", glibc=(2, 36), provider="debian", suite="bookworm"),
    PythonChoice(version="3.13.5", minor="3.13", glibc=(2, 41), provider="debian", suite="trixie"),
)
VERDICTS = ("repaired", "proposed", "told", "untold")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    verdict: str
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What mutants are checked with."""

    locker: Locker
    provides: Provides
    settings: Settings

    def judge(self, mutant: Mutant, healthy: frozenset[str]) -> Verdict:
        """`healthy`: codes and packages that the undamaged sample is told, too."""
        try:
            adjusted, found = self.check(mutant.files)
        except DependencyError as error:
            return self._refused(mutant, error)
        except FlopsError as error:
            return Verdict(verdict="untold", code=error.code, detail=f"no dependency error: {error.message}")
        new = [one for one in adjusted if one.partition(" ")[2] not in healthy]
        if new:
            return Verdict(verdict="repaired", code=new[0].split()[0], detail="; ".join(new))
        findings = [finding for finding in found if finding.line]
        if findings:
            first = findings[0]
            return Verdict(verdict="told", code=first.code, detail=f"{first.where} {first.message} | {first.hint}")
        return Verdict(verdict="untold", code="", detail="taken as it is")

    def check(self, files: dict[str, str]):
        """The adjustments as text, and the findings that are no mere notes of reading. Any FlopsError."""
        with tempfile.TemporaryDirectory(prefix="flops-mutation-") as name:
            place, room = Path(name, "repository"), Path(name, "room")
            place.mkdir()
            room.mkdir()
            for path, text in files.items():
                (place / path).write_text(text)
            request = Request(
                source=parse_source(str(place)),
                platforms=tuple(sorted(Platform)),
                recipe=Recipe(accelerator=Accelerator.CUDA),  # whatever an index of CPU builds answers
            )
            seen = inspect(request, room, settings=self.settings, clock=StageClock(Silent()), reporter=Silent())
            question = LockRequest(
                platforms=request.platforms, pythons=PYTHONS, recipe=request.recipe, reporter=Silent()
            )
            settled = resolve(seen, question, locker=self.locker, provides=self.provides)
        changes = (*seen.requirements.adjustments, *settled.adjustments)
        told = [f"{one.code} {one.package} {one.before} -> {one.after}" for one in changes]
        return told, [one for one in settled.findings if one.code != "VERSIONS_DIFFER"]

    def _refused(self, mutant: Mutant, error: DependencyError) -> Verdict:
        placed = [finding for finding in error.findings if finding.line]
        detail = f"{placed[0].where if placed else '?'} {error.message[:160]}"
        if not placed or not error.code:
            return Verdict(verdict="untold", code=error.code, detail=detail)
        before = {path: text.encode() for path, text in mutant.files.items() if not path.endswith(".py")}
        edit = rewrite.edit(before, error.repairs)
        if not edit.files:
            return Verdict(verdict="told", code=error.code, detail=detail)
        after = {**mutant.files, **{path: data.decode() for path, data in edit.files.items()}}
        try:
            self.check(after)
        except FlopsError as second:
            detail += f" | the repair does not lock: {second.message[:160]}"
            return Verdict(verdict="told", code=error.code, detail=detail)
        repairs = "; ".join(f"{one.code} {one.package} {one.before} -> {one.after}" for one in error.repairs)
        return Verdict(verdict="proposed", code=error.code, detail=f"{detail} | {repairs}")


def run(bench: Bench, seed: int, kinds=tuple(KINDS), samples=tuple(SAMPLES), *, verbose: bool = False, choices=REAL):
    """All verdicts, by kind and sample."""
    verdicts: dict[tuple[str, str], Verdict] = {}
    for sample in samples:
        told, _ = bench.check(SAMPLES[sample])
        healthy = frozenset(one.partition(" ")[2] for one in told)
        for kind in kinds:
            mutant = mutate(SAMPLES[sample], kind, Random(f"{seed} {sample} {kind}"), choices)
            begun = time.perf_counter()
            verdict = bench.judge(mutant, healthy)
            verdicts[kind, sample] = verdict
            if verbose:
                seconds = time.perf_counter() - begun
                print(f"{verdict.verdict:9} {seconds:5.1f} s  {kind}, {sample}: {mutant.what}", flush=True)
                print(f"          {verdict.code}: {verdict.detail}", flush=True)
    return verdicts


def table(verdicts) -> str:
    """Figures by kind."""
    kinds = dict.fromkeys(kind for kind, _ in verdicts)
    lines = [f"{'kind':20}{''.join(f'{name:>10}' for name in VERDICTS)}"]
    total: Counter[str] = Counter()
    for kind in kinds:
        counts = Counter(verdict.verdict for (one, _), verdict in verdicts.items() if one == kind)
        total += counts
        lines.append(f"{kind:20}{''.join(f'{counts[name]:>10}' for name in VERDICTS)}")
    lines.append(f"{'all':20}{''.join(f'{total[name]:>10}' for name in VERDICTS)}")
    good = total["repaired"] + total["proposed"]
    lines.append(
        f"repaired, or with a repair that locks: {good} of {total.total()}; without a code and a line: {total['untold']}"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--sample", nargs="+", default=list(SAMPLES), choices=list(SAMPLES))
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--verbose", action="store_true")
    chosen = parser.parse_args()
    settings = Settings.read()
    cache = chosen.cache or settings.cache_dir
    enough = True
    with WheelCache(cache / "wheels", index_url=settings.index_url, ca_bundle=settings.ca_bundle) as wheels:
        bench = Bench(
            locker=Locker(cache, index_url=settings.index_url, ca_bundle=settings.ca_bundle),
            provides=Provides(cache / "provides", wheels, ca_bundle=settings.ca_bundle),
            settings=settings,
        )
        for seed in chosen.seed:
            begun = time.perf_counter()
            verdicts = run(bench, seed, chosen.kind, chosen.sample, verbose=chosen.verbose)
            print(f"seed {seed}, {time.perf_counter() - begun:.0f} s\n{table(verdicts)}", flush=True)
            good = sum(verdict.verdict in VERDICTS[:2] for verdict in verdicts.values())
            enough = (
                enough and good >= 0.8 * len(verdicts) and not any(v.verdict == "untold" for v in verdicts.values())
            )
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())

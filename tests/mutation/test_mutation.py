"""One mutant of each kind on the made index; the whole run is `make mutation`."""

from __future__ import annotations

from random import Random

import pytest
from tests import corpus
from tests.mutation import kinds, run, samples

from flops.locking.lock import Locker
from flops.repair.imports import known
from flops.settings import Settings

SEED = 7
PAIRS = list(zip(kinds.KINDS, samples.SAMPLES, strict=True))


class MadeProvides:
    """What the made index's wheels would have in them: the module of the package's name, or that of the data file."""

    def modules(self, wheels):
        named = {}
        for module, requirement in known().packages.items():
            named.setdefault(requirement.partition("<")[0], set()).add(module.partition(".")[0])
        return {
            wheel.sha256: frozenset(named.get(wheel.name, set()) | {wheel.name.replace("-", "_")}) for wheel in wheels
        }

    def requires(self, wheels):
        return {wheel.sha256: () for wheel in wheels}

    def pythons(self, wheels):
        return {}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    with corpus.MadeIndex() as index:
        locker = Locker(cache, index_url=index.url, retries=0)
        yield run.Bench(locker=locker, provides=MadeProvides(), settings=Settings(cache_dir=cache))


@pytest.mark.parametrize(("kind", "sample"), PAIRS, ids=[kind for kind, _ in PAIRS])
def test_a_mutant_is_repaired(bench, kind, sample):
    verdicts = run.run(bench, SEED, [kind], [sample], choices=kinds.MADE)
    (verdict,) = verdicts.values()
    assert verdict.verdict in {"repaired", "proposed"}, verdict


def test_every_kind_breaks_every_sample_anew():
    for sample, files in samples.SAMPLES.items():
        for kind in kinds.KINDS:
            made = [kinds.mutate(files, kind, Random(f"{seed} {sample} {kind}")) for seed in (1, 1, 2, 3, 4)]
            assert made[0] == made[1]
            assert all(mutant.files != files for mutant in made), (sample, kind)


def test_the_table_counts():
    verdict = run.Verdict(verdict="told", code="X", detail="")
    text = run.table(
        {("a", "x"): verdict, ("a", "y"): verdict, ("b", "x"): run.Verdict(verdict="repaired", code="", detail="")}
    )
    assert text.splitlines()[-1] == "repaired, or with a repair that locks: 1 of 3; without a code and a line: 0"
    assert text.splitlines()[1].split() == ["a", "0", "0", "2", "0"]

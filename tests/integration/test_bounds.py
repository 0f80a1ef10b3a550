"""Each bound of resources/bounds.toml is still needed: outside it the proof fails on the real index, inside it passes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import uv

from flops.errors import IndexUnreachable
from flops.formats.bounds import bounds
from flops.locking.lock import Locker
from flops.settings import Settings

pytestmark = pytest.mark.integration

NAMES = [f"{bound.package}{bound.specifier} beside {' '.join(bound.beside)}" for bound in bounds()]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    settings = Settings.read()
    room = tmp_path_factory.mktemp("bounds")
    try:
        with Locker(room, index_url=settings.index_url, ca_bundle=settings.ca_bundle).index() as index:
            index.knows("packaging")
    except IndexUnreachable as error:
        pytest.skip(f"the package index is not reachable: {error}")
    return room


def proves(room, name: str, packages, code: str) -> bool:
    """Install wheels into an environment of their own and run the proof in it."""
    place = room / name
    settings = Settings.read()
    environment = {**os.environ, "UV_CACHE_DIR": str(room / "uv"), "VIRTUAL_ENV": str(place)}
    if settings.index_url:
        environment["UV_DEFAULT_INDEX"] = settings.index_url
    install = ["pip", "install", "--no-config", "--quiet", "--only-binary", ":all:", *packages]
    for words in (["venv", "--no-config", "--quiet", "--python", sys.executable, str(place)], install):
        subprocess.run([uv.find_uv_bin(), *words], env=environment, check=True, timeout=600)
    done = subprocess.run(
        [str(place / "bin" / "python"), "-c", code], capture_output=True, cwd=room, timeout=300, check=False
    )
    return done.returncode == 0


@pytest.mark.parametrize("bound", bounds(), ids=NAMES)
def test_a_bound_is_still_needed(room, bound):
    if bound.large and not os.environ.get("FLOPS_TEST_LARGE"):
        pytest.skip("its wheels have gigabytes: FLOPS_TEST_LARGE=1 fetches them")
    name = f"{bound.package}-{len(os.listdir(room))}"
    inside = (*bound.proof_packages, f"{bound.package}{bound.specifier}")
    assert proves(room, f"{name}-inside", inside, bound.proof)
    outside = (*bound.proof_packages, f"{bound.package}{bound.proof_version}")
    assert not proves(room, f"{name}-outside", outside, bound.proof)

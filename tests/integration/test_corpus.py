"""The sample repositories with a `[real]` table, and locks that uv made, on the package index that this machine uses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import uv
from packaging.markers import Marker
from tests import corpus

from flops.errors import IndexUnreachable
from flops.formats import requirements
from flops.locking.lock import Locker
from flops.locking.pylock import LockTarget
from flops.platforms import Platform
from flops.progress import Silent
from flops.recipe import Recipe
from flops.repair import lock_findings
from flops.repair.resolve import LockRequest, use_own_lock
from flops.settings import Settings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def locker(tmp_path_factory):
    settings = Settings.read()
    locker = Locker(tmp_path_factory.mktemp("cache"), index_url=settings.index_url, ca_bundle=settings.ca_bundle)
    try:
        with locker.index() as index:
            index.knows("packaging")
    except IndexUnreachable as error:
        pytest.skip(f"the package index is not reachable: {error}")
    return locker


PROJECT = """\
[project]
name = "digits"
version = "0.1"
requires-python = ">=3.10,<3.14"
dependencies = [
    "scikit-learn==1.5.2", "redis==5.0.1", "coverage[toml]==7.4.0", "tqdm", "uvicorn[standard]==0.30.0", "pandas<3", "mlflow-skinny==2.12.1",
]
[project.optional-dependencies]
plots = ["colorama"]
[dependency-groups]
train = ["iniconfig", {include-group = "more"}]
more = ["exceptiongroup==1.2.0"]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, locker: Locker):
    """Files of a project: pyproject.toml, and what uv itself makes of it."""
    place = tmp_path_factory.mktemp("project")
    (place / "pyproject.toml").write_text(PROJECT)
    uv_program, settings = uv.find_uv_bin(), Settings.read()
    environment = {"HOME": str(place), "UV_CACHE_DIR": str(place / "cache"), "PATH": os.environ["PATH"]}
    if settings.index_url:
        environment["UV_DEFAULT_INDEX"] = settings.index_url
    if settings.ca_bundle or "SSL_CERT_FILE" in os.environ:
        environment["SSL_CERT_FILE"] = str(settings.ca_bundle or os.environ["SSL_CERT_FILE"])
    export = [
        "export",
        "--frozen",
        "--no-default-groups",
        "--group",
        "train",
        "--no-emit-project",
        "--format",
        "pylock.toml",
    ]
    for words in (["lock", "--python", sys.executable], [*export, "-o", "pylock.toml"]):
        subprocess.run([uv_program, *words, "--quiet"], cwd=place, env=environment, check=True, timeout=300)
    return {name: (place / name).read_bytes() for name in ("pyproject.toml", "uv.lock", "pylock.toml")}


def taken(found, environment):
    """What an environment gets, by the entries' markers."""
    return {
        entry.name: entry.specifier
        for entry in found.entries
        if not entry.marker or Marker(entry.marker).evaluate(dict(environment))
    }


def test_a_uv_lock_gives_what_uv_exports_of_it(project):
    files = {name: data for name, data in project.items() if name != "pylock.toml"}
    lock = requirements.read(files, groups=["train"])
    export = requirements.read({"pylock.toml": project["pylock.toml"]})
    assert lock.path == "uv.lock"
    assert lock.complete
    assert export.complete
    assert [change.package for change in lock.adjustments] == ["mlflow-skinny"]
    only_trackers = set()
    for platform in Platform:
        for python in ("3.10.0", "3.10.14", "3.11.2", "3.11.3", "3.12.0", "3.13.5"):
            environment = LockTarget(platform=platform, python=python, glibc=(2, 36)).marker_environment
            ours, theirs = taken(lock, environment), taken(export, environment)
            assert ours.items() <= theirs.items()
            only_trackers |= theirs.keys() - ours.keys()
            assert ("async-timeout" in ours) == (python < "3.11.3")
            assert {"numpy", "pandas", "uvloop", "iniconfig", "exceptiongroup"} <= ours.keys()
    assert {"gitpython", "entrypoints"} <= only_trackers  # which only mlflow asks for
    assert "requests" not in ours


def test_a_lock_of_uv_is_taken_with_its_hashes(project, locker: Locker):
    for name in ("uv.lock", "pylock.toml"):
        found = requirements.read({name: project[name], "pyproject.toml": project["pyproject.toml"]})
        platforms = tuple(Platform)
        request = LockRequest(platforms=platforms, pythons=corpus.OFFERED, recipe=Recipe(), reporter=Silent())
        resolution = use_own_lock(found, request, locker=locker)
        assert resolution.python.version == "3.11.2"
        assert lock_findings.compare_hashes(dict.fromkeys(platforms, found.entries), resolution.locks) == ()
        for platform, lock in resolution.locks.items():
            environment = LockTarget(platform=platform, python="3.11.2", glibc=(2, 36)).marker_environment
            assert {wheel.name: f"=={wheel.version}" for wheel in lock.wheels} == taken(found, environment)


@pytest.mark.parametrize("name", corpus.with_table("real"))
def test_a_repository_locks_as_it_expects(name, tmp_path, locker: Locker):
    corpus.check_lock(name, tmp_path, locker, "real")

"""The sample repositories with a `[real]` table, locked on the package index that this machine uses."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from flops.builder.lock import Locker
from flops.errors import IndexUnreachable
from flops.settings import Settings

pytestmark = pytest.mark.integration


def load_corpus():
    path = Path(__file__).parents[1] / "corpus.py"
    specification = importlib.util.spec_from_file_location("corpus", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


corpus = load_corpus()


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


@pytest.mark.parametrize("name", corpus.with_table("real"))
def test_a_repository_locks_as_it_expects(name, tmp_path, locker):
    corpus.check_lock(name, tmp_path, locker, "real")

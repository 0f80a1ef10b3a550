"""The sample repositories with a `[lock]` table: uv for real, on the index made from tests/repos/index.toml, on loopback."""

import pytest
from tests import corpus

from flops.locking.lock import Locker

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def locker(tmp_path_factory):
    with corpus.MadeIndex() as index:
        yield Locker(tmp_path_factory.mktemp("cache"), index_url=index.url, retries=0)


@pytest.mark.parametrize("name", corpus.with_table("lock"))
def test_a_repository_locks_as_it_expects(name, tmp_path, locker: Locker):
    corpus.check_lock(name, tmp_path, locker, "lock")
